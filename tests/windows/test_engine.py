"""The TCP engine on Windows: the Proactor loop and its error numbers. The rest: tests/scanner/tcp/test_engine.py."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from portbook.probe import tcp
from portbook.probe.initial_rto import refuse_at_once
from portbook.probe.request import Limits, Probe, ScanEvent, Tally
from portbook.scanner.tcp import engine
from portbook.scanner.tcp.engine import scan_tcp
from portbook.scanner.tcp.proactor import Proactor
from tests.listeners import deaf, listening, refusing
from tests.scanner.tcp.test_engine import of, scanned
from tests.windows.conftest import WINE

CONNECTION_REFUSED = (1225, 10061)  # winerror.h: from a completion port, from a call


def test_the_transport_is_the_proactor():
    with contextlib.closing(engine._transport()) as transport:
        assert isinstance(transport, Proactor)
        assert type(transport._loop).__name__ == "ProactorEventLoop"


def test_the_numbers_of_a_refusal():
    with refusing() as closed:
        (answer,) = scanned(of(closed[0], [closed[1]])).values()
        connection = tcp.connect(*closed, timeout_s=5)
    assert answer.evidence.errno in CONNECTION_REFUSED
    assert answer.evidence.error in ("ERROR_CONNECTION_REFUSED", "WSAECONNREFUSED")
    assert (connection.result.outcome, connection.socket) == ("closed", None)
    assert connection.result.evidence.errno in CONNECTION_REFUSED


@pytest.mark.skipif(not WINE, reason="a full queue is answered by RST (listen function)")
def test_silence_is_no_answer():
    with deaf() as place:
        tally = Tally()
        found = scanned(of(*[place[0], [place[1]]]), Limits(timeout_s=0.2), tally=tally)
    assert [(a.outcome, a.evidence.kind, a.attempts) for a in found.values()] == [("filtered", "silence", 2)]
    assert (tally.probed, tally.repeated, tally.silent, tally.in_flight) == (1, 1, 1, 0)


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
    events: list[ScanEvent] = []
    tally = Tally()
    limits = Limits(rate=50.0, deadline_s=0.5)
    answers = list(scan_tcp(of("127.0.0.1", range(1, 1000)), limits, tally=tally, on_event=events.append))
    assert [event.kind for event in events] == ["deadline"]
    assert 0 < len(answers) <= 50 * 0.6 + 2
    assert tally.probed == len(answers)


def test_the_control_code_for_loopback():
    """Wine does not know the control code (10045): refused, and no error."""
    with socket.socket() as sock:
        assert refuse_at_once(sock) is (WINE is None)


@pytest.mark.skipif(not WINE, reason="a full queue is answered by RST (listen function)")
def test_one_port_that_is_silent():
    with deaf() as place:
        connection = tcp.connect(*place, timeout_s=0.2)
    assert connection.result is tcp.SILENT


def test_an_interface_that_does_not_exist():
    found = scanned(Probe("x", "fe80::1", port, "no such interface") for port in (80, 443))
    assert {(answer.outcome, answer.evidence.error) for answer in found.values()} == {("error", "ENODEV")}
