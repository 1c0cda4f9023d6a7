"""Linux: NETLINK_SOCK_DIAG, the kernel's own dump of its sockets; what ss(8) reads.

No privilege is needed. State mask and local ports are filtered in the kernel. Only this network namespace is seen.

Facts: sock_diag(7), netlink(7); include/uapi/linux/{netlink,sock_diag,inet_diag}.h, net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Collection, Iterator
from socket import AF_INET, AF_INET6, AF_UNSPEC, SO_RCVBUF, SOCK_RAW, SOL_SOCKET, if_nameindex, inet_ntop, ntohs, socket
from struct import Struct
from typing import NamedTuple

from portbook.addresses import reach_of
from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing, SourceTimeout
from portbook.records import Family, Gap, Protocol, Reach, Socket, State
from portbook.sources.base import PortRange, Reading, Source, Wanted

AF_NETLINK = 16
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
TCPDIAG_GETSOCK = 18  # the request of before Linux 3.3: TCP only, and without a family it answers for both in one pass
ROWS = frozenset((SOCK_DIAG_BY_FAMILY, TCPDIAG_GETSOCK))
NLM_F_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3

IPPROTO: dict[Protocol, int] = {"tcp": 6, "udp": 17}
AF: dict[Family, int] = {"ipv4": int(AF_INET), "ipv6": int(AF_INET6)}
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
TCP_LISTEN = 10
MASK_BITS: dict[State | None, tuple[int, ...]] = {
    **{state: (number,) for number, state in TCP_STATES.items() if number != 7},
    "SYN_RECV": (3, 12),
    "BOUND": (13,),  # TCP_BOUND_INACTIVE, Linux 6.8
    "CLOSE": (7,),
    None: (7,),
}
BOUND_SINCE = (6, 8)

NLMSGHDR = Struct("=IHHII")  # length, type, flags, sequence, port id
REQUEST = Struct("=BBxxI48x")  # inet_diag_req_v2: family, protocol, no extensions, states, an empty inet_diag_sockid
REQUEST_TCP = Struct("=4x48xI4x")  # inet_diag_req, the older one: no family, an empty inet_diag_sockid, states
# nlmsghdr and inet_diag_msg up to the end: family, state, timer, retransmissions, source port, destination port, source
# address, destination address, interface, cookie, expires, receive queue, send queue, uid, inode
MESSAGE = Struct("=IHHII BBBB HH 16s16s I Q IIIII".replace(" ", ""))
INODE, INODE_AT = Struct("=I"), MESSAGE.size - 4
HEAD = Struct("=IH")
STATUS = Struct("=i")
DONE_SIZE = NLMSGHDR.size + STATUS.size
ATTRIBUTE = Struct("=HH")
INET_DIAG_REQ_BYTECODE = 1
SKV6ONLY, CGROUP_ID = 11, 21
UDP_STATES: dict[int, State | None] = {1: "ESTABLISHED", 7: None}
# fe80::/10 by the first two bytes (RFC 4291 section 2.5.6)
LINK_LOCAL = frozenset(bytes((0xFE, second)) for second in range(0x80, 0xC0))
MSG_TRUNC = 0x20
# idiag_timer of sock_diag(7): idiag_expires is then the rest of a closed connection's life, in milliseconds. A
# FIN_WAIT2 that no process has any more is kept in the same way (inet_twsk_diag_fill).
TIMER_TIME_WAIT = 3

BUFFER = 1 << 16  # the kernel sends at most 32 KiB a message: MAX_RECVMSG_LEN in af_netlink.c
MOST_TRIES = 4
TIMEOUT_S = 10.0


class Dump(NamedTuple):
    """One answered request: the bytes of every message."""

    protocol: Protocol
    data: bytes
    interrupted: bool = False  # still, after MOST_TRIES: rows may be missing


class Raw(NamedTuple):
    """What the kernel said, and what it was asked for."""

    dumps: tuple[Dump, ...]
    netns: int | None = None  # inode of the namespace that was asked
    gaps: tuple[Gap, ...] = ()
    interfaces: dict[int, str] = {}  # noqa: RUF012  interface index to name, for zones


def missing() -> str | None:
    """Why this source does not work here."""
    try:
        _open().close()
    except SourceError as error:
        return str(error)
    return None


def read(wanted: Wanted) -> Raw:
    """Dump the wanted sockets of this network namespace."""
    with _open() as channel:
        dumps = [
            _dump(channel, protocol, family, _mask(wanted, protocol), filter_ports(wanted.ports))
            for protocol in wanted.protocols
            for family in _families(wanted, protocol)
            if _mask(wanted, protocol)
        ]
    return Raw(tuple(dumps), netns(), tuple(_bound_gap(wanted)), interfaces())


def _families(wanted: Wanted, protocol: Protocol) -> list[int]:
    """One pass over the kernel's TCP tables answers for both families; UDP takes a request for each."""
    if protocol == "tcp" and len(wanted.families) > 1:
        return [AF_UNSPEC]
    return [AF[family] for family in wanted.families]


