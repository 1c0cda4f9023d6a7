"""Linux: every socket of every process and every network namespace in one pass over all open files, in the kernel.

A small BPF program (program.py) looks at each descriptor where it lies and writes a record for those that are
wanted: the socket, and who holds it. What has no descriptor comes from sock_diag (fileless.py). Needs CAP_BPF
and CAP_PERFMON, or root, and a kernel that describes its structures (btf.py).

Facts: Documentation/bpf/bpf_iterators.rst, capabilities(7).
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from socket import AF_INET, AF_INET6, ntohs
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from portbook.addresses import is_link_local
from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing
from portbook.numerals import parse_hex
from portbook.query import LISTENING
from portbook.records import Gap, Owner, Protocol, Socket, State
from portbook.sources import sockdiag
from portbook.sources.base import OtherNamespaces, Reading, Source, Wanted
from portbook.sources.bpf.record import FOR_IPV6_ONLY, FORMAT, OF_MPTCP
from portbook.sources.sockdiag import AF, FAMILY, TCP_STATES, UDP_STATES, Addresses

if TYPE_CHECKING:  # what reads is imported when it is known that we may: this module is loaded before the others
    from portbook.sources.bpf import fileless
    from portbook.sources.bpf.fileless import Inside, Seen
    from portbook.sources.bpf.program import Choice

SINCE = "Linux 5.12 and later have it"  # the iterator, and the helpers that the program calls
CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
MOST_RANGES = 100  # of ports compared in the kernel; more are left to the pipeline
PROTOCOLS: dict[int, Protocol] = {6: "tcp", 17: "udp"}
MOST_PIDS = 16  # looked at one by one; for more, looking at all is quicker
NEGATIVE = 1 << 31  # of 32 bits: a queue that TCP computes may be below zero while a FIN is in it


class Raw(NamedTuple):
    """What the program wrote, and what sock_diag added."""

    records: bytes | None  # None: no file had to be looked at
    netns: int  # ours
    all_namespaces: bool  # whether other namespaces were asked for
    inside: Mapping[int, Inside] = {}
    gaps: tuple[Gap, ...] = ()


Both = tuple[bytes | None, "dict[int, Seen]", "fileless.Answers"]  # records, what they show, what sock_diag says


# --- whether it can ------------------------------------------------------------------------------------------------


def missing() -> str | None:
    """Why this source does not work here."""
    from portbook.sources.bpf import calls

    try:
        calls.try_to_load(*_program(Wanted()))
    except SourceError as error:
        return str(error)
    return None


def _program(wanted: Wanted) -> tuple[bytes, int]:
    """The program and what it is attached to; raises SourceDenied, SourceMissing, SourceGarbled."""
    _check_privilege()
    _check_processes()
    from portbook.sources.bpf import offsets, program

    known = offsets.offsets(program.PATHS, (program.FUNCTION,))
    function = known.functions[program.FUNCTION]
    lacking = program.FUNCTION if function is None else program.missing(known.places)
    if lacking or function is None:
        raise SourceMissing(f"bpf: kernel {os.uname().release} has no {lacking}", SINCE)
    return program.build(known.places, _choice(wanted)).assemble(), function


def _check_privilege() -> None:
    """Ask the kernel what we may, before anything is read for nothing: proc_pid_status(5), CapEff."""
    try:
        with open("/proc/self/status", "rb") as file:
            line = next((line for line in file if line.startswith(b"CapEff:")), b"CapEff: 00")
    except OSError as error:
        raise SourceMissing(f"bpf: /proc/self/status: {error.strerror}") from error
    held = parse_hex(line.split()[1])
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
    program = _program(wanted)
    from portbook.sources.bpf import calls, fileless
    from portbook.system import namespaces

    run = partial(calls.read_files, *program)
    own = namespaces.own() or 0
    if wanted.pids is not None:  # what nobody holds is not theirs
        of_them = run(wanted.pids if len(wanted.pids) <= MOST_PIDS else None)
        return Raw(of_them, own, wanted.all_namespaces, {own: fileless.nothing()})
    read_both = _files_first if fileless.is_whole(wanted) else _tables_first
    records, seen, answers = read_both(wanted, own, run)
    return Raw(records, own, wanted.all_namespaces, *fileless.sort_out(answers, seen if wanted.all_namespaces else ()))


def _files_first(wanted: Wanted, own: int, run: Callable[[], bytes]) -> Both:
    """Of everything: then the kernel's count tells whether the tables need be read at all."""
    from portbook.sources.bpf import fileless

    records = run()
    seen, known, named = fileless.look_through(records)
    answers = fileless.ask(wanted, own, seen, known)
    if fileless.have_files(answers, known | named):
        # Opened after the program had passed, or handed over while it did: if anybody has it now, it is found now.
        records += run()
    return records, seen, answers


def _tables_first(wanted: Wanted, own: int, run: Callable[[], bytes]) -> Both:
    """Of a part: it is small, and when a port is free, no file need be looked at, however many are open."""
    from portbook.sources.bpf import fileless

    answers = fileless.ask(wanted, own)
    if wanted.ports and sockdiag.shows_bound() and not fileless.have_files(answers):
        return None, {}, answers
    records = run()
    seen, known, named = fileless.look_through(records)
    if fileless.have_files(answers, known | named):  # closed meanwhile, or nobody has it
        answers = fileless.ask(wanted, own)
    return records, seen, answers


