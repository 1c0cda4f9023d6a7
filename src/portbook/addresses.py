"""Addresses: packed, as text, as the socket module wants them, and as ``host:port``.

Inside portbook an address is canonical text (RFC 5952) without brackets and without a zone; the zone, the interface of
a link-local address (RFC 4007), is kept beside it.
"""

from __future__ import annotations

import _socket  # the C module below socket, without its enums and selectors, which are slow to import
import errno
import os
import sys
from collections.abc import Iterator

from msgspec import Struct

from portbook.numerals import UINT32, is_number, number_or_none
from portbook.records import Reach

SocketAddress = tuple[str, int] | tuple[str, int, int, int]  # (address, port), (address, port, flow info, scope id)

# IPv4-mapped IPv6 addresses, packed and as text: RFC 4291 section 2.5.5.2.
MAPPED = bytes(10) + b"\xff\xff"
MAPPED_PREFIX = "::ffff:"
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
    """The canonical text of an address without brackets and zone; raise ValueError."""
    try:
        return address_text(_socket.inet_pton(family_of(text), text))
    except (OSError, ValueError) as error:  # ValueError: a NUL, or characters that cannot be encoded
        raise ValueError(f"{text!r} is not an IP address") from error


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
    IPv4-mapped loopback (RFC 4291 section 2.5.5.2).
    """
    text = address.removeprefix(MAPPED_PREFIX)
    if text in ("0.0.0.0", "::"):  # noqa: S104  compared, not bound
        return "any"
    if text == "::1" or (text.startswith("127.") and ":" not in text):
        return "loopback"
    return "address"


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


# --- with a port ---------------------------------------------------------------------------------------------------


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
