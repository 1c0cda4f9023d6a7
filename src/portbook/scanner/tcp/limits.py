"""What limits the attempts in flight: how many, how long each may take, when a silent one may be repeated. Pure.

EMFILE, ENFILE, ENOBUFS and ENOMEM are no answers: the system has fewer descriptors or less memory than its limit says.
The attempt waits, and fewer are in flight at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from portbook.probe.pacing import TokenBucket
from portbook.probe.tcp import SILENT
from portbook.resilience import waits
from portbook.scanner.tcp.state import Attempt, Host

# --- how many ------------------------------------------------------------------------------------------------------

RECOVERY_S = 1.0  # then the window grows a little: other programs may have closed descriptors
OUT_OF_DESCRIPTORS_S = 10.0  # how long to wait for a descriptor when none of ours is in use


class Window:
    """The most attempts in flight; fewer after a shortage, and slowly back to the full size."""

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self.resume_at = now  # nothing is started before
        self._full = self._reported = size
        self._changed_at = now
        self._now = now
        self._pauses: Iterator[float] | None = None

    def shrink(self, in_flight: int, now: float) -> bool:
        """No more than ``in_flight`` were possible. True when the size has halved since it last was True."""
        self.size = max(1, min(self.size - 1, in_flight))
        self._changed_at = now
        if self.size > self._reported // 2:
            return False
        self._reported = self.size
        return True

    def recover(self, now: float) -> None:
        """Grow a little after each RECOVERY_S."""
        if self.size < self._full and now >= self._changed_at + RECOVERY_S:
            self.size = min(self._full, self.size + max(1, self.size // 4))
            self._changed_at = now

    def out_of_descriptors(self, now: float) -> bool:
        """Pause because not even one attempt was possible, longer each time; False when that has lasted too long."""
        self._now = now
        if self._pauses is None:
            self._pauses = waits(deadline_s=OUT_OF_DESCRIPTORS_S, clock=lambda: self._now)
        pause_s = next(self._pauses, None)
        if pause_s is None:
            return False
        self.resume_at = now + pause_s
        return True

    def reset_backoff(self) -> None:
        """An attempt was possible: the next pause is a short one again."""
        self._pauses = None


# --- how long ------------------------------------------------------------------------------------------------------

MOST_DOUBLINGS = 2  # of the timeout; a retry comes later anyway


class Timeout(NamedTuple):
    """When an attempt has been in flight for too long; the number orders entries of the same time."""

    at: float
    number: int
    attempt: Attempt


class Timeouts:
    """A timeout for each attempt in flight, which moves with the round trips of its host.

    Entries of attempts that have ended stay until their time comes.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s  # None: by the round trips of the host
        self._heap: list[Timeout] = []
        self._number = count()

    def watch(self, attempts: Iterable[Attempt]) -> None:
        """Set a timeout for the undecided ones."""
        for attempt in attempts:
            if attempt.result is None:
                self._push(attempt)
                if self._timeout_s is None and attempt.host.round_trip.srtt_s is None:
                    attempt.host.unmeasured.add(attempt)

    def measured(self, host: Host) -> None:
        """The first round trip of a host is known: its other attempts need not wait for a second either."""
        for attempt in host.unmeasured:
            self._push(attempt)
        host.unmeasured.clear()

    def expired(self, now: float) -> list[Attempt]:
        """Return what has been in flight for too long, its result set to silence."""
        silent = []
        while self._heap and self._heap[0].at <= now:
            attempt = heappop(self._heap).attempt
            if not attempt.in_flight or attempt.result is not None:
                continue
            if self._end(attempt) > now:  # the host turned out to be slower than estimated
                self._push(attempt)
                continue
            attempt.result = SILENT
            silent.append(attempt)
        return silent

    @property
    def next_at(self) -> float | None:
        """When the next timeout comes."""
        while self._heap and not self._heap[0].attempt.in_flight:
            heappop(self._heap)
        return self._heap[0].at if self._heap else None

    def undecided(self) -> list[Attempt]:
        """Every attempt in flight, once."""
        return list(dict.fromkeys(entry.attempt for entry in self._heap if entry.attempt.in_flight))

    def _push(self, attempt: Attempt) -> None:
        heappush(self._heap, Timeout(self._end(attempt), next(self._number), attempt))

    def _end(self, attempt: Attempt) -> float:
        timeout_s = self._timeout_s
        if timeout_s is None:
            timeout_s = attempt.host.round_trip.timeout_s(min(attempt.number - 1, MOST_DOUBLINGS))
        return attempt.started_at + timeout_s


# --- when again ----------------------------------------------------------------------------------------------------

PAUSE_S = 0.1  # between two attempts at a port, at least: a queue that a short burst overran has recovered
LEAST_AT_ONCE = 8
SHORTEST_S = 0.001  # of a first pass, for its rate
TURN_S = 0.005  # retries that are due within it start together: one turn of the engine for each would cost more


class Retries:
    """Silent ports that wait for another attempt, by due time, behind a token bucket.

    Half of a window at once, then half of the rate at which ports were probed for the first time: a host that lost
    packets because they came too fast gets them at half the pace. The rate of the first pass includes its waiting.
    """

    def __init__(self, window: int, now: float) -> None:
        self._waiting: deque[Attempt] = deque()
        self._began = self._last_first = now
        self._first = 0
        self._bucket = TokenBucket(1.0, now, max(LEAST_AT_ONCE, window // 2))
        self._resume_at = now

    def put(self, attempt: Attempt, now: float) -> None:
        """Add an attempt that was silent."""
        attempt.retry_at = max(now, attempt.started_at + PAUSE_S)
        self._waiting.append(attempt)

    def count_first(self, now: float) -> None:
        """A port is probed for the first time: this measures the pace."""
        self._first += 1
        self._last_first = now

    def next(self, now: float) -> Attempt | None:
        """Remove and return the next attempt, if it is due."""
        if not self._waiting or now < max(self._resume_at, self._waiting[0].retry_at):
            return None
        first_pass_s = max(SHORTEST_S, self._last_first - self._began)
        rate = self._bucket.rate = max(1.0, self._first / first_pass_s / 2)
        if not self._bucket.available(now):
            self._resume_at = now + max(TURN_S, 1 / rate)
            return None
        self._bucket.take()
        return self._waiting.popleft()

    def next_at(self) -> float | None:
        """When the next attempt may start."""
        return max(self._resume_at, self._waiting[0].retry_at) if self._waiting else None

    def drain(self) -> list[Attempt]:
        """Remove and return everything that waits."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting
