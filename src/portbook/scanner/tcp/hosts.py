"""The hosts of a scan: what is known of each, and which are left alone. Pure.

Until something is heard from a host only a few of its ports are asked at once. A thousand at once would overflow the
queue of a neighbour whose link address is not known yet (Linux keeps about 200 packets: net.ipv4.neigh.*.
unres_qlen_bytes, arp(7)), and all of them would have to wait as long as if nothing were known of the round trip.

The breaker is asked about a host only while nothing was ever heard from it, and only when there is another host to
spend the time on: a host that answered once is alive, and its silent ports are what the scan is about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from portbook.addresses import reach_of
from portbook.probe.pacing import Losses, RoundTrip
from portbook.probe.request import Probe
from portbook.resilience import Breaker, BreakerSettings, Change
from portbook.scanner.tcp.attempt import Attempt

CAUTION = 16  # ports of a host in flight before anything is heard from it
MOST_HOSTS = 4096  # remembered when there is nothing left to do for them
# Linux, macOS and Windows repeat a SYN after a second (RFC 6298 2.1). What took that long answers either of the two.
SYN_REPEATED_S = 1.0

# Ports that are likely to answer, the likeliest first: what a breaker's trial asks when it has the choice.
LIKELY = (443, 80, 22, 445, 3389, 53, 8080, 8443, 135, 25, 139, 5985, 21, 23, 111, 587, 993, 3306, 5432, 1723)
RANK = {port: rank for rank, port in enumerate(LIKELY)}

Key = str | tuple[str, str]
Say = Callable[[str, str], None]  # an address, and what happened to its breaker


class Host:
    """One address while it is being asked."""

    __slots__ = (
        "address",
        "breaker",
        "given_up",
        "heard",
        "in_flight",
        "loopback",
        "losses",
        "outstanding",
        "queued",
        "silent",
        "trip",
        "unmeasured",
        "waiting",
    )

    def __init__(self, address: str, breaker: Breaker | None) -> None:
        self.address = address
        self.breaker = breaker
        self.loopback = reach_of(address) == "loopback"
        self.trip = RoundTrip()
        self.heard = False  # it, or somebody for it, answers
        self.given_up = False  # its breaker's trials have failed: what is left of it is skipped
        self.silent = False  # something it was asked was not answered
        self.losses = Losses()
        self.in_flight = 0
        self.outstanding = 0  # attempts that are not answered for good
        self.waiting: deque[Attempt] = deque()  # read, and held back by caution or the breaker
        self.queued = False  # it is among those that may have something to begin
        self.unmeasured: set[Attempt] = set()  # in flight, begun before the first round trip was measured

    @property
    def on_trial(self) -> bool:
        """The next attempt is its breaker's trial."""
        return not self.heard and self.breaker is not None and self.breaker.position == "half-open"

    def next_held(self) -> Attempt:
        """What to begin of the ports held back: for a trial, the one that is likeliest to be answered."""
        if not self.on_trial:
            return self.waiting.popleft()
        best = min(self.waiting, key=lambda attempt: RANK.get(attempt.probe.port, len(RANK)))
        self.waiting.remove(best)
        return best

    def answered(self, attempt: Attempt) -> None:
        """Take note that there was an answer for a port."""
        self.losses.answered(attempt.number - 1)
        finding, rtt_s = attempt.finding, attempt.rtt_s
        if rtt_s is not None and rtt_s < SYN_REPEATED_S and finding is not None:
            sender = finding.evidence.sender
            if sender is None or sender == self.address:  # a router is not the host
                self.trip.measured(rtt_s)  # a new socket for each attempt: Karn's rule is kept
        if not self.heard:
            self.heard, self.given_up = True, False
            if self.breaker is not None:
                self.breaker.answered()


class Trial(NamedTuple):
    """When a host with an open breaker may be tried; the number keeps entries of one time apart."""

    at: float
    number: int
    host: Host


class Hosts:
    """Every host that is being asked, and those of before that are still remembered."""

    def __init__(self, settings: BreakerSettings | None, say: Say) -> None:
        self._settings = settings
        self._say = say
        self._known: dict[Key, Host] = {}
        self._several = False
        self._forget_at = MOST_HOSTS
        self._trials: list[Trial] = []
        self._number = count()

    def __iter__(self) -> Iterator[Host]:
        return iter(self._known.values())

    def of(self, probe: Probe) -> Host:
        """The host that a probe is for."""
        key = probe.address if probe.zone is None else (probe.address, probe.zone)
        return self._known.get(key) or self._meet(key, probe.address)

    def allows(self, host: Host, now: float) -> bool:
        """Whether another port of a host may be asked. A yes from an open breaker is for one attempt, the trial."""
        if host.heard:
            return True
        breaker = host.breaker if self._several else None
        if breaker is None:
            return host.loopback or host.silent or host.in_flight < CAUTION
        if breaker.position == "closed":  # no more in flight than may fail before it opens
            return host.in_flight < breaker.settings.failures
        return breaker.may_ask(now)

    def failed(self, attempt: Attempt, now: float) -> bool:
        """Take note that a port was asked in vain; True when its host is given up for it."""
        host = attempt.host
        host.silent = True
        breaker = host.breaker
        if breaker is None or host.heard or not self._several:
            return False
        before = breaker.position
        breaker.failed(now, trial=attempt.trial)
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
        """Hosts whose pause is over, each once."""
        while self._trials and self._trials[0].at <= now:
            yield heappop(self._trials).host

    def _meet(self, key: Key, address: str) -> Host:
        if len(self._known) >= self._forget_at:
            self._forget()
        self._several = self._several or bool(self._known)
        breaker = None
        if self._settings is not None:
            breaker = Breaker(self._settings, lambda change: self._changed(address, change))
        host = self._known[key] = Host(address, breaker)
        return host

    def _forget(self) -> None:
        """Let go of hosts that have nothing left to do: a stream of millions would fill the memory."""
        for key in [key for key, host in self._known.items() if not host.outstanding]:
            del self._known[key]
        self._forget_at = max(MOST_HOSTS, 2 * len(self._known))

    def _changed(self, address: str, change: Change) -> None:
        self._say(address, f"{change.before} to {change.after}: {change.text}")
