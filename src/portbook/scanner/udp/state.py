"""The state of a UDP scan: a port that is probed, the host that it belongs to, a group of retries. Pure."""

from __future__ import annotations

from collections import deque

from msgspec.structs import replace

from portbook.probe.outcome import SILENCE, Evidence
from portbook.probe.pacing import Losses, RoundTrip
from portbook.probe.request import Limits, Probe
from portbook.scanner.udp.payloads import Payload
from portbook.scanner.udp.refusals import Refusals

# A service may compute before it replies, a kernel that refuses does not: the least timeout for a reply, and for the
# last one. A reply to the first attempt still counts during the second, so that a service has a second in all.
LEAST_TIMEOUT_S, LEAST_LAST_TIMEOUT_S = 0.3, 0.7
# Linux reports a neighbour that does not exist after three address requests, a second apart (arp(7), mcast_solicit,
# retrans_time; RFC 4861 section 10).
NEIGHBOUR_S = 3.2

PROVEN = "closed ports probed at the same moment were refused"
STOPPED_REFUSING = "the target stopped refusing ports during the scan; its rate limit may be the reason"


class UdpHost:
    """One address while it is scanned."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe  # the first one, for the address and its zone
        self.round_trip = RoundTrip()
        self.refusals = Refusals()
        self.losses = Losses()
        self.has_answered = False  # with a reply or a refusal, itself or another host in its name
        self.unreachable: Evidence | None = None  # a report that it is; None after an answer of its own
        self.first_sent_at: float | None = None
        self.in_flight: set[UdpPort] = set()
        self.unsettled_first = 0  # ports in flight for the first time whose refusal may still come
        self.to_retry: deque[UdpPort] = deque()
        self.group: RetryGroup | None = None
        self.has_turn = False  # it is in the schedule's queue of turns, or a timer will put it there
        self.next_turn_at = 0.0
        self.limit_reported = False

    @property
    def is_idle(self) -> bool:
        """Whether none of its ports is in flight or waits for a retry."""
        return not (self.in_flight or self.to_retry or self.group)

    def retries(self, limits: Limits) -> int:
        """How many silent attempts beyond the first count before a port is given up."""
        attempts = self.losses.attempts(limits.retries, limits.most_retries)
        return attempts - 1 + self.refusals.are_scarce


class UdpPort:
    """One port that has no answer yet. A control is a probe of a port that is known to be closed."""

    __slots__ = (
        "attempts",
        "awaits_retry",
        "counted",
        "group",
        "handle",
        "host",
        "is_control",
        "is_finished",
        "is_proven",
        "is_unconnected",
        "is_unsettled",
        "position",
        "probe",
        "requests",
        "sent_at",
        "sent_requests",
        "timer",
        "was_unproven",
    )

    def __init__(self, probe: Probe, host: UdpHost, is_control: bool = False) -> None:
        self.probe = probe
        self.host = host
        self.is_control = is_control
        self.attempts = 0
        self.counted = 0  # silent attempts that count
        self.requests: tuple[Payload, ...] = ()  # of the attempt
        self.sent_requests: tuple[Payload, ...] = ()  # of every attempt
        self.sent_at = 0.0
        self.timer = -1  # number of the valid timer
        self.awaits_retry = False
        self.is_finished = False
        self.is_unsettled = False  # in flight, and a refusal may still come
        self.is_proven = False  # the host could have refused this attempt
        self.was_unproven = False  # an earlier attempt was silent without proof
        self.group: RetryGroup | None = None
        self.position = 0  # in the group, from 1
        self.handle: int | None = None  # of its socket; the engine's
        self.is_unconnected = False  # its socket; the engine's

    def timeout_s(self, limits: Limits) -> float:
        """How long a reply to this attempt may take."""
        if limits.timeout_s is not None:
            return limits.timeout_s
        host = self.host
        adapted_s = host.round_trip.timeout_s(self.counted)
        if self.counted < host.retries(limits):
            return max(adapted_s, LEAST_TIMEOUT_S)
        if host.has_answered or host.first_sent_at is None:
            return max(adapted_s, LEAST_LAST_TIMEOUT_S)
        return max(adapted_s, LEAST_LAST_TIMEOUT_S, host.first_sent_at + NEIGHBOUR_S - self.sent_at)

    def silence(self) -> Evidence:
        """The evidence when every attempt was silent."""
        if self.host.unreachable:
            return replace(self.host.unreachable, text="reported for other ports of this host, which never answered")
        if self.host.refusals.have_stopped:
            return Evidence("silence", text=STOPPED_REFUSING)
        if self.is_proven:
            return Evidence("silence", text=PROVEN)
        return SILENCE


class RetryGroup:
    """Silent ports of a host that are probed again together, with controls among them."""

    def __init__(self, sent_at: float, refusals_before: int) -> None:
        self.sent_at = sent_at
        self.refusals_before = refusals_before
        self.size = 0  # without controls
        self.unsettled = 0  # ports and controls, and one more until everything is sent
        self.refused = 0
        self.last_refused = 0  # the highest position among the refused
        self.unproven = 0
