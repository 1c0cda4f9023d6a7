"""The hosts of a scan: which may be probed now, and which are given up. Pure.

Until a host has answered, only a few of its ports are probed at once. A thousand at once would overflow the queue of a
neighbour whose link address is not known yet (Linux keeps about 200 packets: net.ipv4.neigh.*.unres_qlen_bytes,
arp(7)), and all of them would have to wait as long as if nothing were known of the round trip.

The breaker decides about a host only while that host has never answered, and only when there is another host to spend
the time on: a host that answered once is alive, and its silent ports are what the scan is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from portbook.probe.request import Probe
from portbook.resilience import Breaker, BreakerChange, BreakerSettings
from portbook.scanner.tcp.state import Attempt, Host

CAUTION = 16  # ports of a host in flight before it has answered
MOST_HOSTS = 4096  # remembered when there is nothing left to do for them

HostKey = str | tuple[str, str]  # address, with its zone where it has one
BreakerCallback = Callable[[str, str], None]  # address, and what happened to its breaker


class Trial(NamedTuple):
    """When a host with an open breaker may be tried; the number orders entries of the same time."""

    at: float
    number: int
    host: Host


class Hosts:
    """Every host that is being scanned, and earlier ones that are still remembered."""

    def __init__(self, settings: BreakerSettings | None, report: BreakerCallback) -> None:
        self._settings = settings
        self._report = report
        self._known: dict[HostKey, Host] = {}
        self._several = False
        self._forget_at = MOST_HOSTS
        self._trials: list[Trial] = []
        self._number = count()

    def __iter__(self) -> Iterator[Host]:
        return iter(self._known.values())

    def of(self, probe: Probe) -> Host:
        """Return the host of a probe."""
        key = probe.address if probe.zone is None else (probe.address, probe.zone)
        return self._known.get(key) or self._add(key, probe.address)

    def allows(self, host: Host, now: float) -> bool:
        """Whether another port of a host may be probed. A yes from an open breaker is for one attempt, the trial."""
        if host.has_answered:
            return True
        breaker = host.breaker if self._several else None
        if breaker is None:
            return host.is_loopback or host.has_been_silent or host.in_flight < CAUTION
        if breaker.position == "closed":  # no more in flight than may fail before it opens
            return host.in_flight < breaker.settings.failures
        return breaker.may_probe(now)

    def failed(self, attempt: Attempt, now: float) -> bool:
        """Record that an attempt was not answered; True when its host is given up for it."""
        host = attempt.host
        host.has_been_silent = True
        breaker = host.breaker
        if breaker is None or host.has_answered or not self._several:
            return False
        before = breaker.position
        breaker.failed(now, trial=attempt.is_trial)
        if breaker.position != "open" or before == "open":
            return False
        heappush(self._trials, Trial(breaker.trial_at, next(self._number), host))
        if host.given_up or breaker.failed_trials < breaker.settings.trials:
            return False
        host.given_up = True
        return True

    @property
    def next_trial_at(self) -> float | None:
        """When the next breaker may be tried."""
        return self._trials[0].at if self._trials else None

    def due_for_trial(self, now: float) -> Iterator[Host]:
        """Yield each host whose pause is over, once."""
        while self._trials and self._trials[0].at <= now:
            yield heappop(self._trials).host

    def _add(self, key: HostKey, address: str) -> Host:
        if len(self._known) >= self._forget_at:
            self._forget()
        self._several = self._several or bool(self._known)
        breaker = None
        if self._settings is not None:
            breaker = Breaker(self._settings, lambda change: self._changed(address, change))
        host = self._known[key] = Host(address, breaker)
        return host

    def _forget(self) -> None:
        """Forget hosts that have nothing left to do: a stream of millions would fill the memory."""
        self._known = {key: host for key, host in self._known.items() if host.outstanding}
        self._forget_at = max(MOST_HOSTS, 2 * len(self._known))

    def _changed(self, address: str, change: BreakerChange) -> None:
        self._report(address, f"{change.before} to {change.after}: {change.text}")
