"""The processes behind the records, read at once: a moment later they may be gone.

What was read is kept by what identifies a process and the program that it runs: pid, start, number of execve(2) calls,
cgroup and user come with every record, so that nothing that is kept can be of another process.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from time import CLOCK_BOOTTIME, clock_gettime, monotonic, time

from msgspec import Struct
from msgspec.structs import replace

from portbook.enrich import cgroup, enrichers, process
from portbook.numerals import parse_number
from portbook.records import Owner
from portbook.system.users import user_name
from portbook.watching.feeds.bpf.record import Record

DoerKey = tuple[int, int, int, int, int]  # pid, start in ns since boot, executions, cgroup id, uid
TICKS = os.sysconf("SC_CLK_TCK")
MOST_KEPT = 1024  # processes
MOST_PARENTS = 16
MOST_CHARACTERS = 4096  # of a command line
MOST_CGROUPS = 1024
# Parents are kept by pid alone, for less time than a pid needs to be used again.
PARENTS_LIMIT_S = 0.25
MOST_BYTES = 4096
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Doer(Struct, frozen=True, gc=False):
    """Who did it."""

    owners: tuple[Owner, ...]  # one
    parents: tuple[Owner, ...]
    gone: bool  # it had ended before it could be read: only what came with the record is known
    user: str


class Processes:
    """Looks processes up, and keeps them."""

    def __init__(self) -> None:
        self._kept: dict[DoerKey, Doer] = {}
        self._paths: dict[int, str | None] = {}  # of cgroups, by id
        self._parents: dict[int, Owner] = {}
        self._parents_since = 0.0
        self._ahead_ns = clock_ahead_ns(b"boottime")

    def of(self, key: DoerKey, record: Record) -> Doer:
        """The process of a record."""
        known = self._kept.get(key)
        if known is None:
            known = self._read(key, record)
            if len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = known
        return known

    def _read(self, key: DoerKey, record: Record) -> Doer:
        pid, started_ns, _, group, uid = key
        tid = record[7]
        ticks = (started_ns + self._ahead_ns) * TICKS // 1_000_000_000
        if not started_ns:  # the record does not tell
            ticks = _start_ticks(pid) or 0
        owner = Owner(pid)
        if _start_ticks(pid) == ticks:  # a later process with this pid is not looked at
            owner = _enriched(owner)
            if owner.state == "zombie" and tid != pid:
                owner = _by_thread(owner, tid)
        if owner.started is None or _start_ticks(pid) != ticks:
            owner = self._remains(pid, started_ns, group, uid, record)
            return Doer((owner,), self._parents_of(owner), True, user_name(uid))
        # Of a zombie there is no more than its name, its parents and its cgroup.
        return Doer((_bounded(owner),), self._parents_of(owner), owner.state == "zombie", user_name(uid))

    def _remains(self, pid: int, started_ns: int, group: int, uid: int, record: Record) -> Owner:
        """What the record says of a process that is gone."""
        from portbook.managers import container, systemd

        path = self._path(group)
        owner = Owner(
            pid,
            record[6].rstrip(b"\0").decode("utf-8", "replace"),
            user=user_name(uid),
            started=_moment(started_ns + self._ahead_ns),
            cgroup=path,
            ppid=record[18] or None,
        )
        if path is None:
            return owner
        owner = replace(owner, service=systemd.unit_of(path))
        (owner,), _ = container.enrich([owner])
        return owner

    def _path(self, group: int) -> str | None:
        if group not in self._paths:
            if len(self._paths) >= MOST_CGROUPS:
                self._paths.clear()
            self._paths[group] = cgroup.paths_by_id({group}).get(group)
        return self._paths[group]

    def _parents_of(self, owner: Owner) -> tuple[Owner, ...]:
        now = monotonic()
        if now - self._parents_since > PARENTS_LIMIT_S:
            self._parents.clear()
            self._parents_since = now
        self._parents[owner.pid] = owner
        chain = process.parents(owner.pid, self._parents)[:MOST_PARENTS]
        return tuple(replace(parent, command_line=None) for parent in chain)


def _moment(since_boot_ns: int) -> datetime:
    booted_s = time() - clock_gettime(CLOCK_BOOTTIME)
    return EPOCH + timedelta(seconds=booted_s, microseconds=since_boot_ns // 1000)


def _enriched(owner: Owner) -> Owner:
    owners = [owner]
    for enrich in enrichers():
        owners, _ = enrich(owners)
    return owners[0]


def _by_thread(owner: Owner, tid: int) -> Owner:
    """A process whose first thread has ended, and which goes on: what it runs is known by another of its threads."""
    thread = _enriched(Owner(tid))
    if thread.started is None or thread.state == "zombie":
        return owner
    return replace(thread, pid=owner.pid, name=owner.name, ppid=owner.ppid, started=owner.started)


def _bounded(owner: Owner) -> Owner:
    """The owner with a command line that can be kept a thousand times."""
    left = MOST_CHARACTERS
    arguments: list[str] = []
    for argument in owner.command_line or ():
        arguments.append(argument[:left])
        left -= len(argument)
        if left <= 0:
            arguments[-1] += "…"
            return replace(owner, command_line=tuple(arguments))
    return owner


def _start_ticks(pid: int) -> int | None:
    """When the process with this pid started, in ticks since boot; None if there is none (proc_pid_stat(5))."""
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = os.read(file, MOST_BYTES)
        finally:
            os.close(file)
        return parse_number(line[line.rindex(b")") + 2 :].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def clock_ahead_ns(clock: bytes) -> int:
    """How far a clock of this time namespace is ahead of the kernel's own: time_namespaces(7).

    :param clock: b"monotonic" or b"boottime"
    """
    try:
        with open("/proc/self/timens_offsets", "rb") as file:
            lines = file.read(MOST_BYTES).splitlines()
    except OSError:
        return 0
    for line in lines:
        name, *numbers = line.split()
        if name == clock and len(numbers) == 2:
            return int(numbers[0]) * 1_000_000_000 + int(numbers[1])
    return 0
