"""``wait_for``: wait until ports answer, or until local ports are free. Tried with growing pauses, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic, sleep
from typing import NamedTuple

from portbook import dialing, query
from portbook.records import Protocol
from portbook.resilience import waits

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class Condition(NamedTuple):
    """What is waited for: the target, and a test of it, which gets the seconds that are left."""

    target: str
    holds: Callable[[float], bool]


def wait_for(
    targets: str | Iterable[str | int],
    *,
    udp: bool = False,
    free: bool = False,
    timeout_s: float = 60.0,
    on_round: Callable[[Sequence[str]], None] | None = None,
) -> list[str]:
    """Wait until every target answers, or with ``free`` until nothing holds any of the local ports.

    >>> import portbook
    >>> portbook.wait_for(["localhost:5432", "localhost:6379"], timeout_s=30)   # doctest: +SKIP
    []
    >>> portbook.wait_for([8080], free=True, timeout_s=5)                       # doctest: +SKIP
    ['8080']

    A TCP port answers when it accepts a connection. A UDP port answers when it replies to a request of the service
    that is registered for it; silence and a refusal are no answers. A port is free when the socket tables of this
    machine have no socket on it, TIME_WAIT aside; it is never bound, not even for a moment, as trying it would.

    :param targets: ``host:port``; text is split. With ``free``, a port, a range of ports or ``host:port``, of which
        the host is ignored
    :param udp: UDP ports instead of TCP ports
    :param free: wait until local ports are free
    :param timeout_s: seconds for all targets together
    :param on_round: called after each round with the targets that are not ready
    :returns: the targets that are not ready after ``timeout_s``, as text; empty when all are
    :raises UsageError: a target is not what is expected
    :raises SourceError: with ``free``, the socket tables cannot be read
    """
    texts = targets.split() if isinstance(targets, str) else [str(target) for target in targets]
    protocol: Protocol = "udp" if udp else "tcp"
    make = _free if free else _answers
    waiting = [make(text, protocol) for text in texts]
    deadline = monotonic() + timeout_s
    pauses = waits(FIRST_PAUSE_S, LONGEST_PAUSE_S, deadline_s=timeout_s)
    while True:
        waiting = _unmet(waiting, max(deadline - monotonic(), FIRST_PAUSE_S))
        missing = [condition.target for condition in waiting]
        if on_round is not None:
            on_round(missing)
        pause_s = next(pauses, None)
        if not missing or pause_s is None:
            return missing
        sleep(pause_s)


def _unmet(conditions: Sequence[Condition], left_s: float) -> list[Condition]:
    results = dialing.map_in_threads(lambda condition: condition.holds(left_s), conditions)
    return [condition for condition, holds in zip(conditions, results, strict=True) if not holds]


def _answers(target: str, protocol: Protocol) -> Condition:
    host_port = dialing.parse_host_port(target)
    if protocol == "udp":
        return Condition(target, lambda left_s: _answers_udp(host_port, left_s))

    def answers_tcp(left_s: float) -> bool:
        return dialing.dial(target, timeout_s=min(left_s, dialing.TIMEOUT_S), lookup_s=left_s).open

    return Condition(target, answers_tcp)


def _answers_udp(target: dialing.HostPort, left_s: float) -> bool:
    """Whether any address replies. Each is probed twice: the second attempt sends every payload that fits the port."""
    from portbook.probe.request import Limits, Probe
    from portbook.probe.resolve import resolve
    from portbook.scanner.udp.engine import scan_udp

    (resolved,) = resolve([target.host], left_s)
    probes = [Probe(target.host, each.address, target.port, each.zone) for each in resolved.addresses]
    limits = Limits(retries=1, deadline_s=min(left_s, dialing.TIMEOUT_S))
    return any(answer.outcome == "open" for answer in scan_udp(probes, limits))


def _free(target: str, protocol: Protocol) -> Condition:
    port = target.rpartition(":")[2]
    sockets_of_port = query.Query((query.term("port", [port]), query.term("protocol", [protocol])))

    def is_free(_: float) -> bool:
        from portbook import inventory

        sockets = inventory.select(sockets_of_port)[1]
        return all(socket.state == "TIME_WAIT" for socket in sockets)

    return Condition(target, is_free)
