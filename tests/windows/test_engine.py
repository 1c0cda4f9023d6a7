"""The TCP engine on Windows: the Proactor loop, its error numbers, what cannot be had from select() there."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from portbook.probe import tcp
from portbook.probe.initial_rto import refuse_at_once
from portbook.probe.outcome import Answer
from portbook.probe.request import Event, Limits, Probe, Tally
from portbook.scan import engine
from portbook.scan.engine import scan_tcp
from portbook.scan.proactor import Proactor
from tests.windows.conftest import WINE

CONNECTION_REFUSED = (1225, 10061)  # winerror.h: from a completion port, from a call


@contextlib.contextmanager
def listening(*addresses: str, each: int = 1) -> Iterator[list[tuple[str, int]]]:
    with contextlib.ExitStack() as stack:
        places = []
        for address in addresses:
            for _ in range(each):
                sock = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
                sock.bind((address, 0))
                sock.listen(16)
                places.append(sock.getsockname()[:2])
        yield places


@contextlib.contextmanager
def deaf() -> Iterator[tuple[str, int]]:
    """A listener whose queue is full."""
    with socket.socket() as sock, contextlib.ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
        yield sock.getsockname()


def of(address: str, ports: Iterable[int]) -> Iterator[Probe]:
    return (Probe(address, address, port) for port in ports)


def scanned(probes: Iterable[Probe], limits: Limits | None = None, **more: object) -> dict[tuple[str, int], Answer]:
    answers = list(scan_tcp(probes, limits or Limits(), **more))
    found = {(answer.address, answer.port): answer for answer in answers}
    assert len(found) == len(answers)
    return found


def test_the_transport_is_the_proactor():
    with contextlib.closing(engine._transport()) as transport:
        assert isinstance(transport, Proactor)
        assert type(transport._loop).__name__ == "ProactorEventLoop"


def test_open_and_closed_on_both_families():
    with listening("127.0.0.1", "127.0.0.2", "::1", each=2) as places, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        closed = bound.getsockname()
        found = scanned(probe for address, port in (*places, closed) for probe in of(address, [port]))
    assert {place for place, answer in found.items() if answer.outcome == "open"} == set(places)
    assert all(found[place].evidence.kind == "syn-ack" for place in places)
    evidence = found[closed].evidence
    assert (found[closed].outcome, evidence.kind) == ("closed", "rst")
    assert evidence.errno in CONNECTION_REFUSED
    assert evidence.error in ("ERROR_CONNECTION_REFUSED", "WSAECONNREFUSED")


@pytest.mark.skipif(not WINE, reason="a full queue is answered by RST (listen function)")
def test_silence_is_no_answer():
    with deaf() as place:
        tally = Tally()
        found = scanned(of(*[place[0], [place[1]]]), Limits(timeout_s=0.2), tally=tally)
    assert [(a.outcome, a.evidence.kind, a.attempts) for a in found.values()] == [("filtered", "silence", 2)]
    assert (tally.asked, tally.repeated, tally.silent, tally.in_flight) == (1, 1, 1, 0)


def test_more_than_select_can_hold():
    """Two thousand ports, more at once than the 512 sockets of select(); every open one is found, no other."""
    with listening("127.0.0.1", each=50) as places:
        mine = {port for _, port in places}
        ports = sorted(mine | set(range(20_000, 22_000)))
        found = scanned(of("127.0.0.1", ports), Limits(concurrency=900))
    assert len(found) == len(ports)
    assert {place for place, answer in found.items() if answer.outcome == "open"} >= set(places)
    assert Counter(answer.outcome for answer in found.values())["closed"] >= len(ports) - 60


def test_a_cancelled_scan_leaves_nothing():
    with listening("127.0.0.1", each=3) as places, deaf() as silent:
        threads = threading.active_count()
        ports = [port for _, port in places] + [silent[1]]
        made: list[Proactor] = []
        answers = scan_tcp(of("127.0.0.1", ports), Limits(timeout_s=30))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "_transport", lambda: made.append(Proactor()) or made[0])
            for _ in range(3):
                assert next(answers).outcome == "open"
        answers.close()
        assert made[0]._loop.is_closed()
        assert made[0]._tasks == {}
        assert threading.active_count() == threads


def test_rate_and_deadline():
    events: list[Event] = []
    tally = Tally()
    limits = Limits(rate=50.0, deadline_s=0.5)
    answers = list(scan_tcp(of("127.0.0.1", range(1, 1000)), limits, tally=tally, tell=events.append))
    assert [event.kind for event in events] == ["deadline"]
    assert 0 < len(answers) <= 50 * 0.6 + 2
    assert tally.asked == len(answers)


def test_loopback_is_told_to_refuse_at_once():
    """Wine does not know the control code (10045): refused, and no error."""
    with socket.socket() as sock:
        assert refuse_at_once(sock) is not WINE


def test_one_port_at_a_time():
    with listening("127.0.0.1", "::1") as places:
        for place in places:
            asked = tcp.ask(*place)
            assert asked.finding is tcp.OPEN
            asked.socket.close()
    asked = tcp.ask(*places[0], timeout_s=5)
    assert (asked.finding.outcome, asked.socket) == ("closed", None)
    assert asked.finding.evidence.errno in CONNECTION_REFUSED


@pytest.mark.skipif(not WINE, reason="a full queue is answered by RST (listen function)")
def test_one_port_that_is_silent():
    with deaf() as place:
        asked = tcp.ask(*place, timeout_s=0.2)
    assert asked.finding is tcp.UNHEARD


def test_an_interface_that_does_not_exist():
    found = scanned(Probe("x", "fe80::1", port, "no such interface") for port in (80, 443))
    assert {(answer.outcome, answer.evidence.error) for answer in found.values()} == {("error", "ENODEV")}
