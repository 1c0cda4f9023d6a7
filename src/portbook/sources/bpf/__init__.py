"""Linux: every socket of every process and every network namespace in one pass over all open files, in the kernel.

A small BPF program (program.py) looks at every descriptor inside the kernel and writes a record for those that are
wanted: the socket, and the process that has it open. Sockets without a descriptor come from sock_diag (fileless.py).
Needs CAP_BPF and CAP_PERFMON, or root, and a kernel that describes its structures (btf.py).

Facts: Documentation/bpf/bpf_iterators.rst, capabilities(7).
"""

from __future__ import annotations

import os
import struct
from _socket import AF_INET, AF_INET6, ntohs
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from portbook.addresses import is_link_local
from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing
from portbook.numerals import parse_hex
from portbook.query import LISTENING
from portbook.records import Gap, Owner, Protocol, Socket, State
from portbook.sources import sockdiag
from portbook.sources.base import OtherNamespaces, Reading, Source, Wanted
from portbook.sources.bpf.record import (
    FORMAT,
    IPV6_ONLY,
    IS_COUNTED,
    IS_MPTCP,
    OWN_TABLE,
    PLACES,
    PROTOCOLS,
    SIZE,
    TCP,
    UDP,
)
from portbook.sources.sockdiag import AF, FAMILY, TCP_STATES, UDP_STATES, Addresses

if TYPE_CHECKING:  # the modules that read are imported once it is known that we may: this source is tried first
    from portbook.sources.bpf.btf import Layout
    from portbook.sources.bpf.elsewhere import MachineNamespaces
    from portbook.sources.bpf.fileless import Answers, NamespaceDump, Unowned
    from portbook.sources.bpf.program import Choice

CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
MOST_RANGES = 100  # of ports that are compared in the kernel; a query with more is left to the pipeline
MOST_PORTS = 16  # that are looked up one by one in the kernel's tables of ports
MOST_PIDS = 16  # read one by one; for more processes, one pass over all of them is quicker
NEGATIVE = 1 << 31  # of 32 bits: a queue length that TCP computes may be below zero while a FIN is in it


class BpfDump(Struct, frozen=True):
    """What the program wrote, and what sock_diag added."""

    records: bytes | None  # None: the program did not need to run
    netns: int  # ours
    all_namespaces: bool  # whether sockets of other namespaces were wanted
    namespaces: Mapping[int, NamespaceDump] = {}  # by inode
    gaps: tuple[Gap, ...] = ()


# --- whether it can ------------------------------------------------------------------------------------------------


def missing() -> str | None:
    """Why this source does not work here; None if it does."""
    from portbook.sources.bpf import calls

    try:
        layout = _layout()
        calls.try_to_load(*_program(layout, _choice(Wanted(), layout)))
    except SourceError as error:
        return str(error)
    return None


def _layout() -> Layout:
    """The places of the kernel's members.

    :raises SourceDenied: this process may not load programs
    :raises SourceMissing: the kernel does not describe its structures
    :raises SourceGarbled: the description cannot be read
    """
    _check_privilege()
    _check_pid_namespace()
    from portbook.sources.bpf import offsets, program

    return offsets.offsets((*program.PATHS, *program.PORT_TABLES), (program.FUNCTION, *program.COUNTING))


def _program(layout: Layout, choice: Choice) -> tuple[bytes, int]:
    """The program and the number of the function it is attached to; raise SourceMissing if the kernel lacks one."""
    from portbook.sources.bpf import calls, program

    function = layout.functions[program.FUNCTION]
    lacking = program.FUNCTION if function is None else program.missing(layout.places)
    if lacking or function is None:
        raise SourceMissing(f"bpf: kernel {os.uname().release} has no {lacking}", calls.SINCE)
    return program.build(layout.places, choice).assemble(), function


def _check_privilege() -> None:
    """Read our capabilities first; without them everything else would fail: proc_pid_status(5), CapEff."""
    try:
        with open("/proc/self/status", "rb") as file:
            line = next((line for line in file if line.startswith(b"CapEff:")), b"CapEff: 00")
    except OSError as error:
        raise SourceMissing(f"bpf: /proc/self/status: {error.strerror}") from error
    capabilities = parse_hex(line.split()[1])
    may_load = capabilities >> CAP_BPF & 1 and capabilities >> CAP_PERFMON & 1
    if not (may_load or capabilities >> CAP_SYS_ADMIN & 1):
        from portbook.system import privilege

        why = f"bpf: uid {os.geteuid()} may not load programs into the kernel"
        raise SourceDenied(why, privilege.remedy_for_programs())


