"""Linux: every socket of every process and every network namespace in one pass over all open files, in the kernel.

A small BPF program (socket_program.py) looks at each descriptor where it lies and writes a record for those that are
wanted: the socket, and who holds it. What has no descriptor comes from sock_diag (fileless.py). Needs CAP_BPF
and CAP_PERFMON, or root, and a kernel that describes its structures (btf.py).

Facts: Documentation/bpf/bpf_iterators.rst, capabilities(7).
"""

from __future__ import annotations

import os
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from socket import AF_INET, AF_INET6, ntohs
from typing import NamedTuple

from msgspec.structs import replace

from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing
from portbook.query import LISTENING
from portbook.records import Gap, Owner, Protocol, Socket, State
from portbook.sources import bpf_calls, fileless, namespaces, sockdiag, socket_program
from portbook.sources.base import Elsewhere, Reading, Source, Wanted
from portbook.sources.fileless import NOTHING, Seen
from portbook.sources.offsets import offsets
from portbook.sources.sockdiag import AF, FAMILY, LINK_LOCAL, TCP_STATES, UDP_STATES, Addresses
from portbook.sources.socket_program import FOR_IPV6_ONLY, FORMAT, RECORD, SIZE, Choice

SINCE = "Linux 5.12 and later have it"  # the iterator, and the helpers that the program calls
CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
MOST_RANGES = 100  # of ports compared in the kernel; more are left to the pipeline
PROTOCOLS: dict[int, Protocol] = {6: "tcp", 17: "udp"}
CLOSE = 7
MOST_NAMESPACES = 16  # asked one by one for a port; with more, looking at all files is quicker
MOST_PIDS = 16  # looked at one by one; for more, looking at all is quicker
NEGATIVE = 1 << 31  # of 32 bits: a queue that TCP computes may be below zero while a FIN is in it
# Where the fields of a record lie, for reading one of them of all records at once.
AT = {name: sum(list(RECORD.values())[:i]) for i, name in enumerate(RECORD)}


class Inside(NamedTuple):
    """What was asked inside a namespace."""

    dumps: list[sockdiag.Raw]
    interfaces: dict[int, str]  # index to name


class Raw(NamedTuple):
    """What the program wrote, and what sock_diag added."""

    records: bytes
    netns: int  # ours
    everywhere: bool  # whether other namespaces were asked for
    inside: Mapping[int, Inside] = {}
    gaps: tuple[Gap, ...] = ()


# --- whether it can ------------------------------------------------------------------------------------------------


def missing() -> str | None:
    """Why this source does not work here."""
    try:
        bpf_calls.try_to_load(*_program(Wanted()))
    except SourceError as error:
        return str(error)
    return None


def _program(wanted: Wanted) -> tuple[bytes, int]:
    """The program and what it is attached to; raises SourceDenied, SourceMissing, SourceGarbled."""
    _check_privilege()
    _check_processes()
    known = offsets(socket_program.PATHS, (socket_program.FUNCTION,))
    function = known.functions[socket_program.FUNCTION]
    lacking = socket_program.FUNCTION if function is None else socket_program.missing(known.places)
    if lacking or function is None:
        raise SourceMissing(f"bpf: kernel {os.uname().release} has no {lacking}", SINCE)
    return socket_program.build(known.places, _choice(wanted)).assemble(), function


def _check_privilege() -> None:
    """Ask the kernel what we may, before anything is read for nothing: proc_pid_status(5), CapEff."""
    try:
        with open("/proc/self/status", "rb") as file:
            line = next((line for line in file if line.startswith(b"CapEff:")), b"CapEff: 0")
    except OSError as error:
        raise SourceMissing(f"bpf: /proc/self/status: {error.strerror}") from error
    held = int(line.split()[1], 16)
    if not (held >> CAP_SYS_ADMIN & 1 or (held >> CAP_BPF & 1 and held >> CAP_PERFMON & 1)):
        why = f"bpf: uid {os.geteuid()} may not load programs into the kernel"
        raise SourceDenied(why, "run with sudo, or with CAP_BPF and CAP_PERFMON")


