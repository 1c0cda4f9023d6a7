"""The tables of iphlpapi.dll: every TCP and UDP endpoint of a Windows machine, with the pid that made it.

``read`` calls GetExtendedTcpTable and GetExtendedUdpTable (learn.microsoft.com, header iphlpapi.h); ``parse`` reads the
rows they return (headers tcpmib.h and udpmib.h) on any platform. Nothing here needs an elevated process.

What Windows does not say: the peer of a connected UDP socket (these tables have no such column), and who holds a
socket now. The pid is its creator's, and stays when the socket was inherited or the creator ended.
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

Kind = Literal["module", "pid", "bound"]


class Table(NamedTuple):
    """One answer of the system, unchanged."""

    protocol: Protocol
    family: Family
    kind: Kind  # how much its rows say; "bound": TCP endpoints with a port, whatever became of them
    data: bytes


class IphlpapiTables(NamedTuple):
    """What ``read`` returns."""

    tables: tuple[Table, ...]
    gaps: tuple[Gap, ...] = ()


# --- the rows ------------------------------------------------------------------------------------------------------

FIELDS = ("state", "local", "scope", "port", "remote", "remote_port", "pid", "created", "tag")
PEER_STATE = "local scope port remote remote_port state pid"  # the order of the IPv6 rows


class Layout:
    """Where the fields are in a row: a format of ``struct`` and their names, in the order of the row."""

    def __init__(self, header: int, form: str, names: str) -> None:
        self.header, self.row = header, struct.Struct(form)
        order = names.split()
        # What a row does not have is taken from the 0 that is put behind it.
        self.pick = itemgetter(*(order.index(name) if name in order else -1 for name in FIELDS))

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
LAYOUTS: dict[tuple[Protocol, Family, Kind], Layout] = {
    ("tcp", "ipv4", "module"): Layout(8, "<I4sH2x4sH2xIqI124x", "state local port remote remote_port pid created tag"),
    ("tcp", "ipv4", "pid"): Layout(4, "<I4sH2x4sH2xI", "state local port remote remote_port pid"),
    ("tcp", "ipv4", "bound"): Layout(4, "<I4sH2x4sH2xI4x", "state local port remote remote_port pid"),
    ("tcp", "ipv6", "module"): Layout(8, "<16sIH2x16s4xH2xIIqI124x", f"{PEER_STATE} created tag"),
    ("tcp", "ipv6", "pid"): Layout(4, "<16sIH2x16s4xH2xII", PEER_STATE),
    ("tcp", "ipv6", "bound"): Layout(4, "<16sIH2x16s4xH2xII4x", PEER_STATE),
    ("udp", "ipv4", "module"): Layout(8, "<4sH2xI4xq8xI124x", "local port pid created tag"),
    ("udp", "ipv4", "pid"): Layout(4, "<4sH2xI", "local port pid"),
    ("udp", "ipv6", "module"): Layout(8, "<16sIH2xI4xq8xI124x", "local scope port pid created tag"),
    ("udp", "ipv6", "pid"): Layout(4, "<16sIH2xI", "local scope port pid"),
}

# MIB_TCP_STATE in tcpmib.h. 100 is in no page of the documentation: Get-NetTCPConnection calls it Bound. DELETE_TCB
# is a connection on its way out of the table.
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
CLASSES: dict[Protocol, tuple[tuple[Kind, int, int], ...]] = {
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
FIRST_SIZE = 1 << 18  # 1,600 rows in the first call, which else would only ask for the size
MOST_SIZE = 1 << 29
MOST_TRIES = 12


def missing() -> str | None:
    """Why the tables cannot be had here; None if they can."""
    return None if sys.platform == "win32" else "only on windows"


def read(wanted: Wanted) -> IphlpapiTables:
    """Return the tables of what is wanted; raise SourceMissing or SourceDenied if none can be had."""
    library = _library("iphlpapi")
    # Bound endpoints first: one that connects meanwhile is then seen as connected, and not left out.
    bound, gaps = _bound_tables(library, wanted.families) if _wants_bound(wanted) else ([], [])
    tables: list[Table] = []
    failures: list[SourceError] = []
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
        # Which endpoints are merely bound shows when all others are known, of both families.
        yield from (("tcp", family) for family in (FAMILIES if _wants_bound(wanted) else wanted.families))
    if "udp" in wanted.protocols and None in wanted.states:
        yield from (("udp", family) for family in wanted.families)


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


def _table(library: Any, buffer: _Buffer, protocol: Protocol, family: Family, states: frozenset[State | None]) -> Table:
    """One table in the richest class that this system answers."""
    only_listeners = states - {None} == {"LISTEN"}
    code = NO_ERROR
    for kind, every, listeners in CLASSES[protocol]:
        number = listeners if only_listeners else every
        code, size = _call(getattr(library, FUNCTIONS[protocol]), buffer, FAMILY_NUMBER[family], number)
        if code == NO_ERROR:
            return Table(protocol, family, kind, _used(buffer, size, LAYOUTS[protocol, family, kind]))
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
        needed = size.value if code == ERROR_INSUFFICIENT_BUFFER else 0
        buffer.grow(min(MOST_SIZE, max(2 * buffer.size, needed + needed // 4)))
    return code, size.value


def _used(buffer: _Buffer, size: int, layout: Layout) -> bytes:
    """The part of the buffer that the table fills; the size returned may be the buffer's, or one with slack."""
    view = memoryview(buffer.memory)
    count = int.from_bytes(view[:4], "little")
    return bytes(view[: min(size, buffer.size, layout.header + count * layout.row.size)])


def _bound_tables(library: Any, families: tuple[Family, ...]) -> tuple[list[Table], list[Gap]]:
    found = [_bound(library, family) for family in families]
    reasons = [reason for reason in found if isinstance(reason, str)]
    why = "TCP sockets that are bound and do not listen cannot be listed: " + ", ".join(reasons)
    return [t for t in found if isinstance(t, Table)], [Gap("socket", None, why)] if reasons else []


def _bound(library: Any, family: Family) -> Table | str:
    """The endpoints that have a port, or why not: this is an export without documentation, so it may be absent.

    ``ULONG f(PVOID *table, HANDLE heap, ULONG flags)`` allocates a MIB_TCPTABLE2 or MIB_TCP6TABLE2 from the heap, as
    System Informer declares it (phlib/include/iphlpsup.h in github.com/winsiderss/systeminformer); ``netstat -q`` uses
    the same.
    """
    try:
        function = getattr(library, BOUND_FUNCTIONS[family])
    except AttributeError:
        return f"there is no {BOUND_FUNCTIONS[family]}"
    function.argtypes = [PVOID, PVOID, ULONG]
    function.restype = ULONG
    heap = _Heap()
    table = PVOID()
    code = function(ctypes.byref(table), heap.handle, 0)
    try:
        if code != NO_ERROR:
            return f"{BOUND_FUNCTIONS[family]} failed with error {code}"
        return Table("tcp", family, "bound", heap.copy(table.value) if table.value else bytes(4))
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

    def copy(self, block: int) -> bytes:
        size = self.library.HeapSize(self.handle, 0, block)
        return ctypes.string_at(block, size if size <= MOST_SIZE else 0)  # (SIZE_T)-1: not a block of this heap

    def free(self, block: int | None) -> None:
        if block:
            self.library.HeapFree(self.handle, 0, block)


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(raw: IphlpapiTables) -> Reading:
    """Read the tables; raise SourceGarbled."""
    sockets: list[Socket] = []
    addresses, owners = _Addresses(), _Owners()
    for table in raw.tables:
        try:
            layout = LAYOUTS[table.protocol, table.family, table.kind]
            sockets += _sockets(table, layout.rows(table.data), addresses, owners)
        except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
            raise SourceGarbled(f"iphlpapi: a {'/'.join(map(str, table[:3]))} table: {error}") from error
    return Reading(_without_consumed(sockets), list(raw.gaps))


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
        self[key] = (Owner(pid, how="iphlpapi", service_tag=tag or None),) if pid else ()
        return self[key]


def _sockets(table: Table, rows: Iterator[tuple[Any, ...]], addresses: _Addresses, owners: _Owners) -> Iterator[Socket]:
    protocol, family, kind, _ = table
    tcp, zones = protocol == "tcp", family == "ipv6"
    creation_times = _CreationTimes()
    for number, packed, scope, port, packed_remote, remote_port, pid, created, tag in rows:
        address, reach = addresses[packed]
        state = _state(number, kind) if tcp else None
        peer = tcp and state not in PEERLESS
        yield Socket(
            protocol=protocol,
            family=family,
            local_address=address,
            local_port=port >> 8 | (port & 0xFF) << 8,
            remote_address=addresses[packed_remote][0] if peer else None,
            remote_port=remote_port >> 8 | (remote_port & 0xFF) << 8 if peer else None,
            state=state,
            reach=reach,
            zone=str(scope) if zones and scope and is_link_local(address) else None,
            owners=owners[pid, tag],
            created=creation_times[created],
            state_text=f"MIB_TCP_STATE {number}" if state == "UNKNOWN" else None,
        )


def _state(number: int, kind: Kind) -> State:
    return "BOUND" if kind == "bound" else STATES.get(number, "UNKNOWN")


class _CreationTimes(dict[int, datetime | None]):
    """Creation times by their FILETIME, each converted once: one call often makes many sockets of a process."""

    def __missing__(self, filetime: int) -> datetime | None:
        self[filetime] = filetime_to_datetime(filetime)
        return self[filetime]


def _without_consumed(sockets: list[Socket]) -> list[Socket]:
    """Omit bound endpoints that went on to listen or to connect: the same port and process has another row then.

    Windows keeps the endpoint of a connected socket in its list of bound ones, mostly as 0.0.0.0.
    """
    if not any(s.state == "BOUND" for s in sockets):
        return sockets
    active = {(s.local_port, _pid(s)) for s in sockets if s.protocol == "tcp" and s.state != "BOUND"}
    return [s for s in sockets if s.state != "BOUND" or (s.local_port, _pid(s)) not in active]


def _pid(endpoint: Socket) -> int:
    return endpoint.owners[0].pid if endpoint.owners else 0


SOURCE = Source(
    name="iphlpapi",
    sees="every TCP and UDP endpoint, the pid that made it, when, and for which service",
    needs="nothing",
    capabilities=frozenset(("tcp", "udp", "ipv6", "bound", "time_wait", "owner", "created")),
    missing=missing,
    read=read,
    parse=parse,
)