def _check_pid_namespace() -> None:
    """The kernel reports pids of our pid namespace. /proc has to show the same one: names are read there."""
    try:
        pid = os.readlink("/proc/self")
    except OSError:
        pid = "none"
    if pid != str(os.getpid()):
        raise SourceMissing(f"bpf: /proc shows another pid namespace: our pid is {os.getpid()}, there it is {pid}")


# --- reading -------------------------------------------------------------------------------------------------------


def read(wanted: Wanted) -> BpfDump:
    """Run the program over all open files, and read from sock_diag the sockets that have none.

    :raises SourceDenied: this process may not load programs
    :raises SourceMissing: the kernel lacks something that the program needs
    :raises SourceGarbled: the kernel's description of its structures cannot be read
    """
    layout = _layout()
    from portbook.system import namespaces

    return _Reading(wanted, layout, namespaces.own() or 0).read()


def namespaces_in_use() -> frozenset[int] | None:
    """Every network namespace of this machine; None where they cannot be listed."""
    try:
        return _census(_layout())
    except SourceError:
        return None


def pids_with_rings() -> list[int] | None:
    """The processes that have a ring of io_uring open; None where they cannot be looked up."""
    from portbook.sources.bpf import memory, rings

    try:
        layout = _layout()
        return rings.read(layout, memory.pid_level(layout.places))
    except SourceError:
        return None


def _census(layout: Layout) -> frozenset[int] | None:
    """In a container, others' namespaces are none of those that it can see: their processes are hidden."""
    from portbook.sources.bpf import census
    from portbook.system import namespaces

    return census.read(layout) if namespaces.sees_every_process() else None