def _check_processes() -> None:
    """Pids are those of our pid namespace, and so should be those of /proc: names are read there."""
    try:
        shown = os.readlink("/proc/self")
    except OSError:
        shown = "none"
    if shown != str(os.getpid()):
        raise SourceMissing(f"bpf: /proc shows another pid namespace: we are {os.getpid()}, it says {shown}")


# --- reading -------------------------------------------------------------------------------------------------------


def read(wanted: Wanted) -> Raw:
    """Let the program look at all files, and ask sock_diag for what has none."""
    program, function = _program(wanted)
    own = namespaces.own() or 0
    if wanted.pids is not None:  # what nobody holds is not theirs
        few = wanted.pids if len(wanted.pids) <= MOST_PIDS else None
        return Raw(bpf_calls.read_files(program, function, few), own, wanted.everywhere, {own: _look_at_nothing()})
    if wanted.ports is not None and (inside := _ask_first(wanted, own)) is not None:
        return _complete(wanted, own, inside, partial(bpf_calls.read_files, program, function))
    records = bpf_calls.read_files(program, function)
    seen, known = _seen(records)
    inside, gaps = _read_fileless(wanted, own, seen, known)
    if _has_files(inside, known):
        # Opened after the program had passed, or handed over while it did: if anybody has it now, it is found now.
        records += bpf_calls.read_files(program, function)
    return Raw(records, own, wanted.everywhere, inside, tuple(gaps))


def _ask_first(wanted: Wanted, own: int) -> dict[int, Inside] | None:
    """Few ports, mostly free: sock_diag knows in 2 ms, however many files are open. None: it cannot, or not as fast."""
    others = namespaces.inhabited() if wanted.everywhere else {}
    others.pop(own, None)
    if len(others) > MOST_NAMESPACES or not sockdiag.shows_bound():
        return None
    answers = namespaces.visit(others, partial(_look, wanted, {}, ())) if others else {}
    if any(not isinstance(answer, Inside) for answer in answers.values()):
        return None
    return {own: _look(wanted, {}, (), own), **{n: a for n, a in answers.items() if isinstance(a, Inside)}}


def _complete(wanted: Wanted, own: int, inside: dict[int, Inside], read_files: Callable[[], bytes]) -> Raw:
    """Go through the files when there is a socket whose holder is to be found."""
    records = read_files() if _has_files(inside, ()) else b""
    if _has_files(inside, _seen(records)[1]):  # closed meanwhile, or nobody has it
        inside = _ask_first(wanted, own) or inside
    return Raw(records, own, wanted.everywhere, inside)


def _has_files(inside: Mapping[int, Inside], known: Collection[int]) -> bool:
    return any(s.inode for each in inside.values() for dump in each.dumps for s in sockdiag.parse(dump, known).sockets)


def _choice(wanted: Wanted) -> Choice:
    tcp, udp = (
        _mask(wanted, states) if protocol in wanted.protocols else 0
        for protocol, states in (("tcp", TCP_STATES), ("udp", UDP_STATES))
    )
    ports = wanted.ports if wanted.ports and len(wanted.ports) <= MOST_RANGES else ()
    families = tuple(AF[family] for family in wanted.families)
    return Choice(families, tcp, udp, ports, None if wanted.everywhere else namespaces.own())


def _mask(wanted: Wanted, states: Mapping[int, State | None]) -> int:
    return sum(1 << number for number, state in states.items() if state in wanted.states)


