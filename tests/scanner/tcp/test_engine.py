"""The TCP engine against real sockets, on loopback and in network namespaces of the tests' own.

What is not marked runs under Windows Python too: tests/winlab.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count

import pytest

from portbook.probe import tcp
from portbook.probe.error_queue import QueuedError
from portbook.probe.initial_rto import NO_SYN_RETRANSMISSIONS, SIO_TCP_INITIAL_RTO, refuse_at_once
from portbook.probe.outcome import Answer
from portbook.probe.pacing import TokenBucket
from portbook.probe.request import Limits, Probe, ScanEvent, Tally
from portbook.resilience import BreakerSettings
from portbook.scanner.tcp import engine
from portbook.scanner.tcp.engine import scan_tcp
from portbook.scanner.tcp.loopback import Connector, Loopback
from portbook.scanner.tcp.poller import Poller
from portbook.scanner.tcp.proactor import Proactor
from tests.components import need
from tests.listeners import deaf, listening, peer_may_vanish, refusing

if sys.platform == "linux":
    from tests import netlab

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


# --- scanning -------------------------------------------------------------------------------------------------------


def of(address: str, ports: Iterable[int], zone: str | None = None) -> Iterator[Probe]:
    return (Probe(address, address, port, zone) for port in ports)


def scanned(probes: Iterable[Probe], limits: Limits | None = None, **more: object) -> dict[tuple[str, int], Answer]:
    """Every answer by place; no place may be answered twice."""
    answers = list(scan_tcp(probes, limits or Limits(), **more))
    found = {(answer.address, answer.port): answer for answer in answers}
    assert len(found) == len(answers)
    return found


def outcomes(found: dict[tuple[str, int], Answer]) -> Counter[str]:
    return Counter(answer.outcome for answer in found.values())


@pytest.fixture(scope="module")
def home() -> Iterator[contextlib.AbstractContextManager[object]]:
    """A network of the tests' own where possible: thousands of ports are probed, some of other processes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        yield contextlib.nullcontext()
        return
    with netlab.namespace() as space:
        yield space


@pytest.fixture(autouse=True)
def at_home(home) -> Iterator[None]:
    with home:
        yield


@pytest.fixture(params=["best"] if sys.platform == "win32" else ["best", "plain", "asyncio"])
def way(request, monkeypatch):
    """Every way to connect: with the short way over loopback, without, and as on Windows."""
    if request.param == "plain":
        monkeypatch.setattr("portbook.scanner.tcp.poller.tcp.LINUX", False)
    if request.param == "asyncio":
        monkeypatch.setattr(engine, "_transport", Proactor)
    return request.param


# --- loopback ------------------------------------------------------------------------------------------------------


def test_open_and_closed_on_both_families(way):
    with listening("127.0.0.1", "127.0.0.2", "::1", each=3) as places, refusing() as closed:
        found = scanned(probe for address, port in (*places, closed) for probe in of(address, [port]))
    assert {place for place, answer in found.items() if answer.outcome == "open"} == set(places)
    assert found[closed].outcome == "closed"
    assert found[closed].evidence.kind == "rst"
    assert all(found[place].evidence.kind == "syn-ack" and found[place].rtt_ms > 0 for place in places)
    assert all(answer.attempts == 1 for answer in found.values())


@linux
def test_a_full_queue_is_silence_and_not_closed(way):
    with deaf() as place, listening("127.0.0.1") as (other,):
        tally = Tally()
        found = scanned(of("127.0.0.1", [place[1], other[1]]), Limits(timeout_s=0.2), tally=tally)
    assert found[place].outcome == "filtered"
    assert (found[place].evidence.kind, found[place].attempts, found[place].rtt_ms) == ("silence", 2, None)
    assert found[other].outcome == "open"
    assert (tally.probed, tally.answered, tally.silent, tally.repeated, tally.open) == (2, 2, 1, 1, 1)


def test_a_listener_that_closes_at_once_is_open(way):
    """Accepted, then RST: SO_ERROR may be ECONNRESET by the time it is read."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(64)
        thread = threading.Thread(target=hang_up, args=(sock, 20))
        thread.start()
        outcome = {next(scan_tcp(of("127.0.0.1", [sock.getsockname()[1]]))).outcome for _ in range(20)}
        thread.join(30)
    assert outcome == {"open"}


def hang_up(sock: socket.socket, times: int) -> None:
    for _ in range(times):
        with peer_may_vanish():  # Windows: the peer was gone before it was accepted (10054), or since (10057)
            tcp.abort(sock.accept()[0])


def test_fifty_among_twenty_thousand(way):
    with listening("127.0.0.1", each=50) as places:
        first = min(*(port for _, port in places), 45_000)
        count = 20_000 if way == "best" and sys.platform == "linux" else 2000
        ports = sorted({*range(first, first + count), *(port for _, port in places)})
        found = scanned(of("127.0.0.1", ports))
    assert len(found) == len(ports)
    assert {place for place, answer in found.items() if answer.outcome == "open"} == set(places)
    assert outcomes(found)["closed"] == len(ports) - 50


@linux
def test_nothing_of_a_probe_remains(way):
    """No TIME_WAIT here, nothing readable but the end there."""
    with listening("127.0.0.1") as (place,):
        scanned(of(*[place[0], [place[1]]]))
        assert not [row for row in tcp_rows() if row[1] == place[1] or (row[2] == place[1] and row[3] != "0A")]


def tcp_rows() -> list[tuple[str, int, int, str]]:
    """Of /proc/net/tcp: local address, remote port, local port, state."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return [(row[1], int(row[2][-4:], 16), int(row[1][-4:], 16), row[3]) for row in rows]


# --- self-connects -------------------------------------------------------------------------------------------------


def narrow() -> netlab.Namespace:
    """A namespace with loopback, in which 4096 ports are chosen from: a scan of them meets its own often."""
    netlab.needed()
    space = netlab.Namespace()
    space.sysctl("net.ipv4.ip_local_port_range", "40000 44095")
    return space


EPHEMERAL = range(40_000, 44_096)


@linux
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("way", "scans"), [("best", 50), ("plain", 10), ("asyncio", 2)], indirect=["way"])
def test_nothing_is_open_where_nothing_listens(way, scans, address):
    with contextlib.closing(narrow()) as space, space:
        for _ in range(scans):
            found = scanned(of(address, EPHEMERAL))
            assert outcomes(found) == {"closed": len(EPHEMERAL)}


@linux
def test_naive_sockets_connect_to_themselves():
    """The namespace is one in which naive sockets do connect to themselves, and the engine's part detects it."""
    with contextlib.closing(narrow()) as space, space:
        seen = Counter(naive(port) for _ in range(20) for port in EPHEMERAL)
    assert seen[tcp.SELF_CONNECTED] > 0
    assert seen[tcp.OPEN] == 0


def naive(port: int) -> tcp.ConnectResult:
    with socket.socket() as sock:
        return tcp.established_result(sock) if sock.connect_ex(("127.0.0.1", port)) == 0 else tcp.CLOSED


@linux
def test_a_connector_probes_its_own_port_from_another():
    connector = Connector(socket.AF_INET)
    connector.connect([])
    own = connector.port
    assert own
    connector.close()
    with contextlib.closing(Loopback(workers=2)):
        found = scanned(of("127.0.0.1", [own] * 1))
    assert outcomes(found) == {"closed": 1}


# --- what the network says -----------------------------------------------------------------------------------------

# port: rule of the router, outcome, ICMP type and code over IPv4, over IPv6 (None: the rule is for IPv4)
ROUTER = {
    110: ("reject with icmpx type port-unreachable", "filtered", (3, 3), (1, 4)),
    111: ("reject with icmpx type admin-prohibited", "filtered", (3, 13), (1, 1)),
    112: ("reject with icmpx type host-unreachable", "unreachable", (3, 1), (1, 3)),
    113: ("reject with icmpx type no-route", "unreachable", (3, 0), (1, 0)),
    114: ("ip protocol tcp reject with icmp type net-prohibited", "filtered", (3, 9), None),
    115: ("ip protocol tcp reject with icmp type host-prohibited", "filtered", (3, 10), None),
    116: ("ip protocol tcp reject with icmp type prot-unreachable", "filtered", (3, 2), None),
}
SILENT, RESET, REJECTED, OPEN_PORT, CLOSED_PORT = 120, 121, 122, 130, 131


@pytest.fixture(scope="module")
def firewalled() -> Iterator[netlab.Lab]:
    """Client, router and target, with a rule for each way to say no."""
    with netlab.routed() as lab:
        for host in (lab.router, lab.target):
            host.sysctl("net.ipv4.icmp_ratelimit", 0)
            host.sysctl("net.ipv6.icmp.ratelimit", 0)
        rules = [f"tcp dport {port} {rule}" for port, (rule, *_) in ROUTER.items()]
        lab.router.nft(*rules, f"tcp dport {SILENT} drop", f"tcp dport {RESET} reject with tcp reset", hook="forward")
        lab.target.nft(f"tcp dport {REJECTED} reject with icmpx type admin-prohibited")
        with contextlib.ExitStack() as stack:
            with lab.target:
                stack.enter_context(listening("0.0.0.0", port=OPEN_PORT))
                stack.enter_context(listening(netlab.FAR_TARGET6, port=OPEN_PORT))
            yield lab


