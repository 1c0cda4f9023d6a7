"""The thread that feeds one sink from a bounded queue, and tries again after failures.

What the sink cannot take now waits in the queue; the pauses between attempts grow, and a breaker keeps them long while
nothing works. A queue that is full loses events, the oldest of the least severe first, which are counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic

from msgspec import Struct

from portbook.escaping import safe
from portbook.events import LEVELS, Level
from portbook.resilience import Breaker, BreakerSettings, waits
from portbook.watching.description import OF_A_SINK
from portbook.watching.sinks.base import DeliveryError, EncodedEvent, Loss, Sink

MOST_BYTES = 16 << 20  # of JSON that waits for one sink; as objects it is about three times as much
GRACE_S = 0.2  # for a thread that is about to end
NOTE_S = 10.0  # between two messages about failures
MOST_REASONS = 20  # of losses that are kept apart
KEPT_SHARE = 0.9  # of a full queue
QUICK = BreakerSettings(failures=5, pause_s=5.0, most_pause_s=60.0)


class SinkStatus(Struct, frozen=True):
    """How a sink does."""

    name: str
    delivered: int
    waiting: int
    lost: int
    failure: str | None  # why nothing is delivered at the moment


class Pauses:
    """When to try again: growing pauses, at least as long as the receiver wants, and a breaker's when all fails."""

    def __init__(self, settings: BreakerSettings = QUICK) -> None:
        self.breaker = Breaker(settings)
        self._waits = waits()
        self.next_at = 0.0

    def may_try(self, now: float) -> bool:
        """Whether it is time for an attempt; it must be followed by ``succeeded`` or ``failed``."""
        if now < self.next_at:
            return False
        return self.breaker.position == "half-open" or self.breaker.may_probe(now)

    def succeeded(self) -> None:
        """An attempt succeeded."""
        if self.breaker.failures:
            self.breaker.answered()
            self._waits = waits()
        self.next_at = 0.0

    def failed(self, now: float, pause_s: float | None = None) -> None:
        """An attempt failed; the receiver may have said for how long it wants to be left alone."""
        self.breaker.failed(now, trial=self.breaker.position == "half-open")
        self.next_at = now + max(next(self._waits), pause_s or 0.0)
        if self.breaker.position == "open":
            self.next_at = max(self.next_at, self.breaker.trial_at)


