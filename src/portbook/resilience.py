"""What to do after an error: which errors pass by themselves, how long to wait, when to leave a host alone.

Three parts, none of which opens a socket or reads a clock of its own: a table of errors (``of_errno``,
``of_winerror``, ``classify``), exponential backoff (``waits``), a circuit breaker (``Breaker``). ``retried`` is for
whoever has a call to repeat and nothing else to do meanwhile.

Facts: POSIX.1-2024 <errno.h> and connect(); ip(7), tcp(7), connect(2) of Linux; RFC 1122 sections 3.2.2.1 and 4.2.3.9
(ICMP unreachable is a hint, not a proof); System Error Codes 0-499 and 1000-1299 and Windows Sockets Error Codes on
learn.microsoft.com; RFC 3493 section 6.1 and getaddrinfo(3) for the resolver.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from random import random as uniform
from time import monotonic
from typing import Literal, NamedTuple, TypeVar

from msgspec import Struct

# --- errors --------------------------------------------------------------------------------------------------------

Verdict = Literal["retryable", "permanent", "timeout"]
Row = tuple[Verdict, str]


class Fault(NamedTuple):
    """An error, and whether asking again can help."""

    name: str  # as the system that raised it spells it: "WSAECONNREFUSED"
    posix: str  # what POSIX calls the same thing: the key of every table about outcomes
    verdict: Verdict
    reason: str

    @property
    def scarce(self) -> bool:
        """Whether this machine ran out of something that comes back when less is in flight."""
        return self.posix in SCARCE


ERRORS: dict[str, Row] = {
    # The other side, or somebody on the way, said so.
    "ECONNREFUSED": ("retryable", "nobody listens there; a service that is starting soon will"),
    "ECONNRESET": ("retryable", "the other side, or something on the way, cut the connection"),
    "ECONNABORTED": ("retryable", "the connection was given up on this machine before it was used"),
    "EPIPE": ("retryable", "the other side had closed the connection already"),
    "ENETRESET": ("retryable", "the network dropped the connection"),
    "EHOSTUNREACH": (
        "retryable",
        "a router says so, or the neighbour does not answer; hosts come and go",
    ),
    "EHOSTDOWN": ("retryable", "the neighbour does not answer"),
    "ENETUNREACH": ("retryable", "no route now; interfaces, leases and tunnels come and go"),
    "ENETDOWN": ("retryable", "the interface is down"),
    "ENOPROTOOPT": ("permanent", "the target says that it does not speak the protocol (ICMP 3/2)"),
    "EPROTO": ("permanent", "the network says that the packet is malformed (ICMP parameter problem)"),
    # Nobody said anything.
    "ETIMEDOUT": ("timeout", "nothing was heard within the time limit"),
    # This machine has not enough of something.
    "EMFILE": ("retryable", "this process has no descriptor left; it has when probes in flight end"),
    "ENFILE": ("retryable", "the system has no descriptor left"),
    "ENOBUFS": ("retryable", "no buffer, or on Windows no local port, is left"),
    "ENOMEM": ("retryable", "the kernel has no memory for a socket now"),
    "EADDRINUSE": ("retryable", "the local port is taken; TIME_WAIT ends by itself"),
    "EADDRNOTAVAIL": ("retryable", "no local address, or no local port that is free, goes with this target"),
    # Not an answer yet.
    "EAGAIN": ("retryable", "not now"),
    "EWOULDBLOCK": ("retryable", "not now"),
    "EINPROGRESS": ("retryable", "still under way"),
    "EALREADY": ("retryable", "still under way"),
    "EINTR": ("retryable", "a signal came in between"),
    # It will be the same next time.
    "EACCES": ("permanent", "forbidden: by a firewall or a route, or the address is a broadcast address"),
    "EPERM": ("permanent", "forbidden on this machine, by a firewall or a security module"),
    "EAFNOSUPPORT": ("permanent", "this machine does not speak the protocol of the address"),
    "EPROTONOSUPPORT": ("permanent", "this machine does not speak the protocol"),
    "EINVAL": ("permanent", "the address makes no sense to the system, or its route is a black hole"),
    "ENODEV": ("permanent", "there is no such interface"),
    "ENXIO": ("permanent", "there is no such interface"),
    "ECANCELED": ("permanent", "this program gave it up"),
}
UNKNOWN: Row = ("permanent", "not known to pass by itself")
SCARCE = frozenset(("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"))

# The name of each number in winerror.h, and what POSIX calls it. The 12xx numbers are what I/O completion ports say
# (asyncio's Proactor loop) where a blocking call says 100xx.
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
# A name that the resolver of this system does not have is simply never looked up.
RESOLVER: dict[str, Row] = {
    "EAI_AGAIN": ("retryable", "the name server did not answer, or not yet"),
    "EAI_MEMORY": ("retryable", "the resolver had no memory"),
    "EAI_SYSTEM": ("retryable", "the resolver could not read or send something"),
    "EAI_NONAME": ("permanent", "there is no such name"),
    "EAI_NODATA": ("permanent", "the name has no address"),
    "EAI_FAIL": ("permanent", "the name server refuses to answer"),
    "EAI_FAMILY": ("permanent", "this machine does not speak the protocol asked for"),
    "EAI_ADDRFAMILY": ("permanent", "the name has no address of the family asked for"),
    "EAI_SERVICE": ("permanent", "there is no such service"),
    "EAI_SOCKTYPE": ("permanent", "the kind of socket makes no sense"),
    "EAI_BADFLAGS": ("permanent", "the flags make no sense"),
    "EAI_OVERFLOW": ("permanent", "the name is too long"),
}


def classify(error: BaseException) -> Fault:
    """What an exception of a socket, of asyncio or of the resolver means."""
    if isinstance(error, socket.gaierror):
        return of_resolver(error.errno)
    if isinstance(error, TimeoutError) and error.errno is None:  # a time limit of Python's, not the system's
        return _fault("ETIMEDOUT", "ETIMEDOUT", ERRORS)
    if not isinstance(error, OSError):
        return Fault(type(error).__name__, "", *UNKNOWN)
    winerror: int | None = getattr(error, "winerror", None)
    return of_errno(error.errno or 0) if winerror is None else of_winerror(winerror)


def of_errno(number: int) -> Fault:
    """What an error number means; Python's errno has the numbers of Windows Sockets on Windows."""
    if number >= 10000 and number in WINDOWS:
        return of_winerror(number)
    name = errno.errorcode.get(number, str(number))
    return _fault(name, name, ERRORS)


