"""Addresses: packed, as text, as the socket module wants them, and as ``host:port``; and the names of hosts.

Inside portbook an address is canonical text (RFC 5952) without brackets and without a zone; the zone, the interface of
a link-local address (RFC 4007), is kept beside it.
"""

from __future__ import annotations

import _socket  # the C module below socket, without its enums and selectors, which are slow to import
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import suppress

from msgspec import Struct

from portbook.errors import UsageError
from portbook.numerals import UINT32, is_number, number_or_none
from portbook.records import Reach

SocketAddress = tuple[str, int] | tuple[str, int, int, int]  # (address, port), (address, port, flow info, scope id)

# IPv4-mapped IPv6 addresses, packed and as text: RFC 4291 section 2.5.5.2.
MAPPED = bytes(10) + b"\xff\xff"
MAPPED_PREFIX = "::ffff:"
MOST_NAME, MOST_LABEL = 253, 63  # characters of a host name and of a part of it: RFC 1035 section 2.3.4, without dots
MOST_SHOWN = 80  # characters of a wrong value in a message
# The first group of fe80::/10 as canonical text: fe80 to febf (RFC 4291 section 2.5.6).
LINK_LOCAL = ("fe8", "fe9", "fea", "feb")
DEVICES = "/proc/thread-self/net/dev"  # Linux: an interface on each line, "eth0: 1500 ...", below two lines of titles
MOST_DEVICES_BYTES = 1 << 20  # of DEVICES: about 8,000 interfaces


class Endpoint(Struct, frozen=True):
    """Where a socket is bound, without the port. As text: ``0.0.0.0``, ``[::1]``, ``[fe80::1%eth0]``."""

    address: str
    zone: str | None = None  # the interface of a link-local address, by name or number
    dual: bool = False  # "::" without IPV6_V6ONLY: takes the port of IPv4 as well

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return family_of(self.address)

    def __str__(self) -> str:
        return format_endpoint(self.address, None, self.zone)


class NamedHost(Struct, frozen=True):
    """A host as people write it, checked: an address, or a name for a resolver."""

    name: str  # canonical address, or an ASCII name without a trailing dot: what TLS sends and verifies
    zone: str | None = None  # the interface of a link-local address
    is_address: bool = False
    is_absolute: bool = False  # the name was written with a trailing dot: no search domains (RFC 1535 section 5)

    @property
    def lookup_name(self) -> str:
        """What a resolver gets: ASCII, with the trailing dot if it was written."""
        return f"{self.name}." if self.is_absolute else self.name

    @property
    def is_local_name(self) -> bool:
        """Whether it is ``localhost`` or below it: always loopback (RFC 6761 section 6.3)."""
        return not self.is_address and f".{self.name.lower()}".endswith(".localhost")

    def __str__(self) -> str:
        """Text that ``parse_host`` reads back."""
        return format_endpoint(self.lookup_name, None, self.zone)


EVERYWHERE = (Endpoint("0.0.0.0"), Endpoint("::"))  # noqa: S104  what a server binds, IPv6 with IPV6_V6ONLY
DUAL = (Endpoint("::", dual=True),)


# --- one address ---------------------------------------------------------------------------------------------------


def address_text(packed: bytes) -> str:
    """The canonical text of a packed address (RFC 5952), the same on every platform and Python version."""
    if len(packed) == 4:
        return _socket.inet_ntop(_socket.AF_INET, packed)
    if packed[:12] == MAPPED:
        return MAPPED_PREFIX + _socket.inet_ntop(_socket.AF_INET, packed[12:])
    text = _socket.inet_ntop(_socket.AF_INET6, packed)
    if "." not in text:
        return text
    from ipaddress import IPv6Address

    return IPv6Address(packed).compressed  # systems differ about ::1.2.3.4 and ::5efe:1.2.3.4


