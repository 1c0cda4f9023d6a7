"""Where a server binds: an address as it is written becomes the endpoints to bind."""

from __future__ import annotations

import socket

from portbook.bind.attempt import DUAL, EVERYWHERE, Endpoint
from portbook.errors import UsageError

# RFC 6761 section 6.3: the name is loopback, of both families, without a resolver.
NAMES = {"localhost": (Endpoint("127.0.0.1"), Endpoint("::1"))}
BOTH = frozenset(endpoint.address for endpoint in (*EVERYWHERE, *NAMES["localhost"]))


def read(address: str | None = None, *, dual: bool = False) -> tuple[Endpoint, ...]:
    """The endpoints of ``None`` (every address of both families), of ``localhost``, of one address.

    :param address: such as ``192.0.2.1``, ``::1``, ``[::1]`` or ``fe80::1%eth0``
    :param dual: one IPv6 socket that takes the IPv4 port as well (RFC 3493 section 5.3)
    :raises UsageError: the address is not valid, or does not go with ``dual``
    """
    if dual and address not in (None, "::"):
        raise UsageError(f"a dual-stack socket is bound to [::], not to {address}", "omit the address")
    if dual:
        return DUAL
    if address is None:
        return EVERYWHERE
    return NAMES.get(address.lower()) or (_one(address),)


def _one(text: str) -> Endpoint:
    written, percent, zone = text.removeprefix("[").removesuffix("]").partition("%")
    family = socket.AF_INET6 if ":" in written else socket.AF_INET
    try:
        address = socket.inet_ntop(family, socket.inet_pton(family, written))  # in the one spelling of RFC 5952
    except (OSError, ValueError) as error:
        hint = "write 127.0.0.1, ::1, fe80::1%eth0 or localhost"
        raise UsageError(f"{text!r} is not an IP address", hint) from error
    if percent and (not zone or family == socket.AF_INET):
        raise UsageError(f"{text!r} has a zone that is not valid", "write fe80::1%eth0")
    return Endpoint(address, zone or None)


def show(endpoint: Endpoint) -> str:
    """As people write it: ``0.0.0.0``, ``[::1]``, ``[fe80::1%eth0]``."""
    zone = f"%{endpoint.zone}" if endpoint.zone else ""
    return f"[{endpoint.address}{zone}]" if ":" in endpoint.address else endpoint.address
