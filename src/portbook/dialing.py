"""``dial``: whether a TCP port can be reached, and how fast.

Every address of a name is tried, and each answer carries its evidence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import count
from math import ceil
from queue import Empty, SimpleQueue
from socket import socket
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from msgspec import Struct

from portbook import ports
from portbook.addresses import NamedHost, parse_host, socket_address
from portbook.errors import SourceMissing, UsageError
from portbook.numerals import MOST_SECONDS, is_within
from portbook.probe import tcp
from portbook.probe.outcome import Evidence, Outcome
from portbook.probe.resolve import LIMIT_S, POLL_S, ResolvedAddress, lookup_outcome, resolve
from portbook.probe.tls.records import Tls
from portbook.records import SCHEMA
from portbook.resilience import classify, waits

if TYPE_CHECKING:
    from portbook.ports import PortLike

# Longer than Linux takes to find that a neighbour does not exist: three requests, a second apart (RFC 4861 section 10,
# RETRANS_TIMER and MAX_MULTICAST_SOLICIT; net.ipv4.neigh.default.mcast_solicit), 3.06 s as measured.
TIMEOUT_S = 4.0
MOST_THREADS = 256


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
    lost: int  # that did not connect, without those of ``not_sent``
    min_ms: float | None
    median_ms: float | None
    p95_ms: float | None
    max_ms: float | None
    not_sent: int = 0  # that this machine could not send: it had no free port or descriptor
    shortage: Evidence | None = None  # why, for the first of them


class Dial(Struct, frozen=True):
    """A target, dialed at every address that it has."""

    schema: int
    target: str  # host:port
    host: str
    port: int
    open: bool  # at any address
    lookup_ms: float
    addresses: tuple[DialedAddress, ...]
    timing: Timing | None = None  # of the first address that is open, when dialed more than once


class Destination(NamedTuple):
    """What is dialed: a TCP port of a host."""

    host: NamedHost
    port: int

    @property
    def text(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"{self.host}:{self.port}"

    @property
    def lookup_name(self) -> str:
        """What a resolver gets. Not every one knows that names below localhost are loopback (RFC 6761 section 6.3)."""
        return "localhost" if self.host.is_local_name else self.host.lookup_name

    @property
    def address(self) -> ResolvedAddress | None:
        """The address, if the host is one: then there is nothing to look up."""
        if not self.host.is_address:
            return None
        return ResolvedAddress(self.host.name, self.host.zone)


def parse_destination(target: PortLike) -> Destination:
    """Read ``host:80``, ``[::1]:80``, ``80``, ``http`` or a URL, see ``portbook.ports``; raise UsageError.

    A port without a host is one of this machine.
    """
    port = ports.parse_one(target)
    if port.protocol == "udp":
        number = ports.Ports(port.first, port.last)
        raise UsageError(f"{port} is UDP, which has no connections", f"write portbook probe {port.host or ''} {number}")
    return Destination(ports.reachable(port.host or ports.LOCALHOST, port.first), port.first)


class Limit(NamedTuple):
    """How long a dial may take."""

    lookup_s: float
    attempt_s: float
    shared: bool  # one limit for the name lookup and the first attempt together

    def first_attempt_s(self, lookup_s: float) -> float:
        """Seconds that are left for the first attempt after a name lookup."""
        return max(0.0, self.attempt_s - lookup_s) if self.shared else self.attempt_s


def limit_of(timeout_s: float | None, lookup_s: float | None = None) -> Limit:
    """The limits of a dial: one for all of it, or the defaults."""
    for seconds in (timeout_s, lookup_s):
        check_seconds(seconds)
    if timeout_s is None:
        return Limit(lookup_s or LIMIT_S, TIMEOUT_S, shared=False)
    return Limit(lookup_s or timeout_s, timeout_s, shared=True)


def check_seconds(seconds: float | None) -> None:
    """Raise UsageError if a time limit is none."""
    if seconds is not None and not is_within(seconds, MOST_SECONDS):
        raise UsageError(f"a time limit of {seconds!s:.40} s is invalid", "give 0 to 1,000,000 seconds")


class Plan(NamedTuple):
    """How each address of a target is dialed."""

    target: Destination
    retries: int = 0
    tls: bool = False
    server_name: str = ""


def dial(
    target: PortLike,
    *,
    timeout_s: float | None = None,
    retries: int = 0,
    times: int = 1,
    tls: bool = False,
    server_name: str | None = None,
    lookup_s: float | None = None,
) -> Dial:
    """Connect to a TCP port at every address of its host, and close the connections.

    :param target: ``host:port``, a port of this machine, a URL: see ``portbook.ports``
    :param timeout_s: seconds for the name lookup, the connection and the TLS handshake together; each further attempt
        has as many again. None: ``LIMIT_S`` for the lookup, and ``TIMEOUT_S`` for each attempt
    :param retries: more attempts at an address that did not answer, with growing pauses
    :param times: how often to dial the first address that is open, for ``timing``
    :param tls: do a TLS handshake and read the certificates
    :param server_name: the name to request and to verify in the handshake; None: the host
    :param lookup_s: seconds for the name lookup; None: as ``timeout_s`` says
    :raises UsageError: the target is no port, ``server_name`` is no name, or a limit is no number of seconds
    :raises SourceMissing: this Python has no TLS
    """
    plan = _plan(target, retries, tls, server_name)
    limit = limit_of(timeout_s, lookup_s)
    lookup = _look_up(plan.target, limit.lookup_s)
    first_s = limit.first_attempt_s(lookup.seconds)
    answers = map_in_threads(lambda address: _dial_address(plan, address, first_s, limit.attempt_s), lookup.addresses)
    return _result(plan.target, answers, lookup, _timing(plan.target, answers, limit.attempt_s, times))


async def dial_async(
    target: PortLike,
    *,
    timeout_s: float | None = None,
    retries: int = 0,
    tls: bool = False,
    server_name: str | None = None,
) -> Dial:
    """``dial`` under asyncio; cancelling it closes its sockets. Parameters and errors are those of ``dial``."""
    import asyncio

    plan = _plan(target, retries, tls, server_name)
    limit = limit_of(timeout_s)
    lookup = await asyncio.to_thread(_look_up, plan.target, limit.lookup_s)
    first_s = limit.first_attempt_s(lookup.seconds)
    dials = [_dial_address_async(plan, address, first_s, limit.attempt_s) for address in lookup.addresses]
    answers = await asyncio.gather(*dials)
    return _result(plan.target, list(answers), lookup, None)


def _plan(target: PortLike, retries: int, tls: bool, server_name: str | None) -> Plan:
    """TLS requests and verifies the host, without a trailing dot (RFC 6066 section 3) and without a zone."""
    destination = parse_destination(target)
    host = destination.host if server_name is None else parse_host(server_name)
    if tls:
        _import_tls()
    return Plan(destination, retries, tls, host.name)


def _import_tls() -> None:
    """Before the clock runs: ssl takes a while. Python may have been built without it."""
    try:
        import_module("portbook.probe.tls.handshake")
    except ImportError as error:
        hint = f"use another Python than {sys.executable}"
        raise SourceMissing(f"this Python has no TLS: {error}", hint) from error


def _result(target: Destination, answers: list[DialedAddress], lookup: _Lookup, timing: Timing | None) -> Dial:
    if lookup.failure is not None:
        answers = [DialedAddress(None, None, lookup_outcome(lookup.failure), lookup.failure, None)]
    is_open = any(answer.outcome == "open" for answer in answers)
    lookup_ms = _ms(lookup.seconds)
    host = target.host
    name = f"{host.name}%{host.zone}" if host.zone else host.lookup_name
    return Dial(SCHEMA, target.text, name, target.port, is_open, lookup_ms, tuple(answers), timing)


class _Lookup(NamedTuple):
    addresses: Sequence[ResolvedAddress]
    failure: Evidence | None
    seconds: float


def _look_up(target: Destination, limit_s: float) -> _Lookup:
    if target.address is not None:
        return _Lookup((target.address,), None, 0.0)
    began = monotonic()
    (resolved,) = resolve([target.lookup_name], limit_s)
    return _Lookup(resolved.addresses, resolved.failure, monotonic() - began)


A = TypeVar("A")
B = TypeVar("B")


def map_in_threads(call: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Call with each item; return the results, in order. Several items are handled at the same time."""
    return list(in_threads(call, items))