def _mask(wanted: Wanted, protocol: Protocol) -> int:
    """The states as the kernel's bits; a UDP socket is ESTABLISHED when connected and CLOSE when not."""
    states = wanted.states if protocol == "tcp" else wanted.states & {"ESTABLISHED", None}
    return sum(1 << bit for state in states for bit in MASK_BITS.get(state, ()) if protocol == "udp" or state)


def _bound_gap(wanted: Wanted) -> Iterator[Gap]:
    if "BOUND" in wanted.states and "tcp" in wanted.protocols and not shows_bound():
        why = f"kernel {os.uname().release} does not list TCP sockets that are bound and do not listen"
        yield Gap("socket", None, why, "Linux 6.8 and later do")


def shows_bound() -> bool:
    """Whether this kernel lists TCP sockets that are bound and do not listen."""
    release = os.uname().release
    return tuple(int(n) for n in release.split("-")[0].split(".")[:2] if n.isdecimal()) >= BOUND_SINCE


def netns() -> int | None:
    """Inode of the network namespace of the calling thread; None where /proc does not tell."""
    try:
        return os.stat("/proc/thread-self/ns/net").st_ino
    except OSError:
        return None


# --- the channel ---------------------------------------------------------------------------------------------------


def _open() -> socket:
    try:
        channel = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise SourceDenied(f"sock_diag: netlink is refused here ({error.strerror})") from error
        raise SourceMissing(f"sock_diag: this kernel has no NETLINK_SOCK_DIAG ({error.strerror})") from error
    channel.settimeout(TIMEOUT_S)
    return channel


def _dump(channel: socket, protocol: Protocol, family: int, states: int, ports: bytes) -> Dump:
    """Ask until an answer was not interrupted by changes: a dump that was may lack rows (netlink(7))."""
    buffer = BUFFER
    for attempt in range(1, MOST_TRIES + 1):
        channel.send(_request(attempt, protocol, family, states, ports))
        try:
            data, interrupted = _receive(channel, attempt, buffer)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise SourceTimeout(f"sock_diag: no answer within {TIMEOUT_S:g} s") from error
            if error.errno not in (errno.ENOBUFS, errno.EMSGSIZE) or attempt == MOST_TRIES:
                raise SourceMissing(f"sock_diag: {error.strerror}", "the modules are tcp_diag and udp_diag") from error
            buffer *= 4
            channel.setsockopt(SOL_SOCKET, SO_RCVBUF, 8 * buffer)
            continue
        if not interrupted:
            break
    return Dump(protocol, data, interrupted)


def _request(sequence: int, protocol: Protocol, family: int, states: int, ports: bytes) -> bytes:
    if family == AF_UNSPEC:
        kind, body = TCPDIAG_GETSOCK, REQUEST_TCP.pack(states) + ports
    else:
        kind, body = SOCK_DIAG_BY_FAMILY, REQUEST.pack(family, IPPROTO[protocol], states) + ports
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, NLM_F_REQUEST_DUMP, sequence, 0) + body


def _receive(channel: socket, sequence: int, buffer: int) -> tuple[bytes, bool]:
    """Collect the messages of one dump; raise OSError with the errno that the kernel answered."""
    parts: list[bytes] = []
    interrupted = False
    while True:
        data, _, flags, _ = channel.recvmsg(buffer)
        if flags & MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        _, _, head_flags, answered, _ = NLMSGHDR.unpack_from(data)
        if answered != sequence:
            continue  # the rest of a dump that was given up
        # The kernel compares generations once for each message it fills, so the first header tells.
        interrupted = interrupted or bool(head_flags & NLM_F_DUMP_INTR)
        parts.append(data)
        if (status := end_of(data, sequence)) is not None:
            if status < 0:
                raise OSError(-status, os.strerror(-status))
            return b"".join(parts), interrupted


def end_of(data: bytes, sequence: int) -> int | None:
    """The status (0, or a negative errno) that closes a dump; None when more will come.

    NLMSG_ERROR stands alone. NLMSG_DONE stands alone or behind the last rows, and is 20 bytes: a header and an int.
    A kernel without the diag module answers a bare NLMSG_DONE with -ENOENT.
    """
    if NLMSGHDR.unpack_from(data)[1] == NLMSG_ERROR:
        return int(STATUS.unpack_from(data, NLMSGHDR.size)[0])
    length, kind, _, answered, _ = NLMSGHDR.unpack_from(data, len(data) - DONE_SIZE)
    if (length, kind, answered) == (DONE_SIZE, NLMSG_DONE, sequence):
        return int(STATUS.unpack_from(data, len(data) - STATUS.size)[0])
    return None


# --- filter --------------------------------------------------------------------------------------------------------