def of_winerror(number: int) -> Fault:
    """What an error number of Windows means."""
    name, posix = WINDOWS.get(number, (f"WinError {number}", ""))
    return _fault(name, posix, ERRORS)


def of_resolver(number: int | None) -> Fault:
    """What an error number of getaddrinfo() means. Two names may share a number; the first in the table counts."""
    names = [name for name in RESOLVER if number is not None and getattr(socket, name, None) == number]
    name = names[0] if names else str(number)
    return _fault(name, name, RESOLVER)


def _fault(name: str, posix: str, table: dict[str, Row]) -> Fault:
    return Fault(name, posix, *table.get(posix, UNKNOWN))


# --- backoff -------------------------------------------------------------------------------------------------------

FIRST_S = 0.1
CAP_S = 10.0
JITTER = 0.25  # of a delay, either way: callers that failed together do not come back together


def waits(
    first_s: float = FIRST_S,
    cap_s: float = CAP_S,
    *,
    jitter: float = JITTER,
    deadline_s: float | None = None,
    clock: Callable[[], float] = monotonic,
    random: Callable[[], float] = uniform,
) -> Iterator[float]:
    """How long to wait before each further attempt: 0.1, 0.3, 0.7, 1.5 … seconds, each about.

    Endless without a deadline. With one, counted from the first use, the last wait is cut to end with it, so that the
    last attempt is made when the time is up and not before.
    """
    end = None if deadline_s is None else clock() + deadline_s
    factor = 1.0
    while True:
        wait = min(cap_s, first_s * factor * (1 + jitter * (2 * random() - 1)))
        left = wait if end is None else min(wait, end - clock())
        if left <= 0:
            return
        yield left
        factor = min(2 * factor + 1, 2.0**64)


T = TypeVar("T")
ATTEMPTS = 4  # three waits: 1.1 s for what passes by itself


