"""Can a port be reached, and how fast: ``dial`` once or often, ``wait_for`` until it can.

Every address of a name is tried, and each answer carries the evidence it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from socket import SHUT_RDWR, socket
from time import monotonic, sleep
from typing import NamedTuple, TypeVar

from msgspec import Struct

from portbook import query
from portbook.addresses import socket_address, split_host_port
from portbook.errors import UsageError
from portbook.probe import tcp
from portbook.probe.outcome import Evidence, Outcome
from portbook.probe.resolve import LIMIT_S, Place, resolve
from portbook.probe.tls import Tls, handshake
from portbook.records import SCHEMA
from portbook.resilience import classify, waits

TIMEOUT_S = 3.0
MOST_AT_ONCE = 64


class Dialed(Struct, frozen=True):
    """One address, asked."""

    address: str | None  # None: the name has none
    zone: str | None
    outcome: Outcome
    evidence: Evidence
    connect_ms: float | None  # until the answer; None in silence
    attempts: int = 1
    tls: Tls | None = None
    tls_ms: float | None = None


class Timing(Struct, frozen=True):
    """Several dials of one target, one after the other. Milliseconds of those that connected."""

    count: int
    lost: int  # that did not connect
    min_ms: float | None
    median_ms: float | None
    p95_ms: float | None
    max_ms: float | None


class Dial(Struct, frozen=True):
    """A target, asked at every address that it has."""

    schema: int
    target: str  # as it was written
    host: str
    port: int
    open: bool  # at any address
    lookup_ms: float
    addresses: tuple[Dialed, ...]
    timing: Timing | None = None  # of the first address that is open, when dialed more than once


class Target(NamedTuple):
    """``HOST:PORT``, taken apart."""

    text: str
    host: str
    port: int


def parse_target(text: str) -> Target:
    """Read ``host:80``, ``127.0.0.1:80``, ``[::1]:80`` or ``[fe80::1%eth0]:80``; raise UsageError."""
    try:
        host, port = split_host_port(text.strip())
    except ValueError as error:
        raise UsageError(f"{text!r} is not HOST:PORT", "write localhost:80 or [::1]:80") from error
    ranges = query.read_ports(port)
    if len(ranges) != 1 or ranges[0][0] != ranges[0][1]:
        raise UsageError(f"{text!r} has more than one port", "name each: host:80 host:443, or see portbook scan")
    return Target(text, host, ranges[0][0])


def dial(
    target: str,
    *,
    timeout_s: float = TIMEOUT_S,
    retries: int = 0,
    times: int = 1,
    tls: bool = False,
    lookup_s: float = LIMIT_S,
) -> Dial:
    """Connect to ``host:port`` at every address of the host, and hang up.

    :param timeout_s: of one attempt, in seconds; TLS has as long again
    :param retries: more attempts at an address that did not answer, with growing pauses
    :param times: how often to dial the first address that is open, for ``timing``
    :param tls: shake hands and read the certificate
    :param lookup_s: how long the name lookup may take, in seconds
    :raises UsageError: the target is not ``host:port``
    """
    asked = parse_target(target)
    places, failure, lookup_ms = _look_up(asked, lookup_s)
    answers = at_once(lambda place: _dial_place(asked, place, timeout_s, retries, tls), places)
    return _dialed(asked, answers, failure, lookup_ms, _timing(asked, answers, timeout_s, times))


async def dial_async(target: str, *, timeout_s: float = TIMEOUT_S, retries: int = 0, tls: bool = False) -> Dial:
    """``dial`` under asyncio; cancelling it closes its sockets. Raises as ``dial``."""
    import asyncio

    asked = parse_target(target)
    places, failure, lookup_ms = await asyncio.to_thread(_look_up, asked)
    answers = await asyncio.gather(*(_dial_place_async(asked, place, timeout_s, retries, tls) for place in places))
    return _dialed(asked, list(answers), failure, lookup_ms, None)


def _dialed(
    asked: Target, answers: list[Dialed], failure: Evidence | None, lookup_ms: float, timing: Timing | None
) -> Dial:
    if failure is not None:
        answers = [Dialed(None, None, "name-not-found", failure, None)]
    is_open = any(answer.outcome == "open" for answer in answers)
    return Dial(SCHEMA, asked.text, asked.host, asked.port, is_open, lookup_ms, tuple(answers), timing)


def _look_up(asked: Target, limit_s: float = LIMIT_S) -> tuple[Sequence[Place], Evidence | None, float]:
    began = monotonic()
    (resolved,) = resolve([asked.host], limit_s)
    return resolved.places, resolved.failure, _ms(monotonic() - began)


A = TypeVar("A")
B = TypeVar("B")


def at_once(call: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """The call's results, in order; in threads when there are several items."""
    if len(items) <= 1:
        return [call(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(items), MOST_AT_ONCE)) as pool:
        return list(pool.map(call, items))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


