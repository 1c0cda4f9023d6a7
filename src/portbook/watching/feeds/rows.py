"""Linux: the sockets that wait for peers, in this network namespace and others, and what changed since the last look.

A look is one pass of sock_diag(7) over each of the kernel's tables, which leaves out connections. Rows that were
there before are recognized by table, port and cookie. Records are made of new ones only.

The kernel keeps its place in a table by position (inet_diag_dump_icsk, udp_dump): while others come and go, a dump of
several datagrams may pass over a row. So what is missing is looked for once more, by its port, before it is said to
have ended. A bound socket that has become a client is found there too.
"""

from __future__ import annotations

import struct
from _socket import htons, ntohs
from collections.abc import Collection
from functools import lru_cache
from time import monotonic

from msgspec import Struct
from msgspec.structs import replace

from portbook.errors import SourceGarbled
from portbook.records import Protocol, Socket, State
from portbook.sources import sockdiag
from portbook.sources.base import Wanted
from portbook.sources.sockdiag import COOKIE_AT, HEAD, LEAST_ROW, PORT_AT, SockdiagDump, SockdiagTable
from portbook.system import namespaces, netlink, privilege

# A row is one number, and to compare ten thousand takes two milliseconds: cookie, and the port in network byte order.
RowNumber = int
PORT_BITS = 16


class TablePart(Struct, frozen=True):
    """A part of the tables that is read by itself, so that a row need not say its state."""

    protocol: Protocol
    state: State | None

    def wanted(self) -> Wanted:
        """The request for it."""
        return Wanted(protocols=(self.protocol,), states=frozenset((self.state,)))


BOUND, LISTENERS, UDP = TablePart("tcp", "BOUND"), TablePart("tcp", "LISTEN"), TablePart("udp", None)
HOLDING: dict[Protocol, Wanted] = {
    "tcp": Wanted(protocols=("tcp",), states=frozenset[State | None](("BOUND", "LISTEN"))),
    "udp": UDP.wanted(),
}
# What a bound TCP socket becomes when it connects. Of a connection in TIME_WAIT nobody has a descriptor.
CONNECTED = frozenset[State | None](
    ("SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING")
)
# Where what is missing may be as a client. A listener is never one of the thousands of connections on its port.
CLIENTS: dict[TablePart, Wanted] = {
    BOUND: Wanted(protocols=("tcp",), states=CONNECTED),
    UDP: Wanted(protocols=("udp",), states=frozenset[State | None](("ESTABLISHED",))),
}
TOGETHER = 64  # rows of one length that are read at once
END = netlink.HEADER.pack(netlink.DONE_SIZE, netlink.NLMSG_DONE, 0, 0, 0) + netlink.STATUS.pack(0)

# A namespace whose numbers of sockets are what they were is read whole no more often than this: a pod has its own, and
# a machine may have hundreds. One socket that replaces another between two looks is seen as late as that.
WHOLE_EVERY_S = 10.0
ELSEWHERE_LIMIT_S = 1.0  # of a look into all other namespaces: users can make thousands
COUNTED = (b"sockets:", b"TCP:", b"UDP:", b"TCP6:", b"UDP6:")  # lines of /proc/net/sockstat and sockstat6


class Difference(Struct):
    """What changed since the last look."""

    appeared: list[Socket] = []  # without owners: new, or in another state than before
    ended: list[int] = []  # cookies
    connected: list[int] = []  # cookies of sockets that were bound and have a peer now
    problems: tuple[str, ...] = ()  # why other network namespaces could not be read


class _Place:
    """What was seen in one network namespace."""

    def __init__(self) -> None:
        self.rows: dict[TablePart, set[RowNumber]] = {}
        self.numbers: tuple[bytes, ...] = ()
        self.read_at = float("-inf")  # by monotonic()

    def is_empty(self) -> bool:
        return not any(self.rows.values())


