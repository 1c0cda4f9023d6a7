"""How long an attempt may be in flight: a time limit for each, which moves with the round trips of its host. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from portbook.probe.tcp import SILENT
from portbook.scanner.tcp.attempt import Attempt
from portbook.scanner.tcp.hosts import Host

MOST_DOUBLINGS = 2  # the next attempt comes later anyway, and waits for all that is in its way


class Limit(NamedTuple):
    """When an attempt has been in flight for too long; the number keeps entries of one time apart."""

    at: float
    number: int
    attempt: Attempt


class Patience:
    """The time limits of all that is in flight. Entries of attempts that have ended stay until their time comes."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s  # None: by the round trips of the host
        self._limits: list[Limit] = []
        self._number = count()

    def watch(self, attempts: Iterable[Attempt]) -> None:
        """Set a limit for those that are not decided."""
        for attempt in attempts:
            if attempt.finding is None:
                self._limit(attempt)
                if self._timeout_s is None and attempt.host.trip.srtt_s is None:
                    attempt.host.unmeasured.add(attempt)

    def measured(self, host: Host) -> None:
        """The first round trip of a host is known: its other attempts need not wait for a second either."""
        for attempt in host.unmeasured:
            self._limit(attempt)
        host.unmeasured.clear()

    def expired(self, now: float) -> list[Attempt]:
        """What has been in flight for too long: its finding is silence from here on."""
        silent = []
        while self._limits and self._limits[0].at <= now:
            attempt = heappop(self._limits).attempt
            if not attempt.flying or attempt.finding is not None:
                continue
            if self._end(attempt) > now:  # the host turned out to be slower than thought
                self._limit(attempt)
                continue
            attempt.finding = SILENT
            silent.append(attempt)
        return silent

    @property
    def next_at(self) -> float | None:
        """When the next limit is reached."""
        while self._limits and not self._limits[0].attempt.flying:
            heappop(self._limits)
        return self._limits[0].at if self._limits else None

    def flying(self) -> list[Attempt]:
        """What is in flight and not decided, each once."""
        return list(dict.fromkeys(limit.attempt for limit in self._limits if limit.attempt.flying))

    def _limit(self, attempt: Attempt) -> None:
        heappush(self._limits, Limit(self._end(attempt), next(self._number), attempt))

    def _end(self, attempt: Attempt) -> float:
        timeout_s = self._timeout_s
        if timeout_s is None:
            timeout_s = attempt.host.trip.timeout_s(min(attempt.number - 1, MOST_DOUBLINGS))
        return attempt.begun + timeout_s