def _seen(records: bytes) -> tuple[dict[int, Seen], frozenset[int]]:
    """By namespace what the kernel counts too, and the inodes. Column by column: there may be a hundred thousand."""
    words = memoryview(records).cast("I")
    inodes = memoryview(records).cast("Q")[AT["inode"] // 8 :: SIZE // 8].tolist()
    netns = words[AT["netns"] // 4 :: SIZE // 4].tolist()
    kinds = zip(netns, records[AT["protocol"] :: SIZE], records[AT["state"] :: SIZE], strict=True)
    known = frozenset(inodes)
    once = kinds if len(known) == len(inodes) else dict(zip(inodes, kinds, strict=True)).values()
    hashed: dict[int, Counter[Protocol]] = defaultdict(Counter)
    for (where, protocol, state), count in Counter(once).items():
        hashed[where][PROTOCOLS[protocol]] += count if (protocol, state) != (6, CLOSE) else 0
    pending = Counter[int]()
    for i, count in enumerate(words[AT["pending"] // 4 :: SIZE // 4].tolist()):
        if count:
            pending[netns[i]] += count
    return {where: Seen(counter, pending[where]) for where, counter in hashed.items()}, known


def _read_fileless(
    wanted: Wanted, own: int, seen: Mapping[int, Seen], known: Collection[int]
) -> tuple[dict[int, Inside], list[Gap]]:
    """In our namespace, and in all others when they are wanted."""
    inside = {own: _look(wanted, seen, known, own)}
    if not wanted.everywhere:
        return inside, []
    doors = namespaces.inhabited()
    doors.pop(own, None)
    answers = namespaces.visit(doors, partial(_look, wanted, seen, known)) if doors else {}
    others = (seen.keys() | doors.keys()) - {own}
    failed = {netns: answers.get(netns) for netns in others if not isinstance(answers.get(netns), Inside)}
    inside.update((netns, answer) for netns, answer in answers.items() if isinstance(answer, Inside))
    return inside, list(_closed_doors(failed))


def _look(wanted: Wanted, seen: Mapping[int, Seen], known: Collection[int], netns: int) -> Inside:
    """In the namespace of the calling thread, which is ``netns``."""
    dumps = fileless.read(wanted, seen.get(netns, NOTHING), known)
    # What an older kernel's dump does not have, bound sockets, the program has seen.
    return Inside([dump._replace(gaps=()) for dump in dumps], sockdiag.interfaces())


def _look_at_nothing() -> Inside:
    return Inside([], sockdiag.interfaces())


def _closed_doors(failed: Mapping[int, object]) -> Iterator[Gap]:
    if not failed:
        return
    count = len(failed)
    what = "another network namespace" if count == 1 else f"{count} other network namespaces"
    reasons = {str(error) if error else "no process is in it, and it has no name" for error in failed.values()}
    why = f"connections without a descriptor in {what} are not known: {', '.join(sorted(reasons))}"
    yield Gap("socket", None, why, "setns(2) needs CAP_SYS_ADMIN, as root has it")


# --- the pure half -------------------------------------------------------------------------------------------------


def parse(raw: Raw) -> Reading:
    """Read the records and the dumps; raise SourceGarbled."""
    try:
        rows, elsewhere = _rows(raw)
    except (struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise SourceGarbled(f"bpf: {len(raw.records)} bytes of records: {error}") from error
    gaps = list(raw.gaps)
    added: list[Socket] = []
    for dump in (dump for inside in raw.inside.values() for dump in inside.dumps):
        reading = sockdiag.parse(dump, rows.keys())
        added += reading.sockets
        gaps += reading.gaps
    added = list({s.inode or -i: s for i, s in enumerate(added, 1)}.values())  # a table may show one twice
    sockets = [*_without(rows.values(), added), *added]
    return Reading(sockets, gaps, None if raw.everywhere else elsewhere)


def _without(rows: Iterable[Socket], added: list[Socket]) -> Iterable[Socket]:
    """Leave out connections that lost their process while we looked: they come again, in a state without one."""
    later = {(s.local_port, s.remote_port, s.local_address, s.remote_address, s.netns) for s in added if not s.inode}
    ports = {key[:2] for key in later}
    return [
        s
        for s in rows
        if (s.local_port, s.remote_port) not in ports
        or s.remote_port is None
        or (s.local_port, s.remote_port, s.local_address, s.remote_address, s.netns) not in later
    ] if later else rows  # fmt: skip


class _Owners(dict[int, tuple[Owner, ...]]):
    """One owner, made once for all its sockets: by pid, times two, plus one for a thread's own table."""

    def __missing__(self, key: int) -> tuple[Owner, ...]:
        self[key] = (Owner(key >> 1, how="task-fd" if key & 1 else "fd"),)
        return self[key]


Kind = tuple[Protocol, State | None, bool, bool]  # whether it listens, whether it waits on its port
KINDS: dict[tuple[int, int], Kind] = {
    (number, bit): (PROTOCOLS[number], state, state == "LISTEN", state in LISTENING)
    for number, states in ((6, TCP_STATES), (17, UDP_STATES))
    for bit, state in states.items()
}


def _rows(raw: Raw) -> tuple[dict[int, Socket], Elsewhere]:
    """The sockets by inode, with their owners, and what was seen of other namespaces."""
    known = {AF_INET: Addresses(AF_INET, 4), AF_INET6: Addresses(AF_INET6, 16)}
    owners = _Owners()
    rows: dict[int, Socket] = {}
    holders: dict[int, list[int]] = defaultdict(list)  # of sockets that come more than once
    elsewhere: dict[int, int] = {}
    own, everywhere = raw.netns, raw.everywhere
    # fmt: off
    for (inode, cookie, cgroup, source, destination, pid, _fd, netns, uid, received, sent, interface, _pending,
         port, dport, family, number, state_number, flags) in FORMAT.iter_unpack(raw.records):
        # fmt: on
        owner = pid << 1 | flags >> 1 & 1
        if inode in rows:
            holders[inode].append(owner)
            continue
        if netns != own and not everywhere:
            elsewhere[inode] = netns
            continue
        protocol, state, listening, waits = KINDS[number, state_number]
        addresses = known[family]
        local, reach = addresses[source]
        peer = dport != 0 and not listening
        zone, device = _scope(raw, netns, interface, family, source) if interface else (None, None)
        queued = received if received < NEGATIVE else 0
        rows[inode] = Socket(  # by position, as in sockdiag
            protocol,
            FAMILY[family],
            local,
            port,
            addresses[destination][0] if peer else None,
            ntohs(dport) if peer else None,
            state,
            reach,
            zone,
            None,  # service_name
            uid,
            None,  # user
            inode,
            owners[owner],
            None if listening else queued,
            None if listening else sent,
            queued if listening else None,  # accept_queue
            sent if listening else None,  # backlog
            flags & FOR_IPV6_ONLY != 0 if waits and family == AF_INET6 else None,
            device,
            None,  # created
            None,  # state_text
            cookie,
            cgroup or None,
            None,  # service
            None,  # container
            netns,
        )
    for inode, more in holders.items():
        rows[inode] = replace(rows[inode], owners=_merged(rows[inode].owners, more, owners))
    return rows, Elsewhere(len(elsewhere), len(set(elsewhere.values())))


def _scope(raw: Raw, netns: int, interface: int, family: int, source: bytes) -> tuple[str | None, str | None]:
    """The zone of a link-local address, or the device that a socket is bound to."""
    inside = raw.inside.get(netns)
    name = inside.interfaces.get(interface, str(interface)) if inside else str(interface)
    return (name, None) if family == AF_INET6 and source[:2] in LINK_LOCAL else (None, name)


def _merged(first: tuple[Owner, ...], more: list[int], owners: _Owners) -> tuple[Owner, ...]:
    """Each process once; that a thread has it too says nothing where the process itself has it."""
    found = {o.pid << 1 | (o.how == "task-fd") for o in first} | set(more)
    return tuple(owners[key][0] for key in sorted(found) if not (key & 1 and key - 1 in found))


SOURCE = Source(
    name="bpf",
    sees="every TCP and UDP socket of every process and every network namespace, with all who hold it",
    needs="root, or CAP_BPF and CAP_PERFMON; Linux 5.12 with BTF (CONFIG_DEBUG_INFO_BTF)",
    promises=frozenset(
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
