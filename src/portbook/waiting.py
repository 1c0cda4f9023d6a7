"""``wait_for``: wait until ports answer, or until local ports are free. All at once, and no longer than the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from portbook import ports, query
from portbook.addresses import is_own
from portbook.dialing import Destination, check_seconds
from portbook.errors import RemoteError, UsageError
from portbook.ports import Ports
from portbook.probe.outcome import Evidence, Outcome, describe, describe_reason
from portbook.probe.readiness import NO_LOOKUP, AwaitedPort, Readiness
from portbook.probe.resolve import Resolved, ResolvedAddress, lookup_outcome, resolve, resolve_one
from portbook.records import Protocol
from portbook.resilience import waits

if TYPE_CHECKING:
    from portbook.ports import PortsLike

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
REPORT_S = 1.0  # how often the reasons are reported anew
FIRST_UDP_S = 1.0  # how long the first round waits for a reply


class Unready(Struct, frozen=True):
    """A target that is not ready, and why."""

    target: str  # "localhost:5432"; with ``free`` as it was written
    reason: str  # "refused", "silent", "name not found", "in use"


OnRound = Callable[[Sequence[Unready]], None]


def wait_for(
    targets: PortsLike,
    *,
    udp: bool = False,
    free: bool = False,
    stable: bool = False,
    timeout_s: float = 60.0,
    on_round: Callable[[Sequence[str]], None] | None = None,
) -> list[str]:
    """Wait until every target answers, or with ``free`` until nothing holds any of the local ports.

    >>> import portbook
    >>> portbook.wait_for(["localhost:5432", "localhost:6379"], timeout_s=30)   # doctest: +SKIP
    []
    >>> portbook.wait_for([8080], free=True, timeout_s=5)                       # doctest: +SKIP
    ['8080']

    A TCP port answers when it accepts a connection at any address of the host. A UDP port answers when it replies to a
    request of the service that is registered for it; silence and a refusal are no answers. A port is free when the
    socket tables of this machine have no socket that would conflict with it, TIME_WAIT aside; it is never bound, not
    even for a moment, as trying it would.

    :param targets: ``host:port``, a port of this machine, a range, a URL, see ``portbook.ports``; text is split. With
        ``free``, a host has to be an address of this machine, where the port is to be free; without a host, everywhere
    :param udp: UDP ports instead of TCP ports, where nothing else is written: ``53/udp``
    :param free: wait until local ports are free
    :param stable: a TCP connection has to last for a second, or the service has to send something: proxies accept
        before the service behind them does
    :param timeout_s: seconds for everything together: name lookups, connections, all targets
    :param on_round: called with the targets that are not ready when these change, and each second
    :returns: the targets that are not ready after ``timeout_s``, as text; empty when all are
    :raises UsageError: a target is not what is expected
    :raises SourceError: with ``free``, the socket tables cannot be read
    :raises RemoteError: with ``free``, the resolver could not find out the addresses of a host
    """
    call = None if on_round is None else lambda unready: on_round([each.target for each in unready])
    unready = wait_until_ready(targets, udp=udp, free=free, stable=stable, timeout_s=timeout_s, on_round=call)
    return [each.target for each in unready]


def wait_until_ready(
    targets: PortsLike,
    *,
    udp: bool = False,
    free: bool = False,
    stable: bool = False,
    timeout_s: float = 60.0,
    on_round: OnRound | None = None,
) -> list[Unready]:
    """As ``wait_for``, with the reason for each target that is not ready."""
    check_seconds(timeout_s)
    timeout_s = max(timeout_s, FIRST_PAUSE_S)  # one round, whatever the limit
    if free:
        if stable:
            raise UsageError("a free port has no connection that could last", "use stable without free")
        return _until_free(targets, udp, timeout_s, on_round)
    return _until_answers(targets, udp, stable, timeout_s, on_round)


class _Report:
    """Calls ``on_round`` when the targets that are not ready change, and from time to time."""

    def __init__(self, on_round: OnRound | None) -> None:
        self._on_round = on_round
        self._last: list[str] | None = None
        self.next_at = inf if on_round is None else monotonic() + FIRST_PAUSE_S

    def __call__(self, unready: list[Unready], *, final: bool = False) -> None:
        """Report the targets that are not ready, if that is due; always when there are none."""
        targets = [each.target for each in unready]
        is_due = final or not targets or monotonic() >= self.next_at
        has_changed = self._last is not None and targets != self._last
        if self._on_round is None or not (is_due or has_changed):
            return
        self._last = targets
        self.next_at = monotonic() + REPORT_S
        self._on_round(unready)


def _protocol(port: Ports, udp: bool) -> Protocol:
    """The protocol that is written with a port, or that its service has; else that of the option."""
    if port.protocol == "tcp" and udp:
        raise UsageError(f"{port} is not UDP", "use udp without it")
    return port.protocol or ("udp" if udp else "tcp")


# --- until they answer ---------------------------------------------------------------------------------------------


def _until_answers(
    targets: PortsLike, udp: bool, stable: bool, timeout_s: float, on_round: OnRound | None
) -> list[Unready]:
    wanted = ports.parse_targets(targets)
    watched = [_watch(port, _protocol(port, udp)) for port in wanted]
    datagrams = [each for each in watched if isinstance(each, _UdpTarget)]
    if stable and datagrams:
        raise UsageError("only a TCP connection can last", "use stable without UDP ports")
    until = monotonic() + timeout_s
    report = _Report(on_round)
    for each in datagrams:
        Thread(target=each.run, args=(until,), daemon=True).start()

    def unready() -> list[Unready]:
        pairs = zip(wanted, watched, strict=True)
        return [Unready(str(port), each.reason()) for port, each in pairs if not each.is_ready]

    with Readiness([each for each in watched if isinstance(each, AwaitedPort)], stable=stable) as connections:
        while (missing := unready()) and (now := monotonic()) < until:
            wake_at = min(until, report.next_at)
            if not all(each.is_ready for each in datagrams):
                wake_at = min(wake_at, now + FIRST_PAUSE_S)
            connections.turn(wake_at)
            missing = unready()
            report(missing)
            _raise_error(datagrams)
    return missing


def _watch(port: Ports, protocol: Protocol) -> AwaitedPort | _UdpTarget:
    destination = Destination(port.host or ports.LOCALHOST, port.first)
    if protocol == "udp":
        return _UdpTarget(destination)
    return AwaitedPort(destination.address or destination.lookup_name, destination.port)


class _UdpTarget:
    """A UDP port that is probed in a thread of its own, so that it does not wait for the silence of another."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._reason = "silent" if destination.address else describe_reason("lookup-failed", NO_LOOKUP)
        self.is_ready = False
        self.error: BaseException | None = None

    def reason(self) -> str:
        """Why it is not ready, in a few words."""
        return self._reason

    def run(self, until: float) -> None:
        """Probe until an address replies or the time is up. The caller may be gone by then."""
        try:
            for reason in _udp_rounds(self._destination, until):
                if reason is None:
                    self.is_ready = True
                    return
                self._reason = reason
        except BaseException as error:  # noqa: BLE001  raised again by the caller
            self.error = error


