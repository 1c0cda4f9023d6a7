"""What people write for a port, read in one place for every command and function.

    8080   :8080   8000-8100   8080/udp   udp:53   http   localhost:8080   [::1]:8080   http://localhost:3000/path
    ("127.0.0.1", 8080)   8080 as an int   a Ports

A number without a host is a port of this machine. A name of a service is the number that is registered for it.
Everything here is pure, but for the table of service names, which is read when a name is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from msgspec import Struct

from portbook.addresses import (
    MOST_SHOWN,
    NamedHost,
    canonical,
    family_of,
    format_endpoint,
    is_link_local,
    parse_host,
    zone_name,
)
from portbook.errors import UsageError
from portbook.numerals import UINT16, UINT32, is_number, number_or_none
from portbook.records import PROTOCOLS, Protocol

if TYPE_CHECKING:
    from typing import SupportsIndex, TypeAlias

    # What functions take for one port and for several. A tuple of a text and a number is a socket address.
    PortLike: TypeAlias = "SupportsIndex | str | tuple[str, int] | tuple[str, int, int, int] | Ports"
    PortsLike: TypeAlias = PortLike | Iterable[PortLike]

PORTS = (1, UINT16)  # RFC 9293 section 3.1; 0 lets bind() choose and is the port of no socket
VALID = "write 8080, 8080/udp, http or localhost:8080"
MOST_PORTS = 100  # that a range is expanded to where each port is tried by itself; a scan takes more


class Ports(Struct, frozen=True):
    """One port or a range, as somebody wrote it."""

    first: int
    last: int
    protocol: Protocol | None = None  # None: not said
    host: NamedHost | None = None  # None: not said; this machine

    @property
    def port(self) -> int:
        """The number of a single port."""
        return self.first

    @property
    def numbers(self) -> range:
        """Every number."""
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        """Text that ``parse`` reads back."""
        host = f"{self.host}:" if self.host else ""
        last = f"-{self.last}" if self.last != self.first else ""
        protocol = f"/{self.protocol}" if self.protocol else ""
        return f"{host}{self.first}{last}{protocol}"


# --- one word ------------------------------------------------------------------------------------------------------


def parse(value: PortLike) -> Ports:
    """Read one port or one range; raise UsageError, also for a value of another type."""
    if isinstance(value, Ports):
        number_range("port", f"{value.first}-{value.last}", PORTS)
        return value
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, tuple):
        return _parse_socket_address(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UsageError(f"a port cannot be of the type {type(value).__name__}", VALID)
    number = _checked_number(value.__index__())
    return Ports(number, number)


def _checked_number(number: int) -> int:
    least, most = PORTS
    if least <= number <= most:
        return number
    shown = f"port {number}" if abs(number) <= UINT32 else "the port"  # str() of a large number raises
    raise UsageError(f"{shown} is out of range", f"valid values are {least} to {most}")


def parse_one(value: PortLike) -> Ports:
    """Read one port; raise UsageError, also for a range."""
    ports = parse(value)
    if ports.first != ports.last:
        raise UsageError(f"{str(value)[:MOST_SHOWN]!r} is more than one port", f"name one, such as {ports.first}")
    return ports


def parse_several(values: PortsLike) -> list[Ports]:
    """Read ports and ranges: text is split at commas and blanks, each is returned once; raise UsageError.

    :raises UsageError: a value is no port, or there is none
    """
    ports = list(dict.fromkeys(map(parse, words(values))))
    if not ports:
        raise UsageError("no port", VALID)
    return ports


def words(values: PortsLike) -> Iterator[PortLike]:
    """Yield each value; text split at commas and blanks."""
    for item in items(values):
        if isinstance(item, str):
            yield from (word for part in item.split() for word in part.split(","))
        else:
            yield item


def items(values: PortsLike) -> Iterable[PortLike]:
    """The values, if they are several; else the value alone, text unsplit."""
    is_single = isinstance(values, str | bytes | bytearray | Ports) or not hasattr(values, "__iter__")
    if is_single or (isinstance(values, tuple) and _is_socket_address(values)):
        return (values,)  # type: ignore[return-value]  # bytes: refused by parse
    return values  # type: ignore[return-value]  # checked above


class PortSet(Struct, frozen=True):
    """Ports that are treated alike: what to choose among, or what to probe."""

    numbers: tuple[int, ...]  # ascending, each once
    protocol: Protocol | None = None
    host: NamedHost | None = None


def parse_set(values: PortsLike) -> PortSet:
    """Read ports that have one protocol and one host, or none; raise UsageError."""
    ports = parse_several(values)
    protocols = list(dict.fromkeys(each.protocol for each in ports))
    hosts = list(dict.fromkeys(each.host for each in ports))
    if len(protocols) > 1:
        raise UsageError("these ports are of different protocols", "name the ports of one protocol at a time")
    if len(hosts) > 1:
        raise UsageError("these ports are of different hosts", "name the ports of one host at a time")
    numbers = sorted({number for each in ports for number in each.numbers})
    return PortSet(tuple(numbers), protocols[0], hosts[0])


def with_protocol(ports: Ports, protocol: Protocol | None) -> Ports:
    """The ports with a protocol that is given beside them; raise UsageError if both are given and differ."""
    if protocol is None:
        return ports
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r:.80}", f"valid values are {', '.join(PROTOCOLS)}")
    if ports.protocol not in (None, protocol):
        raise UsageError(f"{ports} is not a port of {protocol}", f"write {ports.first}")
    return Ports(ports.first, ports.last, protocol, ports.host)


def singles(ports: Iterable[Ports], most: int = MOST_PORTS) -> list[Ports]:
    """Return every port by itself; raise UsageError if there are more than ``most``."""
    ports = list(ports)
    count = sum(len(each.numbers) for each in ports)
    if count > most:
        raise UsageError(f"{count:,} ports are too many for one call", f"at most {most}; portbook scan takes more")
    return [Ports(number, number, each.protocol, each.host) for each in ports for number in each.numbers]


def _is_socket_address(value: tuple[object, ...]) -> bool:
    return len(value) in (2, 4) and isinstance(value[0], str) and all(isinstance(part, int) for part in value[1:])


def _parse_socket_address(value: tuple[str | int, ...]) -> Ports:
    """As ``socket.getsockname()`` returns it."""
    if not _is_socket_address(value):
        raise UsageError("a tuple is a socket address", 'write ("127.0.0.1", 8080), or a list for several ports')
    text, port, *more = value
    number = _checked_number(int(port))
    host = parse_host(str(text)) if text else None
    if host is not None and host.zone is None and more and more[-1]:
        host = NamedHost(host.name, zone_name(int(more[-1])), is_address=True)
    return Ports(number, number, None, host)


# --- text ----------------------------------------------------------------------------------------------------------


def _parse_text(text: str) -> Ports:
    word = text.strip()
    if "://" in word:
        return _parse_url(word)
    word, protocol = _split_protocol(word)
    host_text, port_text = split_host(word)
    host = parse_host(host_text) if host_text not in (None, "", "*") else None
    first, last, only = _parse_numbers(port_text, text)
    return Ports(first, last, protocol or only, host)


def _split_protocol(text: str) -> tuple[str, Protocol | None]:
    """``8080/udp``, or ``udp:8080`` as lsof(8) and others write it."""
    before, slash, after = text.rpartition("/")
    front, colon, rest = text.partition(":")
    for protocol in PROTOCOLS:
        if slash and after.lower() == protocol:
            return before, protocol
        if colon and front.lower() == protocol:
            return rest, protocol
    if not slash:
        return text, None
    for protocol in PROTOCOLS:
        if before.lower() == protocol:
            raise UsageError(f"{text[:MOST_SHOWN]!r} is not a port", f"write {after}/{protocol}")
    message = f"unknown protocol {after[:MOST_SHOWN]!r} in {text[:MOST_SHOWN]!r}"
    raise UsageError(message, f"valid values are {', '.join(PROTOCOLS)}")


def split_host(text: str) -> tuple[str | None, str]:
    """Host, in brackets if it is written so, and the text of the port; None: no host is written.

    :raises UsageError: an IPv6 address has no brackets, or nothing after them
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        return None, text
    if number_or_none(host, PORTS[1], PORTS[0]) and number_or_none(port, PORTS[1], PORTS[0]):
        raise UsageError(f"{text[:MOST_SHOWN]!r} is not a range of ports", f"write {host}-{port}")
    if _is_ipv6(text):
        if not _is_ipv6(host) and host != ":":
            raise UsageError(f"{text!r} is an address without a port", f"write [{text}]:80")
        host = "::" if host == ":" else host
        example = f"[{text}]:80 or, with {port} as the port, [{host}]:{port}"
        raise UsageError(f"{text!r} is an address without a port", f"write {example}")
    if text.endswith("]"):
        raise UsageError(f"{text[:MOST_SHOWN]!r} has no port", f"write {text[:MOST_SHOWN]}:80")
    if ":" in host and not host.startswith("["):
        if not _is_ipv6(host):
            raise UsageError(f"{text[:MOST_SHOWN]!r} is not a host and a port", "write localhost:80 or [::1]:80")
        host = f"[{host}]"  # ":::80", as netstat prints it: it can be read in no other way
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        return family_of(canonical(text.partition("%")[0])) == family_of(":")
    except ValueError:
        return False


