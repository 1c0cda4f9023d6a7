"""How many probes may be in flight, when the system turns out to have fewer descriptors than its limit says. Pure.

EMFILE, ENFILE, ENOBUFS and ENOMEM are no answers: the probe waits, and fewer are in flight at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from portbook.resilience import waits

RECOVERY_S = 1.0  # then a little more is tried: others may have closed theirs
STARVED_S = 10.0  # how long to wait for a descriptor when none of ours is in use


class Window:
    """The most probes in flight; less after a shortage, and slowly back to what it was."""

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self.resume_at = now  # nothing is to be begun before
        self._full = self._told = size
        self._shrunk_at = now
        self._now = now
        self._pauses: Iterator[float] | None = None

    def shrink(self, in_flight: int, now: float) -> bool:
        """So many are in flight and one more could not be; True when that is news."""
        self.size = max(1, min(self.size - 1, in_flight))
        self._shrunk_at = now
        news = self.size <= self._told // 2
        if news:
            self._told = self.size
        return news

    def recover(self, now: float) -> None:
        """Grow a little every now and then."""
        if self.size < self._full and now >= self._shrunk_at + RECOVERY_S:
            self.size = min(self._full, self.size + max(1, self.size // 4))
            self._shrunk_at = now

    def starve(self, now: float) -> bool:
        """Not even one can be in flight: pause, longer each time; False when that has lasted too long."""
        self._now = now
        if self._pauses is None:
            self._pauses = waits(deadline_s=STARVED_S, clock=lambda: self._now)
        pause_s = next(self._pauses, None)
        if pause_s is None:
            return False
        self.resume_at = now + pause_s
        return True

    def fed(self) -> None:
        """There was one again."""
        self._pauses = None
