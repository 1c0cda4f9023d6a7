"""``dial``: whether a TCP port can be reached, and how fast.

Every address of a name is tried, and each answer carries its evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from math import ceil
from socket import SHUT_RDWR, socket
from time import monotonic, sleep
from typing import NamedTuple, TypeVar

from msgspec import Struct

from portbook import query
from portbook.addresses import socket_address, split_host_port
from portbook.errors import UsageError
from portbook.probe import tcp
from portbook.probe.outcome import Evidence, Outcome
from portbook.probe.resolve import LIMIT_S, ResolvedAddress, resolve
from portbook.probe.tls import Tls, handshake
from portbook.records import SCHEMA
from portbook.resilience import classify, waits

TIMEOUT_S = 3.0
MOST_THREADS = 64


class DialedAddress(Struct, frozen=True):
    """The outcome at one address."""

    address: str | None  # None: the name has no address
    zone: str | None
    outcome: Outcome
    evidence: Evidence
    connect_ms: float | None  # until the answer; None: no answer came
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
    """A target, dialed at every address that it has."""

    schema: int
    target: str  # as it was written
    host: str
    port: int
    open: bool  # at any address
    lookup_ms: float
    addresses: tuple[DialedAddress, ...]
    timing: Timing | None = None  # of the first address that is open, when dialed more than once


class HostPort(NamedTuple):
    """The parts of ``HOST:PORT``."""

    text: str
    host: str
    port: int


def parse_host_port(text: str) -> HostPort:
    """Parse ``host:80``, ``127.0.0.1:80``, ``[::1]:80`` or ``[fe80::1%eth0]:80``; raise UsageError."""
    try:
        host, port = split_host_port(text.strip())
    except ValueError as error:
        raise UsageError(f"{text!r} is not HOST:PORT", "write localhost:80 or [::1]:80") from error
    ranges = query.parse_port_ranges(port)
    if len(ranges) != 1 or ranges[0][0] != ranges[0][1]:
        raise UsageError(f"{text!r} has more than one port", "name each: host:80 host:443, or see portbook scan")
    return HostPort(text, host, ranges[0][0])


def dial(
    target: str,
    *,
    timeout_s: float = TIMEOUT_S,
    retries: int = 0,
    times: int = 1,
    tls: bool = False,
    lookup_s: float = LIMIT_S,
) -> Dial:
    """Connect to ``host:port`` at every address of the host, and close the connections.

    :param timeout_s: seconds for one attempt; a TLS handshake has as many again
    :param retries: more attempts at an address that did not answer, with growing pauses
    :param times: how often to dial the first address that is open, for ``timing``
    :param tls: do a TLS handshake and read the certificate
    :param lookup_s: seconds for the name lookup
    :raises UsageError: the target is not ``host:port``
    """
    host_port = parse_host_port(target)
    addresses, failure, lookup_ms = _look_up(host_port, lookup_s)
    answers = map_in_threads(lambda address: _dial_address(host_port, address, timeout_s, retries, tls), addresses)
    return _result(host_port, answers, failure, lookup_ms, _timing(host_port, answers, timeout_s, times))


async def dial_async(target: str, *, timeout_s: float = TIMEOUT_S, retries: int = 0, tls: bool = False) -> Dial:
    """``dial`` under asyncio; cancelling it closes its sockets. Parameters and errors are those of ``dial``."""
    import asyncio

    host_port = parse_host_port(target)
    addresses, failure, lookup_ms = await asyncio.to_thread(_look_up, host_port)
    dials = [_dial_address_async(host_port, address, timeout_s, retries, tls) for address in addresses]
    answers = await asyncio.gather(*dials)
    return _result(host_port, list(answers), failure, lookup_ms, None)


def _result(
    target: HostPort, answers: list[DialedAddress], failure: Evidence | None, lookup_ms: float, timing: Timing | None
) -> Dial:
    if failure is not None:
        answers = [DialedAddress(None, None, "name-not-found", failure, None)]
    is_open = any(answer.outcome == "open" for answer in answers)
    return Dial(SCHEMA, target.text, target.host, target.port, is_open, lookup_ms, tuple(answers), timing)


def _look_up(target: HostPort, limit_s: float = LIMIT_S) -> tuple[Sequence[ResolvedAddress], Evidence | None, float]:
    began = monotonic()
    (resolved,) = resolve([target.host], limit_s)
    return resolved.addresses, resolved.failure, _ms(monotonic() - began)


A = TypeVar("A")
B = TypeVar("B")


def map_in_threads(call: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Call with each item; return the results, in order. Several items are handled at the same time."""
    if len(items) <= 1:
        return [call(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(items), MOST_THREADS)) as pool:
        return list(pool.map(call, items))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


