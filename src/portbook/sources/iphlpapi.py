"""The tables of iphlpapi.dll: every TCP and UDP endpoint of a Windows machine, with the pid that created it.

``read`` calls GetExtendedTcpTable and GetExtendedUdpTable (learn.microsoft.com, header iphlpapi.h); ``parse`` turns the
rows (headers tcpmib.h and udpmib.h) into sockets on any platform. Nothing here needs an elevated process.

The tables lack the peer of a connected UDP socket (there is no such column), and the processes that have a socket now.
The pid is its creator's, and stays when the socket was inherited or the creator ended.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterator
from datetime import datetime
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from portbook.addresses import address_text, is_link_local, reach_of
from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing
from portbook.records import FAMILIES, Family, Gap, Owner, Protocol, Reach, Socket, State
from portbook.sources.base import Reading, Source, Wanted
from portbook.system.winapi import ERROR_ACCESS_DENIED, filetime_to_datetime, load_library

RowKind = Literal["module", "pid", "bound"]


class MibTable(NamedTuple):
    """One table as the system returned it."""

    protocol: Protocol
    family: Family
    kind: RowKind  # which columns it has; "bound": TCP endpoints with a port, whatever their state
    data: bytes


class IphlpapiTables(NamedTuple):
    """What ``read`` returns."""

    tables: tuple[MibTable, ...]
    gaps: tuple[Gap, ...] = ()


# --- the rows ------------------------------------------------------------------------------------------------------

FIELDS = ("state", "local", "scope", "port", "remote", "remote_port", "pid", "created", "tag")
STATE_PEER = "state local port remote remote_port pid"  # the order of the IPv4 rows
PEER_STATE = "local scope port remote remote_port state pid"  # and of the IPv6 rows


class RowLayout:
    """Where the fields are in a row: a format of ``struct`` and their names, in the order of the row."""

    def __init__(self, header: int, form: str, names: str) -> None:
        self.header, self.row = header, struct.Struct(form)
        # A field that the row lacks is taken from the last place, where ``rows`` puts a 0.
        positions = dict.fromkeys(FIELDS, -1)
        positions.update({name: position for position, name in enumerate(names.split())})
        self.pick = itemgetter(*(positions[name] for name in FIELDS))

    def rows(self, data: bytes) -> Iterator[tuple[Any, ...]]:
        """The rows, each with the values of ``FIELDS``; ValueError if the count exceeds the data."""
        if len(data) < self.header:
            raise ValueError("no header")
        count = int.from_bytes(data[:4], "little")
        end = self.header + count * self.row.size
        if end > len(data):
            raise ValueError(f"{count} rows of {self.row.size} bytes announced")
        return (self.pick((*values, 0)) for values in self.row.iter_unpack(memoryview(data)[self.header : end]))


# Little-endian DWORDs; a port is in network order in the low 16 bits, and the high 16 may hold anything. In a module
# row the last 128 bytes are OwningModuleInfo, whose first DWORD is the service tag; its LARGE_INTEGER aligns it to 8.
# The structures are MIB_TCPROW_OWNER_MODULE, MIB_TCPROW_OWNER_PID, MIB_TCPROW2, and the same for TCP6, UDP, UDP6.
LAYOUTS: dict[tuple[Protocol, Family, RowKind], RowLayout] = {
    ("tcp", "ipv4", "module"): RowLayout(8, "<I4sH2x4sH2xIqI124x", f"{STATE_PEER} created tag"),
    ("tcp", "ipv4", "pid"): RowLayout(4, "<I4sH2x4sH2xI", STATE_PEER),
    ("tcp", "ipv4", "bound"): RowLayout(4, "<I4sH2x4sH2xI4x", STATE_PEER),
    ("tcp", "ipv6", "module"): RowLayout(8, "<16sIH2x16s4xH2xIIqI124x", f"{PEER_STATE} created tag"),
    ("tcp", "ipv6", "pid"): RowLayout(4, "<16sIH2x16s4xH2xII", PEER_STATE),
    ("tcp", "ipv6", "bound"): RowLayout(4, "<16sIH2x16s4xH2xII4x", PEER_STATE),
    ("udp", "ipv4", "module"): RowLayout(8, "<4sH2xI4xq8xI124x", "local port pid created tag"),
    ("udp", "ipv4", "pid"): RowLayout(4, "<4sH2xI", "local port pid"),
    ("udp", "ipv6", "module"): RowLayout(8, "<16sIH2xI4xq8xI124x", "local scope port pid created tag"),
    ("udp", "ipv6", "pid"): RowLayout(4, "<16sIH2xI", "local scope port pid"),
}

# MIB_TCP_STATE in tcpmib.h. 100 is in no page of the documentation: Get-NetTCPConnection calls it Bound. DELETE_TCB
# is a connection that is about to leave the table.
LISTEN, BOUND, DELETE_TCB = 2, 100, 12
STATES: dict[int, State] = {
    1: "CLOSE",
    LISTEN: "LISTEN",
    3: "SYN_SENT",
    4: "SYN_RECV",
    5: "ESTABLISHED",
    6: "FIN_WAIT1",
    7: "FIN_WAIT2",
    8: "CLOSE_WAIT",
    9: "CLOSING",
    10: "LAST_ACK",
    11: "TIME_WAIT",
    DELETE_TCB: "CLOSE",
    BOUND: "BOUND",
}
PEERLESS = frozenset(("LISTEN", "BOUND"))


# --- read ----------------------------------------------------------------------------------------------------------

FAMILY_NUMBER: dict[Family, int] = {"ipv4": 2, "ipv6": 23}  # AF_INET, AF_INET6 in ws2def.h
# TCP_TABLE_CLASS and UDP_TABLE_CLASS in iprtrmib.h, richest first: (kind, class of every row, class of listeners)
CLASSES: dict[Protocol, tuple[tuple[RowKind, int, int], ...]] = {
    "tcp": (("module", 8, 6), ("pid", 5, 3)),
    "udp": (("module", 2, 2), ("pid", 1, 1)),
}
FUNCTIONS: dict[Protocol, str] = {"tcp": "GetExtendedTcpTable", "udp": "GetExtendedUdpTable"}
BOUND_FUNCTIONS: dict[Family, str] = {
    "ipv4": "InternalGetBoundTcpEndpointTable",
    "ipv6": "InternalGetBoundTcp6EndpointTable",
}

PVOID, ULONG, BOOL = ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int
NO_ERROR = 0
ERROR_INSUFFICIENT_BUFFER = 122
STATUS_UNSUCCESSFUL = 0xC0000001  # in no page of the documentation; seen when the table grows during the call
FIRST_SIZE = 1 << 18  # 1,600 rows in the first call, which otherwise would only get the size
MOST_SIZE = 1 << 29
MOST_TRIES = 12


def missing() -> str | None:
    """Why the tables cannot be read here; None if they can."""
    if sys.platform == "win32":
        return None
    return "only on Windows"


def read(wanted: Wanted) -> IphlpapiTables:
    """Return the wanted tables; raise SourceMissing or SourceDenied if none of them can be read."""
    library = _library("iphlpapi")
    tables: list[MibTable] = []
    bound: list[MibTable] = []
    gaps: list[Gap] = []
    failures: list[SourceError] = []
    if _wants_bound(wanted):  # first: an endpoint that connects meanwhile is then seen as connected, and not missed
        bound, gaps = _bound_tables(library, wanted.families)
    buffer = _Buffer()
    for protocol, family in _wanted_tables(wanted):
        try:
            tables.append(_table(library, buffer, protocol, family, wanted.states))
        except SourceError as error:
            failures.append(error)
    if failures and not tables:
        raise failures[0]
    gaps += [Gap("socket", None, str(failure)) for failure in failures]
    return IphlpapiTables((*tables, *bound), tuple(gaps))


def _library(name: str) -> Any:
    try:
        return load_library(name)
    except OSError as error:
        raise SourceMissing(f"{name}.dll cannot be loaded: {error}") from error


def _wanted_tables(wanted: Wanted) -> Iterator[tuple[Protocol, Family]]:
    if "tcp" in wanted.protocols and wanted.states - {None}:
        families = wanted.families
        if _wants_bound(wanted):  # which endpoints are only bound is known when all others are, of both families
            families = FAMILIES
        for family in families:
            yield "tcp", family
    if "udp" in wanted.protocols and None in wanted.states:
        for family in wanted.families:
            yield "udp", family


def _wants_bound(wanted: Wanted) -> bool:
    return "tcp" in wanted.protocols and "BOUND" in wanted.states


class _Buffer:
    """Memory for one table at a time, large enough for the largest so far."""

    def __init__(self) -> None:
        self.size = 0
        self.grow(FIRST_SIZE)

    def grow(self, size: int) -> None:
        self.size = size
        self.memory = ctypes.create_string_buffer(size)


def _table(
    library: Any, buffer: _Buffer, protocol: Protocol, family: Family, states: frozenset[State | None]
) -> MibTable:
    """One table in the class with the most columns that this system knows."""
    only_listeners = states - {None} == {"LISTEN"}
    code = NO_ERROR
    for kind, every_row, listeners in CLASSES[protocol]:
        number = listeners if only_listeners else every_row
        code, size = _call(getattr(library, FUNCTIONS[protocol]), buffer, FAMILY_NUMBER[family], number)
        if code == NO_ERROR:
            return MibTable(protocol, family, kind, _used(buffer, size, LAYOUTS[protocol, family, kind]))
    message = f"{FUNCTIONS[protocol]} ({family}) failed with error {code}"
    if code == ERROR_ACCESS_DENIED:
        raise SourceDenied(message, "run as administrator")
    raise SourceMissing(message)


def _call(function: Any, buffer: _Buffer, family: int, table_class: int) -> tuple[int, int]:
    """Call until the buffer is large enough: the table can grow between being measured and being copied."""
    function.argtypes = [PVOID, PVOID, BOOL, ULONG, ctypes.c_int, ULONG]
    function.restype = ULONG
    code = NO_ERROR
    size = ULONG(0)
    for _ in range(MOST_TRIES):
        size.value = buffer.size
        code = function(buffer.memory, ctypes.byref(size), 0, family, table_class, 0)
        if code not in (ERROR_INSUFFICIENT_BUFFER, STATUS_UNSUCCESSFUL) or buffer.size >= MOST_SIZE:
            break
        larger = 2 * buffer.size
        if code == ERROR_INSUFFICIENT_BUFFER:
            larger = max(larger, size.value + size.value // 4)
        buffer.grow(min(MOST_SIZE, larger))
    return code, size.value


def _used(buffer: _Buffer, size: int, layout: RowLayout) -> bytes:
    """The part of the buffer that the table fills; the size returned may be the buffer's, or one with slack."""
    view = memoryview(buffer.memory)
    count = int.from_bytes(view[:4], "little")
    return bytes(view[: min(size, buffer.size, layout.header + count * layout.row.size)])


