"""How long to wait, how fast to ask, how often: the numbers that both engines steer by. Pure.

Times come in as arguments, in seconds, of any clock that does not run backwards.

Facts: RFC 6298 (retransmission timer), Karn and Partridge, "Improving Round-Trip Time Estimates in Reliable Transport
Protocols", SIGCOMM 1987; RFC 7323 appendix G (many samples in one round trip).
"""

from __future__ import annotations

import sys
from math import ceil, log

INITIAL_S = 1.0  # RFC 6298 (2.1): before the first measurement
# RFC 6298 (2.4) asks for a floor of a second because a sender that repeats too early harms the network. A probe that
# repeats too early costs one packet, so the floor is nmap's 100 ms. It is a floor of the margin above the mean, as
# TCP_RTO_MIN is in Linux, not of the sum: with hundreds of samples in one round trip RTTVAR falls to nothing
# (RFC 7323 appendix G), and a floor of the sum would leave a distant host no margin at all. It is above any clock
# granularity G, so that G does not appear.
FLOOR_S = 0.1
CEILING_S = 3.0  # RFC 6298 (2.5) allows a ceiling. Satellites need 0.6 s; nobody waits longer for the 65,535th port
MOST_DOUBLINGS = 8  # of the least timeout there is they are beyond the ceiling


class RoundTrip:
    """The round trip to one host, estimated, and how long to wait for an answer.

    By Karn's rule an answer that may belong to either of two packets says nothing: the engines leave those out.
    """

    __slots__ = ("rttvar_s", "srtt_s")

    def __init__(self) -> None:
        self.srtt_s: float | None = None
        self.rttvar_s = 0.0

    def measured(self, rtt_s: float) -> None:
        """Take one measurement; RFC 6298 (2.2) and (2.3), with alpha 1/8 and beta 1/4."""
        if self.srtt_s is None:
            self.srtt_s, self.rttvar_s = rtt_s, rtt_s / 2
            return
        error = rtt_s - self.srtt_s
        self.rttvar_s += (abs(error) - self.rttvar_s) / 4
        self.srtt_s += error / 8

    def timeout_s(self, doublings: int = 0) -> float:
        """How long an answer may take; twice as long for each time that it did not come (RFC 6298 (5.5))."""
        base_s = INITIAL_S if self.srtt_s is None else self.srtt_s + max(FLOOR_S, 4 * self.rttvar_s)
        return min(CEILING_S, base_s * (1 << min(doublings, MOST_DOUBLINGS)))


class TokenBucket:
    """At most ``rate`` a second: in t seconds never more than ``rate * t + burst`` and the last group.

    A group that cannot be parted, several datagrams for one port, may overdraw it: the debt is waited for before the
    next begins.
    """

    __slots__ = ("at", "burst", "rate", "tokens")

    def __init__(self, rate: float | None, now: float, burst: float | None = None) -> None:
        self.rate = rate  # None: as fast as it goes
        self.burst = max(1.0, (rate or 0.0) / 50) if burst is None else burst  # what 20 ms bring: a turn takes that
        self.tokens = self.burst
        self.at = now

    def available(self, now: float) -> int:
        """How many may begin now."""
        if self.rate is None:
            return sys.maxsize
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = max(now, self.at)
        return max(0, int(self.tokens + 1e-9))  # three thirds make one

    def take(self, count: int = 1) -> None:
        """So many have begun."""
        if self.rate is not None:
            self.tokens -= count

    def wait_s(self, now: float) -> float:
        """How long until one may begin."""
        if self.rate is None or self.available(now):
            return 0.0
        return (1 - self.tokens) / self.rate


MISSED = 0.001  # how many of a host's answering ports may be lost in the end, expected


class Losses:
    """How often packets of one host are lost, and how often to ask therefore.

    An answer to a later attempt shows that the earlier ones were lost, or that the host answers only so many a second.
    """

    __slots__ = ("answers", "losses")

    def __init__(self) -> None:
        self.answers = 0  # ports that answered
        self.losses = 0  # attempts at them that had not been answered

    def answered(self, silences: int) -> None:
        """A port has answered, after so many attempts that were not."""
        self.answers += 1
        self.losses += silences

    def attempts(self, retries: int, most: int) -> int:
        """How often a silent port is asked before its silence counts: so often that MISSED are expected to be missed.

        Without losses ``retries`` more than one, and never more than ``most`` more.
        """
        if self.losses == 0 or most <= retries:
            return 1 + retries
        needed = log(MISSED / self.answers) / log(self.losses / (self.answers + self.losses))
        return 1 + max(retries, min(most, ceil(needed) - 1))