class SinkWorker:
    """One sink with its queue and its thread, which starts with the first event."""

    def __init__(self, sink: Sink, severity: Level, *, most_bytes: int = MOST_BYTES) -> None:
        self.sink = sink
        self.levels = frozenset(LEVELS[LEVELS.index(severity) :])
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._queue: deque[EncodedEvent] = deque()
        self._bytes = 0
        self._in_hand: list[EncodedEvent] = []  # taken from the queue, being delivered
        self._stuck = False  # it did not make room in time: nobody waits for it before its queue is half empty
        self._reopen = False
        self._end_at: float | None = None  # when the thread gives up, once it is to end
        self._thread: threading.Thread | None = None
        self._losses: list[Loss] = []
        self._notes: list[str] = []
        self._delivered = self._lost = 0
        self._failure: str | None = None
        self._note_at = 0.0  # not before: what fails and works in turns must not fill standard error
        self._noted = False
        self._pauses = Pauses()

    # --- for the thread of the watch -------------------------------------------------------------------------------

    def put(self, events: Sequence[EncodedEvent], room_until: float) -> None:
        """Append to the queue; wait for room until then if the sink works, drop the oldest events otherwise."""
        size = sum(len(event.json) for event in events)
        with self._changed:
            self._start()
            while self._bytes + size > self._most_bytes and self._queue and self._failure is None and not self._stuck:
                self._stuck = not self._changed.wait(room_until - monotonic())
            self._queue.extend(events)
            self._bytes += size
            if self._bytes > self._most_bytes:
                self._lose(self._make_room(), self._failure or "events come faster than it takes them")
            self._changed.notify_all()

    def _make_room(self) -> list[EncodedEvent]:
        """Drop the oldest of the least severe: who floods the watch with opened ports hides no violation by that.

        More is dropped than must be, so that this is rare.
        """
        dropped: list[EncodedEvent] = []
        for level in LEVELS:
            kept: deque[EncodedEvent] = deque()
            for event in self._queue:
                if event.event.severity == level and self._bytes > self._most_bytes * KEPT_SHARE:
                    dropped.append(event)
                    self._bytes -= len(event.json)
                else:
                    kept.append(event)
            self._queue = kept
        return dropped

    def reopen(self) -> None:
        """Have the sink open its files and connections again."""
        with self._changed:
            self._reopen = True
            self._start()
            self._changed.notify_all()

    def take_reports(self) -> tuple[list[Loss], list[str]]:
        """What was lost since the last call, and messages for people."""
        losses, notes = self.sink.reports()
        with self._changed:
            losses, notes = self._losses + losses, self._notes + notes
            self._losses, self._notes = [], []
        return losses, notes

    def status(self) -> SinkStatus:
        """How it does now."""
        with self._changed:
            waiting = len(self._queue) + len(self._in_hand) + self.sink.waiting()
            return SinkStatus(self.sink.name, self._delivered, waiting, self._lost, self._failure)

    def flush(self, limit_s: float) -> bool:
        """Wait until the queue is empty; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._in_hand, limit_s)

    def begin_end(self, end_at: float) -> None:
        """Have the thread end when the queue is empty, or at this time of the monotonic clock."""
        with self._changed:
            self._end_at = end_at
            self._pauses = Pauses()  # one more attempt, at once
            self._changed.notify_all()

    def close(self, end_at: float) -> None:
        """Wait for the end of the thread; what it did not deliver is lost."""
        if self._thread is not None:
            self._thread.join(max(0.0, end_at - monotonic()) + GRACE_S)
        if self._thread is not None and self._thread.is_alive():
            self.sink.interrupt()
            self._thread.join(GRACE_S)
        with self._changed:
            self._lose([*self._in_hand, *self._queue], self._failure or "the watch ended first")
            self._queue.clear()
        if self._thread is None or not self._thread.is_alive():
            self.sink.close(max(0.0, end_at - monotonic()))

    def _start(self) -> None:
        """Start the thread: late, so that it has the privileges that the process has kept (capabilities(7))."""
        if self._thread is None and self._end_at is None:
            self._thread = threading.Thread(target=self._run, name=f"sink {self.sink.name}"[:60], daemon=True)
            self._thread.start()

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._take():
            if self._reopen:
                self._reopen_sink()
            else:
                self._attempt()

    def _take(self) -> bool:
        """Wait for something to do; return whether there is anything, or the thread shall end."""
        with self._changed:
            while True:
                now = monotonic()
                if self._end_at is not None and (now >= self._end_at or not (self._queue or self._in_hand)):
                    return False
                if self._reopen:
                    return True
                if not (self._queue or self._in_hand):
                    self._changed.wait()
                elif self._pauses.may_try(now):
                    self._fill()
                    return True
                else:
                    until = self._pauses.next_at if self._end_at is None else min(self._pauses.next_at, self._end_at)
                    self._changed.wait(max(0.001, until - now))

    def _fill(self) -> None:
        while self._queue and len(self._in_hand) < self.sink.at_once:
            event = self._queue.popleft()
            self._bytes -= len(event.json)
            self._in_hand.append(event)
        if self._bytes < self._most_bytes / 2:
            self._stuck = False
        self._changed.notify_all()  # there is room

    def _attempt(self) -> None:
        failure: DeliveryError | None = None
        try:
            self.sink.deliver(self._in_hand)
        except DeliveryError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  a defect of one sink must not end the others
            failure = DeliveryError(f"unexpected error: {error!r}", refused=True)
        with self._changed:
            if failure is None:
                self._succeed(len(self._in_hand))
            else:
                self._fail(failure)
            self._changed.notify_all()

    def _succeed(self, count: int) -> None:
        self._delivered += count
        del self._in_hand[:count]
        self._pauses.succeeded()
        self._failure = None
        if self._noted:
            self._note("works again")
            self._noted = False

    def _fail(self, failure: DeliveryError) -> None:
        self._delivered += failure.delivered
        del self._in_hand[: failure.delivered]
        if failure.refused:
            self._lose(self._in_hand[:1], failure.reason)
            del self._in_hand[:1]
            return
        now = monotonic()
        if self._failure != failure.reason and now >= self._note_at:
            self._note(f"{failure.reason}; tried again, the events wait")
            self._note_at = now + NOTE_S
            self._noted = True
        self._failure = failure.reason
        if failure.delivered:
            self._pauses.succeeded()
        self._pauses.failed(now, failure.pause_s)
        if self._end_at is not None:  # what does not work now will not for the rest of the time
            self._end_at = now

    def _reopen_sink(self) -> None:
        self._reopen = False
        self._pauses = Pauses()  # a reopening is requested after a repair
        try:
            self.sink.reopen()
        except DeliveryError as error:
            with self._changed:
                self._note(f"{error.reason}; the old one remains in use")

    def _lose(self, events: Sequence[EncodedEvent], reason: str) -> None:
        """Count lost events; not those that say that this sink lost some, or they would never end."""
        own = reason_prefix(self.sink.name)
        count = sum(not (event.event.reason or "").startswith(own) for event in events)
        if not count:
            return
        self._lost += count
        known = next((loss for loss in self._losses if loss.reason == reason), None)
        if known is None and len(self._losses) >= MOST_REASONS:
            known = self._losses[-1]
        if known is None:
            self._losses.append(Loss(count, reason))
        else:
            self._losses[self._losses.index(known)] = Loss(known.count + count, known.reason)

    def _note(self, text: str) -> None:
        self._notes.append(safe(text))


def reason_prefix(name: str) -> str:
    """How the reason of a gap begins that a sink caused."""
    return f"{OF_A_SINK}{name}: "
