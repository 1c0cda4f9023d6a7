"""What the kernel reports about an ICMP message, and what that means for a port."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys

import pytest

from portbook.probe.error_queue import QueuedError
from portbook.probe.outcome import Evidence
from portbook.probe.request import Probe
from portbook.scanner.udp.refusals import of_error, of_queued, refusal_outcome
from portbook.scanner.udp.wire import LoopWire, SelectorWire, Wire

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the error queue is Linux's")
TARGET, ROUTER, TARGET6, ROUTER6 = "10.0.0.2", "10.0.0.1", "fd00::2", "fd00::1"


def icmp(kind: int, code: int, sender: str) -> Evidence:
    return Evidence("icmp", icmp_type=kind, icmp_code=code, sender=sender)


@pytest.mark.parametrize(
    ("kind", "code", "outcome"),
    [
        (3, 0, "unreachable"),  # network unreachable
        (3, 1, "unreachable"),  # host unreachable
        (3, 3, "closed"),
        (3, 4, None),  # fragmentation needed: the packet is repeated
        (3, 9, "filtered"),
        (3, 10, "filtered"),
        (3, 13, "filtered"),
        (4, 0, None),  # source quench (deprecated by RFC 6633)
        (11, 0, "unreachable"),  # time exceeded: packets go in circles
    ],
)
def test_icmp_codes(kind: int, code: int, outcome: str | None) -> None:
    assert refusal_outcome(icmp(kind, code, TARGET), TARGET) == outcome


@pytest.mark.parametrize(
    ("kind", "code", "outcome"),
    [
        (1, 0, "unreachable"),  # no route
        (1, 1, "filtered"),
        (1, 3, "unreachable"),  # address unreachable
        (1, 4, "closed"),
        (1, 5, "filtered"),
        (1, 6, "filtered"),
        (2, 0, None),  # packet too big
        (3, 0, "unreachable"),
    ],
)
def test_icmpv6_codes(kind: int, code: int, outcome: str | None) -> None:
    assert refusal_outcome(icmp(kind, code, TARGET6), TARGET6) == outcome


@pytest.mark.parametrize(
    ("evidence", "address"),
    [(icmp(3, 3, ROUTER), TARGET), (icmp(1, 4, ROUTER6), TARGET6), (icmp(1, 4, ROUTER), TARGET6)],
)
def test_port_unreachable_from_another_host_is_a_filter(evidence: Evidence, address: str) -> None:
    assert refusal_outcome(evidence, address) == "filtered"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ("ECONNREFUSED", "closed"),
        ("WSAECONNRESET", "closed"),
        ("WSAECONNREFUSED", "closed"),
        ("ERROR_CONNECTION_REFUSED", "closed"),
        ("ERROR_PORT_UNREACHABLE", "closed"),
        ("EHOSTUNREACH", "unreachable"),
        ("ENETUNREACH", "unreachable"),
        ("ERROR_HOST_UNREACHABLE", "unreachable"),
        ("WSAENETUNREACH", "unreachable"),
        ("EMSGSIZE", None),
        ("EACCES", "error"),
        (None, "error"),
    ],
)
def test_error_numbers(error: str | None, outcome: str | None) -> None:
    assert refusal_outcome(Evidence("errno", error=error), TARGET) == outcome


@pytest.mark.parametrize("number", [1225, 1234, 10054, 10061])
def test_windows_numbers_of_a_closed_port(number: int) -> None:
    error = OSError(errno.EINVAL, "as Windows says it")
    error.winerror = number  # type: ignore[attr-defined, unused-ignore]  # which exists on Windows only
    evidence = of_error(error)
    assert evidence.errno == number
    assert refusal_outcome(evidence, TARGET) == "closed"


def test_a_queued_error_is_evidence() -> None:
    assert of_queued(QueuedError(4, 3, 13, ROUTER, 53, errno.EHOSTUNREACH)) == Evidence(
        "icmp", errno.EHOSTUNREACH, "EHOSTUNREACH", 3, 13, ROUTER
    )
    own = of_queued(QueuedError(None, 0, 0, None, 53, errno.EMSGSIZE))
    assert (own.kind, own.error, own.sender) == ("errno", "EMSGSIZE", None)


# --- the three cases, on this machine ----------------------------------------------------------------------------


def selector_loop() -> LoopWire:
    """As on Windows, with a loop that exists everywhere."""
    return LoopWire(asyncio.SelectorEventLoop())


WIRES = [
    pytest.param(SelectorWire, marks=LINUX, id="error-queue"),
    pytest.param(lambda: SelectorWire(keeps_errors=False), id="errno"),
    pytest.param(selector_loop, id="loop"),
]
LOOPBACK = pytest.mark.parametrize("address", ["127.0.0.1", "::1"])


def bound(address: str) -> socket.socket:
    peer = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind((address, 0))
    peer.settimeout(10)
    return peer


def receive(wire: Wire) -> list[object]:
    for _ in range(20):
        if arrivals := wire.receive(0.5):
            return [received.signal for received in arrivals]
    return []


@pytest.mark.parametrize("make", WIRES)
@LOOPBACK
def test_a_reply_is_heard(make, address) -> None:
    wire = make()
    with bound(address) as peer:
        handle = wire.open(Probe("x", address, peer.getsockname()[1]), unconnected=False)
        wire.send(handle, b"question")
        question, sender = peer.recvfrom(100)
        peer.sendto(b"answer", sender)
        assert question == b"question"
        assert receive(wire) == [b"answer"]
    wire.shut()


@pytest.mark.parametrize("make", WIRES)
@LOOPBACK
def test_an_empty_datagram_is_sent(make, address) -> None:
    wire = make()
    with bound(address) as peer:
        wire.send(wire.open(Probe("x", address, peer.getsockname()[1]), unconnected=False), b"")
        assert peer.recvfrom(100)[0] == b""
        wire.send(wire.open(Probe("x", address, peer.getsockname()[1]), unconnected=True), b"")
        assert peer.recvfrom(100)[0] == b""
    wire.shut()


@pytest.mark.parametrize("make", WIRES)
@LOOPBACK
def test_a_refusal_is_heard(make, address) -> None:
    with bound(address) as peer:
        port = peer.getsockname()[1]
    wire = make()
    wire.send(wire.open(Probe("x", address, port), unconnected=False), b"question")
    (signal,) = receive(wire)
    assert isinstance(signal, Evidence)
    assert refusal_outcome(signal, address) == "closed"
    wire.shut()


@LINUX
@LOOPBACK
def test_the_error_queue_serves_sockets_that_are_not_connected(address) -> None:
    with bound(address) as peer:
        port = peer.getsockname()[1]
    wire = SelectorWire()
    assert not wire.misses_icmp_when_unconnected
    wire.send(wire.open(Probe("x", address, port), unconnected=True), b"question")
    (signal,) = receive(wire)
    assert isinstance(signal, Evidence)
    assert (signal.kind, signal.sender) == ("icmp", address)
    wire.shut()


@pytest.mark.parametrize("make", WIRES)
@LOOPBACK
def test_an_answer_from_another_port_reaches_an_unconnected_socket_only(make, address) -> None:
    wire = make()
    with bound(address) as peer, bound(address) as other:
        probe = Probe("x", address, peer.getsockname()[1])
        handles = [wire.open(probe, unconnected=False), wire.open(probe, unconnected=True)]
        for handle in handles:
            wire.send(handle, b"question")
            _, sender = peer.recvfrom(100)
            other.sendto(b"answer", (address, *sender[1:]))
        arrivals = [received for _ in range(4) for received in wire.receive(0.05)]
    assert [(received.handle, received.signal) for received in arrivals] == [(handles[1], b"answer")]
    wire.shut()


@pytest.mark.parametrize("make", WIRES)
def test_a_stranger_is_not_heard_on_an_unconnected_socket(make) -> None:
    wire = make()
    with bound("127.0.0.1") as peer, bound("127.0.0.2") as stranger:
        wire.send(wire.open(Probe("x", "127.0.0.1", peer.getsockname()[1]), unconnected=True), b"question")
        _, sender = peer.recvfrom(100)
        stranger.sendto(b"lie", sender)
        peer.sendto(b"answer", sender)
        assert receive(wire) == [b"answer"]
    wire.shut()


@pytest.mark.skipif(sys.platform == "win32", reason="counts descriptors")
@pytest.mark.parametrize("make", WIRES)
def test_nothing_is_left_open(make) -> None:
    before = os.listdir("/dev/fd")
    wire = make()
    handles = [wire.open(Probe("x", "127.0.0.1", port), unconnected=port == 9) for port in range(1, 10)]
    wire.close(handles[0])
    wire.shut()
    assert os.listdir("/dev/fd") == before