def in_threads(call: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """Yield the result for each item, in order. Several items are handled at the same time.

    The threads are daemons, and left alone when the caller is interrupted: a connection may take an hour to fail.
    """
    if len(items) <= 1:
        yield from map(call, items)
        return
    waiting = SimpleQueue[tuple[int, A]]()
    done = SimpleQueue[tuple[int, B | None, BaseException | None]]()
    for numbered in enumerate(items):
        waiting.put(numbered)
    for _ in range(min(len(items), MOST_THREADS)):
        Thread(target=_serve, args=(call, waiting, done), daemon=True).start()
    results: dict[int, B | None] = {}
    for index in range(len(items)):
        while index not in results:
            with suppress(Empty):
                number, result, error = done.get(timeout=POLL_S)
                if error is not None:
                    raise error
                results[number] = result
        yield cast("B", results.pop(index))


def _serve(
    call: Callable[[A], B],
    waiting: SimpleQueue[tuple[int, A]],
    done: SimpleQueue[tuple[int, B | None, BaseException | None]],
) -> None:
    with suppress(Empty):
        while True:
            index, item = waiting.get_nowait()
            try:
                done.put((index, call(item), None))
            except BaseException as error:  # noqa: BLE001  raised again by the caller
                done.put((index, None, error))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


# --- one address ---------------------------------------------------------------------------------------------------


def _dial_address(plan: Plan, address: ResolvedAddress, first_s: float, attempt_s: float) -> DialedAddress:
    timeout_s = first_s
    for attempt, pause_s in zip(count(1), waits(), strict=False):
        until = monotonic() + timeout_s
        connection = tcp.connect(address.address, plan.target.port, address.zone, timeout_s)
        if not _is_worth_a_retry(connection.result) or attempt > plan.retries:
            break
        sleep(pause_s)
        timeout_s = attempt_s
    return _finish(plan, address, connection, attempt, until)


async def _dial_address_async(plan: Plan, address: ResolvedAddress, first_s: float, attempt_s: float) -> DialedAddress:
    import asyncio

    timeout_s = first_s
    for attempt, pause_s in zip(count(1), waits(), strict=False):
        until = monotonic() + timeout_s
        connection = await _connect_async(plan.target.port, address, timeout_s)
        if not _is_worth_a_retry(connection.result) or attempt > plan.retries:
            break
        await asyncio.sleep(pause_s)
        timeout_s = attempt_s
    return await asyncio.to_thread(_finish, plan, address, connection, attempt, until)


def _is_worth_a_retry(result: tcp.ConnectResult) -> bool:
    """Silence is worth another attempt; an answer is final."""
    return result.evidence.kind == "silence" or result.outcome == "unreachable"


async def _connect_async(port: int, address: ResolvedAddress, timeout_s: float) -> tcp.Connection:
    """As ``tcp.connect``, on the running loop, which may be the Proactor loop of Windows."""
    import asyncio

    began = monotonic()
    sock: socket | None = None
    result = tcp.SILENT
    try:
        sock = tcp.create_socket(address.address)
        destination = socket_address(address.address, port, address.zone)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, destination), timeout_s)
        result = tcp.established_result(sock)
    except TimeoutError:
        result = tcp.SILENT
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
    plan: Plan, address: ResolvedAddress, connection: tcp.Connection, attempts: int, until: float
) -> DialedAddress:
    """Close the connection, after a TLS handshake if requested."""
    result, elapsed_s, sock = connection
    tls_result, tls_ms = None, None
    if sock is not None and plan.tls:
        from portbook.probe.tls.handshake import handshake

        began = monotonic()
        tls_result = handshake(sock, plan.server_name, lambda: _connect_again(plan.target, address, until), until)
        tls_ms = _ms(monotonic() - began)
    elif sock is not None:
        tcp.hang_up(sock)
    connect_ms = None if result.evidence.kind == "silence" else _ms(elapsed_s)
    return DialedAddress(
        address.address, address.zone, result.outcome, result.evidence, connect_ms, attempts, tls_result, tls_ms
    )