# --- one address ---------------------------------------------------------------------------------------------------


def _dial_place(asked: Target, place: Place, timeout_s: float, retries: int, tls: bool) -> Dialed:
    for attempt, pause in zip(count(1), waits(), strict=False):
        answer = tcp.ask(place.address, asked.port, place.zone, timeout_s)
        if not _again(answer.finding, attempt, retries):
            break
        sleep(pause)
    return _finished(asked, place, answer, attempt, timeout_s, tls)


async def _dial_place_async(asked: Target, place: Place, timeout_s: float, retries: int, tls: bool) -> Dialed:
    import asyncio

    for attempt, pause in zip(count(1), waits(), strict=False):
        answer = await _ask_async(asked.port, place, timeout_s)
        if not _again(answer.finding, attempt, retries):
            break
        await asyncio.sleep(pause)
    return await asyncio.to_thread(_finished, asked, place, answer, attempt, timeout_s, tls)


def _again(finding: tcp.Finding, attempt: int, retries: int) -> bool:
    """Silence is worth another attempt; an answer is an answer."""
    return finding.outcome in ("timeout", "unreachable") and attempt <= retries


async def _ask_async(port: int, place: Place, timeout_s: float) -> tcp.Asked:
    """As ``tcp.ask``, on the running loop, which may be Windows' Proactor."""
    import asyncio

    began = monotonic()
    sock: socket | None = None
    finding = tcp.UNHEARD
    try:
        sock = tcp.create(place.address)
        connecting = asyncio.get_running_loop().sock_connect(sock, socket_address(place.address, port, place.zone))
        await asyncio.wait_for(connecting, timeout_s)
        finding = tcp.established(sock)
    except TimeoutError:
        finding = tcp.UNHEARD
    except OSError as error:
        icmp = tcp.icmp_kept(sock, port) if sock is not None else None
        finding = icmp or tcp.weighed(classify(error), error.errno or 0)
    except asyncio.CancelledError:
        if sock is not None:
            tcp.abort(sock)
        raise
    if sock is not None and finding.outcome != "open":
        tcp.abort(sock)
        sock = None
    return tcp.Asked(finding, monotonic() - began, sock)


def _finished(asked: Target, place: Place, answer: tcp.Asked, attempts: int, timeout_s: float, tls: bool) -> Dialed:
    """Hang up, after a TLS handshake if there shall be one."""
    finding, elapsed_s, sock = answer
    silent = finding.outcome == "timeout"
    shown, tls_ms = None, None
    if sock is not None and tls:
        began = monotonic()
        shown = handshake(sock, asked.host, lambda: _dialer(asked, place, timeout_s), timeout_s)
        tls_ms = _ms(monotonic() - began)
    elif sock is not None:
        _hang_up(sock)
    connect_ms = None if silent else _ms(elapsed_s)
    return Dialed(place.address, place.zone, finding.outcome, finding.evidence, connect_ms, attempts, shown, tls_ms)


def _dialer(asked: Target, place: Place, timeout_s: float) -> socket | None:
    return tcp.ask(place.address, asked.port, place.zone, timeout_s).socket


def _hang_up(sock: socket) -> None:
    """End in order, FIN and not RST: one connection is not a scan, and a server's log shall not show an error."""
    with suppress(OSError):
        sock.shutdown(SHUT_RDWR)
    sock.close()


# --- often ---------------------------------------------------------------------------------------------------------


def _timing(asked: Target, answers: Sequence[Dialed], timeout_s: float, times: int) -> Timing | None:
    first = next((a for a in answers if a.outcome == "open" and a.address is not None), None)
    if times <= 1 or first is None or first.address is None:
        return None
    place = Place(first.address, first.zone)
    more = [_dial_place(asked, place, timeout_s, 0, tls=False) for _ in range(times - 1)]
    return timing_of([a.connect_ms if a.outcome == "open" else None for a in (first, *more)])


def timing_of(samples: Sequence[float | None]) -> Timing:
    """Least, median, 95th percentile (nearest rank) and most of the samples; None is one that was lost."""
    connected = sorted(ms for ms in samples if ms is not None)
    if not connected:
        return Timing(len(samples), len(samples), None, None, None, None)

    def rank(share: float) -> float:
        return connected[min(len(connected) - 1, max(0, -int(-share * len(connected) // 1) - 1))]

    lost = len(samples) - len(connected)
    return Timing(len(samples), lost, connected[0], rank(0.5), rank(0.95), connected[-1])
