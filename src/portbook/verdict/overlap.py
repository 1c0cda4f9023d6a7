"""Which addresses get in each other's way: pure.

Each socket claims an address of IPv4, one of IPv6, or both: ``::`` without IPV6_V6ONLY claims everything, an
IPv4-mapped address (RFC 4291 section 2.5.5.2) is IPv4. Two claims meet when they are equal or one is a wildcard.

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


def of_endpoint(endpoint: Endpoint) -> Claim:
    """What is asked for."""
    return _claim(endpoint.address, v6only=not endpoint.dual)


def of_socket(s: Socket) -> Claim:
    """What a socket has. A ``::`` of which nobody says whether it is IPv6 alone is taken for what it is by default."""
    return _claim(s.local_address, v6only=bool(s.v6only))


def _claim(address: str, v6only: bool) -> Claim:
    if ":" not in address:
        return Claim(ANY if address == "0.0.0.0" else address, None)  # noqa: S104  compared
    if is_mapped(address):
        return Claim(unmapped(address), None)
    if address == "::":
        return Claim(None if v6only else ANY, ANY)
    return Claim(None, address)


def meet(one: str | None, other: str | None) -> bool:
    """Whether two claims on one family collide."""
    return one is not None and other is not None and (one == other or ANY in (one, other))


def overlap(s: Socket, endpoint: Endpoint) -> Confidence | None:
    """Whether a socket's address is in the way of what is asked; None if not."""
    device = s.interface or s.zone
    if device and endpoint.zone and device != endpoint.zone:
        return None
    has, asked = of_socket(s), of_endpoint(endpoint)
    if meet(has.v6, asked.v6):
        return "certain"
    if meet(has.v4, asked.v4):
        return "likely" if s.family == "ipv6" and has.v6 == ANY and s.v6only is None else "certain"
    return _stands_for_ipv4(s, has, asked)


def _stands_for_ipv4(s: Socket, has: Claim, asked: Claim) -> Confidence | None:
    """Linux: the IPv6 end of a connection counts as 127.0.0.6 (LOOPBACK4_IPV6), and so is in the way of 0.0.0.0.

    Unless the socket was bound to this address: a bind to a single address of IPv6 makes it IPv6 alone.
    """
    if asked.v4 != ANY or has.v6 in (None, ANY) or s.v6only or s.state in UNCONNECTED:
        return None
    return "likely"