# --- one address ---------------------------------------------------------------------------------------------------


def _dial_address(
    target: HostPort, address: ResolvedAddress, timeout_s: float, retries: int, tls: bool
) -> DialedAddress:
    for attempt, pause_s in zip(count(1), waits(), strict=False):
        connection = tcp.connect(address.address, target.port, address.zone, timeout_s)
        if not _is_worth_a_retry(connection.result) or attempt > retries:
            break
        sleep(pause_s)
    return _finish(target, address, connection, attempt, timeout_s, tls)


async def _dial_address_async(
    target: HostPort, address: ResolvedAddress, timeout_s: float, retries: int, tls: bool
) -> DialedAddress:
    import asyncio

    for attempt, pause_s in zip(count(1), waits(), strict=False):
        connection = await _connect_async(target.port, address, timeout_s)
        if not _is_worth_a_retry(connection.result) or attempt > retries:
            break
        await asyncio.sleep(pause_s)
    return await asyncio.to_thread(_finish, target, address, connection, attempt, timeout_s, tls)


def _is_worth_a_retry(result: tcp.ConnectResult) -> bool:
    """Silence is worth another attempt; an answer is final."""
    return result.outcome in ("timeout", "unreachable")


async def _connect_async(port: int, address: ResolvedAddress, timeout_s: float) -> tcp.Connection:
    """As ``tcp.connect``, on the running loop, which may be the Proactor loop of Windows."""
    import asyncio

    began = monotonic()
    sock: socket | None = None
    result = tcp.TIMED_OUT
    try:
        sock = tcp.create_socket(address.address)
        destination = socket_address(address.address, port, address.zone)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, destination), timeout_s)
        result = tcp.established_result(sock)
    except TimeoutError:
        result = tcp.TIMED_OUT
    except OSError as error:
        icmp = tcp.queued_icmp_result(sock, port) if sock is not None else None
        result = icmp or tcp.fault_result(classify(error), error.errno or 0)
    except asyncio.CancelledError:
        if sock is not None:
            tcp.abort(sock)
        raise
    if sock is not None and result.outcome != "open":
        tcp.abort(sock)
        sock = None
    return tcp.Connection(result, monotonic() - began, sock)


def _finish(
    target: HostPort, address: ResolvedAddress, connection: tcp.Connection, attempts: int, timeout_s: float, tls: bool
) -> DialedAddress:
    """Close the connection, after a TLS handshake if requested."""
    result, elapsed_s, sock = connection
    tls_result, tls_ms = None, None
    if sock is not None and tls:
        began = monotonic()
        tls_result = handshake(sock, target.host, lambda: _connect_again(target, address, timeout_s), timeout_s)
        tls_ms = _ms(monotonic() - began)
    elif sock is not None:
        _hang_up(sock)
    connect_ms = None if result.outcome == "timeout" else _ms(elapsed_s)
    return DialedAddress(
        address.address, address.zone, result.outcome, result.evidence, connect_ms, attempts, tls_result, tls_ms
    )


def _connect_again(target: HostPort, address: ResolvedAddress, timeout_s: float) -> socket | None:
    return tcp.connect(address.address, target.port, address.zone, timeout_s).socket


def _hang_up(sock: socket) -> None:
    """Close with FIN and not RST: one connection is not a scan, and must not be an error in the server's log.

    The peer may have closed first (ENOTCONN, WinError 10057), which is no failure.
    """
    with suppress(OSError):
        sock.shutdown(SHUT_RDWR)
    with suppress(OSError):
        sock.close()


# --- timing --------------------------------------------------------------------------------------------------------


def _timing(target: HostPort, answers: Sequence[DialedAddress], timeout_s: float, times: int) -> Timing | None:
    first = next((answer for answer in answers if answer.outcome == "open"), None)
    if times <= 1 or first is None or first.address is None:
        return None
    address = ResolvedAddress(first.address, first.zone)
    samples = [first.connect_ms]
    for _ in range(times - 1):
        answer = _dial_address(target, address, timeout_s, 0, tls=False)
        samples.append(answer.connect_ms if answer.outcome == "open" else None)
    return timing_of(samples)


def timing_of(samples: Sequence[float | None]) -> Timing:
    """Return minimum, median, 95th percentile (nearest rank) and maximum of the samples; None is a lost one."""
    connected = sorted(ms for ms in samples if ms is not None)
    lost = len(samples) - len(connected)
    if not connected:
        return Timing(len(samples), lost, None, None, None, None)

    def percentile(share: float) -> float:
        return connected[max(0, ceil(share * len(connected)) - 1)]

    return Timing(len(samples), lost, connected[0], percentile(0.5), percentile(0.95), connected[-1])