def _raise_error(targets: Sequence[_UdpTarget]) -> None:
    for target in targets:
        if target.error is not None:
            raise target.error


def _udp_rounds(destination: Destination, until: float) -> Iterator[str | None]:
    """Probe in rounds until the time is up; yield why no address replied, or None when one did.

    After silence, the next round waits longer for an answer, so that a slow one is received as well.
    """
    from portbook.probe.request import Limits, Probe
    from portbook.scanner.udp.engine import scan_udp

    pauses = waits(FIRST_PAUSE_S, LONGEST_PAUSE_S)
    round_s = FIRST_UDP_S
    is_first = True
    host, port = destination.lookup_name, destination.port
    while (left_s := until - monotonic()) > 0:
        resolved = Resolved(host, (destination.address,)) if destination.address else resolve_one(host)
        results: list[tuple[Outcome, Evidence]] = []
        if resolved.failure is not None:
            results.append((lookup_outcome(resolved.failure), resolved.failure))
        if resolved.addresses and is_first:
            yield "silent"  # until more is known
        is_first = False
        probes = [Probe(host, each.address, port, each.zone) for each in resolved.addresses]
        # The second attempt sends every payload that fits the port.
        limits = Limits(timeout_s=min(round_s, left_s), retries=1, most_retries=1, deadline_s=left_s)
        for answer in scan_udp(probes, limits):
            if answer.outcome == "open":
                yield None
            results.append((answer.outcome, answer.evidence))
        yield ", ".join(dict.fromkeys(describe_reason(*result) for result in results))
        if any(evidence.kind == "silence" for _, evidence in results):
            round_s *= 2
        sleep(max(0.0, min(next(pauses), until - monotonic())))