def _bound_tables(library: Any, families: tuple[Family, ...]) -> tuple[list[MibTable], list[Gap]]:
    tables: list[MibTable] = []
    reasons: list[str] = []
    for family in families:
        try:
            tables.append(_bound_table(library, family))
        except SourceError as error:
            reasons.append(str(error))
    if not reasons:
        return tables, []
    why = f"TCP sockets that are bound and do not listen cannot be listed: {', '.join(reasons)}"
    return tables, [Gap("socket", None, why)]


def _bound_table(library: Any, family: Family) -> MibTable:
    """The endpoints that have a port; raises SourceMissing. The function is not documented, so it may be absent.

    ``ULONG f(PVOID *table, HANDLE heap, ULONG flags)`` allocates a MIB_TCPTABLE2 or MIB_TCP6TABLE2 from the heap, as
    System Informer declares it (phlib/include/iphlpsup.h in github.com/winsiderss/systeminformer); ``netstat -q`` uses
    the same.
    """
    try:
        function = getattr(library, BOUND_FUNCTIONS[family])
    except AttributeError as error:
        raise SourceMissing(f"there is no {BOUND_FUNCTIONS[family]}") from error
    function.argtypes = [PVOID, PVOID, ULONG]
    function.restype = ULONG
    heap = _Heap()
    table = PVOID()
    code = function(ctypes.byref(table), heap.handle, 0)
    try:
        if code != NO_ERROR:
            raise SourceMissing(f"{BOUND_FUNCTIONS[family]} failed with error {code}")
        return MibTable("tcp", family, "bound", heap.copy(table.value))
    finally:
        heap.free(table.value)


