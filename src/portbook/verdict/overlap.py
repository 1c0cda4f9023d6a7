"""Which addresses conflict with each other: pure.

Each socket claims an IPv4 address, an IPv6 address, or both: ``::`` without IPV6_V6ONLY claims every address of both
families, an IPv4-mapped address (RFC 4291 section 2.5.5.2) is IPv4. Two claims collide when they are equal or one is a
wildcard.

Sources: ipv6(7), RFC 3493 sections 3.7 and 5.3; inet_rcv_saddr_equal() in net/ipv4/inet_connection_sock.c.
"""

from __future__ import annotations

from typing import NamedTuple

from portbook.addresses import Endpoint, is_mapped, unmapped
from portbook.records import Confidence, Socket

ANY = "*"
UNCONNECTED = frozenset(("LISTEN", "BOUND", None))


class Claim(NamedTuple):
    """What a socket takes of each family: an address, ANY, or None."""

    v4: str | None
    v6: str | None


def claim_of_endpoint(endpoint: Endpoint) -> Claim:
    """What a bind of the endpoint would take."""
    return _claim(endpoint.address, v6only=not endpoint.dual)


def claim_of_socket(s: Socket) -> Claim:
    """What a socket has taken. If v6only is unknown, assume the default, which is off."""
    return _claim(s.local_address, v6only=bool(s.v6only))


def _claim(address: str, v6only: bool) -> Claim:
    if ":" not in address:
        return Claim(ANY if address == "0.0.0.0" else address, None)  # noqa: S104  compared
    if is_mapped(address):
        return Claim(unmapped(address), None)
    if address == "::":
        return Claim(None if v6only else ANY, ANY)
    return Claim(None, address)


def overlap(s: Socket, endpoint: Endpoint) -> Confidence | None:
    """Whether a socket's address conflicts with an endpoint; None if it does not."""
    device = s.interface or s.zone
    if device and endpoint.zone and device != endpoint.zone:
        return None
    taken, requested = claim_of_socket(s), claim_of_endpoint(endpoint)
    if _collide(taken.v6, requested.v6):
        return "certain"
    if _collide(taken.v4, requested.v4):
        depends_on_v6only = s.family == "ipv6" and taken.v6 == ANY and s.v6only is None
        return "likely" if depends_on_v6only else "certain"
    if _connection_claims_ipv4(s, taken, requested):
        return "likely"
    return None


def _collide(one: str | None, other: str | None) -> bool:
    """Whether two claims on one family collide."""
    return one is not None and other is not None and (one == other or ANY in (one, other))


def _connection_claims_ipv4(s: Socket, taken: Claim, requested: Claim) -> bool:
    """Linux: the IPv6 end of a connection counts as 127.0.0.6 (LOOPBACK4_IPV6), which conflicts with 0.0.0.0.

    It does not if the socket was bound to this address: a bind to a single IPv6 address sets IPV6_V6ONLY.
    """
    one_ipv6_address = taken.v6 not in (None, ANY)
    return requested.v4 == ANY and one_ipv6_address and not s.v6only and s.state not in UNCONNECTED
