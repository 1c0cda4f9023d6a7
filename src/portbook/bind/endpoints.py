"""Where a server is asked to bind: an address as it is written becomes the endpoints that are bound."""

from __future__ import annotations

import socket

from portbook.bind.attempt import DUAL, EVERYWHERE, Endpoint
from portbook.errors import UsageError

# RFC 6761 section 6.3: the name is loopback, of both families, and no resolver need be asked.
NAMES = {"localhost": (Endpoint("127.0.0.1"), Endpoint("::1"))}
BOTH = frozenset(endpoint.address for endpoint in (*EVERYWHERE, *NAMES["localhost"]))


def read(address: str | None = None, *, dual: bool = False) -> tuple[Endpoint, ...]:
    """The endpoints of ``None`` (every address of both families), of ``localhost``, of one address.

    :param address: such as ``192.0.2.1``, ``::1``, ``[::1]`` or ``fe80::1%eth0``
    :param dual: one IPv6 socket that takes the port of IPv4 as well (RFC 3493 section 5.3)
    :raises UsageError: it is no address, or both were asked
    """
    if dual and address not in (None, "::"):
        raise UsageError(f"a dual-stack socket is bound to [::], not to {address}", "leave the address away")
    if dual or address is None:
        return DUAL if dual else EVERYWHERE
    return NAMES.get(address.lower()) or (_one(address),)


def _one(text: str) -> Endpoint:
    bare, percent, zone = text.removeprefix("[").removesuffix("]").partition("%")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        address = socket.inet_ntop(family, socket.inet_pton(family, bare))  # in the one spelling of RFC 5952
    except (OSError, ValueError) as error:
        hint = "write 127.0.0.1, ::1, fe80::1%eth0 or localhost"
        raise UsageError(f"{text!r} is not an IP address", hint) from error
    if percent and (not zone or family == socket.AF_INET):
        raise UsageError(f"{text!r} has a zone that makes no sense", "write fe80::1%eth0")
    return Endpoint(address, zone or None)


def show(endpoint: Endpoint) -> str:
    """As people write it: ``0.0.0.0``, ``[::1]``, ``[fe80::1%eth0]``."""
    zone = f"%{endpoint.zone}" if endpoint.zone else ""
    return f"[{endpoint.address}{zone}]" if ":" in endpoint.address else endpoint.address
