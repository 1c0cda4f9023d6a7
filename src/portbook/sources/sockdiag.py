"""Linux: NETLINK_SOCK_DIAG, the kernel's own dump of its sockets; what ss(8) reads.

No privilege is needed. State mask and local ports are filtered in the kernel. Only this network namespace is seen.

Facts: sock_diag(7), netlink(7); include/uapi/linux/{netlink,sock_diag,inet_diag}.h, net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from _socket import AF_INET, AF_INET6, AF_UNSPEC, ntohs
from collections.abc import Callable, Collection, Iterator
from itertools import chain, repeat
from operator import getitem
from typing import Any

from msgspec import Struct

from portbook.addresses import address_text, interface_names, is_link_local, reach_of
from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing, SourceTimeout
from portbook.numerals import number_or_none
from portbook.records import Family, Gap, PortRange, Protocol, Reach, Socket, State
from portbook.sources.base import Reading, Source, Wanted
from portbook.system import namespaces, netlink
from portbook.system.netlink import ATTRIBUTE, HEADER, MOST_TRIES, NLMSG_DONE

SOCK_DIAG_BY_FAMILY = 20
TCPDIAG_GETSOCK = 18  # the request of before Linux 3.3: TCP only, and without a family it answers for both in one pass
ROW_TYPES = frozenset((SOCK_DIAG_BY_FAMILY, TCPDIAG_GETSOCK))

IPPROTO: dict[Protocol, int] = {"tcp": 6, "udp": 17}
AF: dict[Family, int] = {"ipv4": int(AF_INET), "ipv6": int(AF_INET6)}
SIZES: dict[Family, int] = {"ipv4": 4, "ipv6": 16}  # of packed addresses
FAMILY: dict[int, Family] = {number: name for name, number in AF.items()}

# include/net/tcp_states.h. 12, NEW_SYN_RECV, never leaves the kernel. 13 exists in requests only: a bound socket
# that does not listen is answered as 7, and no other socket in state 7 is ever dumped.
TCP_STATES: dict[int, State] = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "BOUND",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "SYN_RECV",
}
SYN_RECV, TIME_WAIT, NEW_SYN_RECV = 3, 6, 12
MASK_BITS: dict[State | None, tuple[int, ...]] = {
    **{state: (number,) for number, state in TCP_STATES.items() if number != 7},
    "SYN_RECV": (SYN_RECV, NEW_SYN_RECV),
    "BOUND": (13,),  # TCP_BOUND_INACTIVE, Linux 6.8
    "CLOSE": (7,),
    None: (7,),
}
BOUND_SINCE = (6, 8)

REQUEST = struct.Struct(
    "=BBxxI48x"
)  # inet_diag_req_v2: family, protocol, no extensions, states, an empty inet_diag_sockid
REQUEST_TCP = struct.Struct("=4x48xI4x")  # inet_diag_req, the older one: no family, an empty inet_diag_sockid, states
# inet_diag_msg: family, state, timer, (retransmissions), source port, destination port, source address, destination
# address, interface, cookie, expires, receive queue, send queue, uid, inode
ROW = struct.Struct("=BBBx HH 16s16s I Q IIIII".replace(" ", ""))
LEAST_ROW = HEADER.size + ROW.size
INODE, INODE_AT = struct.Struct("=I"), LEAST_ROW - 4
PORT, PORT_AT, STATE_AT = struct.Struct("=H"), HEADER.size + 4, HEADER.size + 1
# Where a row has these, header included, and what is empty in most rows in TIME_WAIT: interface, queues, uid.
TIMER_AT, LOCAL_AT, REMOTE_AT, COOKIE_AT, EXPIRES_AT = (HEADER.size + at for at in (2, 8, 24, 44, 52))
EMPTY_AT = tuple(HEADER.size + at for at in (40, 56, 60, 64))
FEW = 8  # rows of one length in succession, after which it is tried whether many follow
MOST_ALIKE = 4096  # that are looked at together
HEAD = struct.Struct("=IH")  # of a message: length, type
INET_DIAG_REQ_BYTECODE = 1
SKV6ONLY, CGROUP_ID = 11, 21
UDP_STATES: dict[int, State | None] = {1: "ESTABLISHED", 7: None}
# idiag_timer of sock_diag(7): idiag_expires is then the rest of a closed connection's life, in milliseconds. A
# FIN_WAIT2 that no process has any longer is kept in the same way (inet_twsk_diag_fill).
TIMER_TIME_WAIT = 3

TIME_LIMIT_S = 10.0
MOST_BYTES = 1 << 30  # about eight million sockets


class SockdiagTable(Struct, frozen=True):
    """One answered request: the bytes of every message."""

    protocol: Protocol
    data: bytes
    interrupted: bool = False  # still, after MOST_TRIES: rows may be missing


class SockdiagDump(Struct, frozen=True):
    """What the kernel answered, and for which network namespace."""

    tables: tuple[SockdiagTable, ...]
    netns: int | None = None  # inode of the namespace
    gaps: tuple[Gap, ...] = ()
    interfaces: dict[int, str] = {}  # interface index to name, for zones


def missing() -> str | None:
    """Why this source does not work here."""
    try:
        _open().close()
    except SourceError as error:
        return str(error)
    return None


def read(wanted: Wanted, limit_s: float | None = None) -> SockdiagDump:
    """Dump the wanted sockets of the calling thread's network namespace.

    :param limit_s: of each request, in seconds; None: TIME_LIMIT_S
    """
    filter_code = filter_ports(wanted.ports)
    tables: list[SockdiagTable] = []
    with _open(limit_s) as channel:
        for protocol in wanted.protocols:
            states = _mask(wanted, protocol)
            if states:
                for family in _families(wanted, protocol):
                    tables.append(_dump(channel, protocol, family, states, filter_code))  # noqa: PERF401
    return SockdiagDump(tuple(tables), namespaces.own(), tuple(_bound_gap(wanted)), interface_names())


def _families(wanted: Wanted, protocol: Protocol) -> list[int]:
    """One pass over the kernel's TCP tables answers for both families; UDP takes a request for each."""
    if protocol == "tcp" and len(wanted.families) > 1:
        return [AF_UNSPEC]
    return [AF[family] for family in wanted.families]


