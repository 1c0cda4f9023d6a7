"""Linux: the addresses and interfaces of this network namespace, and whether an address belongs to it.

Sources: rtnetlink(7); include/uapi/linux/{if_addr,if_link,rtnetlink}.h. For a bind, IPv4 queries the routing table
(inet_addr_valid_or_nonlocal in include/net/inet_sock.h), IPv6 its interfaces (__inet6_bind in net/ipv6/af_inet6.c).
"""

from __future__ import annotations

import errno
import struct
from _socket import AF_INET, AF_INET6, AF_UNSPEC, inet_pton  # the C module below socket, which is slow to import
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from portbook.addresses import address_text, interface_names
from portbook.netconfig.facts import Link, LocalAddress
from portbook.system import netlink
from portbook.system.netlink import Message

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
# family, lengths of destination and source, tos, table, protocol, scope, type, flags
RTMSG = struct.Struct("=BBBBBBBBI")
NUMBER = struct.Struct("=I")
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_TENTATIVE, IFA_F_OPTIMISTIC = 0x40, 0x04
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND = 3, 10, 18, 1, 4
IFF_LOOPBACK = 0x8
RTA_DST = 1
LOCAL, BROADCAST, MULTICAST = 2, 3, 5  # RTN_LOCAL, RTN_BROADCAST, RTN_MULTICAST
BINDABLE = frozenset((LOCAL, BROADCAST, MULTICAST))  # what inet_bind() accepts
# No route at all, or one of type unreachable, prohibit or blackhole: fib_props in net/ipv4/fib_semantics.c
NO_ROUTE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL))
SIZES = {int(AF_INET): 4, int(AF_INET6): 16}


def read_addresses() -> tuple[LocalAddress, ...]:
    """Every address of this network namespace; raises OSError.

    One request for each family: a dump of both does not report whether the first family changed (rtnl_dump_all()).
    """
    rows: list[LocalAddress] = []
    with netlink.Channel(netlink.ROUTE) as channel:
        for family in SIZES:
            rows += _read_family(channel, family)
    return tuple(rows)


def _read_family(channel: netlink.Channel, family: int) -> list[LocalAddress]:
    """The addresses of a family. A dump in several parts counts when a second one agrees.

    An IPv6 address that is removed leaves the kernel's list a moment before the generation changes by which the kernel
    knows that a dump was interrupted (ipv6_del_addr(), __ipv6_ifa_notify()): seen on Linux 6.18, an address that was
    there all the time was missing and NLM_F_DUMP_INTR was not set.
    """
    names = interface_names()
    body = IFADDRMSG.pack(family, 0, 0, 0, 0)
    previous: list[LocalAddress] | None = None
    for _ in range(netlink.MOST_TRIES):
        answer = channel.dump(RTM_GETADDR, body)
        rows = list(parse_addresses(answer.messages(), lambda index: names.get(index) or str(index)))
        if answer.parts <= 1 or rows == previous:
            return rows
        previous = rows
    raise netlink.InterruptedDump(f"they changed each of the {netlink.MOST_TRIES} times that they were read")


def parse_addresses(messages: Iterable[Message], name: Callable[[int], str]) -> Iterator[LocalAddress]:
    """Read RTM_NEWADDR messages; raises OSError for attributes that are cut short."""
    for kind, body in messages:
        if kind != RTM_NEWADDR or len(body) < IFADDRMSG.size:
            continue
        family, _, flags, _, index = IFADDRMSG.unpack_from(body)
        values = netlink.attributes(body[IFADDRMSG.size :])
        packed = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS) or b""
        if len(packed) != SIZES.get(family):
            continue
        flags |= _number(values.get(IFA_FLAGS))
        tentative = bool(flags & IFA_F_TENTATIVE) and not flags & IFA_F_OPTIMISTIC
        yield LocalAddress(address_text(packed), name(index), tentative)


