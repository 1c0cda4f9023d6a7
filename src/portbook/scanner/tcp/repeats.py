"""Silent ports that wait to be asked again, and how fast they are: slower than they were the first time. Pure."""

from __future__ import annotations

from collections import deque

from portbook.probe.pacing import TokenBucket
from portbook.scanner.tcp.attempt import Attempt

PAUSE_S = 0.1  # from asking a port to asking it again, at least: what a short burst overran has recovered
LEAST_AT_ONCE = 8
SHORTEST_S = 0.001  # of a first pass, for its rate
TURN_S = 0.005  # what may be begun in so long is begun together: a turn of the engine for each would be mostly turns


class Repeats:
    """A queue by due time, for which a token bucket is the door.

    Half of a window at once, then half of the rate at which ports were asked for the first time: whoever lost packets
    because they came too fast gets them at half the pace. The rate of the first pass includes its waiting.
    """

    def __init__(self, window: int, now: float) -> None:
        self._waiting: deque[Attempt] = deque()
        self._began = self._last_first = now
        self._first = 0
        self._door = TokenBucket(1.0, now, max(LEAST_AT_ONCE, window // 2))
        self._opens_at = now

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, attempt: Attempt, now: float) -> None:
        """It was silent, and is to be asked once more."""
        attempt.due = max(now, attempt.begun + PAUSE_S)
        self._waiting.append(attempt)

    def first_asked(self, now: float) -> None:
        """A port was asked for the first time: what the pace is measured by."""
        self._first += 1
        self._last_first = now

    def next(self, now: float) -> Attempt | None:
        """The next that may be begun, if its time has come."""
        if not self._waiting or now < max(self._opens_at, self._waiting[0].due):
            return None
        rate = self._door.rate = max(1.0, self._first / max(SHORTEST_S, self._last_first - self._began) / 2)
        if not self._door.available(now):
            self._opens_at = now + max(TURN_S, 1 / rate)
            return None
        self._door.take()
        return self._waiting.popleft()

    def next_at(self) -> float | None:
        """When some may be begun."""
        return max(self._opens_at, self._waiting[0].due) if self._waiting else None

    def drain(self) -> list[Attempt]:
        """Everything that waits; nothing does any more."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting
