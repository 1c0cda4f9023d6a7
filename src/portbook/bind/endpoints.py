"""The endpoints at which a server binds, from an address as people write it."""

from __future__ import annotations

from portbook.addresses import DUAL, EVERYWHERE, Endpoint, parse_endpoint
from portbook.errors import UsageError

# RFC 6761 section 6.3: the name is loopback, of both families, and no resolver is needed.
NAMES = {"localhost": (Endpoint("127.0.0.1"), Endpoint("::1"))}
BOTH = frozenset(endpoint.address for endpoint in (*EVERYWHERE, *NAMES["localhost"]))


def parse(address: str | None = None, *, dual: bool = False) -> tuple[Endpoint, ...]:
    """The endpoints of ``None`` (every address of both families), of ``localhost`` or of one address.

    :param address: such as ``192.0.2.1``, ``::1``, ``[::1]`` or ``fe80::1%eth0``
    :param dual: one IPv6 socket that takes the port of IPv4 as well (RFC 3493 section 5.3)
    :raises UsageError: the text is not an address, or ``dual`` does not go with it
    """
    if dual and address not in (None, "::"):
        raise UsageError(f"a dual-stack socket is bound to [::], not to {address}", "omit the address")
    if dual:
        return DUAL
    if address is None:
        return EVERYWHERE
    if address.lower() in NAMES:
        return NAMES[address.lower()]
    try:
        return (parse_endpoint(address),)
    except ValueError as error:
        raise UsageError(str(error), "write 127.0.0.1, ::1, fe80::1%eth0 or localhost") from error