# --- until they are free -------------------------------------------------------------------------------------------


class LocalPorts(NamedTuple):
    """Ports of this machine that are to be free, at some of its addresses or at all of them."""

    text: str
    query: query.Query
    addresses: tuple[ResolvedAddress, ...]  # empty: all


def _until_free(targets: PortsLike, udp: bool, timeout_s: float, on_round: OnRound | None) -> list[Unready]:
    until = monotonic() + timeout_s
    report = _Report(on_round)
    wanted = ports.parse_several(targets)
    waiting = [_local_ports(port, _protocol(port, udp), until) for port in wanted]
    pauses = waits(FIRST_PAUSE_S, LONGEST_PAUSE_S, deadline_s=until - monotonic())
    while True:
        waiting = [local for local in waiting if _is_held(local)]
        unready = [Unready(local.text, "in use") for local in waiting]
        pause_s = next(pauses, None) if waiting else None
        report(unready, final=pause_s is None)
        if pause_s is None:
            return unready
        sleep(pause_s)


def _local_ports(port: Ports, protocol: Protocol, until: float) -> LocalPorts:
    numbers = str(Ports(port.first, port.last))
    selected = query.Query((query.term("port", [numbers]), query.term("protocol", [protocol])))
    if port.host is None:
        return LocalPorts(str(port), selected, ())
    addresses = _addresses(Destination(port.host, port.first), numbers, until)
    foreign = [each.address for each in addresses if not is_own(each.address, each.zone)]
    if foreign:
        name = str(port.host) if port.host.is_address else f"{port.host} ({foreign[0]})"
        raise UsageError(f"{name} is no address of this machine", f"write {numbers}, or an address of this machine")
    return LocalPorts(str(port), selected, addresses)


def _addresses(destination: Destination, numbers: str, until: float) -> tuple[ResolvedAddress, ...]:
    if destination.address is not None:
        return (destination.address,)
    (resolved,) = resolve([destination.lookup_name], until - monotonic())
    if resolved.failure is None:
        return resolved.addresses
    hint = f"write {numbers}, or an address of this machine"
    if lookup_outcome(resolved.failure) == "name-not-found":
        raise UsageError(f"{destination.host} has no address", hint)
    raise RemoteError(f"{destination.host} could not be looked up: {describe(resolved.failure)}", hint)


def _is_held(local: LocalPorts) -> bool:
    """Whether a socket conflicts with the ports. TIME_WAIT does not: servers bind in spite of it (SO_REUSEADDR)."""
    from portbook import inventory
    from portbook.addresses import Endpoint
    from portbook.verdict.overlap import overlap

    endpoints = [Endpoint(each.address, each.zone, dual=each.address == "::") for each in local.addresses]
    for socket in inventory.select(local.query)[1]:
        if socket.state == "TIME_WAIT":
            continue
        if not endpoints or any(overlap(socket, endpoint) for endpoint in endpoints):
            return True
    return False
