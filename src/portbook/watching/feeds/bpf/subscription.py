"""An open subscription: reads the ring, and wakes up for attempts that are not decided yet."""

from __future__ import annotations

import os
import select
from time import monotonic, monotonic_ns, sleep

from portbook.sources.bpf import calls
from portbook.watching.feeds.base import Change
from portbook.watching.feeds.bpf import attachment
from portbook.watching.feeds.bpf.changes import Changes
from portbook.watching.feeds.bpf.ports import AutomaticPorts
from portbook.watching.feeds.bpf.processes import clock_ahead_ns
from portbook.watching.feeds.bpf.program import Maps
from portbook.watching.feeds.bpf.record import BOUND, KINDS
from portbook.watching.feeds.bpf.ring import Ring
from portbook.watching.feeds.bpf.timer import Timer

# Between two looks at the ring while records come in quick succession: the kernel does not wake this process then.
PAUSE_S = 0.0005
MOST_BATCHES = 16  # that are read before attempts are decided


class Subscription:
    """A feed (see watching/feeds/base.py)."""

    def __init__(self, ring_bytes: int) -> None:
        """Attach the programs; raise SourceError."""
        layout = attachment.look_up()
        self._ring = Ring(ring_bytes)
        self._links: list[int] = []
        self._ports = AutomaticPorts(layout)
        self._changes = Changes(self._ports.find)
        self._lost = [0] * len(KINDS)
        self._ahead_ns = clock_ahead_ns(b"monotonic")
        self._is_busy = False  # records come in such a succession that the ring is looked at in intervals
        self._last = 0.0  # when there were records
        try:
            marks = calls.make_socket_marks()
            try:
                self._links = attachment.attach(layout, Maps(self._ring.descriptor, self._ring.counters, marks))
            finally:
                os.close(marks)
            self._timer = Timer()
            self._waiting = select.epoll()
        except BaseException:
            self._end()
            raise
        self._waiting.register(self._ring.descriptor, select.EPOLLIN)
        self._waiting.register(self._timer.descriptor, select.EPOLLIN)

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to read or to decide."""
        return self._waiting.fileno()

    def read(self, timeout_s: float) -> list[Change]:
        """Wait for changes, at most this long, and return them."""
        until = monotonic() + timeout_s
        while True:
            left_s = max(0.0, until - monotonic())
            if self._is_busy:
                sleep(min(PAUSE_S, left_s))
            else:
                self._waiting.poll(left_s)
            changes = self._take()
            if changes or left_s == 0:
                return changes

    def _take(self) -> list[Change]:
        changes = self._take_records()
        attempts = self._changes.attempts
        for _ in range(MOST_BATCHES):
            if not (over := attempts.over()):
                break
            changes += self._take_records()  # what these threads did before they were looked at
            if not self._ring.is_empty():
                continue
            for tid in over:
                failed = attempts.end(tid)
                if failed is not None:
                    changes.append(self._changes.failure(failed))
        self._timer.set(attempts.next_look_ns())
        return changes

    def _take_records(self) -> list[Change]:
        records = self._ring.take()
        now = monotonic()
        is_recent = now - self._last < 2 * PAUSE_S
        if records:
            self._last = now
        if self._ahead_ns:
            records = [(record[0] + self._ahead_ns, *record[1:]) for record in records]
        changes = self._changes.of(records)
        self._ring.free(wake=not is_recent)
        # What came meanwhile, or is still being written, wakes nobody.
        self._is_busy = is_recent or not self._ring.is_empty()
        lost = self._ring.lost()
        if lost != self._lost:
            changes.append(self._loss(lost))
        return changes

    def _loss(self, lost: list[int]) -> Change:
        more = [now - before for now, before in zip(lost, self._lost, strict=True)]
        self._lost = lost
        if more[BOUND]:
            self._changes.attempts.forget()
        parts = ", ".join(f"{count} {name}" for name, count in zip(KINDS, more, strict=True) if count)
        return Change("lost", monotonic_ns(), count=sum(more), reason=f"the ring was full: {parts} were not recorded")

    def close(self) -> None:
        """Detach the programs."""
        self._waiting.close()
        self._timer.close()
        self._end()

    def _end(self) -> None:
        for link in self._links:
            os.close(link)
        self._links = []
        self._ports.close()
        self._ring.close()