def read_names() -> tuple[str, ...]:
    """The interfaces through which packets come in, without loopback; raises OSError.

    What comes in through a port of a bridge has come in through the bridge when the rules see it.
    """
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
    return tuple(parse_names(netlink.dump(netlink.ROUTE, RTM_GETLINK, body)))


def parse_names(messages: Iterable[Message]) -> Iterator[str]:
    """Read RTM_NEWLINK messages: the interfaces but loopback and ports of bridges and bonds.

    Raises OSError for attributes that are cut short.
    """
    for kind, body in messages:
        if kind != RTM_NEWLINK or len(body) < IFINFOMSG.size:
            continue
        _, _, _, flags, _ = IFINFOMSG.unpack_from(body)
        values = netlink.attributes(body[IFINFOMSG.size :])
        slave = netlink.text(netlink.attributes(values.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_SLAVE_KIND))
        if not flags & IFF_LOOPBACK and slave not in ("bridge", "bond"):
            yield netlink.text(values.get(IFLA_IFNAME))


def read_links(names: Iterable[str]) -> tuple[Link, ...]:
    """What kind of interfaces these are, and the VRF that each belongs to; raises OSError."""
    wanted = frozenset(names)
    if not wanted:
        return ()
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
    return tuple(parse_links(netlink.dump(netlink.ROUTE, RTM_GETLINK, body), wanted))


class _Row(Struct, frozen=True):
    """The attributes of an interface in RTM_NEWLINK."""

    name: str
    kind: str | None
    master: int  # index of the bridge, bond or VRF that it belongs to; 0: none


NO_ROW = _Row("", None, 0)


def parse_links(messages: Iterable[Message], wanted: frozenset[str]) -> Iterator[Link]:
    """Read RTM_NEWLINK messages. A VRF is an interface, and others are its slaves (vrf.rst).

    Raises OSError for attributes that are cut short.
    """
    rows: dict[int, _Row] = {}
    for kind, body in messages:
        if kind == RTM_NEWLINK and len(body) >= IFINFOMSG.size:
            values = netlink.attributes(body[IFINFOMSG.size :])
            info = netlink.attributes(values.get(IFLA_LINKINFO, b""))
            _, _, index, _, _ = IFINFOMSG.unpack_from(body)
            rows[index] = _Row(
                netlink.text(values.get(IFLA_IFNAME)),
                netlink.text(info.get(IFLA_INFO_KIND)) or None,
                _number(values.get(IFLA_MASTER)),
            )
    for row in rows.values():
        if row.name in wanted:
            yield Link(row.name, row.kind, _vrf(row, rows.get(row.master, NO_ROW)))


def _vrf(row: _Row, master: _Row) -> str | None:
    """The VRF that an interface is, or belongs to."""
    for candidate in (row, master):
        if candidate.kind == "vrf":
            return candidate.name
    return None


def _number(value: bytes | None) -> int:
    """An attribute of 32 bits; 0 when there is none."""
    if value is None or len(value) < NUMBER.size:
        return 0
    return int(NUMBER.unpack_from(value)[0])


def is_local(address: str) -> bool:
    """Whether an IPv4 address can be bound here, by the routing table; raises OSError if it cannot be queried."""
    return route_type(address) in BINDABLE


def route_type(address: str) -> int | None:
    """The type of the route to an address, ``LOCAL``, ``BROADCAST`` or another; None if there is none.

    Raises OSError if the routing table cannot be queried.
    """
    family = AF_INET6 if ":" in address else AF_INET
    packed = inet_pton(family, address)
    body = RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + netlink.attribute(RTA_DST, packed)
    try:
        answers = netlink.request(netlink.ROUTE, RTM_GETROUTE, body)
    except OSError as error:
        if error.errno in NO_ROUTE:
            return None
        raise
    for kind, answer in answers:
        if kind == RTM_NEWROUTE and len(answer) >= RTMSG.size:
            return int(RTMSG.unpack_from(answer)[7])
    return None