def _parse_numbers(text: str, whole: str) -> tuple[int, int, Protocol | None]:
    """The first and last port, and the protocol that the name of a service has."""
    if any(c.isalpha() for c in text) and not any(c in ".:/@" for c in text):
        from portbook.names import port_of

        found = port_of(text)
        if found is not None:
            return found[0], found[0], found[1]
    if is_number(text) or is_range(text):
        first, last = number_range("port", text, PORTS)
        return first, last, None
    raise _not_a_port(text, whole)


def _not_a_port(text: str, whole: str) -> UsageError:
    shown = repr(whole[:MOST_SHOWN])
    if not text:
        return UsageError(f"{shown} has no port" if whole.strip() else f"port {shown} is not a number", VALID)
    address, _, port = text.rpartition(".")
    if text.count(".") == 4 and _host_or_none(address) and is_number(port):  # as netstat of macOS prints it
        return UsageError(f"{shown} is not a port", f"write {address}:{port}")
    message = f"port {text[:MOST_SHOWN]!r} is not a number or the name of a service"
    open_range = _open_range(text)
    if open_range is not None:
        return UsageError(message, f"write {open_range}")
    is_word = text[:1].isalnum() and text[-1:].isalnum() and (any(c.isalpha() for c in text) or "." in text)
    if text == whole.strip() and is_word and _host_or_none(text):
        return UsageError(message, f"write 8080, or {text}:8080 for a port of that host")
    first, last = PORTS
    valid = f"valid values are {first} to {last}, such as 80 or 8000-8100, and names such as http"
    return UsageError(message, valid)