class _Heap:
    """The process's heap (learn.microsoft.com, header heapapi.h)."""

    def __init__(self) -> None:
        self.library = _library("kernel32")
        self.library.GetProcessHeap.restype = PVOID
        self.library.HeapSize.argtypes = self.library.HeapFree.argtypes = [PVOID, ULONG, PVOID]
        self.library.HeapSize.restype = ctypes.c_size_t
        self.library.HeapFree.restype = BOOL
        self.handle = self.library.GetProcessHeap()

    def copy(self, block: int | None) -> bytes:
        """The bytes of a block; a count of 0 rows if there is none."""
        if not block:
            return bytes(4)
        size = self.library.HeapSize(self.handle, 0, block)
        if size > MOST_SIZE:  # (SIZE_T)-1: not a block of this heap
            return b""
        return ctypes.string_at(block, size)

    def free(self, block: int | None) -> None:
        if block:
            self.library.HeapFree(self.handle, 0, block)


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(raw: IphlpapiTables) -> Reading:
    """Parse the tables; raise SourceGarbled."""
    sockets: list[Socket] = []
    addresses, owners = _Addresses(), _Owners()
    for table in raw.tables:
        try:
            layout = LAYOUTS[table.protocol, table.family, table.kind]
            sockets += _sockets(table, layout.rows(table.data), addresses, owners)
        except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
            raise SourceGarbled(f"iphlpapi: a {'/'.join(map(str, table[:3]))} table: {error}") from error
    return Reading(_without_active(sockets), list(raw.gaps))


