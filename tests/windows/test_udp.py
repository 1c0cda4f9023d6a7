"""UDP as Windows has it: connected datagram endpoints of the Proactor loop, where a closed port is an error number."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator

import pytest

from portbook.probe.outcome import Answer
from portbook.probe.request import Limits, Probe, Tally
from portbook.scanner.udp import wire
from portbook.scanner.udp.engine import scan_udp
from portbook.scanner.udp.state import PROVEN
from tests.listeners import peer_may_vanish

ADDRESSES = pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
QUICK = Limits(timeout_s=0.5)
CLOSED = {10054, 10061, 1225, 1234}


def bound(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 0))
    return made


def scan(address: str, ports: list[int], limits: Limits = QUICK) -> dict[int, Answer]:
    return {answer.port: answer for answer in scan_udp((Probe("x", address, port) for port in ports), limits)}


def free_ports(address: str, count: int) -> list[int]:
    """Ports that were free a moment ago."""
    made = [bound(address) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in made]
    finally:
        for sock in made:
            sock.close()


@pytest.fixture
def echo(request) -> Iterator[int]:
    """A port that sends back what it receives, from a thread."""
    with bound(request.param) as sock:

        def repeat() -> None:
            for _ in itertools.count():
                with peer_may_vanish():
                    data, sender = sock.recvfrom(2048)
                    if data == b"stop":
                        return
                    sock.sendto(b"heard: " + data[:4], sender)

        thread = threading.Thread(target=repeat)
        thread.start()
        yield sock.getsockname()[1]
        with bound(request.param) as last:
            last.sendto(b"stop", sock.getsockname())
        thread.join(10)


def test_the_proactor_loop_is_used() -> None:
    chosen = wire.choose()
    assert isinstance(chosen, wire.LoopWire)
    assert isinstance(chosen._loop, asyncio.ProactorEventLoop)
    chosen.shut()


@ADDRESSES
def test_closed_ports(address) -> None:
    answers = scan(address, free_ports(address, 50))
    assert {answer.outcome for answer in answers.values()} == {"closed"}
    assert {(a.evidence.kind, a.evidence.errno) for a in answers.values()} <= {("errno", number) for number in CLOSED}
    assert len(answers) == 50


@pytest.mark.parametrize(("echo", "address"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1")], indirect=["echo"])
def test_an_open_a_silent_and_a_closed_port(echo, address) -> None:
    with bound(address) as silent:
        quiet = silent.getsockname()[1]
        (closed,) = free_ports(address, 1)
        answers = scan(address, [echo, quiet, closed])
    assert {port: a.outcome for port, a in answers.items()} == {
        echo: "open",
        quiet: "open|filtered",
        closed: "closed",
    }
    assert (answers[echo].evidence.text or "").startswith(("7 bytes: heard:", "11 bytes: heard:"))
    assert answers[quiet].evidence.text == PROVEN


def test_an_empty_datagram_is_sent() -> None:
    with bound("127.0.0.1") as peer:
        peer.settimeout(10)
        chosen = wire.choose()
        chosen.send(chosen.open(Probe("x", "127.0.0.1", peer.getsockname()[1]), unconnected=False), b"")
        assert peer.recvfrom(100)[0] == b""
        chosen.shut()


def test_more_sockets_than_select_takes() -> None:
    """A thousand silent ports in flight at once; select() of Windows Python has 512."""
    tally = Tally()
    most = 0

    def probes(port: int) -> Iterator[Probe]:
        nonlocal most
        for _ in range(800):
            most = max(most, tally.in_flight)
            yield Probe("x", "127.0.0.1", port)

    with bound("127.0.0.1") as silent:
        limits = Limits(timeout_s=5.0, retries=0)
        answers = list(scan_udp(probes(silent.getsockname()[1]), limits, tally=tally))
    assert {answer.outcome for answer in answers} == {"open|filtered"}
    assert len(answers) == 800
    assert most > 512


def test_closing_leaves_no_socket() -> None:
    """A port that a probe was connected from can be bound again."""
    with bound("127.0.0.1") as silent:
        ports = itertools.cycle([silent.getsockname()[1], *free_ports("127.0.0.1", 1)])
        answers = scan_udp((Probe("x", "127.0.0.1", port) for port in ports), Limits())
        assert next(answers).outcome == "closed"
        silent.settimeout(10)
        _, sender = silent.recvfrom(2048)
        answers.close()
        again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        again.bind(("127.0.0.1", sender[1]))
        again.close()
