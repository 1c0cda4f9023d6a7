"""Linux: the sockets that no descriptor refers to, from sock_diag, namespace by namespace.

These are connections in TIME_WAIT or SYN_RECV, or closed and not yet acknowledged; connections that wait to be
accepted; sockets on their way between processes (SCM_RIGHTS), and the kernel's own. To read all sockets again for these
few would cost as much as everything else together, so the kernel's own count is read first: the sockets that have a
file and those in a state without one have to add up to it.

Facts: net/ipv4/proc.c, sockstat_seq_show(); "inuse" counts what is hashed, which __inet_hash() and inet_unhash() do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from portbook.addresses import interface_names
from portbook.errors import SourceError, SourceGarbled
from portbook.numerals import counted, parse_number
from portbook.records import FAMILIES, PROTOCOLS, STATES, Gap, Protocol, State
from portbook.sources import sockdiag
from portbook.sources.base import Wanted
from portbook.sources.bpf import record
from portbook.sources.bpf.record import IS_MPTCP, PLACES, SIZE, TCP

if TYPE_CHECKING:
    from portbook.sources.bpf.elsewhere import MachineNamespaces

# States in which TCP keeps a connection after its process has closed it, and these with SYN_RECV, before one has it.
PASSED: frozenset[State | None] = frozenset(("TIME_WAIT", "FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK"))
TRANSIENT: frozenset[State | None] = PASSED | frozenset(("SYN_RECV",))
VISIT_LIMIT_S = 2.0  # of a request in another namespace, whose owner may have filled its tables
TCP_CLOSE = 7  # include/net/tcp_states.h
EVERY_STATE: frozenset[State | None] = frozenset((*STATES, None))


class FileCounts(Struct, frozen=True):
    """What the files of one namespace showed."""

    hashed: Counter[Protocol]  # sockets that the kernel counts as in use
    pending: int  # handshakes that listeners have begun


NOTHING_COUNTED = FileCounts(Counter(), 0)


class Files(Struct, frozen=True):
    """What the files of all namespaces showed."""

    counts: dict[int, FileCounts]  # by namespace
    inodes: frozenset[int]
    mptcp_inodes: frozenset[int]  # apart: sockets that only show who owns the TCP sockets below them
    with_interface: frozenset[int]  # namespaces with a socket that has an interface, by number


class KernelCounts(Struct, frozen=True):
    """What the kernel counts in the namespace of the calling thread."""

    tcp: int
    udp: int
    waiting: int  # in TIME_WAIT, and in FIN_WAIT2 without a socket


class NamespaceDump(Struct, frozen=True):
    """What was read inside a namespace."""

    dumps: list[sockdiag.SockdiagDump]
    interfaces: dict[int, str]  # index to name


Answers = Mapping[int, NamespaceDump | SourceError | OSError]  # by namespace


class Tables(Struct, frozen=True):
    """What was read in the namespaces that are wanted."""

    answers: Answers
    is_whole: bool  # whether none of these namespaces is missing


def is_whole(wanted: Wanted) -> bool:
    """Whether nothing is left out, so that numbers can be compared."""
    every_protocol = len(wanted.protocols) == len(PROTOCOLS)
    every_family = len(wanted.families) == len(FAMILIES)
    return every_protocol and every_family and wanted.ports is None and wanted.states >= EVERY_STATE


# --- sockets that have files ----------------------------------------------------------------------------------------


def summarize(records: bytes) -> Files:
    """Count the sockets of each namespace; collect the inodes, and apart from them those of MPTCP sockets.

    An MPTCP socket shows only who owns the TCP sockets below it, which have no file and are still to be read.
    There may be a hundred thousand records: they are read column by column.
    """
    words = memoryview(records).cast("I")
    inodes = memoryview(records).cast("Q")[PLACES["inode"] // 8 :: SIZE // 8].tolist()
    netns = words[PLACES["netns"] // 4 :: SIZE // 4].tolist()
    pendings = words[PLACES["pending"] // 4 :: SIZE // 4].tolist()
    protocols = records[PLACES["protocol"] :: SIZE]
    states = records[PLACES["state"] :: SIZE]
    flags = records[PLACES["flags"] :: SIZE]

    mptcp_inodes: frozenset[int] = frozenset()
    if any(flags):
        mptcp_inodes = frozenset(inode for inode, flag in zip(inodes, flags, strict=True) if flag & IS_MPTCP)
    tcp_udp_inodes = frozenset(inodes) - mptcp_inodes

    kinds = list(zip(netns, protocols, states, strict=True))
    if len(tcp_udp_inodes) < len(inodes):  # some have several records, or are MPTCP sockets: each is counted once
        kind_by_inode = dict(zip(inodes, kinds, strict=True))
        kinds = [kind_by_inode[inode] for inode in tcp_udp_inodes]
    hashed: dict[int, Counter[Protocol]] = defaultdict(Counter)
    for (number, protocol, state), count in Counter(kinds).items():
        is_hashed = (protocol, state) != (TCP, TCP_CLOSE)
        hashed[number][record.PROTOCOLS[protocol]] += count if is_hashed else 0

    pending = Counter[int]()
    for number, count in zip(netns, pendings, strict=True):
        if count:
            pending[number] += count
    counts = {number: FileCounts(counter, pending[number]) for number, counter in hashed.items()}
    interfaces = words[PLACES["interface"] // 4 :: SIZE // 4].tolist()
    with_interface: frozenset[int] = frozenset()
    if any(interfaces):
        with_interface = frozenset(number for number, interface in zip(netns, interfaces, strict=True) if interface)
    return Files(counts, tcp_udp_inodes, mptcp_inodes, with_interface)


# --- namespace by namespace ----------------------------------------------------------------------------------------


def read_namespaces(
    wanted: Wanted, own: int, machine: Callable[[int], MachineNamespaces], files: Files | None = None
) -> Tables:
    """Read what may have no file: in our namespace, and in every other one when these are wanted.

    :param machine: how other namespaces are found
    :param files: what the files showed, when they were read already; of other namespaces they have to show all
    :returns: by namespace what was read, or the error of another namespace than ours
    :raises SourceError: our own namespace could not be read
    """
    read_one = partial(_read_namespace, wanted, own, files)
    answers: dict[int, NamespaceDump | SourceError | OSError] = {own: read_one(own, None)}
    if not wanted.all_namespaces:
        return Tables(answers, is_whole=True)
    from portbook.sources.bpf import elsewhere

    seen = () if files is None else files.counts
    others = elsewhere.read(machine(own), partial(read_one, limit_s=VISIT_LIMIT_S), seen)
    answers.update(others.answers)
    return Tables(answers, others.is_whole)


def read_found(
    wanted: Wanted, own: int, machine: Callable[[int], MachineNamespaces], found: Mapping[int, frozenset[Protocol]]
) -> Tables:
    """Read the namespaces and protocols in which something was found; otherwise as ``read_namespaces``."""

    def read_one(netns: int, limit_s: float | None = VISIT_LIMIT_S) -> NamespaceDump:
        protocols = tuple(protocol for protocol in wanted.protocols if protocol in found[netns])
        return _dumped([sockdiag.read(replace(wanted, protocols=protocols), limit_s)])

    answers: dict[int, NamespaceDump | SourceError | OSError] = {own: nothing()}
    if own in found:
        answers[own] = read_one(own, None)
    wanted_others = found.keys() - {own}
    if not wanted_others:
        return Tables(answers, is_whole=True)
    from portbook.sources.bpf import elsewhere

    others = elsewhere.read(machine(own), read_one, wanted_others, wanted_others)
    answers.update(others.answers)
    return Tables(answers, others.is_whole)


def nothing() -> NamespaceDump:
    """No dump of the namespace of the calling thread, only its interfaces."""
    return NamespaceDump([], interface_names())


class Unowned(Struct, frozen=True):
    """A socket that has, or had, a file, which is not among the known ones."""

    netns: int
    protocol: Protocol
    port: int
    inode: int


def unowned(answers: Answers, known: Collection[int] = ()) -> list[Unowned] | None:
    """The sockets that have a file that is not among the known ones; None where a dump cannot be parsed.

    Whoever parses that dump for its sockets reports it.
    """
    found: list[Unowned] = []
    for netns, answer in answers.items():
        if not isinstance(answer, NamespaceDump):
            continue
        for table in (table for dump in answer.dumps for table in dump.tables):
            try:
                summary = sockdiag.summarize(table, known)
            except SourceGarbled:
                return None
            found += [Unowned(netns, table.protocol, port, inode) for port, inode in summary.with_inode]
    return found


def sort_out(answers: Answers) -> tuple[dict[int, NamespaceDump], tuple[Gap, ...]]:
    """The dumps by namespace, and a gap for the namespaces that could not be read."""
    dumps: dict[int, NamespaceDump] = {}
    failures: list[Exception] = []
    for netns, answer in answers.items():
        if isinstance(answer, NamespaceDump):
            dumps[netns] = answer
        else:
            failures.append(answer)
    return dumps, tuple(_unread_namespaces(failures))


def _read_namespace(wanted: Wanted, own: int, files: Files | None, netns: int, limit_s: float | None) -> NamespaceDump:
    """Read the namespace of the calling thread, which is ``netns``."""
    if files is None:
        return _dumped([sockdiag.read(wanted, limit_s)])
    dumps = read(wanted, files.counts.get(netns, NOTHING_COUNTED), files.inodes, limit_s, is_counted=netns != own)
    if dumps or netns == own or netns in files.with_interface:
        return _dumped(dumps)
    return NamespaceDump([], {})


def _dumped(dumps: list[sockdiag.SockdiagDump]) -> NamespaceDump:
    """Without the gap of an older kernel's dump, bound sockets, which the program has shown."""
    return NamespaceDump([replace(dump, gaps=()) for dump in dumps], interface_names())