def _open_range(text: str) -> str | None:
    """The range that ``1024-``, ``-1024``, ``>1024``, ``<=1024`` and the like mean; None for other texts."""
    least, most = PORTS
    number = number_or_none(text.strip("<>=-"), most, least)
    if number is None:
        return None
    firsts = {f">{number}": number + 1, f">={number}": number, f"{number}-": number}
    lasts = {f"<{number}": number - 1, f"<={number}": number, f"-{number}": number}
    if text in firsts and firsts[text] < most:
        return f"{firsts[text]}-{most}"
    if text in lasts and lasts[text] > least:
        return f"{least}-{lasts[text]}"
    return None


def is_range(text: str) -> bool:
    """Whether the text is a number or two numbers with a hyphen, of any size."""
    return all(is_number(part) for part in text.split("-", 1))


def number_range(field: str, text: str, limits: tuple[int, int]) -> tuple[int, int]:
    """Read ``80`` or ``8000-8100``; raise UsageError that names the field and the limits."""
    least, most = limits
    if not is_range(text):
        valid = f"valid values are {least} to {most}, such as 80 or 8000-8100"
        raise UsageError(f"{field} {text[:MOST_SHOWN]!r} is not a number", valid)
    first_text, hyphen, last_text = text.partition("-")
    first = number_or_none(first_text, most, least)
    last = number_or_none(last_text, most, least) if hyphen else first
    if first is None or last is None:
        raise UsageError(f"{field} {text[:MOST_SHOWN]!r} is out of range", f"valid values are {least} to {most}")
    if first > last:
        raise UsageError(f"{field} {text!r} runs backwards", f"write {last}-{first}")
    return first, last


# --- URLs ----------------------------------------------------------------------------------------------------------


def _parse_url(text: str) -> Ports:
    """The host and port of a URL (RFC 3986 section 3.2). User and password are dropped and in no message."""
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower().removeprefix("jdbc:").partition("+")[0]
    authority = rest
    for end in "/?#":
        authority = authority.partition(end)[0]
    authority = authority.rpartition("@")[2]
    shown = repr(f"{scheme[:MOST_SHOWN]}://{authority[:MOST_SHOWN]}")
    if not authority:
        raise UsageError(f"{shown} names no host", "write http://localhost:8080")
    only = next((protocol for protocol in PROTOCOLS if protocol == scheme), None)
    host_text, port_text = _split_authority(authority)
    host = parse_host(host_text.replace("%25", "%", 1)) if host_text != "*" else None  # RFC 6874 section 2
    if port_text:
        first, last = number_range("port", port_text, PORTS)
        return Ports(first, last, only, host)
    from portbook.names import port_of

    found = port_of(scheme)
    if found is None or only is not None:
        raise UsageError(f"{shown} has no port", f"write {scheme[:MOST_SHOWN]}://{authority[:MOST_SHOWN]}:80")
    return Ports(found[0], found[0], found[1], host)