def _mask(wanted: Wanted, protocol: Protocol) -> int:
    """The states as the kernel's bits; a UDP socket is ESTABLISHED when connected and CLOSE when not."""
    states = wanted.states - {None} if protocol == "tcp" else wanted.states & {"ESTABLISHED", None}
    mask = 0
    for state in states:
        for bit in MASK_BITS.get(state, ()):
            mask |= 1 << bit
    return mask


def _bound_gap(wanted: Wanted) -> Iterator[Gap]:
    if "BOUND" in wanted.states and "tcp" in wanted.protocols and not shows_bound():
        why = f"kernel {os.uname().release} does not list TCP sockets that are bound and do not listen"
        yield Gap("socket", None, why, "Linux 6.8 and later do")


def shows_bound() -> bool:
    """Whether this kernel lists TCP sockets that are bound and do not listen."""
    major, _, rest = os.uname().release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (number_or_none(major) or 0, number_or_none(minor) or 0) >= BOUND_SINCE


# --- the channel ---------------------------------------------------------------------------------------------------


def _open(limit_s: float | None = None) -> netlink.Channel:
    try:
        return netlink.Channel(netlink.SOCK_DIAG, limit_s or TIME_LIMIT_S, MOST_BYTES)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise SourceDenied(f"sock_diag: netlink is refused here ({error.strerror})") from error
        if error.errno == errno.EAFNOSUPPORT:  # also the answer of systemd's RestrictAddressFamilies=
            hint = "a seccomp filter may forbid the address family AF_NETLINK"
            raise SourceDenied(f"sock_diag: there is no netlink here ({error.strerror})", hint) from error
        raise SourceMissing(f"sock_diag: this kernel has no NETLINK_SOCK_DIAG ({error.strerror})") from error


def _dump(channel: netlink.Channel, protocol: Protocol, family: int, states: int, filter_code: bytes) -> SockdiagTable:
    if family == AF_UNSPEC:
        kind, body = TCPDIAG_GETSOCK, REQUEST_TCP.pack(states)
    else:
        kind, body = SOCK_DIAG_BY_FAMILY, REQUEST.pack(family, IPPROTO[protocol], states)
    try:
        answer = channel.dump(kind, body + filter_code)
    except TimeoutError as error:
        raise SourceTimeout(f"sock_diag: {error.strerror}") from error
    except netlink.GarbledAnswer as error:
        raise SourceGarbled(f"sock_diag: {error}") from error
    except OSError as error:
        raise SourceMissing(f"sock_diag: {error.strerror}", "the modules are tcp_diag and udp_diag") from error
    return SockdiagTable(protocol, answer.data, answer.interrupted)