def _unread_namespaces(failures: list[Exception]) -> Iterator[Gap]:
    if not failures:
        return
    what = "another network namespace" if len(failures) == 1 else counted(len(failures), "other network namespace")
    reasons = ", ".join(sorted({str(error) for error in failures}))
    why = f"connections without a descriptor in {what} are not known: {reasons}"
    from portbook.system import privilege

    was_refused = any(isinstance(error, PermissionError) for error in failures)
    yield Gap("socket", None, why, privilege.remedy("CAP_SYS_ADMIN") if was_refused else None)


# --- one namespace -------------------------------------------------------------------------------------------------


def read(
    wanted: Wanted,
    files: FileCounts,
    known: Collection[int],
    limit_s: float | None = None,
    is_counted: bool = False,
) -> list[sockdiag.SockdiagDump]:
    """Dump what may have no file in the namespace of the calling thread; ``known`` inodes have one.

    :param files: what the files of this namespace showed
    :param is_counted: they were all counted, although a part is wanted; if everything is wanted, they were
    """
    everything = is_whole(wanted)
    if not (everything or is_counted):
        return [sockdiag.read(wanted, limit_s)]
    try:
        kernel = counts()
    except OSError:
        return [sockdiag.read(wanted, limit_s)]  # without the numbers everything has to be read
    if everything:
        return list(_read_missing(wanted, files, known, kernel, limit_s))
    protocols = tuple(protocol for protocol in wanted.protocols if _lacks(protocol, wanted, files, kernel))
    return [sockdiag.read(replace(wanted, protocols=protocols), limit_s)] if protocols else []


