"""What to do after an error: what an error number means, how long to wait, when to stop probing a host.

Three parts, none of which opens a socket or reads a clock of its own: a table of errors (``of_errno``,
``of_winerror``, ``classify``), exponential backoff (``waits``), a circuit breaker (``Breaker``).

Facts: POSIX.1-2024 <errno.h> and connect(); ip(7), tcp(7), connect(2) of Linux; RFC 1122 sections 3.2.2.1 and 4.2.3.9
(ICMP unreachable is a hint, not a proof); System Error Codes 0-499 and 1000-1299 and Windows Sockets Error Codes on
learn.microsoft.com.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Literal, NamedTuple

from msgspec import Struct

# --- errors --------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """What an error number means."""

    name: str  # as the system that raised it spells it: "WSAECONNREFUSED"
    posix: str  # the POSIX name of the same error: the key of every table about outcomes
    reason: str

    @property
    def scarce(self) -> bool:
        """Whether this machine ran out of something that comes back when less is in flight."""
        return self.posix in SCARCE


# POSIX name: what it means for a connection.
REASONS: dict[str, str] = {
    # The peer, or a host on the path, reported it.
    "ECONNREFUSED": "nothing listens there",
    "ECONNRESET": "the peer, or a host on the path, reset the connection",
    "ECONNABORTED": "this machine aborted the connection before it was used",
    "EPIPE": "the peer had already closed the connection",
    "ENETRESET": "the network dropped the connection",
    "EHOSTUNREACH": "a router reported it, or the neighbour does not answer",
    "EHOSTDOWN": "the neighbour does not answer",
    "ENETUNREACH": "no route to the address at present",
    "ENETDOWN": "the interface is down",
    "ENOPROTOOPT": "the target reported that it does not support the protocol (ICMP 3/2)",
    "EPROTO": "the network reported that the packet is malformed (ICMP parameter problem)",
    # No answer.
    "ETIMEDOUT": "no answer within the time limit",
    # This machine ran out of something.
    "EMFILE": "this process has no descriptor left",
    "ENFILE": "the system has no descriptor left",
    "ENOBUFS": "no buffer, or on Windows no local port, is left",
    "ENOMEM": "the kernel has no memory for a socket at present",
    "EADDRINUSE": "the local port is in use; TIME_WAIT ends by itself",
    "EADDRNOTAVAIL": "no local address, or no free local port, can be used for this target",
    # Not an answer yet.
    "EAGAIN": "temporarily not possible",
    "EWOULDBLOCK": "temporarily not possible",
    "EINPROGRESS": "still in progress",
    "EALREADY": "still in progress",
    "EINTR": "interrupted by a signal",
    # A repetition gives the same error.
    "EACCES": "forbidden: by a firewall or a route, or the address is a broadcast address",
    "EPERM": "forbidden on this machine, by a firewall or a security module",
    "EAFNOSUPPORT": "this machine does not support the address family",
    "EPROTONOSUPPORT": "this machine does not support the protocol",
    "EINVAL": "the address is invalid for this system, or its route is a black hole",
    "ENODEV": "there is no such interface",
    "ENXIO": "there is no such interface",
    "ECANCELED": "cancelled by this program",
}
UNKNOWN = "unexpected error"
SCARCE = frozenset(("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"))

# The name of each number in winerror.h, and its POSIX equivalent. I/O completion ports (asyncio's Proactor loop) report
# the 12xx numbers where a blocking call reports 100xx.
WINDOWS: dict[int, tuple[str, str]] = {
    64: ("ERROR_NETNAME_DELETED", "ECONNRESET"),
    121: ("ERROR_SEM_TIMEOUT", "ETIMEDOUT"),
    995: ("ERROR_OPERATION_ABORTED", "ECANCELED"),
    1225: ("ERROR_CONNECTION_REFUSED", "ECONNREFUSED"),
    1226: ("ERROR_GRACEFUL_DISCONNECT", "ECONNRESET"),
    1231: ("ERROR_NETWORK_UNREACHABLE", "ENETUNREACH"),
    1232: ("ERROR_HOST_UNREACHABLE", "EHOSTUNREACH"),
    1233: ("ERROR_PROTOCOL_UNREACHABLE", "ENOPROTOOPT"),
    1234: ("ERROR_PORT_UNREACHABLE", "ECONNREFUSED"),
    1235: ("ERROR_REQUEST_ABORTED", "ECONNABORTED"),
    1236: ("ERROR_CONNECTION_ABORTED", "ECONNABORTED"),
    1237: ("ERROR_RETRY", "EAGAIN"),
    1460: ("ERROR_TIMEOUT", "ETIMEDOUT"),
    10004: ("WSAEINTR", "EINTR"),
    10013: ("WSAEACCES", "EACCES"),
    10022: ("WSAEINVAL", "EINVAL"),
    10024: ("WSAEMFILE", "EMFILE"),
    10035: ("WSAEWOULDBLOCK", "EWOULDBLOCK"),
    10036: ("WSAEINPROGRESS", "EINPROGRESS"),
    10037: ("WSAEALREADY", "EALREADY"),
    10042: ("WSAENOPROTOOPT", "ENOPROTOOPT"),
    10047: ("WSAEAFNOSUPPORT", "EAFNOSUPPORT"),
    10048: ("WSAEADDRINUSE", "EADDRINUSE"),
    10049: ("WSAEADDRNOTAVAIL", "EADDRNOTAVAIL"),
    10050: ("WSAENETDOWN", "ENETDOWN"),
    10051: ("WSAENETUNREACH", "ENETUNREACH"),
    10052: ("WSAENETRESET", "ENETRESET"),
    10053: ("WSAECONNABORTED", "ECONNABORTED"),
    10054: ("WSAECONNRESET", "ECONNRESET"),
    10055: ("WSAENOBUFS", "ENOBUFS"),
    10060: ("WSAETIMEDOUT", "ETIMEDOUT"),
    10061: ("WSAECONNREFUSED", "ECONNREFUSED"),
    10064: ("WSAEHOSTDOWN", "EHOSTDOWN"),
    10065: ("WSAEHOSTUNREACH", "EHOSTUNREACH"),
}


def classify(error: BaseException) -> Fault:
    """What an exception of a socket or of asyncio means."""
    if isinstance(error, TimeoutError) and error.errno is None:  # a time limit of Python's, not the system's
        return _fault("ETIMEDOUT", "ETIMEDOUT")
    if not isinstance(error, OSError):
        return Fault(type(error).__name__, "", UNKNOWN)
    winerror: int | None = getattr(error, "winerror", None)
    if winerror is not None:
        return of_winerror(winerror)
    return of_errno(error.errno or 0)


def of_errno(number: int) -> Fault:
    """What an error number means; Python's errno has the numbers of Windows Sockets on Windows."""
    if number >= 10000 and number in WINDOWS:
        return of_winerror(number)
    name = errno.errorcode.get(number, str(number))
    return _fault(name, name)


