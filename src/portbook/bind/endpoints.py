"""The endpoints at which a server binds, from an address as people write it."""

from __future__ import annotations

from portbook.addresses import DUAL, EVERYWHERE, Endpoint, parse_host
from portbook.errors import UsageError

# RFC 6761 section 6.3: the name is loopback, of both families, and no resolver is needed.
NAMES = {"localhost": (Endpoint("127.0.0.1"), Endpoint("::1"))}
VALID = "write 127.0.0.1, ::1, fe80::1%eth0 or localhost"
BOTH = frozenset(endpoint.address for endpoint in (*EVERYWHERE, *NAMES["localhost"]))


def parse(address: str | Endpoint | None = None, *, dual: bool = False) -> tuple[Endpoint, ...]:
    """The endpoints of ``None`` (every address of both families), of ``localhost`` or of one address.

    :param address: such as ``192.0.2.1``, ``::1``, ``[::1]`` or ``fe80::1%eth0``
    :param dual: one IPv6 socket that takes the port of IPv4 as well (RFC 3493 section 5.3)
    :raises UsageError: the text is not an address, or ``dual`` does not go with it
    """
    if isinstance(address, Endpoint):
        return (address,)
    if address is not None and not isinstance(address, str):
        raise UsageError(f"an address cannot be of the type {type(address).__name__}", VALID)
    if dual and address not in (None, "*", "::", "[::]"):
        raise UsageError(f"a dual-stack socket is bound to [::], not to {address}", "omit the address")
    if dual:
        return DUAL
    if address is None or address == "*":
        return EVERYWHERE
    host = parse_host(address)
    if host.is_local_name:
        return NAMES["localhost"]
    if not host.is_address:
        raise UsageError(f"{address!r} is not an address", VALID)
    return (Endpoint(host.name, host.zone),)