def canonical(text: str) -> str:
    """The canonical text of an address without brackets and zone; raise ValueError.

    IPv4 is four decimal numbers without leading zeros (RFC 6943 section 3.1.1), on every platform: some read the
    others as octal, hexadecimal or one large number.
    """
    if "." in text and _has_leading_zero(text.rpartition(":")[2]):
        raise ValueError(f"{text!r} is not an IP address")
    try:
        return address_text(_socket.inet_pton(family_of(text), text))
    except (OSError, ValueError) as error:  # ValueError: a NUL, or characters that cannot be encoded
        raise ValueError(f"{text!r} is not an IP address") from error


def _has_leading_zero(dotted: str) -> bool:
    return any(part.startswith("0") and part != "0" for part in dotted.split("."))


def family_of(address: str) -> int:
    """AF_INET or AF_INET6, of an address as text."""
    return _socket.AF_INET6 if ":" in address else _socket.AF_INET


def is_link_local(address: str) -> bool:
    """Whether a canonical address is in fe80::/10 (RFC 4291 section 2.5.6): only there a zone has a meaning."""
    return address.startswith(LINK_LOCAL) and address.find(":") == 4


def is_mapped(address: str) -> bool:
    """Whether a canonical address is an IPv4-mapped IPv6 address, such as ``::ffff:192.0.2.1``."""
    return address.startswith(MAPPED_PREFIX) and "." in address


def unmapped(address: str) -> str:
    """The IPv4 address inside an IPv4-mapped one; any other canonical address unchanged."""
    return address.removeprefix(MAPPED_PREFIX) if is_mapped(address) else address


def reach_of(address: str) -> Reach:
    """From where a local address (canonical text) can be reached.

    Loopback is 127.0.0.0/8 (RFC 1122 section 3.2.1.3), ::1 (RFC 4291 section 2.5.3) and
    IPv4-mapped loopback (RFC 4291 section 2.5.5.2). Multicast is 224.0.0.0/4 (RFC 5771 section 3) and ff00::/8
    (RFC 4291 section 2.7); 255.255.255.255 is every host of the network (RFC 919 section 7).
    """
    text = unmapped(address)
    if text in ("0.0.0.0", "::"):  # noqa: S104  compared, not bound
        return "any"
    if text == "::1" or (text.startswith("127.") and ":" not in text):
        return "loopback"
    if text == "255.255.255.255":
        return "broadcast"
    if ":" in text:
        first_group = text.partition(":")[0]  # without leading zeros: RFC 5952 section 4.1
        return "multicast" if len(first_group) == 4 and first_group.startswith("ff") else "address"
    first = number_or_none(text.partition(".")[0], 255)
    return "multicast" if first is not None and 224 <= first <= 239 else "address"


# --- zones ---------------------------------------------------------------------------------------------------------


def split_zone(text: str) -> tuple[str, str | None]:
    """``fe80::1%eth0`` as address and zone (RFC 4007 section 11.2); None: it has no zone."""
    address, _, zone = text.partition("%")
    return address, zone or None


def scope_id(zone: str | None) -> int:
    """The number of an interface given by name or number (RFC 3493 section 4); 0 for none.

    :raises OSError: ENODEV, there is no interface of this name
    """
    if not zone:
        return 0
    if is_number(zone):
        number = number_or_none(zone, UINT32)
        if number is not None:
            return number
    try:
        return _socket.if_nametoindex(zone)
    except (OSError, ValueError) as error:  # OSError without a number; ValueError: a NUL
        raise OSError(errno.ENODEV, f"no interface {zone!r}") from error


def zone_name(scope: int) -> str:
    """The name of an interface; its number on Windows, where people use that, and when the interface is gone."""
    if sys.platform == "win32":
        return str(scope)
    try:
        return _encodable(_socket.if_indextoname(scope))
    except (OSError, OverflowError):
        return str(scope)