def of_winerror(number: int) -> Fault:
    """What an error number of Windows means."""
    name, posix = WINDOWS.get(number, (f"WinError {number}", ""))
    return _fault(name, posix)


def _fault(name: str, posix: str) -> Fault:
    return Fault(name, posix, REASONS.get(posix, UNKNOWN))


# --- backoff -------------------------------------------------------------------------------------------------------

FIRST_S = 0.1
CAP_S = 10.0
JITTER = 0.25  # of a delay, up or down: callers that failed together do not retry together


def _uniform() -> float:
    """A random number from 0 to 1."""
    from random import random  # 0.4 ms, for those who wait

    return random()  # noqa: S311  not for cryptography


def waits(
    first_s: float = FIRST_S,
    cap_s: float = CAP_S,
    *,
    jitter: float = JITTER,
    deadline_s: float | None = None,
    clock: Callable[[], float] = monotonic,
    random: Callable[[], float] = _uniform,
) -> Iterator[float]:
    """Yield how long to wait before each further attempt, in seconds: about 0.1, 0.3, 0.7, 1.5 and so on.

    Endless without a deadline. With one, counted from the first use, the last wait ends at the deadline, so that the
    last attempt is made when the time is up and not before.

    :param first_s: the first wait
    :param cap_s: no wait is longer
    :param jitter: the share of a wait by which it varies, up or down
    :param clock: seconds of any clock that does not run backwards
    :param random: a number from 0 to 1 at each call
    """
    end = None if deadline_s is None else clock() + deadline_s
    factor = 1.0
    while True:
        wait = min(cap_s, first_s * factor * (1 + jitter * (2 * random() - 1)))
        if end is not None:
            wait = min(wait, end - clock())
        if wait <= 0:
            return
        yield wait
        factor = min(2 * factor + 1, 2.0**64)


# --- breaker -------------------------------------------------------------------------------------------------------

Position = Literal["closed", "open", "half-open"]


class BreakerSettings(Struct, frozen=True):
    """When probing of a host stops, and when it is tried again."""

    failures: int = 16  # in a row, before it opens
    pause_s: float = 1.0  # before the first trial; doubled after each trial that fails
    most_pause_s: float = 60.0
    trials: int = 3  # failed ones, before the engine gives up a host and skips its remaining ports


class BreakerChange(NamedTuple):
    """A breaker changed its position."""

    before: Position
    after: Position
    text: str


class Breaker:
    """The circuit breaker of one host. Pure: the caller gives the time and what happened.

    closed ── N failures in a row ──▶ open ── pause ──▶ half-open, one trial
       ▲                               ▲                    │
       └───────── an answer ───────────┼──── failed ────────┘   an answer closes it from everywhere

    M. Nygard, "Release It!", 2007, chapter 5, "Circuit Breaker".
    """

    __slots__ = ("failed_trials", "failures", "on_change", "position", "settings", "trial_at")

    def __init__(self, settings: BreakerSettings, on_change: Callable[[BreakerChange], None] | None = None) -> None:
        self.settings = settings
        self.on_change = on_change
        self.position: Position = "closed"
        self.failures = 0  # in a row
        self.failed_trials = 0
        self.trial_at = 0.0  # when open: not before

    def may_probe(self, now: float) -> bool:
        """Whether to begin a probe. A yes from an open breaker is the trial: it must be reported with ``trial``."""
        if self.position == "closed":
            return True
        if self.position == "open" and now >= self.trial_at:
            self._move("half-open", "one probe tests whether the host answers again")
            return True
        return False

    def answered(self) -> None:
        """The host answered."""
        self.failures = self.failed_trials = 0
        if self.position != "closed":
            self._move("closed", "the host answers")

    def failed(self, now: float, *, trial: bool = False) -> None:
        """A probe was not answered. Unless closed, only the trial counts: the others were sent before it."""
        self.failures += 1
        if self.position == "closed" and self.failures >= self.settings.failures:
            self._open(now, f"{self.failures} probes in a row were not answered")
        elif self.position == "half-open" and trial:
            self.failed_trials += 1
            self._open(now, "the trial was not answered")

    def _open(self, now: float, cause: str) -> None:
        doublings = min(self.failed_trials, 30)
        pause_s = min(self.settings.most_pause_s, self.settings.pause_s * 2**doublings)
        self.trial_at = now + pause_s
        self._move("open", f"{cause}; next trial in {pause_s:g} s")

    def _move(self, after: Position, text: str) -> None:
        before, self.position = self.position, after
        if self.on_change is not None:
            self.on_change(BreakerChange(before, after, text))
