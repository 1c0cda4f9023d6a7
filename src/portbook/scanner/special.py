"""Which addresses are public: all but those that the IANA special-purpose registries call not globally reachable.

A table of our own, because ``ipaddress`` has another one in each version of Python, and what needs --allow-public must
not depend on that. A block about which the registries say "N/A" is public: a packet to a 6to4 or Teredo address may go
to a relay anywhere.

Sources: iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry, as of 2025; RFC 6890, RFC 8190.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from ipaddress import ip_network

NOT_GLOBAL = {
    4: (
        "0.0.0.0/8",  # RFC 791: this network
        "10.0.0.0/8",  # RFC 1918: private use
        "100.64.0.0/10",  # RFC 6598: shared by customers of a provider
        "127.0.0.0/8",  # RFC 1122: loopback
        "169.254.0.0/16",  # RFC 3927: link-local
        "172.16.0.0/12",  # RFC 1918
        "192.0.0.0/24",  # RFC 6890: protocol assignments
        "192.0.2.0/24",  # RFC 5737: documentation
        "192.168.0.0/16",  # RFC 1918
        "198.18.0.0/15",  # RFC 2544: benchmarking
        "198.51.100.0/24",  # RFC 5737
        "203.0.113.0/24",  # RFC 5737
        "240.0.0.0/4",  # RFC 1112: reserved, with the limited broadcast
    ),
    6: (
        "::/128",  # RFC 4291: unspecified
        "::1/128",  # RFC 4291: loopback
        "64:ff9b:1::/48",  # RFC 8215: translation, local use
        "100::/64",  # RFC 6666: discard
        "100:0:0:1::/64",  # RFC 9780: dummy prefix
        "2001::/23",  # RFC 2928: protocol assignments
        "2001:db8::/32",  # RFC 3849: documentation
        "3fff::/20",  # RFC 9637: documentation
        "5f00::/16",  # RFC 9602: segment routing
        "fc00::/7",  # RFC 4193: unique local
        "fe80::/10",  # RFC 4291: link-local
    ),
}
GLOBAL_WITHIN = {
    4: (
        "192.0.0.9/32",  # RFC 7723: port control protocol, anycast
        "192.0.0.10/32",  # RFC 8155: TURN, anycast
    ),
    6: (
        "2001::/32",  # RFC 4380: Teredo (N/A)
        "2001:1::1/128",  # RFC 7723
        "2001:1::2/128",  # RFC 8155
        "2001:1::3/128",  # RFC 9665: service registration, anycast
        "2001:3::/32",  # RFC 7450: multicast tunnels
        "2001:4:112::/48",  # RFC 7535: AS112
        "2001:10::/28",  # RFC 4843: ORCHID, returned (N/A)
        "2001:20::/28",  # RFC 7343: ORCHIDv2
        "2001:30::/28",  # RFC 9374: drone identifiers
    ),
}


def is_public(version: int, first: int, last: int) -> bool:
    """Whether any of the addresses from ``first`` to ``last`` is public.

    :param version: 4 or 6
    """
    firsts, lasts = _local_ranges(version)
    at = bisect_right(firsts, first) - 1
    return at < 0 or last > lasts[at]


@cache
def _local_ranges(version: int) -> tuple[list[int], list[int]]:
    """The firsts and lasts of the ranges without a public address, ascending and never adjacent."""
    firsts: list[int] = []
    lasts: list[int] = []
    for first, last in sorted(_without_exceptions(version)):
        if lasts and first == lasts[-1] + 1:
            lasts[-1] = last
        else:
            firsts.append(first)
            lasts.append(last)
    return firsts, lasts


def _without_exceptions(version: int) -> list[tuple[int, int]]:
    exceptions = sorted(map(_range, GLOBAL_WITHIN[version]))
    ranges: list[tuple[int, int]] = []
    for first, last in map(_range, NOT_GLOBAL[version]):
        for public_first, public_last in exceptions:
            if first <= public_first <= last:
                if first < public_first:
                    ranges.append((first, public_first - 1))
                first = public_last + 1  # noqa: PLW2901  what is left of the block
        if first <= last:
            ranges.append((first, last))
    return ranges


def _range(block: str) -> tuple[int, int]:
    network = ip_network(block)
    return int(network[0]), int(network[-1])
