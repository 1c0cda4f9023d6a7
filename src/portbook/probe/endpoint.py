"""An address as the socket module has it."""

from __future__ import annotations

import errno
import socket

Endpoint = tuple[str, int] | tuple[str, int, int, int]


def family_of(address: str) -> socket.AddressFamily:
    """Of an address in canonical text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def endpoint(address: str, port: int, zone: str | None = None) -> Endpoint:
    """What connect() and bind() want; OSError when there is no such interface."""
    if ":" not in address:
        return (address, port)
    return (address, port, 0, scope(zone))


def scope(zone: str | None) -> int:
    """The number of an interface (RFC 3493 section 4, RFC 4007 section 11.2); OSError when there is none."""
    if not zone:
        return 0
    if zone.isdecimal():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except OSError as error:  # without a number
        raise OSError(errno.ENODEV, f"no interface {zone!r}") from error
