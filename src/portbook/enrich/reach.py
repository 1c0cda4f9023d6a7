"""Linux: from where a socket at one address can be reached, as far as the interfaces and routes decide that.

A socket keeps its address when the interface loses it (a VPN that ended, a new lease from DHCP), and with IP_FREEBIND
the address need not exist: ip(7). A UDP socket at the broadcast address of a network gets what is sent to all of it.
"""

from __future__ import annotations

from msgspec.structs import replace

from portbook.query import LISTENING
from portbook.records import Reach, Socket
from portbook.sources import PLATFORM
from portbook.system import namespaces

MOST_ADDRESSES = 256  # about which the routing table is queried


def complete(sockets: list[Socket]) -> list[Socket]:
    """The sockets, of which those that wait at an address of no interface have another reach."""
    if PLATFORM != "linux":
        return sockets
    special = [s for s in sockets if s.reach == "address" and s.state in LISTENING]
    if not special:
        return sockets
    here = (None, namespaces.own())
    addresses = {s.local_address for s in special if s.netns in here}
    reaches = _reaches(addresses)
    if not reaches:
        return sockets
    completed: list[Socket] = []
    for s in sockets:
        reach = reaches.get(s.local_address)
        is_ours = s.reach == "address" and s.state in LISTENING and s.netns in here
        if reach is None or not is_ours:
            completed.append(s)
        else:
            completed.append(replace(s, reach=reach))
    return completed


def _reaches(addresses: set[str]) -> dict[str, Reach]:
    """The addresses that no interface has; empty when that cannot be read."""
    from portbook.addresses import unmapped
    from portbook.netconfig.linux import interfaces

    reaches: dict[str, Reach] = {}
    try:
        known = {each.address for each in interfaces.read_addresses()}
        foreign = sorted(address for address in addresses if unmapped(address) not in known)
        for address in foreign[:MOST_ADDRESSES]:
            kind = interfaces.route_type(unmapped(address))
            if kind == interfaces.BROADCAST:
                reaches[address] = "broadcast"
            elif kind != interfaces.LOCAL:  # "ip route add local 192.0.2.0/24 dev lo" makes addresses without interface
                reaches[address] = "none"
    except OSError:
        return {}
    return reaches
