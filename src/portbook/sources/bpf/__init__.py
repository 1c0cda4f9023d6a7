"""Linux: every socket of every process and every network namespace in one pass over all open files, in the kernel.

A small BPF program (program.py) looks at every descriptor inside the kernel and writes a record for those that are
wanted: the socket, and the process that has it open. Sockets without a descriptor come from sock_diag (fileless.py).
Both become rows (rows.py); here is what is read, and in which order.
Needs CAP_BPF and CAP_PERFMON, or root, and a kernel that describes its structures (btf.py).

Facts: Documentation/bpf/bpf_iterators.rst, capabilities(7).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from portbook.errors import SourceDenied, SourceError, SourceMissing
from portbook.numerals import parse_hex
from portbook.records import Gap, Protocol, State
from portbook.sources import sockdiag
from portbook.sources.base import Reading, Source, Wanted
from portbook.sources.sockdiag import AF, TCP_STATES, UDP_STATES

if TYPE_CHECKING:  # the modules that read are imported once it is known that we may: this source is tried first
    from portbook.sources.bpf.btf import Layout
    from portbook.sources.bpf.elsewhere import MachineNamespaces
    from portbook.sources.bpf.fileless import Answers, NamespaceDump, Unowned
    from portbook.sources.bpf.program import Choice

CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
MOST_RANGES = 100  # of ports that are compared in the kernel; a query with more is left to the pipeline
MOST_PORTS = 16  # that are looked up one by one in the kernel's tables of ports
MOST_PIDS = 16  # read one by one; for more processes, one pass over all of them is quicker


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


def parse(dump: BpfDump) -> Reading:
    """Read the records and the dumps of sock_diag; raise SourceGarbled."""
    from portbook.sources.bpf import rows

    return rows.parse(dump)


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