def _connect_again(target: Destination, address: ResolvedAddress, until: float) -> socket | None:
    left_s = max(0.0, until - monotonic())
    return tcp.connect(address.address, target.port, address.zone, left_s).socket


# --- timing --------------------------------------------------------------------------------------------------------


def _timing(target: Destination, answers: Sequence[DialedAddress], timeout_s: float, times: int) -> Timing | None:
    first = next((answer for answer in answers if answer.outcome == "open"), None)
    if times <= 1 or first is None or first.address is None:
        return None
    address = ResolvedAddress(first.address, first.zone)
    plan = Plan(target)
    samples = [first]
    samples += [_dial_address(plan, address, timeout_s, timeout_s) for _ in range(times - 1)]
    return timing_of(samples)


def timing_of(samples: Sequence[DialedAddress]) -> Timing:
    """Return minimum, median, 95th percentile (nearest rank) and maximum of the times of those that connected."""
    opened = [sample.connect_ms for sample in samples if sample.outcome == "open" and sample.connect_ms is not None]
    connected = sorted(opened)
    shortages = [sample.evidence for sample in samples if sample.outcome == "error"]
    lost = len(samples) - len(connected) - len(shortages)
    shortage = shortages[0] if shortages else None
    if not connected:
        return Timing(len(samples), lost, None, None, None, None, len(shortages), shortage)

    def percentile(share: float) -> float:
        return connected[max(0, ceil(share * len(connected)) - 1)]

    p50, p95 = percentile(0.5), percentile(0.95)
    return Timing(len(samples), lost, connected[0], p50, p95, connected[-1], len(shortages), shortage)