# include/uapi/linux/inet_diag.h. An operation is {code u8, yes u8, no u16}: how many bytes to go on by when it holds,
# and when not. Comparing a port takes two: the second one's "no" is the port. Ending exactly at the end of the program
# accepts, going beyond it refuses (inet_diag_bc_run).
OPERATION = Struct("=BBH")
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

    def __init__(self, family: int, size: int) -> None:
        self.family, self.size = family, size

    def __missing__(self, raw: bytes) -> tuple[str, Reach]:
        text = inet_ntop(self.family, raw[: self.size])
        self[raw] = text, reach_of(text)
        return self[raw]


class _Attributes(dict[bytes, tuple[bool | None, int | None]]):
    """v6only and cgroup id out of the attributes behind a row; sockets of one process mostly share them."""

    def __missing__(self, raw: bytes) -> tuple[bool | None, int | None]:
        found: dict[int, int] = {}
        at = 0
        while at + ATTRIBUTE.size <= len(raw):
            length, kind = ATTRIBUTE.unpack_from(raw, at)
            if length < ATTRIBUTE.size:
                break
            found[kind] = int.from_bytes(raw[at + ATTRIBUTE.size : at + length], sys.byteorder)
            at += (length + 3) & ~3
        v6only = found.get(SKV6ONLY)
        self[raw] = None if v6only is None else bool(v6only), found.get(CGROUP_ID)
        return self[raw]


def parse(raw: Raw, known: Collection[int] = ()) -> Reading:
    """Read the dumps, without the sockets whose inodes are ``known``; raise SourceGarbled."""
    sockets: list[Socket] = []
    gaps = list(raw.gaps)
    for dump in raw.dumps:
        try:
            sockets += _rows(dump, raw.netns, raw.interfaces, known)
        except (struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
            raise SourceGarbled(f"sock_diag: a {dump.protocol} dump of {len(dump.data)} bytes: {error}") from error
        if dump.interrupted:
            gaps.append(Gap("socket", None, f"the {dump.protocol} dump was interrupted {MOST_TRIES} times by changes"))
    return Reading(sockets, gaps)


def _rows(dump: Dump, netns: int | None, interfaces: dict[int, str], known: Collection[int]) -> list[Socket]:
    protocol, data, _ = dump
    tcp = protocol == "tcp"
    v4, v6 = Addresses(AF_INET, 4), Addresses(AF_INET6, 16)
    attributes = _Attributes()
    rows: list[Socket] = []
    at, end = 0, len(data)
    while at < end:
        length, kind = HEAD.unpack_from(data, at)
        if length < NLMSGHDR.size or at + length > end:
            raise ValueError(f"message of {length} bytes at {at}")
        if kind not in ROWS:
            at += (length + 3) & ~3
            continue
        if length < MESSAGE.size:
            raise ValueError(f"row of {length} bytes at {at}")
        if known and INODE.unpack_from(data, at + INODE_AT)[0] in known:
            at += (length + 3) & ~3
            continue
        # fmt: off
        (_, _, _, _, _, family, number, timer, _, sport, dport, source, destination, interface, cookie,
         expires, rqueue, wqueue, uid, inode) = MESSAGE.unpack_from(data, at)
        # fmt: on
        addresses = v4 if family == AF_INET else v6
        local, reach = addresses[source]
        v6only, cgroup_id = attributes[data[at + MESSAGE.size : at + length]]
        state = TCP_STATES[number] if tcp else UDP_STATES[number]
        listening = state == "LISTEN"
        peer = not listening and dport != 0
        scope = interfaces.get(interface, str(interface)) if interface else None
        zoned = scope is not None and family == AF_INET6 and source[:2] in LINK_LOCAL
        rows.append(
            Socket(  # by position: by keyword each of 100,000 rows takes 0.6 µs longer
                protocol,
                FAMILY[family],
                local,
                ntohs(sport),
                addresses[destination][0] if peer else None,
                ntohs(dport) if peer else None,
                state,
                reach,
                scope if zoned else None,
                None,  # service_name
                uid if uid or inode else None,  # 0 also where it does not know: inet_twsk_diag_fill
                None,  # user
                inode,
                (),  # owners
                None if listening else rqueue,
                None if listening else wqueue,
                rqueue if listening else None,  # accept_queue
                wqueue if listening else None,  # backlog
                v6only,
                None if zoned else scope,  # interface
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
        )
        at += (length + 3) & ~3
    return rows


def interfaces() -> dict[int, str]:
    """Interface index to name, of the calling thread's network namespace."""
    try:
        return dict(if_nameindex())
    except OSError:
        return {}


SOURCE = Source(
    name="sockdiag",
    sees="every TCP and UDP socket of this network namespace, also bound ones that do not listen (Linux 6.8)",
    needs="no privilege; a kernel with tcp_diag and udp_diag",
    capabilities=frozenset(("tcp", "udp", "ipv6", "bound", "time_wait", "uid", "inode", "queues", "v6only")),
    missing=missing,
    read=read,
    parse=parse,
)
