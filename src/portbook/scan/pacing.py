"""How fast, how long, how often, how many at once: the numbers that an engine steers by. Pure but for ``window_size``.

Facts: RFC 6298 (retransmission timer), Karn and Partridge, "Improving Round-Trip Time Estimates in Reliable Transport
Protocols", SIGCOMM 1987; RFC 7323 appendix G (many samples in one round trip); getrlimit(2).
"""

from __future__ import annotations

import os
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
MOST_BACKOFF = 4  # (5.5) doubles without end; here the next attempt comes later anyway, and the ceiling waits for all
# Linux, macOS and Windows repeat a SYN after a second (RFC 6298 2.1). What took that long answers either of the two.
SYN_REPEATED_S = 1.0


class RoundTrip:
    """The round trip to one host, estimated, and how long to wait for an answer.

    ``measured`` takes each answer's time. By Karn's rule an answer that may belong to either of two packets says
    nothing: pass ``repeated`` for a question that was asked twice in the same words.
    """

    __slots__ = ("rttvar_s", "srtt_s")

    def __init__(self) -> None:
        self.srtt_s: float | None = None
        self.rttvar_s = 0.0

    def measured(self, rtt_s: float, *, repeated: bool = False) -> None:
        """Take one measurement; RFC 6298 (2.2) and (2.3), with alpha 1/8 and beta 1/4."""
        if repeated or rtt_s >= SYN_REPEATED_S:
            return
        if self.srtt_s is None:
            self.srtt_s, self.rttvar_s = rtt_s, rtt_s / 2
            return
        error = rtt_s - self.srtt_s
        self.rttvar_s += (abs(error) - self.rttvar_s) / 4
        self.srtt_s += error / 8

    def timeout_s(self, attempt: int = 1) -> float:
        """How long to wait for the answer to the n-th attempt."""
        base_s = INITIAL_S if self.srtt_s is None else self.srtt_s + max(FLOOR_S, 4 * self.rttvar_s)
        return min(CEILING_S, base_s * min(MOST_BACKOFF, 1 << (attempt - 1)))


class TokenBucket:
    """At most ``rate`` a second: in t seconds never more than ``rate * t + burst``."""

    __slots__ = ("at", "burst", "rate", "tokens")

    def __init__(self, rate: float, now: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = max(1.0, rate / 50) if burst is None else burst  # what 20 ms bring: an engine's turn takes that
        self.tokens = self.burst
        self.at = now

    def available(self, now: float) -> int:
        """How many may begin now."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = max(now, self.at)
        return int(self.tokens + 1e-9)  # three thirds make one

    def take(self, count: int) -> None:
        """So many have begun."""
        self.tokens -= count

    def wait_s(self) -> float:
        """How long until there is one, from the last call of ``available``."""
        return max(0.0, (1 - self.tokens) / self.rate)


# --- how often -----------------------------------------------------------------------------------------------------

MISSED = 0.001  # how many of a host's answering ports may be lost in the end, expected


def attempts_needed(answers: int, losses: int, retries: int, most: int) -> int:
    """How often a silent port is asked before its silence counts.

    ``answers`` ports of its host answered, after ``losses`` attempts that were not answered: those show that packets
    are lost, or that the host answers only so many a second, and how likely it is. So many attempts that of all ports
    that answer, fewer than ``MISSED`` are expected to be missed; without losses, ``retries`` more than one.
    """
    if losses == 0 or most <= retries:
        return 1 + retries
    needed = log(MISSED / answers) / log(losses / (answers + losses))
    return 1 + max(retries, min(most, ceil(needed) - 1))


# --- how many at once ----------------------------------------------------------------------------------------------

# A window of our own below what most descriptor limits allow. More SYNs at once are not faster where hosts answer (a
# thousand fill a round trip of 20 ms with 50,000 probes a second) and overrun small routers and their tables of
# connections where not: then open ports are missed. ``concurrency`` goes beyond it.
WINDOW = 1000
RESERVE = 32  # descriptors left to the caller: its files, a resolver, modules that are imported meanwhile
LEAST = 1


def window_size(concurrency: int | None = None) -> int:
    """How many sockets may be open at once: never more than RLIMIT_NOFILE allows, less what is open and a reserve.

    The soft limit is taken as it is and not raised to the hard one. It belongs to the process, which is the caller's:
    children inherit it, and select() in any of them breaks on a descriptor above 1023 (select(2); systemd leaves
    the soft limit at 1024 for that reason). Most soft limits hold the whole window anyway.
    """
    wanted = WINDOW if concurrency is None else concurrency
    limit = _descriptor_limit()
    return wanted if limit is None else within(wanted, limit, _descriptors_open())


def within(wanted: int, limit: int, used: int) -> int:
    """So many of the wanted sockets fit under a limit when so many descriptors are used."""
    return max(LEAST, min(wanted, limit - used - min(RESERVE, limit // 4)))


def _descriptor_limit() -> int | None:
    """RLIMIT_NOFILE; None where there is none: sockets of Windows are handles, 16 million to a process."""
    if sys.platform == "win32":
        return None
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

    soft = getrlimit(RLIMIT_NOFILE)[0]
    return None if soft == RLIM_INFINITY else soft


def _descriptors_open() -> int:
    """How many descriptors this process has; /dev/fd is on Linux, macOS and the BSDs."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return RESERVE