def retried(call: Callable[[], T], attempts: int | None = ATTEMPTS, deadline_s: float | None = None) -> T:
    """Call until it works, an error will not pass, or the attempts or the time are used up; then its error is raised.

    stamina does this, for callers whose whole business is one call: a name lookup, one request. Not the scan engine,
    which has a thousand attempts under way at once and sleeps for none of them; not ``dial --retries`` and ``wait``,
    which report every attempt; those take the times from ``waits``. Imported here because it costs what a third of
    the other commands cost altogether (tenacity imports asyncio).
    """
    for attempt in _stamina(attempts, deadline_s):
        with attempt:
            return call()
    raise AssertionError("stamina ends with the call's own error")


async def retried_async(
    call: Callable[[], Awaitable[T]], attempts: int | None = ATTEMPTS, deadline_s: float | None = None
) -> T:
    """``retried`` for a coroutine function, under asyncio or trio."""
    async for attempt in _stamina(attempts, deadline_s):
        with attempt:
            return await call()
    raise AssertionError("stamina ends with the call's own error")


def _stamina(attempts: int | None, deadline_s: float | None):  # type: ignore[no-untyped-def]  # its types have no public names
    import logging

    import stamina

    # It logs each retry as a warning, which Python prints when a program has set up no logging. Ours is no news.
    logger = logging.getLogger("stamina")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return stamina.retry_context(
        on=_passes,
        attempts=attempts,
        timeout=deadline_s,
        wait_initial=FIRST_S,
        wait_max=CAP_S,
        wait_jitter=FIRST_S * JITTER,
        wait_exp_base=3,  # 0.1, 0.3, 0.9: as near to ``waits`` as powers come
    )


def _passes(error: Exception) -> bool:
    return classify(error).verdict != "permanent"


# --- breaker -------------------------------------------------------------------------------------------------------

Position = Literal["closed", "open", "half-open"]


class BreakerSettings(Struct, frozen=True):
    """When a host is left alone, and when it is tried again."""

    failures: int = 16  # in a row, before it opens
    pause_s: float = 1.0  # before the first trial; doubled after each trial that fails
    most_pause_s: float = 60.0
    trials: int = 3  # failed ones, before the engine gives a host up and skips what is left of it


class Change(NamedTuple):
    """The breaker moved."""

    before: Position
    after: Position
    text: str


class Breaker:
    """The circuit breaker of one host. Pure: told the time and what happened, it says whether to ask.

    closed ── N failures in a row ──▶ open ── pause ──▶ half-open, one trial
       ▲                               ▲                    │
       └───────── an answer ───────────┼──── failed ────────┘   an answer closes it from everywhere

    M. Nygard, "Release It!", 2007, chapter 5, "Circuit Breaker".
    """

    __slots__ = ("failed_trials", "failures", "position", "settings", "tell", "trial_at")

    def __init__(self, settings: BreakerSettings, tell: Callable[[Change], None] | None = None) -> None:
        self.settings = settings
        self.tell = tell
        self.position: Position = "closed"
        self.failures = 0  # in a row
        self.failed_trials = 0
        self.trial_at = 0.0  # when open: not before

    def may_ask(self, now: float) -> bool:
        """Whether to begin a probe. A yes from an open breaker is the trial: it must be reported with ``trial``."""
        if self.position == "closed":
            return True
        if self.position == "open" and now >= self.trial_at:
            self._move("half-open", "one probe tries whether the host answers again")
            return True
        return False

    def answered(self) -> None:
        """Something was heard from the host."""
        self.failures = self.failed_trials = 0
        if self.position != "closed":
            self._move("closed", "the host answers")

    def failed(self, now: float, *, trial: bool = False) -> None:
        """A probe ended in silence. While not closed only the trial counts: others began before the trial did."""
        self.failures += 1
        if self.position == "closed" and self.failures >= self.settings.failures:
            self._open(now, f"{self.failures} probes in a row were not answered")
        elif self.position == "half-open" and trial:
            self.failed_trials += 1
            self._open(now, "the trial was not answered")

    def _open(self, now: float, why: str) -> None:
        doublings = min(self.failed_trials, 30)
        pause_s = min(self.settings.most_pause_s, self.settings.pause_s * 2**doublings)
        self.trial_at = now + pause_s
        self._move("open", f"{why}; next trial in {pause_s:g} s")

    def _move(self, after: Position, text: str) -> None:
        before, self.position = self.position, after
        if self.tell is not None:
            self.tell(Change(before, after, text))