class _Reading(Struct, frozen=True):
    """One reading: what is wanted, and of which kernel and namespace."""

    wanted: Wanted
    layout: Layout
    own: int

    def read(self) -> BpfDump:
        from portbook.sources.bpf import fileless

        if self.wanted.pids is not None:  # these processes do not own what has no file
            pids = self.wanted.pids if len(self.wanted.pids) <= MOST_PIDS else None
            records = self._run(_choice(self.wanted, self.layout), pids)
            return self._dump(records, {self.own: fileless.nothing()})
        found = self._look_up_ports()
        if found is not None:
            return self._read_found(found)
        if self.wanted.all_namespaces or fileless.is_whole(self.wanted):
            return self._read_files_first()
        return self._read_tables_first()

    def _run(self, choice: Choice, pids: tuple[int, ...] | None = None) -> bytes:
        from portbook.sources.bpf import calls

        return calls.read_files(*_program(self.layout, choice), pids)

    def _dump(self, records: bytes | None, answers: Answers) -> BpfDump:
        from portbook.sources.bpf import fileless

        dumps, gaps = fileless.sort_out(answers)
        return BpfDump(records, self.own, self.wanted.all_namespaces, dumps, gaps)

    def _machine(self, own: int) -> MachineNamespaces:
        """How other namespaces are found."""
        from portbook.sources.bpf import program
        from portbook.sources.bpf.elsewhere import MachineNamespaces

        return MachineNamespaces(own, partial(_census, self.layout), lambda: self._run(program.Choice()))

    def _look_up_ports(self) -> dict[int, frozenset[Protocol]] | None:
        """The protocols that have the ports, by namespace; None where they are too many or cannot be looked up."""
        ports = _few_ports(self.wanted)
        if not ports:
            return None
        from portbook.sources.bpf import port_tables

        found = port_tables.find(self.layout.places, ports, self.wanted.all_namespaces)
        if found is None:
            return None
        protocols = frozenset(self.wanted.protocols)
        return {netns: its & protocols for netns, its in found.items() if its & protocols}

    def _read_found(self, found: Mapping[int, frozenset[Protocol]]) -> BpfDump:
        """Where the ports are in use is known: for a free port nothing is read, whatever else there is."""
        from portbook.sources.bpf import fileless

        tables = fileless.read_found(self.wanted, self.own, self._machine, found)
        shows_all = tables.is_whole and sockdiag.shows_bound()
        if not found or (shows_all and fileless.unowned(tables.answers) == []):
            return self._dump(None, tables.answers)  # none, or all without a file, as in TIME_WAIT
        records = self._run(_choice(self.wanted, self.layout))
        files = fileless.summarize(records)
        if fileless.unowned(tables.answers, files.inodes | files.mptcp_inodes) != []:  # closed since, or nobody has it
            tables = fileless.read_found(self.wanted, self.own, self._machine, found)
        return self._dump(records, tables.answers)

    def _read_files_first(self) -> BpfDump:
        """If everything is wanted, the kernel's count then shows whether the tables need to be read at all."""
        from portbook.sources.bpf import fileless

        choice = _choice(self.wanted, self.layout)
        if self.wanted.all_namespaces and not fileless.is_whole(self.wanted):
            choice = replace(choice, families=tuple(AF.values()), counted_outside=self.own)
        records = self._run(choice)
        files = fileless.summarize(records)
        answers = fileless.read_namespaces(self.wanted, self.own, self._machine, files).answers
        unowned = fileless.unowned(answers, files.inodes | files.mptcp_inodes)
        if unowned != []:
            # Opened behind the program, or passed to another process while it ran: a second pass finds who has it now.
            records += self._read_again(choice, unowned)
        return self._dump(records, answers)

    def _read_again(self, choice: Choice, unowned: list[Unowned] | None) -> bytes:
        """The records of the sockets whose owner was not seen; of all where it is not known which they are."""
        if unowned is None:
            return self._run(choice)
        from portbook.sources.bpf import port_tables

        here = {socket.port for socket in unowned if socket.netns == self.own and socket.protocol == "udp"}
        if 0 < len(here) <= MOST_PORTS:
            kept = port_tables.kept_by_kernel(self.layout.places, here)
            unowned = [socket for socket in unowned if socket.inode not in kept]
        ports = {socket.port for socket in unowned}
        if not ports:
            return b""
        if len(ports) <= MOST_RANGES:
            choice = replace(choice, ports=tuple((port, port) for port in ports), counted_outside=None)
        return self._run(choice)

    def _read_tables_first(self) -> BpfDump:
        """When a part of our namespace is wanted: the tables are small."""
        from portbook.sources.bpf import fileless

        answers = fileless.read_namespaces(self.wanted, self.own, self._machine).answers
        if self.wanted.ports and sockdiag.shows_bound() and fileless.unowned(answers) == []:
            return self._dump(None, answers)
        records = self._run(_choice(self.wanted, self.layout))
        files = fileless.summarize(records)
        if fileless.unowned(answers, files.inodes | files.mptcp_inodes) != []:  # closed since, or no process has it
            answers = fileless.read_namespaces(self.wanted, self.own, self._machine).answers
        return self._dump(records, answers)


def _few_ports(wanted: Wanted) -> list[int]:
    """The wanted ports, if they are few."""
    ranges = wanted.ports or ()
    if sum(last - first + 1 for first, last in ranges) > MOST_PORTS:
        return []
    return [port for first, last in ranges for port in range(first, last + 1)]


def _choice(wanted: Wanted, layout: Layout) -> Choice:
    from portbook.sources.bpf import memory
    from portbook.sources.bpf.program import Choice
    from portbook.system import namespaces

    ports = wanted.ports or ()
    return Choice(
        families=tuple(AF[family] for family in wanted.families),
        tcp=_mask(wanted, TCP_STATES) if "tcp" in wanted.protocols else 0,
        udp=_mask(wanted, UDP_STATES) if "udp" in wanted.protocols else 0,
        ports=ports if len(ports) <= MOST_RANGES else (),
        netns=None if wanted.all_namespaces else namespaces.own(),
        pid_level=memory.pid_level(layout.places),
    )


def _mask(wanted: Wanted, states: Mapping[int, State | None]) -> int:
    return sum(1 << number for number, state in states.items() if state in wanted.states)


# --- the pure half -------------------------------------------------------------------------------------------------


