"""How long to wait for an answer, how fast to send, how often to repeat: for both engines. Pure.

The caller gives all times: seconds of any clock that does not run backwards.

Sources: RFC 6298 (retransmission timer), Karn and Partridge, "Improving Round-Trip Time Estimates in Reliable Transport
Protocols", SIGCOMM 1987; RFC 7323 appendix G (many samples in one round trip).
"""

from __future__ import annotations

import sys
from math import ceil, log

INITIAL_S = 1.0  # RFC 6298 (2.1): before the first measurement
# RFC 6298 (2.4) requires a minimum of a second because a sender that retransmits too early harms the network. A probe
# that is repeated too early costs one packet, so the minimum is nmap's 100 ms. It is the minimum of the margin above
# the mean, as TCP_RTO_MIN is in Linux, not of the sum: with hundreds of samples in one round trip RTTVAR falls to
# almost zero (RFC 7323 appendix G), and a minimum of the sum would leave a distant host no margin. It is greater than
# the clock granularity G of any system, so that G does not appear.
FLOOR_S = 0.1
CEILING_S = 3.0  # RFC 6298 (2.5) allows a maximum. Satellites need 0.6 s
MOST_DOUBLINGS = 8  # the shortest timeout, doubled so often, is above the ceiling


class RoundTrip:
    """The estimated round trip to one host, and how long to wait for an answer.

    By Karn's rule an answer that may belong to either of two packets is no measurement: the engines omit those.
    """

    __slots__ = ("rttvar_s", "srtt_s")

    def __init__(self) -> None:
        self.srtt_s: float | None = None
        self.rttvar_s = 0.0

    def measured(self, rtt_s: float) -> None:
        """Add one measurement: RFC 6298 (2.2) and (2.3), with alpha 1/8 and beta 1/4."""
        if self.srtt_s is None:
            self.srtt_s, self.rttvar_s = rtt_s, rtt_s / 2
            return
        error = rtt_s - self.srtt_s
        self.rttvar_s += (abs(error) - self.rttvar_s) / 4
        self.srtt_s += error / 8

    def timeout_s(self, doublings: int = 0) -> float:
        """Return how long an answer may take; twice as long for each attempt without one (RFC 6298 (5.5))."""
        base_s = INITIAL_S
        if self.srtt_s is not None:
            base_s = self.srtt_s + max(FLOOR_S, 4 * self.rttvar_s)
        return min(CEILING_S, base_s * (1 << min(doublings, MOST_DOUBLINGS)))


class TokenBucket:
    """Allows at most ``rate`` packets a second: in t seconds never more than ``rate * t + burst`` and the last group.

    A group that is sent as a whole, such as several datagrams for one port, may overdraw it: the next packet waits
    until the debt is paid.
    """

    __slots__ = ("at", "burst", "rate", "tokens")

    def __init__(self, rate: float | None, now: float, burst: float | None = None) -> None:
        self.rate = rate  # None: no limit
        if burst is None:
            burst = max(1.0, (rate or 0.0) / 50)  # the tokens of 20 ms, which is how long a turn of the engine takes
        self.burst = burst
        self.tokens = self.burst
        self.at = now

    def available(self, now: float) -> int:
        """Return how many packets may be sent now."""
        if self.rate is None:
            return sys.maxsize
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = max(now, self.at)
        return max(0, int(self.tokens + 1e-9))  # three thirds make one

    def take(self, count: int = 1) -> None:
        """Record that ``count`` packets are sent."""
        if self.rate is not None:
            self.tokens -= count

    def wait_s(self, now: float) -> float:
        """Return how long to wait until a packet may be sent."""
        if self.rate is None or self.available(now):
            return 0.0
        return (1 - self.tokens) / self.rate


MISSED = 0.001  # expected number of a host's answering ports that are missed after every attempt


class Losses:
    """How many packets to and from one host are lost, and how often to repeat a probe because of that.

    An answer to a later attempt shows that the earlier ones were lost, or that the host limits its answers.
    """

    __slots__ = ("answers", "losses")

    def __init__(self) -> None:
        self.answers = 0  # ports that answered
        self.losses = 0  # earlier attempts at these ports, which were not answered

    def answered(self, silences: int) -> None:
        """Record that a port has answered, after ``silences`` attempts without an answer."""
        self.answers += 1
        self.losses += silences

    def attempts(self, retries: int, most: int) -> int:
        """Return how many attempts a silent port gets, so that no more than MISSED ports are expected to be missed.

        Without losses it is ``retries`` + 1, and never more than ``most`` + 1.
        """
        if self.losses == 0 or most <= retries:
            return 1 + retries
        loss_rate = self.losses / (self.answers + self.losses)
        needed = log(MISSED / self.answers) / log(loss_rate)
        return 1 + max(retries, min(most, ceil(needed) - 1))