@linux
@pytest.mark.parametrize("version", [4, 6])
def test_icmp_of_a_router_is_kept_with_its_address(firewalled, version):
    target, router = (netlab.FAR_TARGET, netlab.ROUTER) if version == 4 else (netlab.FAR_TARGET6, netlab.ROUTER6)
    rows = {port: row for port, row in ROUTER.items() if row[version // 2] is not None}
    with firewalled.client:
        found = scanned(of(target, [*rows, SILENT, RESET, REJECTED, OPEN_PORT, CLOSED_PORT]))
    for port, row in rows.items():
        answer = found[target, port]
        evidence = answer.evidence
        assert (answer.outcome, evidence.kind) == (row[1], "icmp"), port
        assert (evidence.icmp_type, evidence.icmp_code) == row[version // 2], port
        assert evidence.sender == router
        assert answer.attempts == 1
    by_target = found[target, REJECTED]
    assert (by_target.outcome, by_target.evidence.sender) == ("filtered", target)
    plain = {port: found[target, port].outcome for port in (SILENT, RESET, OPEN_PORT, CLOSED_PORT)}
    assert plain == {SILENT: "filtered", RESET: "closed", OPEN_PORT: "open", CLOSED_PORT: "closed"}


@linux
def test_nmap_sees_the_same(firewalled):
    """Its SYN scan: the connect scan takes ICMP port unreachable for RST. It has no word for unreachable."""
    import shutil

    need(shutil.which("nmap") is not None, "nmap (package nmap)")
    ports = [*ROUTER, SILENT, RESET, REJECTED, OPEN_PORT, CLOSED_PORT]
    listed = ",".join(map(str, ports))
    text = firewalled.client.run("nmap", "-sS", "-Pn", "-n", "-p", listed, "-oG", "-", netlab.FAR_TARGET)
    line = next(line for line in text.splitlines() if "Ports:" in line)
    states = {}
    for entry in line.split("Ports: ")[1].split("\t")[0].split(", "):
        port, state = entry.split("/")[:2]
        states[int(port)] = state
    with firewalled.client:
        found = scanned(of(netlab.FAR_TARGET, ports))
    ours = {port: found[netlab.FAR_TARGET, port].outcome for port in ports}
    assert {port: "filtered" if outcome == "unreachable" else outcome for port, outcome in ours.items()} == states


@linux
def test_a_firewall_on_loopback_is_distinguished_from_a_closed_port():
    """Where the short way reads RST and the kernel keeps ICMP apart."""
    with netlab.namespace() as space:
        space.nft(
            "tcp dport 5 reject with icmpx type admin-prohibited",
            "tcp dport 6 reject with icmpx type port-unreachable",
            "tcp dport 7 drop",
            "tcp dport 8 reject with tcp reset",
        )
        with space:
            for address in ("127.0.0.1", "::1"):
                found = scanned(of(address, range(1, 200)), Limits(timeout_s=0.2))
                odd = {port: a.evidence.kind for (_, port), a in found.items() if a.evidence.kind != "rst"}
                assert odd == {5: "icmp", 6: "icmp", 7: "silence"}
                assert outcomes(found) == {"closed": 196, "filtered": 3}


@linux
def test_a_neighbour_that_does_not_answer_is_unreachable():
    """Linux tries to resolve it three times, a second each, then reports it itself (RFC 4861, ARP alike)."""
    with netlab.pair() as lab, lab.client:
        found = scanned(of("10.77.0.99", [80]), Limits(timeout_s=8))
    answer = found["10.77.0.99", 80]
    assert (answer.outcome, answer.evidence.kind, answer.evidence.sender) == ("unreachable", "icmp", netlab.CLIENT)


@linux
def test_without_a_route_nothing_is_sent():
    with netlab.namespace() as space, space:
        found = scanned(of("10.1.2.3", [80, 443]))
    assert {(a.outcome, a.evidence.error) for a in found.values()} == {("unreachable", "ENETUNREACH")}


@linux
def test_link_local_needs_its_interface():
    with netlab.pair() as lab:
        lab.target.run("ip", "address", "add", "fe80::77/64", "dev", "link0", "nodad")
        with lab.target, listening("::", port=80), lab.client:
            found = scanned([*of("fe80::77", [80, 81], "link0")])
            wrong = scanned(of("fe80::77", [80], "nosuch"))
    assert {port: a.outcome for (_, port), a in found.items()} == {80: "open", 81: "closed"}
    assert [(a.outcome, a.evidence.error) for a in wrong.values()] == [("error", "ENODEV")]


@linux
def test_without_loopback_nothing_is_reached_and_nothing_hangs():
    with netlab.namespace() as space:
        space.run("ip", "link", "set", "lo", "down")
        with space:
            tally = Tally()
            places = [*of("127.0.0.1", range(1, 30)), *of("::1", range(1, 30))]
            found = scanned(places, Limits(timeout_s=0.1, breaker=BreakerSettings(pause_s=0.1)), tally=tally)
    assert outcomes(found).keys().isdisjoint({"open", "closed"})
    assert len(found) + tally.skipped == len(places)


# --- losses --------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("seed", range(4))
def test_all_are_found_though_packets_get_lost(seed):
    """One packet in twenty, each way: what a single repetition would miss is one port in a hundred."""
    with netlab.pair(rtt_ms=20, loss=0.05, seed=seed) as lab, lab.target, contextlib.ExitStack() as stack:
        for port in range(1000, 2000, 10):
            stack.enter_context(listening("0.0.0.0", port=port))
        with lab.client:
            tally = Tally()
            found = scanned(of(netlab.TARGET, range(1000, 2000)), tally=tally)
    assert outcomes(found) == {"open": 100, "closed": 900}
    assert tally.repeated > 0


@linux
def test_a_firewall_and_a_distance():
    """950 of 1000 ports are dropped, 20 ms away: every answer as it is, with the settings of one who gives none."""
    with netlab.pair(rtt_ms=20) as lab:
        lab.target.nft("tcp dport 1050-1999 drop")
        with lab.target, contextlib.ExitStack() as stack:
            for port in range(1000, 1050, 5):
                stack.enter_context(listening("0.0.0.0", port=port))
            with lab.client:
                found = scanned(of(netlab.TARGET, range(1000, 2000)))
    assert outcomes(found) == {"open": 10, "closed": 40, "filtered": 950}
    assert all(answer.rtt_ms >= 20 for answer in found.values() if answer.outcome != "filtered")


# --- breaker -------------------------------------------------------------------------------------------------------

LIVE = ("10.79.0.7", "10.79.0.80", "10.79.0.130", "10.79.0.254")


@pytest.fixture
def network() -> Iterator[netlab.Lab]:
    """10.79.0.0/24, where four hosts answer and the others drop everything: all of them are one machine's."""
    with netlab.pair() as lab:
        lab.client.run("ip", "route", "add", "10.79.0.0/24", "via", netlab.TARGET)
        lab.target.run("ip", "route", "add", "local", "10.79.0.0/24", "dev", "lo")
        lab.target.nft(f"ip daddr {{ {', '.join(LIVE)} }} accept", "ip daddr 10.79.0.0/24 drop")
        yield lab


def whole_network(ports: Iterable[int]) -> Iterator[Probe]:
    return (Probe("10.79.0.0/24", f"10.79.0.{host}", port) for port in ports for host in range(256))


@linux
def test_dead_hosts_are_given_up(network):
    events: list[ScanEvent] = []
    tally = Tally()
    with network.target, listening("0.0.0.0", port=80), network.client:
        found = scanned(
            whole_network([80, *range(1000, 1099)]),
            Limits(timeout_s=0.2, breaker=BreakerSettings(pause_s=0.1, trials=2)),
            tally=tally,
            on_event=events.append,
        )
    for address in LIVE:
        mine = {port: answer.outcome for (host, port), answer in found.items() if host == address}
        assert mine == {80: "open"} | dict.fromkeys(range(1000, 1099), "closed")
    assert len(found) + tally.skipped == 256 * 100
    assert tally.skipped > 252 * 75
    assert outcomes(found)["open"] == 4
    opened = {event.address for event in events if event.text.startswith("closed to open")}
    assert len(opened) == 252
    assert opened.isdisjoint(LIVE)
    assert {event.kind for event in events} == {"breaker"}


@linux
def test_without_a_breaker_every_port_is_probed(network):
    events: list[ScanEvent] = []
    with network.client:
        found = scanned(whole_network(range(1000, 1003)), Limits(timeout_s=0.2, breaker=None), on_event=events.append)
    assert outcomes(found) == {"closed": 4 * 3, "filtered": 252 * 3}
    assert events == []


# --- limits --------------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def dropping() -> netlab.Namespace:
    """A namespace in which ports from 1000 on are silent."""
    netlab.needed()
    space = netlab.Namespace()
    space.nft("tcp flags & (syn | ack) == syn tcp dport 1000-65535 drop")  # not what comes back to our own ports
    return space


def with_few_descriptors(limit: int) -> tuple[Counter[str], int]:
    """In a process of its own: 100 silent ports and 99 closed ones; how many descriptors that took."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    most = 0
    outcomes: Counter[str] = Counter()
    for answer in scan_tcp(of("127.0.0.1", [*range(1, 100), *range(1000, 1100)]), Limits(timeout_s=0.1)):
        most = max(most, descriptors())
        outcomes[answer.outcome] += 1
    return outcomes, most


@linux
def test_sixty_four_descriptors_are_enough():
    with contextlib.closing(dropping()) as space:
        found, most = space.call(with_few_descriptors, 64)
    assert found == {"closed": 99, "filtered": 100}
    assert most <= 64


def with_descriptors_taken_away(limit: int) -> tuple[Counter[str], list[str]]:
    """The caller opens files while the scan runs, more than were left to it."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    events: list[ScanEvent] = []
    outcomes: Counter[str] = Counter()
    files: list[int] = []
    probes = of("127.0.0.1", [*range(1, 100), *range(1000, 1100)])
    for answer in scan_tcp(probes, Limits(timeout_s=0.1), on_event=events.append):
        outcomes[answer.outcome] += 1
        if len(files) < limit - 40:
            with contextlib.suppress(OSError):
                files.append(os.open("/dev/null", os.O_RDONLY))
    return outcomes, [event.kind for event in events]


@linux
def test_descriptors_may_be_taken_away():
    with contextlib.closing(dropping()) as space:
        found, events = space.call(with_descriptors_taken_away, 100)
    assert found == {"closed": 99, "filtered": 100}
    assert set(events) <= {"descriptors"}


@linux
def test_a_cancelled_scan_leaves_nothing(way):
    with contextlib.closing(dropping()) as space, space:
        before, threads = descriptors(), threading.active_count()
        answers = scan_tcp(of("127.0.0.1", [*range(1, 300), *range(1000, 1500)]), Limits(timeout_s=30))
        for _ in range(299):
            next(answers)
        if way != "asyncio":  # there, a task holds it
            assert descriptors() > before
        answers.close()
        assert (descriptors(), threading.active_count()) == (before, threads)
        assert list(answers) == []


@linux
def test_an_error_of_the_callers_stream_leaves_nothing(way):
    def broken() -> Iterator[Probe]:
        yield from of("127.0.0.1", range(1, 100))
        raise RuntimeError("the caller's")

    before = descriptors()
    with pytest.raises(RuntimeError, match="the caller's"):
        list(scan_tcp(broken()))
    assert descriptors() == before


def test_the_rate_is_kept(way):
    limits = Limits(rate=200.0)
    tally = Tally()
    began = time.perf_counter()
    for _ in scan_tcp(of("127.0.0.1", range(1, 101)), limits, tally=tally):
        assert tally.probed <= limits.rate * (time.perf_counter() - began) + TokenBucket(200.0, 0.0).burst + 1
    assert tally.probed == 100


@linux
def test_the_deadline_is_kept(way):
    events: list[ScanEvent] = []
    tally = Tally()
    read = count()
    with contextlib.closing(dropping()) as space, space:
        endless = (Probe("x", "127.0.0.1", 1000 + next(read) % 60_000) for _ in iter(int, 1))
        answers = list(scan_tcp(endless, Limits(deadline_s=0.5, concurrency=50), tally=tally, on_event=events.append))
    assert {answer.outcome for answer in answers} == {"timeout"}
    assert [event.kind for event in events] == ["deadline"]
    assert tally.in_flight == 0
    assert next(read) < 500


def test_a_stream_is_not_read_ahead(way):
    read = 0

    def stream() -> Iterator[Probe]:
        nonlocal read
        for port in range(1, 60_000):
            read += 1
            yield Probe("x", "127.0.0.1", port)

    answers = scan_tcp(stream(), Limits(concurrency=100))
    for _ in range(500):
        next(answers)
    answers.close()
    assert read <= 500 + 2 * 100


def test_more_than_select_can_hold(way):
    """select() of POSIX ends at descriptor 1023, that of Windows Python at 512 sockets."""
    with listening("127.0.0.1", each=5) as places:
        ports = sorted({port for _, port in places} | set(range(20_000, 22_000)))
        found = scanned(of("127.0.0.1", ports), Limits(concurrency=1500))
    assert {place for place, answer in found.items() if answer.outcome == "open"} >= set(places)


# --- parts ---------------------------------------------------------------------------------------------------------


def test_one_port_at_a_time():
    with listening("127.0.0.1", "::1") as places:
        for address, port in places:
            connection = tcp.connect(address, port)
            assert connection.result is tcp.OPEN
            assert connection.elapsed_s > 0
            connection.socket.close()
    connection = tcp.connect(*places[0])
    assert connection.result == tcp.errno_result(errno.ECONNREFUSED)
    assert connection.socket is None


@linux
def test_one_port_that_is_silent():
    with deaf() as place:
        connection = tcp.connect(*place, timeout_s=0.1)
    assert (connection.result.outcome, connection.result.evidence.kind, connection.socket) == (
        "filtered",
        "silence",
        None,
    )


def test_one_port_that_cannot_be_probed():
    connection = tcp.connect("fe80::1", 80, "nosuch")
    assert connection.result.outcome == "error"


@pytest.mark.parametrize(
    ("number", "sent", "outcome"),
    [
        (errno.ECONNREFUSED, True, "closed"),
        (errno.ECONNRESET, True, "open"),
        (errno.EACCES, True, "filtered"),
        (errno.EACCES, False, "error"),
        (errno.EHOSTUNREACH, False, "unreachable"),
        (errno.EADDRNOTAVAIL, False, "error"),
        (errno.EMFILE, False, "error"),
    ],
)
def test_errors_have_outcomes(number, sent, outcome):
    assert tcp.errno_result(number, sent=sent).outcome == outcome


def test_the_control_code_for_loopback_on_windows():
    """TCP_INITIAL_RTO_PARAMETERS: USHORT Rtt, UCHAR MaxSynRetransmissions, one byte of padding."""
    calls = []

    def ioctl(*arguments: object) -> int:
        calls.append(arguments)
        return -1  # refused: no matter

    with socket.socket() as sock:
        assert refuse_at_once(sock, ioctl) is False
        assert refuse_at_once(sock, lambda *_: 0) is True
        if sys.platform != "win32":
            assert refuse_at_once(sock) is False
    assert calls[0][1] == SIO_TCP_INITIAL_RTO == 0x98000011
    assert calls[0][2] == NO_SYN_RETRANSMISSIONS == b"\xff\xff\xfe\x00"
    assert calls[0][3] == 4


@linux
def test_icmp_that_came_too_late_corrects_a_refusal(monkeypatch):
    """The kernel may end the connect with ECONNREFUSED and queue why: that was no RST."""
    late = QueuedError(4, 3, 3, "127.0.0.1", 7, errno.ECONNREFUSED)
    monkeypatch.setattr("portbook.probe.error_queue.drain", lambda sock: [late])
    with contextlib.closing(narrow()) as space, space:
        found = scanned(of("127.0.0.1", range(1, 20)))
    odd = {port: (answer.outcome, answer.evidence.kind) for (_, port), answer in found.items() if port == 7}
    assert odd == {7: ("filtered", "icmp")}
    assert outcomes(found) == {"closed": 18, "filtered": 1}


@linux
@pytest.mark.parametrize("after", [1, 300, 5000])
def test_an_interrupt_leaves_nothing(after):
    """Ctrl-C in the middle of a batch: its sockets are closed, the threads end."""
    before, threads = descriptors(), threading.active_count()
    answers = scan_tcp(of("127.0.0.1", range(1, 20_000)))
    for _ in range(after):
        next(answers)
    with pytest.raises(KeyboardInterrupt):
        answers.throw(KeyboardInterrupt())
    assert (descriptors(), threading.active_count()) == (before, threads)


@linux
def test_an_interrupt_while_connecting_leaves_nothing(monkeypatch):
    before, threads = descriptors(), threading.active_count()
    walked = Connector.connect

    def interrupted(self: Connector, attempts: list) -> None:
        walked(self, attempts)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    monkeypatch.setattr(Connector, "connect", interrupted)
    with deaf() as place, pytest.raises(KeyboardInterrupt):
        list(scan_tcp(of("127.0.0.1", [place[1], *range(1, 1000)])))
    assert (descriptors(), threading.active_count()) == (before, threads)


@linux
def test_errors_of_workers_are_raised(monkeypatch):
    def broken(self: Connector, attempts: object) -> None:
        raise RuntimeError("in a thread")

    loopback = Loopback(workers=2)
    monkeypatch.setattr(loopback.workers[1], "connect", lambda attempts: broken(None, attempts))
    poller = Poller()
    poller._loopback.close()
    poller._loopback = loopback
    monkeypatch.setattr(engine, "_transport", lambda: poller)
    with pytest.raises(RuntimeError, match="in a thread"):
        list(scan_tcp(of("127.0.0.1", range(1, 1000))))
