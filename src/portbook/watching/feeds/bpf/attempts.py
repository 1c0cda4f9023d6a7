"""Binds that were attempted: which of them failed.

The kernel tells of every attempt and of every success, and of no failure. A thread does one thing at a time: whatever
it does next shows that its bind is over, and so does the thread itself, if it waits for something, has run in user mode
since, or has ended. Nothing is called a failure before it is certain; a thread that was only interrupted inside bind(2)
is waited for.
"""

from __future__ import annotations

import os
from itertools import islice
from time import monotonic_ns

from msgspec import Struct

from portbook.watching.feeds.bpf.record import Record

# States of a thread that may be inside bind(2): it runs, or waits for the lock of the socket, which no signal
# interrupts (__lock_sock() in net/core/sock.c). Any other thread waits for something else, or has ended.
MAY_BIND = (b"R", b"D")
FIRST_LOOK_NS = 1_000_000
LONGEST_LOOK_NS = 250_000_000
LIMIT_NS = 30_000_000_000  # then it is a failure: no thread waits that long for a processor
MOST_KEPT = 65_536
MOST_LOOKS = 256  # at once
MOST_BYTES = 4096
UTIME = 10  # of the fields behind the state: user mode time in ticks


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
        first_look_ns = monotonic_ns() + FIRST_LOOK_NS
        self._look_at_ns = min(self._look_at_ns, first_look_ns) if self._open else first_look_ns
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
        over: list[int] = []
        for tid in list(islice(self._open, MOST_LOOKS)):
            attempt = self._open[tid]
            if _is_over(tid, attempt, now):
                over.append(tid)
            else:
                self._open[tid] = self._open.pop(tid)  # behind those that were not looked at
        least = min(attempt.looks for attempt in self._open.values())
        self._look_at_ns = now + min(FIRST_LOOK_NS << least, LONGEST_LOOK_NS)
        return over


def _is_over(tid: int, attempt: OpenBind, now: int) -> bool:
    """Whether the thread is certainly not in that bind(2) any more: proc_pid_stat(5)."""
    attempt.looks = min(attempt.looks + 1, 10)
    if now - attempt.record[0] > LIMIT_NS:
        return True
    try:
        stat = _read(f"/proc/{attempt.record[8]}/task/{tid}/stat")
        state, *numbers = stat[stat.rindex(b")") + 2 :].split()
        utime = int(numbers[UTIME])
    except (OSError, ValueError, IndexError):
        return True  # it has ended
    if state not in MAY_BIND:
        return True
    if attempt.utime is None:
        attempt.utime = utime
    return utime > attempt.utime


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, MOST_BYTES)
    finally:
        os.close(file)