class _Addresses(dict[bytes, tuple[str, Reach]]):
    """Text and reach of an address, made once: machines have few addresses and many sockets."""

    def __missing__(self, packed: bytes) -> tuple[str, Reach]:
        text = address_text(packed)
        self[packed] = text, reach_of(text)
        return self[packed]


class _Owners(dict[tuple[int, int], tuple[Owner, ...]]):
    """The owners of rows by pid and service tag; one and the same tuple for all rows of a process."""

    def __missing__(self, key: tuple[int, int]) -> tuple[Owner, ...]:
        pid, tag = key
        owners: tuple[Owner, ...] = ()
        if pid:
            owners = (Owner(pid, how="iphlpapi", service_tag=tag or None),)
        self[key] = owners
        return owners


def _sockets(
    table: MibTable, rows: Iterator[tuple[Any, ...]], addresses: _Addresses, owners: _Owners
) -> Iterator[Socket]:
    # One loop without calls of functions: a table may have 100,000 rows.
    protocol, family, kind, _ = table
    creation_times = _CreationTimes()
    for number, packed, scope, port, packed_remote, remote_port, pid, created, tag in rows:
        address, reach = addresses[packed]
        state: State | None = None
        state_text: str | None = None
        peer: str | None = None
        peer_port: int | None = None
        zone: str | None = None
        if kind == "bound":
            state = "BOUND"
        elif protocol == "tcp":
            state = STATES.get(number, "UNKNOWN")
            if state == "UNKNOWN":
                state_text = f"MIB_TCP_STATE {number}"
            if state not in PEERLESS:
                peer = addresses[packed_remote][0]
                peer_port = remote_port >> 8 | (remote_port & 0xFF) << 8
        if scope and family == "ipv6" and is_link_local(address):
            zone = str(scope)
        yield Socket(
            protocol=protocol,
            family=family,
            local_address=address,
            local_port=port >> 8 | (port & 0xFF) << 8,
            remote_address=peer,
            remote_port=peer_port,
            state=state,
            reach="none" if state == "BOUND" else reach,
            zone=zone,
            owners=owners[pid, tag],
            created=creation_times[created],
            state_text=state_text,
        )


class _CreationTimes(dict[int, datetime | None]):
    """Creation times by their FILETIME, each converted once: one call often makes many sockets of a process."""

    def __missing__(self, filetime: int) -> datetime | None:
        self[filetime] = filetime_to_datetime(filetime)
        return self[filetime]


def _without_active(sockets: list[Socket]) -> list[Socket]:
    """Omit bound endpoints that listen or are connected by now: another row then has the same port and process.

    Windows keeps the endpoint of a connected socket in its list of bound ones, mostly as 0.0.0.0.
    """
    if not any(s.state == "BOUND" for s in sockets):
        return sockets
    active = {(s.local_port, _pid(s)) for s in sockets if s.protocol == "tcp" and s.state != "BOUND"}
    return [s for s in sockets if s.state != "BOUND" or (s.local_port, _pid(s)) not in active]


def _pid(socket: Socket) -> int:
    if not socket.owners:
        return 0
    return socket.owners[0].pid


SOURCE = Source(
    name="iphlpapi",
    sees="every TCP and UDP endpoint, the pid that created it, when, and for which service",
    needs="nothing",
    capabilities=frozenset(("tcp", "udp", "ipv6", "bound", "time_wait", "owner", "created")),
    missing=missing,
    read=read,
    parse=parse,
)
