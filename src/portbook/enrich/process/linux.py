"""Linux: processes from /proc (proc_pid_stat(5), proc_pid_status(5), proc_pid_cmdline(5))."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from msgspec.structs import replace

from portbook.enrich import cgroup
from portbook.numerals import parse_number
from portbook.records import Gap, Owner, ProcessState
from portbook.system.users import user_name

if TYPE_CHECKING:
    from portbook.enrich.process.origin import Mounts

TICKS = os.sysconf("SC_CLK_TCK")
COMM_LENGTH = 15  # TASK_COMM_LEN - 1 in include/linux/sched.h: longer names are cut
MOST_BYTES = 1 << 16  # of a command line: a process can write its own, of any length
MOST_PARENTS = 64
DELETED = " (deleted)"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# proc_pid_stat(5). What is not here is gone, or about to be.
STATES: dict[bytes, ProcessState] = {
    b"R": "running",
    b"S": "running",
    b"I": "running",
    b"T": "suspended",
    b"t": "traced",
    b"D": "uninterruptible",
    b"Z": "zombie",
}
# A process waits like this for a moment whenever it reads from a disk: it counts when it does so each time.
MOMENT_S, MOMENTS = 0.004, 3
# The names that runtimes give to their first thread, which are the names of the process too: since 24, Node.js.
THREAD_NAMES = frozenset(("MainThread", "node-MainThread"))


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Complete each owner from its pid. An owner whose process has ended keeps only its pid."""
    booted = _boot_time()
    completed = [_complete(owner, booted) for owner in owners]
    if any(owner.state == "uninterruptible" for owner in completed):
        completed = _without_moments(completed)
    return completed, []


def _without_moments(owners: list[Owner]) -> list[Owner]:
    """The owners, of which only those wait uninterruptibly that still do so a moment later."""
    for _ in range(MOMENTS):
        time.sleep(MOMENT_S)
        owners = [_looked_at_again(owner) for owner in owners]
    return owners


def _looked_at_again(owner: Owner) -> Owner:
    if owner.state != "uninterruptible":
        return owner
    try:
        state = _stat(_read(f"/proc/{owner.pid}/stat"))[3]
    except (OSError, ValueError, IndexError):
        return owner
    return replace(owner, state=state)


def add_origin(owner: Owner, known: dict[int, Mounts] | None = None) -> Owner:
    """Add where the process was started, and what traces it."""
    from portbook.enrich.process import origin

    pid = owner.pid
    directory = origin.directory_of(pid)
    return replace(
        owner,
        directory=directory,
        project=None if directory is None else origin.project_of(pid, directory, known),
        orphaned=origin.is_orphaned(pid),
        tracer=origin.tracer_of(pid),
        state="frozen" if origin.is_frozen(pid) else owner.state,
    )


def parents(pid: int, known: dict[int, Owner] | None = None) -> tuple[Owner, ...]:
    """The ancestors of ``pid``, nearest first, up to pid 1 or as far as /proc shows them."""
    booted = _boot_time()
    known = {} if known is None else known
    chain: list[Owner] = []
    current = _known_or_read(pid, known, booted)
    while current.ppid and len(chain) < MOST_PARENTS:
        parent = _known_or_read(current.ppid, known, booted)
        if parent.started is None or (current.started is not None and parent.started > current.started):
            break  # it has ended, and its pid belongs to another process now
        chain.append(parent)
        current = parent
    return tuple(chain)


def _known_or_read(pid: int, known: dict[int, Owner], booted: float) -> Owner:
    if pid not in known:
        known[pid] = _complete(Owner(pid), booted)
    return known[pid]


def _complete(owner: Owner, booted: float) -> Owner:
    pid = owner.pid
    try:
        name, ppid, ticks, state = _stat(_read(f"/proc/{pid}/stat"))
    except (OSError, ValueError, IndexError):
        return owner
    exe = _exe(pid)
    uid = _uid(pid)
    command_line = _command_line(pid)
    return Owner(
        pid=pid,
        name=_full_name(name, exe, command_line),
        exe=exe,
        user=None if uid is None else user_name(uid),
        started=_moment(booted + ticks / TICKS),
        how=owner.how,
        confidence=owner.confidence,
        command_line=command_line,
        ppid=ppid,
        cgroup=cgroup.of_pid(pid),
        state=state,
    )


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, MOST_BYTES)
    finally:
        os.close(file)


def _stat(line: bytes) -> tuple[str, int, int, ProcessState | None]:
    """Name, parent, start (ticks after boot) and state. The name may contain ``)``: the last one ends it."""
    left, right = line.index(b"("), line.rindex(b")")
    fields = line[right + 2 :].split()
    name = line[left + 1 : right].decode("utf-8", "replace")
    return name, parse_number(fields[1]), parse_number(fields[19]), STATES.get(fields[0])


def _exe(pid: int) -> str | None:
    """The executable; None for kernel threads and where ptrace access is needed (proc_pid_exe(5))."""
    try:
        path = os.readlink(b"/proc/%d/exe" % pid)
    except OSError:
        return None
    return path.decode("utf-8", "replace").removesuffix(DELETED)


def _full_name(name: str, exe: str | None, command_line: tuple[str, ...] | None) -> str:
    """The name of the executable, where the kernel has cut the name at 15 bytes or a thread has given it its own."""
    if name in THREAD_NAMES:
        program = exe or (command_line or ("",))[0]
        return program.rpartition("/")[2] or name
    if exe is None or len(name.encode()) < COMM_LENGTH:
        return name
    file_name = exe.rpartition("/")[2]
    return file_name if file_name.startswith(name) else name


def _uid(pid: int) -> int | None:
    """The effective user. The owner of /proc/PID is no substitute: it is root for processes that are not dumpable."""
    try:
        status = _read(f"/proc/{pid}/status")
        at = status.index(b"\nUid:") + 5
        return parse_number(status[at : status.index(b"\n", at)].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _command_line(pid: int) -> tuple[str, ...] | None:
    try:
        text = _read(f"/proc/{pid}/cmdline")
    except OSError:
        return None
    if not text:
        return ()
    arguments = text.decode("utf-8", "replace").removesuffix("\0").split("\0")
    if not any(arguments[1:]):  # a title that was written over the arguments, and padded: setproctitle(3)
        del arguments[1:]
    return tuple(arguments)


def _boot_time() -> float:
    """Seconds since the epoch at boot; start times count from there, suspended time included (proc_pid_stat(5))."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _moment(seconds: float) -> datetime:
    """A time, rounded to the tick, because the two clocks above are not read in the same instant."""
    whole, rest = divmod(round(seconds * TICKS), TICKS)
    return EPOCH + timedelta(seconds=whole, microseconds=rest * 1_000_000 // TICKS)
