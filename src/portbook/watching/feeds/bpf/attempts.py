"""Binds that were attempted: which of them failed.

The kernel tells of every attempt and of every success, and of no failure. A thread does one thing at a time: whatever
it does next shows that its bind is over, and so does the thread itself, if it waits in another system call, has run in
user mode since, or has ended. Nothing is called a failure before it is certain; a thread that was only interrupted
inside bind(2) is waited for.
"""

from __future__ import annotations

import os
from time import monotonic_ns

from msgspec import Struct

from portbook.watching.feeds.bpf.record import Record

# The numbers of bind(2) and io_uring_enter(2) (which may call it), by machine: include/uapi/asm-generic/unistd.h,
# arch/x86/entry/syscalls/syscall_64.tbl.
BIND = {"x86_64": 49}
BIND_GENERIC, IO_URING_ENTER = 200, 426
FIRST_LOOK_NS = 1_000_000
LONGEST_LOOK_NS = 250_000_000
LIMIT_NS = 30_000_000_000  # then it is a failure: no thread waits that long for a processor
MOST_KEPT = 65_536
MOST_BYTES = 4096
UTIME = 11  # of the fields behind the name: user mode time in ticks


class OpenBind(Struct):
    """A bind of which it is not known yet how it ended."""

    record: Record
    utime: int | None = None  # of the thread, when it was first seen to run
    looks: int = 0


class Attempts:
    """The attempts that are open, by thread."""

    def __init__(self) -> None:
        self._open: dict[int, OpenBind] = {}
        self._look_at_ns = 0  # when to look at the threads again

    @property
    def are_open(self) -> bool:
        """Whether there are any."""
        return bool(self._open)

    def begin(self, tid: int, record: Record) -> Record | None:
        """Note an attempt; returns the one before of the same thread, if that failed."""
        if not self._open:
            self._look_at_ns = monotonic_ns() + FIRST_LOOK_NS
        before = self._open.pop(tid, None)
        if len(self._open) >= MOST_KEPT:
            del self._open[next(iter(self._open))]
        self._open[tid] = OpenBind(record)
        return before.record if before else None

    def end(self, tid: int) -> Record | None:
        """The thread has done something else; returns its attempt, which is over then."""
        attempt = self._open.pop(tid, None)
        return attempt.record if attempt else None

    def forget(self) -> None:
        """Records were lost: whether the open ones succeeded will not be known."""
        self._open.clear()

    def next_look_ns(self) -> int | None:
        """When ``over`` should be called, by time.monotonic_ns(); None: not before there are new records."""
        return self._look_at_ns if self._open else None

    def over(self) -> list[int]:
        """The threads that are certainly not in bind(2) any more.

        If none of their successes is in the ring behind this call, they have failed.
        """
        now = monotonic_ns()
        if not self._open or now < self._look_at_ns:
            return []
        threads = [tid for tid, attempt in self._open.items() if _is_over(tid, attempt, now)]
        wait_ns = min(FIRST_LOOK_NS << max((each.looks for each in self._open.values()), default=0), LONGEST_LOOK_NS)
        self._look_at_ns = now + wait_ns
        return threads


def _is_over(tid: int, attempt: OpenBind, now: int) -> bool:
    attempt.looks = min(attempt.looks + 1, 10)
    if now - attempt.record[0] > LIMIT_NS:
        return True
    thread = f"/proc/{attempt.record[8]}/task/{tid}"
    try:
        call = _read(f"{thread}/syscall").split()
    except PermissionError:
        call = [b"running"]
    except OSError:
        return True
    if call and call[0] != b"running":
        return call[0] not in (b"%d" % BIND.get(os.uname().machine, BIND_GENERIC), b"%d" % IO_URING_ENTER)
    return _has_run(thread, attempt)


def _has_run(thread: str, attempt: OpenBind) -> bool:
    """Whether the thread has run in user mode since it was first looked at: proc_pid_stat(5)."""
    try:
        stat = _read(f"{thread}/stat")
        utime = int(stat[stat.rindex(b")") + 2 :].split()[UTIME])
    except (OSError, ValueError, IndexError):
        return not os.path.exists(thread)
    if attempt.utime is None:
        attempt.utime = utime
    return utime > attempt.utime


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, MOST_BYTES)
    finally:
        os.close(file)