def _lacks(protocol: Protocol, wanted: Wanted, files: FileCounts, kernel: KernelCounts) -> bool:
    """Whether the files of a namespace cannot show everything that is wanted."""
    if protocol == "udp":
        return kernel.udp != files.hashed["udp"]
    if kernel.tcp != files.hashed["tcp"]:
        return True
    return bool((kernel.waiting and wanted.states & PASSED) or (files.pending and "SYN_RECV" in wanted.states))


def _read_missing(
    wanted: Wanted, files: FileCounts, known: Collection[int], kernel: KernelCounts, limit_s: float | None
) -> Iterator[sockdiag.SockdiagDump]:
    """Read the few transient connections first, and everything only where these do not explain the numbers."""
    missing = kernel.tcp - files.hashed["tcp"]
    if missing or kernel.waiting or files.pending:
        transient = sockdiag.read(replace(wanted, protocols=("tcp",), states=TRANSIENT), limit_s)
        for table in transient.tables:
            summary = sockdiag.summarize(table, known)
            missing -= summary.rows - summary.syn_recv
        missing += kernel.waiting
        yield sockdiag.read(replace(wanted, protocols=("tcp",)), limit_s) if missing else transient
    if kernel.udp != files.hashed["udp"]:
        yield sockdiag.read(replace(wanted, protocols=("udp",)), limit_s)


# --- the kernel's count --------------------------------------------------------------------------------------------


def counts() -> KernelCounts:
    """Read what the kernel counts; raise OSError."""
    text = b""
    for name in ("sockstat", "sockstat6"):
        try:
            with open(f"/proc/thread-self/net/{name}", "rb") as file:
                text += file.read()
        except FileNotFoundError:
            if name == "sockstat":
                raise  # without IPv6 there is no sockstat6
    return parse_counts(text)


def parse_counts(text: bytes) -> KernelCounts:
    """Add up the lines of sockstat and sockstat6, such as ``TCP: inuse 5 orphan 0 tw 0 alloc 7 mem 1``."""
    totals: Counter[tuple[bytes, bytes]] = Counter()
    for line in text.splitlines():
        name, _, rest = line.partition(b": ")
        words = rest.split()
        for key, value in zip(words[::2], words[1::2], strict=False):
            totals[name.removesuffix(b"6"), key] += parse_number(value)
    return KernelCounts(totals[b"TCP", b"inuse"], totals[b"UDP", b"inuse"], totals[b"TCP", b"tw"])
