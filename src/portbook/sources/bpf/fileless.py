"""Linux: the sockets that no descriptor refers to, from sock_diag, namespace by namespace.

These are connections in TIME_WAIT or SYN_RECV, or closed and not yet acknowledged; connections that wait to be
accepted; sockets on their way between processes (SCM_RIGHTS), and the kernel's own. To read all sockets again for these
few would cost as much as everything else together, so the kernel's own count is read first: the sockets that have a
file and those in a state without one have to add up to it.

Facts: net/ipv4/proc.c, sockstat_seq_show(); "inuse" counts what is hashed, which __inet_hash() and inet_unhash() do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import partial

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
from portbook.system import namespaces

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


NO_FILES = FileCounts(Counter(), 0)


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


def is_whole(wanted: Wanted) -> bool:
    """Whether nothing is left out, so that numbers can be compared."""
    every_protocol = len(wanted.protocols) == len(PROTOCOLS)
    every_family = len(wanted.families) == len(FAMILIES)
    return every_protocol and every_family and wanted.ports is None and wanted.states >= EVERY_STATE


# --- sockets that have files ----------------------------------------------------------------------------------------


def summarize(records: bytes) -> tuple[dict[int, FileCounts], frozenset[int], frozenset[int]]:
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
    return counts, tcp_udp_inodes, mptcp_inodes


# --- namespace by namespace ----------------------------------------------------------------------------------------


def read_namespaces(
    wanted: Wanted, own: int, counts: Mapping[int, FileCounts] | None = None, known: Collection[int] = ()
) -> Answers:
    """Read what may have no file: in our namespace, and in every other one when these are wanted.

    :param counts: what the files showed by namespace, when they were read already
    :param known: inodes of the sockets that have files
    :returns: by namespace what was read, or the error of another namespace than ours
    :raises SourceError: our own namespace could not be read
    """
    read_one = partial(_read_namespace, wanted, counts or {}, known)
    answers: dict[int, NamespaceDump | SourceError | OSError] = {own: read_one(own, None)}
    if wanted.all_namespaces:
        paths = namespaces.inhabited()
        paths.pop(own, None)
        if paths:
            answers.update(namespaces.visit(paths, partial(read_one, limit_s=VISIT_LIMIT_S)))
    return answers


def nothing() -> NamespaceDump:
    """No dump of the namespace of the calling thread, only its interfaces."""
    return NamespaceDump([], interface_names())


def have_files(answers: Answers, known: Collection[int] = ()) -> bool:
    """Whether any socket has, or had, a file that is not among the known ones; True where a dump cannot be parsed."""
    for answer in answers.values():
        if isinstance(answer, NamespaceDump) and any(_has_file(dump, known) for dump in answer.dumps):
            return True
    return False


def _has_file(dump: sockdiag.SockdiagDump, known: Collection[int]) -> bool:
    try:
        return any(s.inode for s in sockdiag.parse(dump, known).sockets)
    except SourceGarbled:
        return True  # whoever parses it for its sockets reports that


def sort_out(answers: Answers, seen: Collection[int]) -> tuple[dict[int, NamespaceDump], tuple[Gap, ...]]:
    """The dumps by namespace, and a gap for the namespaces that could not be read.

    :param seen: namespaces of which there has to be a dump
    """
    dumps: dict[int, NamespaceDump] = {}
    failures: list[Exception] = []
    for netns, answer in answers.items():
        if isinstance(answer, NamespaceDump):
            dumps[netns] = answer
        else:
            failures.append(answer)
    failures += [OSError("no visible process is in it") for netns in seen if netns not in answers]
    return dumps, tuple(_unread_namespaces(failures))


def _read_namespace(
    wanted: Wanted, counts: Mapping[int, FileCounts], known: Collection[int], netns: int, limit_s: float | None
) -> NamespaceDump:
    """Read the namespace of the calling thread, which is ``netns``."""
    dumps = read(wanted, counts.get(netns, NO_FILES), known, limit_s)
    # The gap of an older kernel's dump, bound sockets, is none here: the program has seen them.
    return NamespaceDump([replace(dump, gaps=()) for dump in dumps], interface_names())


def _unread_namespaces(failures: list[Exception]) -> Iterator[Gap]:
    if not failures:
        return
    what = "another network namespace" if len(failures) == 1 else counted(len(failures), "other network namespace")
    reasons = ", ".join(sorted({str(error) for error in failures}))
    why = f"connections without a descriptor in {what} are not known: {reasons}"
    was_refused = any(isinstance(error, PermissionError) for error in failures)
    yield Gap("socket", None, why, "run with CAP_SYS_ADMIN, which setns(2) needs" if was_refused else None)


# --- one namespace -------------------------------------------------------------------------------------------------


def read(
    wanted: Wanted, files: FileCounts, known: Collection[int], limit_s: float | None = None
) -> list[sockdiag.SockdiagDump]:
    """Dump what may have no file in the namespace of the calling thread; ``known`` inodes have one."""
    if not is_whole(wanted):
        return [sockdiag.read(wanted, limit_s)]
    try:
        kernel = counts()
    except OSError:
        return [sockdiag.read(wanted, limit_s)]  # without the numbers everything has to be read
    return list(_read_missing(wanted, files, known, kernel, limit_s))


def _read_missing(
    wanted: Wanted, files: FileCounts, known: Collection[int], kernel: KernelCounts, limit_s: float | None
) -> Iterator[sockdiag.SockdiagDump]:
    """Read the few transient connections first, and everything only where these do not explain the numbers."""
    missing = kernel.tcp - files.hashed["tcp"]
    if missing or kernel.waiting or files.pending:
        transient = sockdiag.read(replace(wanted, protocols=("tcp",), states=TRANSIENT), limit_s)
        states = [s.state for s in sockdiag.parse(transient, known).sockets]
        missing -= len(states) - states.count("SYN_RECV") - kernel.waiting
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