class Lookout:
    """Looks at the waiting sockets again and again.

    :param everywhere: in other network namespaces too, if the process may enter them
    """

    def __init__(self, everywhere: bool = True) -> None:
        self._own = namespaces.own() or 0
        self._places: dict[int, _Place] = {self._own: _Place()}
        self._everywhere = everywhere and privilege.has("CAP_SYS_ADMIN")
        self._kept: dict[int, namespaces.Entrance] = {}  # namespaces in which no process is

    def look(self, only: Collection[int] | None = None, tcp_ports: Collection[int] | None = None) -> Difference:
        """Compare with the last look; after the first one everything has appeared.

        :param only: of other namespaces these, whole; None: all, as far as something changed
        :param tcp_ports: compare TCP sockets on these ports alone; None: everything
        :raises SourceError: this network namespace could not be read; nothing was compared
        """
        found = Difference(appeared=[], ended=[], connected=[])
        _compare(self._places[self._own], found, tcp_ports)
        if self._everywhere and (only is None or set(only) - {self._own}):
            self._look_elsewhere(found, only, tcp_ports)
        return found

    def forget(self, cookie: int, port: int) -> bool:
        """A socket of this namespace has ended: the next look does not report it. Whether it was known.

        :param port: in network byte order
        """
        row = cookie << PORT_BITS | port
        known = [rows for rows in self._places[self._own].rows.values() if row in rows]
        for rows in known:
            rows.discard(row)
        return bool(known)

    def _look_elsewhere(
        self, found: Difference, only: Collection[int] | None, tcp_ports: Collection[int] | None
    ) -> None:
        try:
            entrances = self._entrances(found)
        except OSError as error:  # there is no /proc
            found.problems = (f"other network namespaces could not be found: {error.strerror}",)
            return
        if only is not None:
            entrances = {netns: entrance for netns, entrance in entrances.items() if netns in only}
        if not entrances:
            return
        places = {netns: self._places.get(netns) or _Place() for netns in entrances}
        longest_unread = sorted(entrances, key=lambda netns: places[netns].read_at)

        def work(netns: int) -> Difference:
            return _compare_if_changed(places[netns], tcp_ports, is_due=only is not None)

        answers = namespaces.visit({n: entrances[n] for n in longest_unread}, work, ELSEWHERE_LIMIT_S)
        problems: dict[str, None] = {}
        for netns, answer in answers.items():
            if isinstance(answer, Difference):
                self._places[netns] = places[netns]
                _add(found, answer)
            elif isinstance(answer, (FileNotFoundError, ProcessLookupError)):
                self._kept.pop(netns, None)  # the next look finds another entrance, or none
            else:
                problems[f"other network namespaces could not be read: {answer}"] = None
        found.problems = tuple(problems)

    def _entrances(self, found: Difference) -> dict[int, namespaces.Entrance]:
        """How each other namespace is entered; one that has gone takes its sockets along."""
        entrances = namespaces.inhabited()
        entrances.pop(self._own, None)
        left = self._places.keys() - entrances.keys() - {self._own}
        if left:
            self._find_kept({netns for netns in left if not self._places[netns].is_empty()} - self._kept.keys())
        for netns in left:
            if netns in self._kept:
                entrances[netns] = self._kept[netns]
            else:
                _end_all(self._places.pop(netns), found)
        return entrances

    def _find_kept(self, lonely: set[int]) -> None:
        """Look for what else leads into namespaces that no process is in any more."""
        if not lonely:
            return
        self._kept.update(namespaces.kept_by_mounts(lonely))
        lonely -= self._kept.keys()
        if lonely:
            self._kept.update(namespaces.kept_by_descriptors(lonely))


def _compare_if_changed(place: _Place, tcp_ports: Collection[int] | None, is_due: bool) -> Difference:
    """Compare the namespace of the calling thread, unless the kernel counts as many sockets in it as before.

    :param is_due: in any case
    """
    found = Difference(appeared=[], ended=[], connected=[])
    numbers = _read_numbers()
    is_due = is_due or monotonic() >= place.read_at + WHOLE_EVERY_S
    if numbers and numbers == place.numbers and not is_due:
        return found
    _compare(place, found, tcp_ports)
    if tcp_ports is None:
        place.numbers, place.read_at = numbers, monotonic()
    return found


def _read_numbers() -> tuple[bytes, ...]:
    """How many sockets the kernel counts in the namespace of the calling thread; empty where that cannot be read."""
    text = b""
    try:
        for name in ("sockstat", "sockstat6"):
            with open(f"/proc/thread-self/net/{name}", "rb") as file:
                text += file.read(1 << 14)
    except OSError:
        pass  # without IPv6 there is no sockstat6
    return parse_numbers(text)


def parse_numbers(text: bytes) -> tuple[bytes, ...]:
    """The numbers of sockets in ``sockets: used 9`` and ``TCP: inuse 5 orphan 0 …``. Pure.

    The others, such as ``alloc`` and ``mem``, are those of the whole machine (sockstat_seq_show in net/ipv4/proc.c).
    """
    lines = (line.split(None, 3) for line in text.splitlines())
    return tuple(words[2] for words in lines if len(words) > 2 and words[0] in COUNTED)


def _add(found: Difference, more: Difference) -> None:
    found.appeared += more.appeared
    found.ended += more.ended
    found.connected += more.connected


def _end_all(place: _Place, found: Difference) -> None:
    for rows in place.rows.values():
        found.ended += [row >> PORT_BITS for row in rows]


# --- one namespace -------------------------------------------------------------------------------------------------


def _compare(place: _Place, found: Difference, tcp_ports: Collection[int] | None) -> None:
    """Read the namespace of the calling thread, and add what changed; raises SourceError."""
    kinds = _kinds() if tcp_ports is None else tuple(kind for kind in _kinds() if kind.protocol == "tcp")
    ranges = None if tcp_ports is None else tuple((port, port) for port in sorted(tcp_ports))
    dumps = {kind: sockdiag.read(replace(kind.wanted(), ports=ranges)) for kind in kinds}
    rows = {kind: _rows_of(dump) for kind, dump in dumps.items()}
    before = {kind: place.rows.get(kind, set()) for kind in kinds}
    if tcp_ports is not None:
        ports = {htons(port) for port in tcp_ports}
        before = {kind: {row for row in known if row & 0xFFFF in ports} for kind, known in before.items()}
        rows = {kind: {row for row in known if row & 0xFFFF in ports} for kind, known in rows.items()}
    changed: set[int] = set()  # cookies
    for kind, dump in dumps.items():
        appeared = rows[kind] - before[kind]
        if appeared:
            changed |= {row >> PORT_BITS for row in appeared}
            found.appeared += _sockets(dump, appeared)
    for kind in kinds:
        missing = {row for row in before[kind] - rows[kind] if row >> PORT_BITS not in changed}
        if missing:
            rows[kind] |= _look_again(kind, missing, found)
        others = place.rows.get(kind, set()) - before[kind]
        place.rows[kind] = rows[kind] | {row for row in others if row >> PORT_BITS not in changed}