def _choice(wanted: Wanted) -> Choice:
    from portbook.sources.bpf.program import Choice
    from portbook.system import namespaces

    tcp, udp = (
        _mask(wanted, states) if protocol in wanted.protocols else 0
        for protocol, states in (("tcp", TCP_STATES), ("udp", UDP_STATES))
    )
    ports = wanted.ports if wanted.ports and len(wanted.ports) <= MOST_RANGES else ()
    families = tuple(AF[family] for family in wanted.families)
    return Choice(families, tcp, udp, ports, None if wanted.all_namespaces else namespaces.own())


def _mask(wanted: Wanted, states: Mapping[int, State | None]) -> int:
    return sum(1 << number for number, state in states.items() if state in wanted.states)


# --- the pure half -------------------------------------------------------------------------------------------------


def parse(raw: Raw) -> Reading:
    """Read the records and the dumps; raise SourceGarbled."""
    try:
        rows, above, elsewhere = _rows(raw)
    except (struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise SourceGarbled(f"bpf: {len(raw.records or b'')} bytes of records: {error}") from error
    gaps = list(raw.gaps)
    added: list[Socket] = []
    for dump in (dump for inside in raw.inside.values() for dump in inside.dumps):
        reading = sockdiag.parse(dump, rows.keys())
        added += reading.sockets
        gaps += reading.gaps
    added = list({s.inode or -i: s for i, s in enumerate(added, 1)}.values())  # a table may show one twice
    added = [replace(s, owners=above[s.inode].owners) if s.inode in above else s for s in added] if above else added
    if not any(inside.dumps for inside in raw.inside.values()):  # no sockets below were asked for: then it is shown
        added += [s for s in above.values() if s.state == "LISTEN"]
    told = None if raw.all_namespaces or raw.records is None else elsewhere
    return Reading(_once(list(rows.values()), added), gaps, told)


def _once(rows: list[Socket], added: list[Socket]) -> list[Socket]:
    """Each connection once, as it was later: while we looked, one may have been accepted, or lost its process."""
    from portbook.sources.bpf.fileless import PASSED

    alone = {_ends(s): s for s in added if not s.inode}
    ports = {(s.local_port, s.remote_port) for s in alone.values()}
    twice = [s for s in rows if (s.local_port, s.remote_port) in ports and _ends(s) in alone] if ports else []
    if twice:
        closed = {id(s) for s in twice if alone[_ends(s)].state in PASSED}
        accepted = {id(alone[_ends(s)]) for s in twice if id(s) not in closed}
        return [s for s in (*rows, *added) if id(s) not in closed and id(s) not in accepted]
    return rows + added


def _ends(s: Socket) -> tuple[object, ...]:
    return s.protocol, s.local_port, s.remote_port, s.local_address, s.remote_address, s.netns


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


def _rows(raw: Raw) -> tuple[dict[int, Socket], dict[int, Socket], OtherNamespaces]:
    """The sockets by inode, with their owners; MPTCP sockets alike, apart; and what was seen of other namespaces."""
    known = {AF_INET: Addresses(4), AF_INET6: Addresses(16)}
    owners = _Owners()
    rows: dict[int, Socket] = {}
    above: set[int] = set()
    holders: dict[int, list[int]] = defaultdict(list)  # of sockets that come more than once
    elsewhere: dict[int, int] = {}
    own, everywhere = raw.netns, raw.all_namespaces
    # fmt: off
    for (inode, cookie, cgroup, source, destination, pid, _fd, netns, uid, received, sent, interface, _pending,
         port, dport, family, number, state_number, flags) in FORMAT.iter_unpack(raw.records or b""):
        # fmt: on
        owner = pid << 1 | flags >> 1 & 1
        if inode in rows:
            holders[inode].append(owner)
            continue
        if netns != own and not everywhere:
            elsewhere[inode] = netns
            continue
        if flags & OF_MPTCP:
            above.add(inode)
        protocol, state, listening, waits = KINDS[number, state_number]
        addresses = known[family]
        local, reach = addresses[source]
        peer = dport != 0 and not listening
        zone, device = _scope(raw, netns, interface, local) if interface else (None, None)
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
    others = OtherNamespaces(len(elsewhere), len(set(elsewhere.values())))
    return rows, {inode: rows.pop(inode) for inode in above}, others


def _scope(raw: Raw, netns: int, interface: int, address: str) -> tuple[str | None, str | None]:
    """The zone of a link-local address, or the device that a socket is bound to."""
    inside = raw.inside.get(netns)
    name = inside.interfaces.get(interface, str(interface)) if inside else str(interface)
    return (name, None) if is_link_local(address) else (None, name)


def _merged(first: tuple[Owner, ...], more: list[int], owners: _Owners) -> tuple[Owner, ...]:
    """Each process once; that a thread has it too says nothing where the process itself has it."""
    found = {o.pid << 1 | (o.how == "task-fd") for o in first} | set(more)
    return tuple(owners[key][0] for key in sorted(found) if not (key & 1 and key - 1 in found))


SOURCE = Source(
    name="bpf",
    sees="every TCP and UDP socket of every process and every network namespace, with all who hold it",
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
