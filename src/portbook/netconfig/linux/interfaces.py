"""Linux: the addresses and interfaces of this network namespace, and whether an address belongs to it.

Sources: rtnetlink(7); include/uapi/linux/{if_addr,if_link,rtnetlink}.h. For a bind, IPv4 asks the routing table
(inet_addr_valid_or_nonlocal in include/net/inet_sock.h), IPv6 its interfaces (__inet6_bind in net/ipv6/af_inet6.c).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator
from socket import AF_INET, AF_INET6, AF_UNSPEC, if_indextoname, inet_ntop, inet_pton

from portbook.netconfig.facts import Link, LocalAddress
from portbook.system import netlink
from portbook.system.netlink import Message

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # family, lengths of destination and source, tos, table, protocol, scope, type, flags
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_TENTATIVE, IFA_F_OPTIMISTIC = 0x40, 0x04
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 10, 18, 1
RTA_DST = 1
# RTN_LOCAL, RTN_BROADCAST, RTN_MULTICAST: what inet_bind() accepts
BINDABLE = frozenset((2, 3, 5))
# No route at all, or one of type unreachable, prohibit or blackhole: fib_props in net/ipv4/fib_semantics.c
NO_ROUTE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL))
SIZES = {int(AF_INET): 4, int(AF_INET6): 16}


def read_addresses() -> tuple[LocalAddress, ...]:
    """Every address of this network namespace; raises OSError."""
    body = IFADDRMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
    return tuple(parse_addresses(netlink.ask(netlink.ROUTE, RTM_GETADDR, body, dump=True), _name))


def parse_addresses(messages: Iterable[Message], name: Callable[[int], str]) -> Iterator[LocalAddress]:
    """Read RTM_NEWADDR messages."""
    for kind, body in messages:
        if kind != RTM_NEWADDR or len(body) < IFADDRMSG.size:
            continue
        family, _, flags, _, index = IFADDRMSG.unpack_from(body)
        found = netlink.attributes(body[IFADDRMSG.size :])
        raw = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS) or b""
        if len(raw) != SIZES.get(family):
            continue
        more = found.get(IFA_FLAGS, b"")
        flags |= struct.unpack_from("=I", more)[0] if len(more) >= 4 else 0
        tentative = bool(flags & IFA_F_TENTATIVE) and not flags & IFA_F_OPTIMISTIC
        yield LocalAddress(inet_ntop(family, raw), name(index), tentative)


def _name(index: int) -> str:
    try:
        return if_indextoname(index)
    except OSError:
        return str(index)


def read_links(names: Iterable[str]) -> tuple[Link, ...]:
    """What kind of interfaces these are, and the VRF that each belongs to; raises OSError."""
    wanted = frozenset(names)
    if not wanted:
        return ()
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
    return tuple(parse_links(netlink.ask(netlink.ROUTE, RTM_GETLINK, body, dump=True), wanted))


def parse_links(messages: Iterable[Message], wanted: frozenset[str]) -> Iterator[Link]:
    """Read RTM_NEWLINK messages. A VRF is an interface, and others are its slaves (vrf.rst)."""
    rows: dict[int, tuple[str, str | None, int]] = {}
    for kind, body in messages:
        if kind == RTM_NEWLINK and len(body) >= IFINFOMSG.size:
            found = netlink.attributes(body[IFINFOMSG.size :])
            info = netlink.attributes(found.get(IFLA_LINKINFO, b""))
            master = found.get(IFLA_MASTER, b"")
            over = struct.unpack_from("=I", master)[0] if len(master) >= 4 else 0
            index = IFINFOMSG.unpack_from(body)[2]
            rows[index] = netlink.text(found.get(IFLA_IFNAME)), netlink.text(info.get(IFLA_INFO_KIND)) or None, over
    for name, what, master_index in rows.values():
        if name in wanted:
            above = rows.get(master_index, ("", None, 0))
            vrf = name if what == "vrf" else above[0] if above[1] == "vrf" else None
            yield Link(name, what, vrf)


def is_local(address: str) -> bool:
    """Whether an IPv4 address can be bound here, by the routing table; raises OSError if that cannot be asked."""
    packed = inet_pton(AF_INET, address)
    body = RTMSG.pack(AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + netlink.attribute(RTA_DST, packed)
    try:
        answers = netlink.ask(netlink.ROUTE, RTM_GETROUTE, body)
    except OSError as error:
        if error.errno in NO_ROUTE:
            return False
        raise
    return any(kind == RTM_NEWROUTE and body[7] in BINDABLE for kind, body in answers if len(body) >= RTMSG.size)