def interface_names() -> dict[int, str]:
    """Interface index to name, in the calling thread's network namespace; empty if they are not known.

    Who owns a network namespace may send to every netlink socket in it, also to that of if_nameindex(3), which waits
    until the kernel's answer is the next one. So the names are read from /proc where that exists.
    """
    try:
        return dict(_read_devices())
    except OSError:
        pass
    try:
        return {index: _encodable(name) for index, name in _socket.if_nameindex()}
    except OSError:
        return {}


def _read_devices() -> Iterator[tuple[int, str]]:
    file = os.open(DEVICES, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while (part := os.read(file, MOST_DEVICES_BYTES)) and len(text) < MOST_DEVICES_BYTES:
            text += part
    finally:
        os.close(file)
    for line in text.split(b"\n")[2:]:
        name, colon, _ = line.partition(b":")
        if not colon:
            continue
        name = name.strip()
        try:
            index = _socket.if_nametoindex(os.fsdecode(name))
        except OSError:
            continue  # it was removed meanwhile
        yield index, name.decode("utf-8", "replace")


def _encodable(name: str) -> str:
    """A name with U+FFFD for each byte that is not UTF-8: who owns a namespace chooses the names in it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# --- hosts ---------------------------------------------------------------------------------------------------------


def parse_host(text: str) -> NamedHost:
    """Read ``localhost``, ``example.org.``, ``127.0.0.1``, ``::1``, ``[::1]`` or ``fe80::1%eth0``: the one rule.

    What another program would read as a different address is refused: ``127.1``, ``0x7f.1``, ``010.0.0.1``,
    ``2130706433``. Names that are not ASCII follow IDNA 2008 (RFC 5891, and the mapping of UTS 46).

    :raises UsageError: it is neither an address nor a name; the hint says what to write
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare or bare is not text:
        return _parse_ipv6(text, bare)
    name = _ascii_name(text)
    if _ends_in_number(name):
        return _parse_ipv4(text, name)
    return NamedHost(name.removesuffix("."), is_absolute=name.endswith("."))


def _parse_ipv6(text: str, bare: str) -> NamedHost:
    address, percent, zone = bare.partition("%")
    try:
        address = canonical(address)
    except ValueError as error:
        raise UsageError(f"{text[:MOST_SHOWN]!r} is not an address", "write ::1 or fe80::1%eth0") from error
    if ":" not in address:
        raise UsageError(f"{text!r} is an IPv4 address in brackets", f"write {address}")
    if percent and not zone:
        raise UsageError(f"{text!r} names no interface after %", f"write {address}%eth0")
    if zone and not _may_have_zone(address):
        message = f"{text[:MOST_SHOWN]!r}: only a link-local address has an interface"
        raise UsageError(message, f"write {address}")
    return NamedHost(address, zone or None, is_address=True)


def _may_have_zone(address: str) -> bool:
    """Link-local addresses, and multicast of one interface or link (RFC 4291 sections 2.5.6 and 2.7)."""
    return is_link_local(address) or (address.startswith("ff") and address[3:4] in "12" and address.find(":") == 4)


def _ends_in_number(name: str) -> bool:
    """Whether programs read it as an IPv4 address: the last part is a number (RFC 1123 section 2.1, inet_aton(3))."""
    last = name.removesuffix(".").rpartition(".")[2].lower()
    return is_number(last) or (last.startswith("0x") and not last[2:].strip("0123456789abcdef"))


def _parse_ipv4(text: str, name: str) -> NamedHost:
    if name == text:
        try:
            return NamedHost(canonical(text), is_address=True)
        except ValueError:
            pass
    readings = _ipv4_readings(name)
    if len(readings) > 1:
        raise UsageError(f"{text!r} is read as {' or as '.join(readings)}", "write the one that is meant")
    hint = f"write {readings[0]}" if readings else "an IPv4 address is four numbers from 0 to 255, such as 127.0.0.1"
    raise UsageError(f"{text[:MOST_SHOWN]!r} is not an address", hint)


def _ipv4_readings(name: str) -> list[str]:
    """What the text may mean: its numbers as decimal, and as inet_aton(3) reads them."""
    readings: dict[str, None] = {}
    numbers = [number_or_none(part, 0xFF) for part in name.removesuffix(".").split(".")]
    if len(numbers) == 4 and None not in numbers:
        readings[".".join(map(str, numbers))] = None
    with suppress(OSError):
        readings[_socket.inet_ntoa(_socket.inet_aton(name.removesuffix(".")))] = None
    return list(readings)


def _ascii_name(text: str) -> str:
    """The name in ASCII, checked; raise UsageError. Underscores are no part of RFC 1123 names, but of real ones."""
    shown = repr(text[:MOST_SHOWN])
    name = text
    if not text.isascii() and len(text) <= MOST_NAME:
        name = _encode_idna(text)
    labels = name.removesuffix(".").split(".")
    if not all(label.replace("-", "").replace("_", "").isalnum() and label.isascii() for label in labels):
        raise UsageError(f"{shown} is not a host name or an address", "write localhost, example.org, 127.0.0.1 or ::1")
    if len(name) > MOST_NAME + 1 or max(map(len, labels)) > MOST_LABEL:
        limits = f"at most {MOST_NAME} characters, {MOST_LABEL} between two dots"
        raise UsageError(f"the host name {shown} is too long", limits)
    return name


def _encode_idna(text: str) -> str:
    """The A-labels of a name (RFC 5890 section 2.3.2.1). Python's own codec is IDNA 2003: another host for "straße"."""
    try:
        import idna
    except ImportError as error:
        hint = "install the Python package idna, or write the form that begins with xn--"
        raise UsageError(f"{text!r} is not ASCII", hint) from error
    try:
        return idna.encode(text, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise UsageError(f"{text!r} is not a host name: {error}", "write the form that begins with xn--") from error


# --- with a port ---------------------------------------------------------------------------------------------------


def is_own(address: str, zone: str | None = None) -> bool:
    """Whether this machine has the address; True if the system does not say."""
    if reach_of(address) != "address":
        return True
    try:
        sock = _socket.socket(family_of(address), _socket.SOCK_DGRAM)
        try:
            sock.bind(socket_address(address, 0, zone))
        finally:
            sock.close()
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV, getattr(errno, "WSAEADDRNOTAVAIL", None))
    return True


def socket_address(address: str, port: int, zone: str | None = None) -> SocketAddress:
    """What connect() and bind() of the socket module take; raise OSError when the zone is no interface."""
    if ":" not in address:
        return (address, port)
    return (address, port, 0, scope_id(zone))


def format_endpoint(address: str, port: int | None = None, zone: str | None = None) -> str:
    """An address as in a URL: IPv6 in brackets (RFC 3986 section 3.2.2), the zone inside: ``[fe80::1%eth0]:80``."""
    text = address
    if ":" in address:
        text = f"[{address}%{zone}]" if zone else f"[{address}]"
    return text if port is None else f"{text}:{port}"


def parse_endpoint(text: str) -> Endpoint:
    """Read ``192.0.2.1``, ``::1``, ``[::1]``, ``fe80::1%eth0`` or ``[fe80::1%eth0]``; raise ValueError."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    address, percent, zone = bare.partition("%")
    try:
        address = canonical(address)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IP address") from error
    if percent and (not zone or ":" not in address):
        raise ValueError(f"the zone in {text!r} names no interface of an IPv6 address")
    return Endpoint(address, zone or None)


def split_host_port(text: str) -> tuple[str, str]:
    """Host, without brackets, and port of ``name:80``, ``127.0.0.1:80``, ``[::1]:80`` or ``[fe80::1%eth0]:80``.

    Neither is checked further.

    :raises ValueError: there is no port or no host, or an IPv6 address has no brackets
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address needs brackets before a port")
    if not colon or not host:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, port