# --- filter --------------------------------------------------------------------------------------------------------

# include/uapi/linux/inet_diag.h. An operation is {code u8, yes u8, no u16}: how many bytes to go on by when it holds,
# and when not. Comparing a port takes two: the second one's "no" is the port. Ending exactly at the end of the program
# accepts, going beyond it refuses (inet_diag_bc_run).
OPERATION = struct.Struct("=BBH")
BC_JMP, BC_S_GE, BC_S_LE = 1, 2, 3
COMPARE = 2 * OPERATION.size
REFUSE = OPERATION.size  # beyond the end
RANGE_SIZE = 2 * COMPARE + OPERATION.size
MOST_RANGES = 100  # more are left to the pipeline: "no" is 16 bits, and a kernel loop per socket costs


def filter_ports(ports: tuple[PortRange, ...] | None) -> bytes:
    """The attribute INET_DIAG_REQ_BYTECODE that keeps local ports in any of the ranges; empty for no filter."""
    if not ports or len(ports) > MOST_RANGES:
        return b""
    code = b"".join(_range_code(low, high, len(ports) - 1 - i) for i, (low, high) in enumerate(ports))
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(code), INET_DIAG_REQ_BYTECODE) + code


def _range_code(low: int, high: int, more: int) -> bytes:
    """Is it at least low? At most high? Then jump to the end, else to the next of ``more`` ranges or beyond the end."""
    rest = more * RANGE_SIZE
    beyond = 0 if more else REFUSE
    return (
        OPERATION.pack(BC_S_GE, COMPARE, RANGE_SIZE + beyond)
        + OPERATION.pack(0, 0, low)
        + OPERATION.pack(BC_S_LE, COMPARE, RANGE_SIZE - COMPARE + beyond)
        + OPERATION.pack(0, 0, high)
        + OPERATION.pack(BC_JMP, OPERATION.size, OPERATION.size + rest)
    )


# --- the pure half -------------------------------------------------------------------------------------------------


class Addresses(dict[bytes, tuple[str, Reach]]):
    """Text and reach of an address, made once: machines have few addresses and many sockets."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __missing__(self, packed: bytes) -> tuple[str, Reach]:
        text = address_text(packed[: self.size])
        self[packed] = text, reach_of(text)
        return self[packed]


class _Attributes(dict[bytes, tuple[bool | None, int | None]]):
    """v6only and cgroup id out of the attributes behind a row; sockets of one process mostly share them."""

    def __missing__(self, data: bytes) -> tuple[bool | None, int | None]:
        values = netlink.attributes(data)
        v6only, cgroup_id = values.get(SKV6ONLY), values.get(CGROUP_ID)
        self[data] = (
            None if v6only is None else any(v6only),
            None if cgroup_id is None else int.from_bytes(cgroup_id, sys.byteorder),
        )
        return self[data]


def parse(dump: SockdiagDump, known: Collection[int] = ()) -> Reading:
    """Read the tables, without the sockets whose inodes are ``known``; raise SourceGarbled."""
    sockets: list[Socket] = []
    gaps = list(dump.gaps)
    for table in dump.tables:
        try:
            sockets += _rows(table, dump.netns, dump.interfaces, known)
        except (struct.error, ValueError, KeyError, TypeError, OverflowError, netlink.GarbledAnswer) as error:
            raise _garbled(table, error) from error
        if table.interrupted:
            gaps.append(Gap("socket", None, f"the {table.protocol} dump was interrupted {MOST_TRIES} times by changes"))
    return Reading(sockets, gaps)


class Summary(Struct, frozen=True):
    """What a table has, counted without making sockets of it."""

    rows: int
    syn_recv: int  # of them in SYN_RECV
    with_inode: list[tuple[int, int]]  # port and inode of each to which a descriptor refers, or referred


def summarize(table: SockdiagTable, known: Collection[int] = ()) -> Summary:
    """Count a table, without the sockets whose inodes are ``known``; raise SourceGarbled."""
    data = table.data
    rows = syn_recv = 0
    with_inode: list[tuple[int, int]] = []
    try:
        for at, length, count in _runs(data):
            (inode,) = INODE.unpack_from(data, at + INODE_AT)
            if inode:
                if inode in known:
                    continue
                with_inode.append((ntohs(PORT.unpack_from(data, at + PORT_AT)[0]), inode))
            rows += count
            states = data[at + STATE_AT : at + length * count : length]
            syn_recv += states.count(SYN_RECV) + states.count(NEW_SYN_RECV)
    except (struct.error, ValueError) as error:
        raise _garbled(table, error) from error
    return Summary(rows, syn_recv, with_inode)


def _garbled(table: SockdiagTable, error: Exception) -> SourceGarbled:
    return SourceGarbled(f"sock_diag: a {table.protocol} dump of {len(table.data)} bytes: {error}")


def _bounds(data: bytes, known: Collection[int], take_many: Callable[[bytes, int], bool]) -> Iterator[tuple[int, int]]:
    """Where each row begins, header included, and ends, without those whose inodes are ``known``.

    :param take_many: is called with rows that are alike and the length of each; these are left out where it answers yes
    :raises ValueError: the dump is not whole
    """
    for at, length, count in _runs(data):
        if count > 1:  # they have no inode
            if take_many(data[at : at + count * length], length):
                continue
            for row in range(at, at + count * length, length):
                yield row, row + length
        elif not known or INODE.unpack_from(data, at + INODE_AT)[0] not in known:
            yield at, at + length


def _runs(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Rows that are alike: where the first begins, the length of each, how many; raise ValueError as ``_bounds``.

    Thousands of connections in TIME_WAIT follow one another, all of one length and without an inode.
    """
    at, end = 0, len(data)
    kind = None
    previous = alike = 0
    while at < end:
        length, kind = HEAD.unpack_from(data, at)
        if length < HEADER.size or at + length > end:
            raise ValueError(f"message of {length} bytes at {at}")
        count = 1
        if kind in ROW_TYPES:
            if length < LEAST_ROW:
                raise ValueError(f"row of {length} bytes at {at}")
            alike = alike + 1 if length == previous else 0
            previous = length
            if alike > FEW:
                count = _count_alike(data, at, length)
                alike = 0
            yield at, length, count
        at += count * ((length + 3) & ~3)
    if kind != NLMSG_DONE:
        raise ValueError("it has no end")


