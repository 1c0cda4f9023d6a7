"""The state of a TCP scan: an attempt to connect to one port, and the host that it belongs to. Pure."""

from __future__ import annotations

from collections import deque

from portbook.addresses import reach_of
from portbook.probe.pacing import Losses, RoundTrip
from portbook.probe.request import Probe
from portbook.probe.tcp import ConnectResult
from portbook.resilience import Breaker

# Linux, macOS and Windows repeat a SYN after a second (RFC 6298 2.1). A later answer may belong to either of the two.
SYN_REPEATED_S = 1.0

# Ports that are likely to answer, the most likely first: what a breaker's trial probes when it has the choice.
LIKELY = (443, 80, 22, 445, 3389, 53, 8080, 8443, 135, 25, 139, 5985, 21, 23, 111, 587, 993, 3306, 5432, 1723)
RANK = {port: rank for rank, port in enumerate(LIKELY)}


class Attempt:
    """A connect to one port. When the port is silent, the same object is started again."""

    __slots__ = (
        "host",
        "in_flight",
        "is_trial",
        "number",
        "probe",
        "result",
        "retry_at",
        "rtt_s",
        "self_connects",
        "socket",
        "started_at",
    )

    def __init__(self, probe: Probe, host: Host) -> None:
        self.probe = probe
        self.host = host
        self.number = 0  # how often it was started, this time included
        self.started_at = 0.0  # the last time; 0: never
        self.retry_at = 0.0  # when waiting for a retry: not before
        self.in_flight = False  # started, and not settled
        self.is_trial = False  # its end decides whether the breaker of its host closes
        self.self_connects = 0
        self.socket: object = None  # the transport's
        self.result: ConnectResult | None = None  # None: undecided
        self.rtt_s: float | None = None


class Host:
    """One address while it is scanned."""

    __slots__ = (
        "address",
        "breaker",
        "given_up",
        "has_answered",
        "has_been_silent",
        "held_back",
        "in_flight",
        "is_loopback",
        "losses",
        "outstanding",
        "queued",
        "round_trip",
        "unmeasured",
    )

    def __init__(self, address: str, breaker: Breaker | None) -> None:
        self.address = address
        self.breaker = breaker
        self.is_loopback = reach_of(address) == "loopback"
        self.round_trip = RoundTrip()
        self.has_answered = False  # itself, or another host in its name
        self.has_been_silent = False
        self.given_up = False  # its breaker's trials have failed: its remaining ports are skipped
        self.losses = Losses()
        self.in_flight = 0
        self.outstanding = 0  # attempts without a final answer
        self.held_back: deque[Attempt] = deque()  # read, and not started because of caution or the breaker
        self.queued = False  # it is among the hosts that may have something to start
        self.unmeasured: set[Attempt] = set()  # in flight, started before the first round trip was measured

    @property
    def on_trial(self) -> bool:
        """Whether the next attempt is its breaker's trial."""
        return not self.has_answered and self.breaker is not None and self.breaker.position == "half-open"

    def take_held_back(self) -> Attempt:
        """Remove and return an attempt that was held back: for a trial, the one that is most likely to be answered."""
        if not self.on_trial:
            return self.held_back.popleft()
        best = min(self.held_back, key=lambda attempt: RANK.get(attempt.probe.port, len(RANK)))
        self.held_back.remove(best)
        return best

    def answered(self, attempt: Attempt) -> None:
        """Record that a port of it has answered."""
        self.losses.answered(attempt.number - 1)
        result, rtt_s = attempt.result, attempt.rtt_s
        if rtt_s is not None and rtt_s < SYN_REPEATED_S and result is not None:
            sender = result.evidence.sender
            if sender is None or sender == self.address:  # a router is not the host
                self.round_trip.measured(rtt_s)  # a new socket for each attempt: Karn's rule is kept
        if not self.has_answered:
            self.has_answered, self.given_up = True, False
            if self.breaker is not None:
                self.breaker.answered()