def parse(dump: BpfDump) -> Reading:
    """Read the records and the dumps of sock_diag; raise SourceGarbled."""
    try:
        rows = _rows(dump)
    except (struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise SourceGarbled(f"bpf: {len(dump.records or b'')} bytes of records: {error}") from error
    gaps = list(dump.gaps)
    added: list[Socket] = []
    tables = 0
    for netns, namespace in dump.namespaces.items():
        tables += len(namespace.dumps)
        try:
            readings = [sockdiag.parse(table, rows.by_inode.keys()) for table in namespace.dumps]
        except SourceGarbled as error:
            if netns == dump.netns:
                raise
            gaps.append(Gap("socket", None, f"network namespace {netns} was not read: {error}"))
            continue
        for reading in readings:
            added += reading.sockets
            gaps += reading.gaps
    added = _with_mptcp_owners(_distinct(added), rows.mptcp)
    if not tables:  # the TCP sockets below MPTCP sockets were not read: then these stand for them
        added += [s for s in rows.mptcp.values() if s.state == "LISTEN"]
    others = None if dump.all_namespaces or dump.records is None else rows.other_namespaces
    return Reading(_once(list(rows.by_inode.values()), added), gaps, others)


def _distinct(sockets: list[Socket]) -> list[Socket]:
    """Each inode once, as it was seen last: a table may show one twice. Sockets without an inode are all kept."""
    inodes = [s.inode for s in sockets if s.inode]
    if len(set(inodes)) == len(inodes):
        return sockets
    return list({s.inode or -i: s for i, s in enumerate(sockets, 1)}.values())


def _with_mptcp_owners(sockets: list[Socket], mptcp: Mapping[int, Socket]) -> list[Socket]:
    """TCP sockets with the owners of the MPTCP sockets above them, which have the same inode."""
    if not mptcp:
        return sockets
    completed: list[Socket] = []
    for s in sockets:
        above = mptcp.get(s.inode or 0)
        completed.append(s if above is None else replace(s, owners=above.owners))
    return completed


def _once(rows: list[Socket], added: list[Socket]) -> list[Socket]:
    """Each connection once, in its later state.

    While we read, it may have been accepted, or its process may have closed it: it is then both among the rows, with a
    file, and among the added ones, without.
    """
    from portbook.sources.bpf.fileless import PASSED

    peers = {s.remote_port for s in rows}
    without_file = {_ends(s): s for s in added if s.remote_port in peers and not s.inode}
    if not without_file:
        return rows + added
    ports = {(s.local_port, s.remote_port) for s in without_file.values()}
    earlier: set[int] = set()  # by identity: to hash a record is to hash all its fields
    for s in rows:
        if (s.local_port, s.remote_port) not in ports:
            continue
        twin = without_file.get(_ends(s))
        if twin is not None:
            was_closed = twin.state in PASSED
            earlier.add(id(s if was_closed else twin))
    if not earlier:
        return rows + added
    return [s for s in (*rows, *added) if id(s) not in earlier]


def _ends(s: Socket) -> tuple[object, ...]:
    return s.protocol, s.local_port, s.remote_port, s.local_address, s.remote_address, s.netns


# --- rows ----------------------------------------------------------------------------------------------------------


class _Rows(Struct, frozen=True):
    """The sockets that have files, with their owners."""

    by_inode: dict[int, Socket]
    mptcp: dict[int, Socket]  # MPTCP sockets, which are not in by_inode
    other_namespaces: OtherNamespaces


class _Owners(dict[int, tuple[Owner, ...]]):
    """One owner, made once for all its sockets; the key is the pid times two, plus one for a thread's own table."""

    def __missing__(self, key: int) -> tuple[Owner, ...]:
        self[key] = (Owner(key >> 1, how="task-fd" if key & 1 else "fd"),)
        return self[key]


_Kind = tuple[Protocol, State | None, bool, bool]  # whether it listens, whether it waits on its port
KINDS: dict[tuple[int, int], _Kind] = {
    (number, bit): (PROTOCOLS[number], state, state == "LISTEN", state in LISTENING)
    for number, states in ((TCP, TCP_STATES), (UDP, UDP_STATES))
    for bit, state in states.items()
}


def _rows(dump: BpfDump) -> _Rows:
    """Read the records, of which a socket has one for each descriptor.

    There may be a hundred thousand: the loop calls few functions, and makes each socket by position, as sockdiag does.
    """
    addresses_of = {AF_INET: Addresses(4), AF_INET6: Addresses(16)}
    owners = _Owners()
    rows: dict[int, Socket] = {}
    mptcp_inodes: set[int] = set()
    more_owners: dict[int, list[int]] = defaultdict(list)  # keys, of sockets that have several records
    other_netns: dict[int, int] = {}  # by inode, of sockets in namespaces that are not wanted
    own, all_namespaces = dump.netns, dump.all_namespaces
    records = _wanted_records(dump.records or b"")
    # fmt: off
    for (inode, cookie, cgroup_id, source, destination, pid, _fd, netns, uid, received, sent, interface, _pending,
         port, peer_port, family, protocol_number, state_number, flags) in FORMAT.iter_unpack(records):
        # fmt: on
        owner = pid << 1 | (flags & OWN_TABLE) // OWN_TABLE
        if inode in rows:
            more_owners[inode].append(owner)
            continue
        if netns != own and not all_namespaces:
            other_netns[inode] = netns
            continue
        if flags & IS_MPTCP:
            mptcp_inodes.add(inode)

        protocol, state, listens, waits = KINDS[protocol_number, state_number]
        addresses = addresses_of[family]
        local, reach = addresses[source]
        reach = "none" if state == "BOUND" else reach

        remote = remote_port = None
        if peer_port and not listens:
            remote, remote_port = addresses[destination][0], ntohs(peer_port)

        zone = device = None
        if interface:
            zone, device = _zone_or_device(dump, netns, interface, local)

        if received >= NEGATIVE:
            received = 0  # noqa: PLW2901
        recv_queue = send_queue = accept_queue = backlog = None
        if listens:
            accept_queue, backlog = received, sent
        else:
            recv_queue, send_queue = received, sent

        v6only = None
        if waits and family == AF_INET6:
            v6only = flags & IPV6_ONLY != 0

        rows[inode] = Socket(
            protocol,
            FAMILY[family],
            local,
            port,
            remote,
            remote_port,
            state,
            reach,
            zone,
            None,  # service_name
            uid,
            None,  # user
            inode,
            owners[owner],
            recv_queue,
            send_queue,
            accept_queue,
            backlog,
            v6only,
            device,
            None,  # created
            None,  # state_text
            cookie,
            cgroup_id or None,
            None,  # service
            None,  # container
            netns,
        )
    _add_owners(rows, more_owners, owners)
    mptcp = {inode: rows.pop(inode) for inode in mptcp_inodes}
    return _Rows(rows, mptcp, OtherNamespaces(len(other_netns), len(set(other_netns.values()))))


def _wanted_records(records: bytes) -> bytes:
    """Without those that are there to be counted only."""
    flags = records[PLACES["flags"] :: SIZE]
    if not flags or max(flags) < IS_COUNTED:
        return records
    wanted = [i for i, flag in enumerate(flags) if not flag & IS_COUNTED]
    return b"".join([records[SIZE * i : SIZE * (i + 1)] for i in wanted])


def _zone_or_device(dump: BpfDump, netns: int, interface: int, address: str) -> tuple[str | None, str | None]:
    """The interface of a socket, as the zone of its link-local address or as the device that it is bound to."""
    name = str(interface)
    namespace = dump.namespaces.get(netns)
    if namespace is not None:
        name = namespace.interfaces.get(interface, name)
    return (name, None) if is_link_local(address) else (None, name)


def _add_owners(rows: dict[int, Socket], more_owners: Mapping[int, list[int]], owners: _Owners) -> None:
    for inode, keys in more_owners.items():
        rows[inode] = replace(rows[inode], owners=_merged(rows[inode].owners, keys, owners))


def _merged(first: tuple[Owner, ...], keys: list[int], owners: _Owners) -> tuple[Owner, ...]:
    """Each process once. A thread of its own counts only where the process itself does not have the socket."""
    by_process = {key for key in keys if not key & 1}
    by_thread = {key for key in keys if key & 1}
    for owner in first:
        if owner.how == "task-fd":
            by_thread.add(owner.pid << 1 | 1)
        else:
            by_process.add(owner.pid << 1)
    merged = by_process | {key for key in by_thread if key - 1 not in by_process}
    return tuple(owners[key][0] for key in sorted(merged))


SOURCE = Source(
    name="bpf",
    sees="every TCP and UDP socket of every process and every network namespace, with all its owners",
    needs="root, or CAP_BPF and CAP_PERFMON; Linux 5.12 with BTF (CONFIG_DEBUG_INFO_BTF)",
    capabilities=frozenset(
        (
            "tcp",
            "udp",
            "ipv6",
            "bound",
            "time_wait",
            "uid",
            "inode",
            "queues",
            "v6only",
            "owner",
            "holders",
            "namespaces",
        )
    ),
    missing=missing,
    read=read,
    parse=parse,
    optional=True,
)
