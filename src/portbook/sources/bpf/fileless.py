"""Linux: the sockets that no descriptor refers to, from sock_diag, namespace by namespace.

Such are connections in TIME_WAIT, SYN_RECV, or closed and not yet acknowledged; connections that nobody has accepted;
sockets on their way between processes (SCM_RIGHTS), and the kernel's own. Reading all sockets again to find the few
would cost as much as the whole rest, so the kernel's own count is asked first: what has a file, and what is in a state
without one, has to add up to it.

Facts: net/ipv4/proc.c, sockstat_seq_show(); "inuse" counts what is hashed, which __inet_hash() and inet_unhash() do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from portbook.addresses import interface_names
from portbook.errors import SourceError
from portbook.numerals import counted, parse_number
from portbook.records import FAMILIES, PROTOCOLS, STATES, Gap, Protocol, State
from portbook.sources import sockdiag
from portbook.sources.base import Wanted
from portbook.sources.bpf.record import OF_MPTCP, PLACES, SIZE
from portbook.system import namespaces

# States in which TCP keeps a connection after a process had it, and those with the one before.
PASSED: frozenset[State | None] = frozenset(("TIME_WAIT", "FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK"))
TRANSIENT: frozenset[State | None] = PASSED | frozenset(("SYN_RECV",))
TCP, CLOSE = 6, 7
NUMBERS: dict[int, Protocol] = {TCP: "tcp", 17: "udp"}
EVERY: frozenset[State | None] = frozenset((*STATES, None))


class Seen(NamedTuple):
    """What the descriptors showed of one namespace."""

    hashed: Counter[Protocol]  # sockets that the kernel counts as in use
    pending: int  # handshakes that listeners have begun


NOTHING = Seen(Counter(), 0)


class Counts(NamedTuple):
    """What the kernel counts in the namespace of the calling thread."""

    tcp: int
    udp: int
    waiting: int  # in TIME_WAIT, and in FIN_WAIT2 without a socket


class Inside(NamedTuple):
    """What was asked inside a namespace."""

    dumps: list[sockdiag.SockdiagDump]
    interfaces: dict[int, str]  # index to name


Answers = Mapping[int, Inside | SourceError | OSError]  # by namespace


def is_whole(wanted: Wanted) -> bool:
    """Whether nothing is left out, so that numbers can be compared."""
    parts = len(wanted.protocols) == len(PROTOCOLS) and len(wanted.families) == len(FAMILIES)
    return parts and wanted.ports is None and wanted.states >= EVERY


# --- what has files -------------------------------------------------------------------------------------------------


def look_through(records: bytes) -> tuple[dict[int, Seen], frozenset[int], frozenset[int]]:
    """By namespace what the kernel counts too, the inodes, and those of which only the holder is known.

    Column by column: there may be a hundred thousand.
    """
    words = memoryview(records).cast("I")
    inodes = memoryview(records).cast("Q")[PLACES["inode"] // 8 :: SIZE // 8].tolist()
    netns = words[PLACES["netns"] // 4 :: SIZE // 4].tolist()
    flags = records[PLACES["flags"] :: SIZE]
    named = (
        frozenset(i for i, flag in zip(inodes, flags, strict=True) if flag & OF_MPTCP) if any(flags) else frozenset()
    )
    known = frozenset(inodes) - named
    kinds = zip(netns, records[PLACES["protocol"] :: SIZE], records[PLACES["state"] :: SIZE], strict=True)
    once = (
        kinds
        if len(known) == len(inodes)
        else (k for i, k in dict(zip(inodes, kinds, strict=True)).items() if i in known)
    )
    hashed: dict[int, Counter[Protocol]] = defaultdict(Counter)
    for (where, protocol, state), count in Counter(once).items():
        hashed[where][NUMBERS[protocol]] += count if (protocol, state) != (TCP, CLOSE) else 0
    pending = Counter[int]()
    for i, count in enumerate(words[PLACES["pending"] // 4 :: SIZE // 4].tolist()):
        if count:
            pending[netns[i]] += count
    return {where: Seen(counter, pending[where]) for where, counter in hashed.items()}, known, named


# --- namespace by namespace ----------------------------------------------------------------------------------------


def ask(wanted: Wanted, own: int, seen: Mapping[int, Seen] | None = None, known: Collection[int] = ()) -> Answers:
    """What may have no descriptor: in our namespace, and in every other when they are wanted.

    ``seen`` is what the descriptors showed by namespace, and ``known`` their inodes, when they were looked at already.
    Raises SourceError for our own namespace; others' errors are among the answers.
    """
    look = partial(_look, wanted, seen or {}, known)
    answers: dict[int, Inside | SourceError | OSError] = {own: look(own)}
    if wanted.all_namespaces:
        doors = namespaces.inhabited()
        doors.pop(own, None)
        answers.update(namespaces.visit(doors, look) if doors else {})
    return answers


def nothing() -> Inside:
    """No dump of the namespace of the calling thread."""
    return Inside([], interface_names())


def have_files(answers: Answers, known: Collection[int] = ()) -> bool:
    """Whether any socket has, or had, a file that is not among the known ones."""
    dumps = (dump for answer in answers.values() if isinstance(answer, Inside) for dump in answer.dumps)
    return any(s.inode for dump in dumps for s in sockdiag.parse(dump, known).sockets)


def sort_out(answers: Answers, seen: Collection[int]) -> tuple[dict[int, Inside], tuple[Gap, ...]]:
    """What was answered, and a gap for the namespaces that did not answer; of all that were ``seen`` one is wanted."""
    inside = {netns: answer for netns, answer in answers.items() if isinstance(answer, Inside)}
    failed = {netns: answer for netns, answer in answers.items() if not isinstance(answer, Inside)}
    failed.update((netns, OSError("no process is in it")) for netns in seen if netns not in answers)
    return inside, tuple(_closed_doors(failed))


def _look(wanted: Wanted, seen: Mapping[int, Seen], known: Collection[int], netns: int) -> Inside:
    """In the namespace of the calling thread, which is ``netns``."""
    dumps = read(wanted, seen.get(netns, NOTHING), known)
    # What an older kernel's dump does not have, bound sockets, the program has seen.
    return Inside([dump._replace(gaps=()) for dump in dumps], interface_names())


def _closed_doors(failed: Mapping[int, Exception]) -> Iterator[Gap]:
    if not failed:
        return
    what = "another network namespace" if len(failed) == 1 else counted(len(failed), "other network namespace")
    reasons = ", ".join(sorted({str(error) for error in failed.values()}))
    why = f"connections without a descriptor in {what} are not known: {reasons}"
    yield Gap("socket", None, why, "setns(2) needs CAP_SYS_ADMIN, as root has it")


# --- one namespace -------------------------------------------------------------------------------------------------


def read(wanted: Wanted, seen: Seen, known: Collection[int]) -> list[sockdiag.SockdiagDump]:
    """Dump what may have no descriptor in the namespace of the calling thread; ``known`` inodes have one."""
    if not is_whole(wanted):
        return [sockdiag.read(wanted)]
    try:
        there = counts()
    except OSError:
        return [sockdiag.read(wanted)]  # without numbers all has to be read
    return list(_read_missing(wanted, seen, known, there))


def _read_missing(wanted: Wanted, seen: Seen, known: Collection[int], there: Counts) -> Iterator[sockdiag.SockdiagDump]:
    missing = there.tcp - seen.hashed["tcp"]
    if missing or there.waiting or seen.pending:
        dump = sockdiag.read(wanted._replace(protocols=("tcp",), states=TRANSIENT))
        found = [s.state for s in sockdiag.parse(dump, known).sockets]
        missing -= len(found) - found.count("SYN_RECV") - there.waiting
        yield dump if not missing else sockdiag.read(wanted._replace(protocols=("tcp",)))
    if there.udp != seen.hashed["udp"]:
        yield sockdiag.read(wanted._replace(protocols=("udp",)))


# --- the kernel's count --------------------------------------------------------------------------------------------


def counts() -> Counts:
    """Read what the kernel counts; raises OSError."""
    text = b""
    for name in ("sockstat", "sockstat6"):
        try:
            with open(f"/proc/thread-self/net/{name}", "rb") as file:
                text += file.read()
        except FileNotFoundError:
            if name == "sockstat":
                raise  # without IPv6 there is no sockstat6
    return parse_counts(text)


def parse_counts(text: bytes) -> Counts:
    """Add up the lines of sockstat and sockstat6, such as ``TCP: inuse 5 orphan 0 tw 0 alloc 7 mem 1``."""
    found: Counter[tuple[bytes, bytes]] = Counter()
    for line in text.splitlines():
        name, _, rest = line.partition(b": ")
        words = rest.split()
        for key, value in zip(words[::2], words[1::2], strict=False):
            found[name.removesuffix(b"6"), key] += parse_number(value)
    return Counts(found[b"TCP", b"inuse"], found[b"UDP", b"inuse"], found[b"TCP", b"tw"])