def _count_alike(data: bytes, at: int, length: int) -> int:
    """How many rows from ``at`` on are like the first: of this length, and all without an inode."""
    if length % 4 or INODE.unpack_from(data, at + INODE_AT)[0]:
        return 1
    rows = memoryview(data)[at : at + MOST_ALIKE * length]
    words = rows[: len(rows) // length * length].cast("I")
    count = len(words) * 4 // length
    for word, wanted in ((0, words[0]), (1, words[1]), (INODE_AT // 4, 0)):  # length; type; inode
        column = words[word :: length // 4].tolist()[:count]
        if column != [wanted] * count:
            count = next(i for i, number in enumerate(column) if number != wanted)
    return count


def _rows(
    table: SockdiagTable, netns: int | None, interfaces: dict[int, str], known: Collection[int]
) -> Iterator[Socket]:
    """The sockets of one table. There may be a hundred thousand: the loop calls few functions."""
    protocol, data = table.protocol, table.data
    states = TCP_STATES if protocol == "tcp" else UDP_STATES
    addresses = {AF[family]: Addresses(SIZES[family]) for family in AF}
    attributes = _Attributes()
    waiting = _Waiting(protocol, netns, addresses, attributes)
    for at, end in _bounds(data, known, waiting.take):
        # fmt: off
        (family, state_number, timer, port, remote_port, source, destination, interface, cookie,
         expires, received, sent, uid, inode) = ROW.unpack_from(data, at + HEADER.size)
        # fmt: on
        local, reach = addresses[family][source]
        v6only, cgroup_id = attributes[data[at + LEAST_ROW : end]]
        state = states[state_number]
        if state == "BOUND":
            reach = "none"

        remote = None
        if remote_port and state != "LISTEN":
            remote = addresses[family][destination][0]

        zone = device = None
        if interface:
            name = interfaces.get(interface) or str(interface)
            if is_link_local(local):
                zone = name
            else:
                device = name

        recv_queue = send_queue = accept_queue = backlog = None
        if state == "LISTEN":
            accept_queue, backlog = received, sent
        else:
            recv_queue, send_queue = received, sent

        yield Socket(  # by position: by keyword each of 100,000 rows takes 0.6 µs longer
            protocol,
            FAMILY[family],
            local,
            ntohs(port),
            remote,
            None if remote is None else ntohs(remote_port),
            state,
            reach,
            zone,
            None,  # service_name
            uid if uid or inode else None,  # 0 also where the kernel does not know: inet_twsk_diag_fill
            None,  # user
            inode,
            (),  # owners
            recv_queue,
            send_queue,
            accept_queue,
            backlog,
            v6only,
            device,
            None,  # created
            None,  # state_text
            cookie,
            cgroup_id,
            None,  # service
            None,  # container
            netns,
            None,  # netns_name
            expires if timer == TIMER_TIME_WAIT else None,  # ends_in_ms
        )
    yield from waiting.sockets


class _Waiting:
    """Connections in TIME_WAIT, of which there may be tens of thousands: read column by column, as _rows reads each."""

    def __init__(
        self, protocol: Protocol, netns: int | None, addresses: dict[int, Addresses], attributes: _Attributes
    ) -> None:
        self.protocol = protocol
        self.netns = netns
        self.addresses = addresses
        self.attributes = attributes
        self.sockets: list[Socket] = []

    def take(self, data: bytes, length: int) -> bool:
        """Read rows without an inode, all of one length; False where they are not connections in TIME_WAIT.

        inet_twsk_diag_fill() in net/ipv4/inet_diag.c leaves their queues and user empty. Rows that have these, an
        interface or different attributes are read one by one.
        """
        count = len(data) // length
        halves = memoryview(data).cast("H")
        words = memoryview(data).cast("I")
        is_waiting = data[STATE_AT::length].count(TIME_WAIT) == data[TIMER_AT::length].count(TIMER_TIME_WAIT) == count
        if self.protocol != "tcp" or not is_waiting:
            return False
        for at in (*EMPTY_AT, *range(LEAST_ROW, length, 4)):  # attributes are padded to words
            expected = data[at : at + 4] if at >= LEAST_ROW else bytes(4)
            if words[at // 4 :: length // 4].tobytes() != expected * count:
                return False
        unpack_ports = struct.Struct(f">{count}H").unpack
        ports = unpack_ports(halves[PORT_AT // 2 :: length // 2].tobytes())
        remote_ports = unpack_ports(halves[PORT_AT // 2 + 1 :: length // 2].tobytes())
        if not all(remote_ports):
            return False
        families = data[HEADER.size :: length]
        local = self._addresses(families, _column(data, "16s", LOCAL_AT, length))
        remote = self._addresses(families, _column(data, "16s", REMOTE_AT, length))
        v6only, cgroup_id = self.attributes[data[LEAST_ROW:length]]
        nothing, zeros = repeat(None), repeat(0)
        self.sockets += map(  # in the order of the fields of a Socket, as in _rows
            Socket,
            repeat(self.protocol),
            map(FAMILY.__getitem__, families),
            [text for text, _ in local],
            ports,
            [text for text, _ in remote],
            remote_ports,
            repeat("TIME_WAIT"),
            [reach for _, reach in local],
            nothing,  # zone
            nothing,  # service_name
            nothing,  # uid
            nothing,  # user
            zeros,  # inode
            repeat(()),  # owners
            zeros,  # recv_queue
            zeros,  # send_queue
            nothing,  # accept_queue
            nothing,  # backlog
            repeat(v6only),
            nothing,  # interface
            nothing,  # created
            nothing,  # state_text
            _column(data, "Q", COOKIE_AT, length),
            repeat(cgroup_id),
            nothing,  # service
            nothing,  # container
            repeat(self.netns),
            nothing,  # netns_name
            words[EXPIRES_AT // 4 :: length // 4].tolist(),  # ends_in_ms
        )
        return True

    def _addresses(self, families: bytes, packed: Iterator[bytes]) -> list[tuple[str, Reach]]:
        return list(map(getitem, map(self.addresses.__getitem__, families), packed))


def _column(data: bytes, code: str, at: int, length: int) -> Iterator[Any]:
    """What each of the rows of one length has at a place; ``code`` is of the struct module."""
    field = struct.Struct(f"={at}x{code}")
    row = struct.Struct(f"{field.format}{length - field.size}x")
    return chain.from_iterable(row.iter_unpack(data))


SOURCE = Source(
    name="sockdiag",
    sees="every TCP and UDP socket of this network namespace, also bound ones that do not listen (Linux 6.8)",
    needs="no privilege; a kernel with tcp_diag and udp_diag",
    capabilities=frozenset(("tcp", "udp", "ipv6", "bound", "time_wait", "uid", "inode", "queues", "v6only")),
    missing=missing,
    read=read,
    parse=parse,
)