def _split_authority(authority: str) -> tuple[str, str]:
    if authority.endswith("]") or ":" not in authority:
        return authority, ""
    host, _, port = authority.rpartition(":")
    return host, port


# --- with a host of its own ----------------------------------------------------------------------------------------


LOCALHOST = NamedHost("localhost")


def reachable(host: NamedHost, port: int) -> NamedHost:
    """The host, if one can connect to it; raise UsageError for a link-local address without interface (RFC 4007)."""
    if host.is_address and host.zone is None and is_link_local(host.name):
        example = format_endpoint(host.name, port, "eth0")
        raise UsageError(f"{host.name} is link-local and needs its interface", f"write {example}")
    return host


def parse_targets(values: PortsLike, ports: PortsLike | None = None) -> list[Ports]:
    """Read what is to be connected to: each a single port with a host, localhost if none is written.

    A host may stand before its ports, as nc(1) has it: ``localhost 8080 8081``, ``::1 22``, ``db 5432``.

    :param ports: ports of every host in ``values``, which then have none
    :raises UsageError: there is no port, there are more than ``MOST_PORTS``, or a value is neither
    """
    if ports is not None:
        hosts = [_host_alone(value) for value in words(values)] or [LOCALHOST]
        wanted = singles(parse_several(ports))
        return [_at(host, each) for host in hosts for each in wanted]
    found: list[Ports] = []
    host: NamedHost | None = None
    items = list(words(values))
    for position, item in enumerate(items):
        if _is_host_word(item, items[position + 1 : position + 2]):
            host = parse_host(str(item))
            continue
        each = parse(item)
        if not (isinstance(item, str) and (is_range(item) or _is_service(item))):
            host = None
        found.append(_at(each.host or host or LOCALHOST, each))
    if not found:
        raise UsageError("no port", VALID)
    return list(dict.fromkeys(singles(found)))


def _at(host: NamedHost, ports: Ports) -> Ports:
    return Ports(ports.first, ports.last, ports.protocol, reachable(host, ports.first))


def _is_host_word(item: PortLike, following: list[PortLike]) -> bool:
    """Whether the word is a host, because a port follows: a number, or a service if the word is none itself."""
    if not isinstance(item, str) or is_range(item) or "/" in item:
        return False
    if not following or not isinstance(following[0], str):
        return False
    if ":" in item and not _is_ipv6(item) and not (item.startswith("[") and item.endswith("]")):
        return False
    return is_range(following[0]) or (_is_service(following[0]) and not _is_service(item))


def _is_service(word: str) -> bool:
    from portbook.names import port_of

    return port_of(word) is not None


def _host_or_none(text: str) -> NamedHost | None:
    """The host if the word is one, and has no port."""
    try:
        return parse_host(text)
    except UsageError:
        return None


def _host_alone(value: PortLike) -> NamedHost:
    if not isinstance(value, str):
        raise UsageError(f"a host cannot be of the type {type(value).__name__}", "write the ports once")
    if ":" in value and not _is_ipv6(value.strip("[]")):
        raise UsageError(f"{value[:MOST_SHOWN]!r} is not a host", "write the ports once, such as localhost -p 80")
    return parse_host(value)


def local_address(ports: Ports | PortSet) -> str | None:
    """The address of this machine that is written before a port, as ``address=`` of functions takes it.

    :returns: ``127.0.0.1``, ``fe80::1%eth0``, ``localhost`` for both loopback addresses; None: no host is written
    :raises UsageError: the host is a name of another machine, or may be one
    """
    host = ports.host
    if host is None:
        return None
    if host.is_local_name:
        return "localhost"
    if host.is_address:
        return f"{host.name}%{host.zone}" if host.zone else host.name
    hint = "omit it"
    if isinstance(ports, Ports):
        number = str(Ports(ports.first, ports.last, ports.protocol))
        hint = f"write {number}, or to reach that host: portbook dial {ports}"
    raise UsageError(f"{host} is not an address of this machine", hint)
