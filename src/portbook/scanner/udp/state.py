"""What is asked over UDP, while it is: a port on its way to an answer, its host, a group that is asked together."""

from __future__ import annotations

from collections import deque

from msgspec.structs import replace

from portbook.probe.outcome import SILENCE, Evidence
from portbook.probe.pacing import Losses, RoundTrip
from portbook.probe.request import Limits, Probe
from portbook.scanner.udp.payloads import Payload
from portbook.scanner.udp.refusals import Refusals

# A service thinks before it answers, a kernel that refuses does not: the least time for a reply, and for the last one.
# A reply to the first question is heard while the second is waited for: a service has a second.
PATIENCE_S, LAST_PATIENCE_S = 0.3, 0.7
# A host that does not exist in the neighbourhood shows only when the kernel gives up resolving its address, three
# requests a second apart (arp(7), mcast_solicit, retrans_time; RFC 4861 section 10).
NEIGHBOUR_S = 3.2

PROVEN = "closed ports asked at the same moment were refused"
MUTE = "the target stopped refusing ports while it was asked: its limit may be the reason"


class Host:
    """What is known and under way of one address."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe  # the first, for the address and its zone
        self.round_trip = RoundTrip()
        self.refusals = Refusals()
        self.losses = Losses()
        self.heard = False  # anything
        self.gone: Evidence | None = None  # somebody says that the host cannot be reached, and the host says nothing
        self.first_sent_at: float | None = None
        self.waiting: set[Port] = set()
        self.unsettled = 0  # of waiting: asked for the first time, refusal still possible
        self.again: deque[Port] = deque()  # shelved
        self.group: Group | None = None
        self.is_said_limited = False
        self.has_turn = False  # in _Scan._turns, or a timer will put it there
        self.next_turn_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is under way."""
        return not (self.waiting or self.again or self.group)

    def retries(self, limits: Limits) -> int:
        """How many silent attempts more than one count before a port is given up."""
        needed = self.losses.attempts(limits.retries, limits.most_retries) - 1
        return needed + self.refusals.are_scarce

    def limit_in_words(self) -> str:
        """What becomes of the ports that the host could not refuse yet."""
        return (
            "the target limits how many ports it refuses a second: "
            f"{len(self.again) + len(self.waiting)} silent ports are asked again, in groups that it can keep up with"
        )


class Port:
    """One port on its way to an answer."""

    __slots__ = (
        *("asked", "attempts", "counted", "group", "handle", "host", "is_control", "is_loose"),
        *("is_proven", "is_unsettled", "place", "probe", "sent_at", "timer", "was_silent"),
    )

    def __init__(self, probe: Probe, host: Host, is_control: bool = False) -> None:
        self.probe = probe
        self.host = host
        self.is_control = is_control
        self.attempts = 0
        self.counted = 0  # silent attempts that count
        self.asked: tuple[Payload, ...] = ()
        self.handle: int | None = None
        self.is_loose = False
        self.sent_at = 0.0
        self.timer = -1  # the valid one
        self.is_unsettled = False  # its host's refusal is still possible
        self.is_proven = False  # in this attempt
        self.was_silent = False  # in an earlier attempt, without proof
        self.group: Group | None = None
        self.place = 0  # in the group, from 1

    def patience_s(self, limits: Limits) -> float:
        """How long a reply may take."""
        if limits.timeout_s is not None:
            return limits.timeout_s
        host = self.host
        grown_s = host.round_trip.timeout_s(self.counted)
        if self.counted < host.retries(limits):
            return max(grown_s, PATIENCE_S)
        neighbour_s = 0.0 if host.heard else (host.first_sent_at or 0.0) + NEIGHBOUR_S - self.sent_at
        return max(grown_s, LAST_PATIENCE_S, neighbour_s)

    def silence(self) -> Evidence:
        """What stands behind its silence."""
        if self.host.gone:
            return replace(self.host.gone, text="said of other ports of this host, which answers nothing")
        if self.host.refusals.mute:
            return Evidence("silence", text=MUTE)
        return Evidence("silence", text=PROVEN) if self.is_proven else SILENCE


class Group:
    """Silent ports of a host that are asked again together, with controls among them."""

    def __init__(self, sent_at: float, refusals: int) -> None:
        self.sent_at = sent_at
        self.refusals_before = refusals
        self.size = 0  # without controls
        self.left = 0  # not settled
        self.refused = 0
        self.reach = 0
        self.unproven = 0