def _kinds() -> tuple[TablePart, ...]:
    """In this order: what is bound when it is read first, and listens a moment later, is seen twice, and not missed."""
    return (BOUND, LISTENERS, UDP) if sockdiag.shows_bound() else (LISTENERS, UDP)


def _look_again(kind: TablePart, missing: set[RowNumber], found: Difference) -> set[RowNumber]:
    """Look for rows that were missing; returns those that are there nevertheless, and adds the others to ``found``.

    One that has another state since a moment ago is there: the next look sees it as changed.
    """
    ports = sorted({ntohs(row & 0xFFFF) for row in missing})
    there = missing & _read_on(HOLDING[kind.protocol], ports)
    gone = missing - there
    connected = gone & _read_on(CLIENTS[kind], ports) if gone and kind in CLIENTS else set()
    found.connected += [row >> PORT_BITS for row in connected]
    found.ended += [row >> PORT_BITS for row in gone - connected]
    return there


def _read_on(wanted: Wanted, ports: list[int]) -> set[RowNumber]:
    """The rows on some ports."""
    return _rows_of(sockdiag.read(replace(wanted, ports=tuple((port, port) for port in ports))))


def _rows_of(dump: SockdiagDump) -> set[RowNumber]:
    rows: set[RowNumber] = set()
    for table in dump.tables:
        rows |= parse_rows(table)
    return rows


def _sockets(dump: SockdiagDump, wanted: set[RowNumber]) -> list[Socket]:
    """Records of some of the rows; raises SourceGarbled."""
    tables = tuple(SockdiagTable(table.protocol, select_rows(table.data, wanted)) for table in dump.tables)
    reading = sockdiag.parse(SockdiagDump(tables, dump.netns, (), dump.interfaces))
    return list({s.cookie: s for s in reading.sockets}.values())  # one that moved while it was read comes twice


# --- pure ----------------------------------------------------------------------------------------------------------

_HEAD_OF_ROW = f"={PORT_AT}xH{COOKIE_AT - PORT_AT - 2}xQ"
_ROW = struct.Struct(_HEAD_OF_ROW)


@lru_cache(64)
def _row_of(length: int) -> struct.Struct:
    return struct.Struct(f"{_HEAD_OF_ROW}{length - _ROW.size}x")


def parse_rows(table: SockdiagTable) -> set[RowNumber]:
    """Port and cookie of every row; raise SourceGarbled."""
    try:
        return _parse_rows(table.data)
    except (struct.error, ValueError, TypeError) as error:
        raise SourceGarbled(f"sock_diag: a {table.protocol} dump of {len(table.data)} bytes: {error}") from error


def _parse_rows(data: bytes) -> set[RowNumber]:
    rows: list[RowNumber] = []
    end = len(data) - netlink.DONE_SIZE
    whole = memoryview(data)
    words = whole.cast("I")
    at = 0
    while at < end:
        size = _size(data, at, end)
        following = at + size * TOGETHER
        if following <= end and words[at // 4 : following // 4 : size // 4].tolist() == [size] * TOGETHER:
            rows += [cookie << PORT_BITS | port for port, cookie in _row_of(size).iter_unpack(whole[at:following])]
            at = following
            continue
        for _ in range(TOGETHER):  # of several lengths, such as those of IPv4 and IPv6
            port, cookie = _ROW.unpack_from(data, at)
            rows.append(cookie << PORT_BITS | port)
            at += _size(data, at, end)
            if at >= end:
                break
    return set(rows)


def _size(data: bytes, at: int, end: int) -> int:
    """The length of the row at a place, with padding; raise ValueError if that cannot be one."""
    length, kind = HEAD.unpack_from(data, at)
    if length < LEAST_ROW or at + length > end or kind not in sockdiag.ROW_TYPES:
        raise ValueError(f"message of {length} bytes and type {kind} at {at}")
    return int(length + 3) & ~3


def select_rows(data: bytes, wanted: Collection[RowNumber]) -> bytes:
    """Those of the rows, as a dump of their own. The rows were parsed before."""
    parts: list[bytes] = []
    end = len(data) - netlink.DONE_SIZE
    at = 0
    while at < end:
        size = _size(data, at, end)
        port, cookie = _ROW.unpack_from(data, at)
        if cookie << PORT_BITS | port in wanted:
            parts.append(data[at : at + size])
        at += size
    return b"".join((*parts, END))
