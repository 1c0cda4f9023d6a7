"""The engine's loop against hosts that exist in memory only, on a clock that only sending and waiting turn."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count, islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portbook.probe.descriptors import WINDOW
from portbook.probe.outcome import Answer, Evidence
from portbook.probe.request import Limits, Probe, ScanEvent, Tally
from portbook.scanner.udp import schedule as udp
from portbook.scanner.udp.engine import LATE_S, turn
from portbook.scanner.udp.payloads import PAYLOADS
from portbook.scanner.udp.refusals import PROOF_S
from portbook.scanner.udp.schedule import LIMITED, TIME_UP, UdpSchedule
from portbook.scanner.udp.sockets import Sockets
from portbook.scanner.udp.state import NEIGHBOUR_S, PROVEN, STOPPED_REFUSING
from portbook.scanner.udp.wire import Received, Signal

DEFAULTS = Limits()
ADDRESS, ADDRESS6, OTHER, NOBODY = "10.0.0.2", "fd00::2", "10.0.0.3", "10.0.0.98"
SEND_S = 15e-6  # what opening a socket and sending a datagram take
RTT_S = 0.0005
REPLY = b"something of its own"
NO_HOST = Evidence("icmp", errno.EHOSTUNREACH, "EHOSTUNREACH", 3, 1, "10.0.0.1")
ONE_IN_6 = 6  # XRLIM_BURST_FACTOR

# What a datagram brings, and after how many seconds; None: nothing. An OSError is raised by the send.
Network = Callable[[Probe, bytes, float], "tuple[Signal, float] | OSError | None"]


def port_unreachable(address: str, sender: str | None = None) -> Evidence:
    kind, code = (1, 4) if ":" in address else (3, 3)
    return Evidence("icmp", errno.ECONNREFUSED, "ECONNREFUSED", kind, code, sender or address)


class Kernel:
    """A Linux host that limits how many ports it refuses: one each ``every_s``, six at once.

    net/ipv4/inetpeer.c, inet_peer_xrlim_allow(): the tokens are time; a new peer finds those of a minute.
    """

    def __init__(
        self,
        *,
        every_s: float = 0.0,
        opened: Iterable[int] = (),
        silent: Iterable[int] = (),
        rtt_s: float = RTT_S,
    ) -> None:
        self.refused_at: list[float] = []
        self._every_s = every_s
        self._opened, self._silent = frozenset(opened), frozenset(silent)
        self._rtt_s = rtt_s
        self._tokens_s = 0.0
        self._last = -60.0

    def __call__(self, probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        if probe.port in self._silent:
            return None
        if probe.port in self._opened:
            return REPLY, self._rtt_s
        if not self._may_refuse(now):
            return None
        self.refused_at.append(now)
        return port_unreachable(probe.address), self._rtt_s

    def _may_refuse(self, now: float) -> bool:
        self._tokens_s = min(ONE_IN_6 * self._every_s, self._tokens_s + now - self._last)
        self._last = now
        if self._tokens_s < self._every_s:
            return False
        self._tokens_s -= self._every_s
        return True


def silence(probe: Probe, data: bytes, now: float) -> None:
    return None


class FakeWire:
    """A Wire to a Network; time passes only here."""

    def __init__(
        self, network: Network, descriptors: int = 10**9, *, misses_icmp_when_unconnected: bool = False
    ) -> None:
        self.misses_icmp_when_unconnected = misses_icmp_when_unconnected
        self.now = 1000.0
        self.sent: list[tuple[float, Probe, bytes]] = []
        self.most_open = 0
        self.descriptors = descriptors
        self.open_sockets: dict[int, tuple[Probe, bool]] = {}
        self._network = network
        self._arriving: list[tuple[float, int, int, Signal]] = []
        self._numbers = count()

    def clock(self) -> float:
        return self.now

    def open(self, probe: Probe, unconnected: bool) -> int:
        if len(self.open_sockets) >= self.descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        handle = next(self._numbers)
        self.open_sockets[handle] = probe, unconnected
        self.most_open = max(self.most_open, len(self.open_sockets))
        return handle

    def send(self, handle: int, data: bytes) -> None:
        probe, _ = self.open_sockets[handle]
        self.now += SEND_S
        result = self._network(probe, data, self.now)
        if isinstance(result, OSError):
            raise result
        self.sent.append((self.now, probe, data))
        if result is not None:
            signal, delay_s = result
            heappush(self._arriving, (self.now + delay_s, next(self._numbers), handle, signal))

    def receive(self, wait_s: float) -> list[Received]:
        assert wait_s >= 0
        until = self.now + wait_s
        if self._arriving:
            until = max(self.now, min(until, self._arriving[0][0]))
        self.now = until + 1e-6  # a system is never early
        arrivals = []
        while self._arriving and self._arriving[0][0] <= self.now:
            _, _, handle, signal = heappop(self._arriving)
            if handle in self.open_sockets:
                arrivals.append(Received(handle, signal))
        return arrivals

    def close(self, handle: int) -> None:
        del self.open_sockets[handle]

    def shut(self) -> None:
        self.open_sockets.clear()


class Scan:
    """One scan of a Network, a turn at a time or to its end."""

    def __init__(
        self,
        probes: Iterable[Probe],
        network: Network,
        limits: Limits = DEFAULTS,
        *,
        window: int = WINDOW,
        descriptors: int = 10**9,
        misses_icmp_when_unconnected: bool = False,
    ) -> None:
        self.wire = FakeWire(network, descriptors, misses_icmp_when_unconnected=misses_icmp_when_unconnected)
        self.sockets = Sockets(self.wire)
        self.tally = Tally()
        self.events: list[ScanEvent] = []
        self.began = self.wire.now
        self.schedule = UdpSchedule(probes, limits, window, self.began, tally=self.tally, on_event=self.events.append)

    def answers(self) -> Iterator[Answer]:
        idle_turns = 0
        while not self.schedule.finished:
            before = self.wire.now
            turn(self.schedule, self.sockets, self.wire.clock)
            idle_turns = 0 if self.wire.now > before + 1e-5 else idle_turns + 1
            assert idle_turns < 1000, "the engine spins"
            assert self.wire.now - self.began < 1e6, "the scan does not end"
            answers, self.schedule.answers = self.schedule.answers, []
            yield from answers

    @property
    def elapsed_s(self) -> float:
        return self.wire.now - self.began


def run(
    probes: Iterable[Probe], network: Network, limits: Limits = DEFAULTS, **options
) -> tuple[dict[int, Answer], Scan]:
    """Scan to the end: the answer of each port, which are all of one host."""
    scan = Scan(probes, network, limits, **options)
    answers = list(scan.answers())
    by_port = {answer.port: answer for answer in answers}
    assert len(by_port) == len(answers)
    return by_port, scan


def probes(ports: Iterable[int], address: str = ADDRESS) -> Iterator[Probe]:
    return (Probe(address, address, port) for port in ports)


def outcomes(answers: dict[int, Answer]) -> dict[int, str]:
    return {port: answer.outcome for port, answer in answers.items()}


# --- what every scan keeps -----------------------------------------------------------------------------------------

KINDS = st.sampled_from(["open", "slow", "closed", "limited", "silent", "unreachable", "filtered", "denied", "late"])


@settings(max_examples=60, deadline=None)
@given(
    hosts=st.integers(1, 5),
    ports=st.integers(1, 40),
    kinds=st.lists(KINDS, min_size=1, max_size=9),
    window=st.integers(1, 50),
    retries=st.integers(0, 3),
    rate=st.sampled_from([None, 10.0, 300.0]),
    descriptors=st.sampled_from([3, 10, 10**9]),
    deadline_s=st.sampled_from([None, None, 0.3, 5.0]),
)
def test_every_probe_has_one_end(hosts, ports, kinds, window, retries, rate, descriptors, deadline_s) -> None:
    limiting = [Kernel(every_s=0.1) for _ in range(hosts)]

    def kind(probe: Probe) -> str:
        return kinds[probe.port % len(kinds)]

    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | OSError | None:
        if kind(probe) == "limited":
            return limiting[int(probe.address.rpartition(".")[2])](probe, data, now)
        results = {
            "open": (REPLY, RTT_S),
            "slow": (REPLY, 0.6),
            "closed": (port_unreachable(probe.address), RTT_S),
            "silent": None,
            "unreachable": (NO_HOST, 3.06),
            "filtered": (port_unreachable(probe.address, "10.0.0.254"), RTT_S),
            "denied": OSError(errno.EPERM, "denied"),
            "late": (port_unreachable(probe.address), 0.9),
        }
        return results[kind(probe)]

    stream = (Probe("net", f"10.0.0.{host}", port) for port in range(2000, 2000 + ports) for host in range(hosts))
    limits = Limits(retries=retries, rate=rate, deadline_s=deadline_s)
    scan = Scan(stream, network, limits, window=window, descriptors=descriptors)
    answers = list(scan.answers())
    places = [(answer.address, answer.port) for answer in answers]
    assert len(set(places)) == len(places)
    assert scan.tally.answered == len(places)
    assert scan.tally.in_flight <= scan.wire.most_open
    assert scan.wire.most_open <= min(max(window, 2), descriptors)
    expected = {
        "open": {"open"},
        "slow": {"open", "open|filtered", "unreachable"},
        "closed": {"closed"},
        "limited": {"closed", "open|filtered", "unreachable"},
        "silent": {"open|filtered", "unreachable"},
        "unreachable": {"unreachable", "open|filtered"},
        "filtered": {"filtered"},
        "denied": {"error"},
        "late": {"closed", "open|filtered", "unreachable"},
    }
    for answer in answers:
        of_port = expected[kinds[answer.port % len(kinds)]]
        assert answer.outcome in of_port | ({"open|filtered"} if deadline_s is not None else set())
    assert scan.tally.open == sum(answer.outcome == "open" for answer in answers)
    if deadline_s is None:
        assert len(places) == hosts * ports
        assert scan.tally.skipped == 0
    else:
        assert scan.elapsed_s < deadline_s + 0.1
        assert len(places) + scan.tally.skipped <= hosts * ports
    if rate is not None:
        datagrams = [at for at, _, _ in scan.wire.sent]
        for number, at in enumerate(datagrams, 1):
            assert number <= rate * (at - scan.began) + 1 + 40  # a group with its control may overdraw


def test_every_port_is_answered_at_full_speed_where_nothing_is_limited() -> None:
    answers, scan = run(probes(range(1, 20_001)), Kernel(rtt_s=0.0001))
    assert Counter(outcomes(answers).values()) == {"closed": 20_000}
    assert (scan.tally.probed, scan.tally.answered, scan.tally.in_flight, scan.tally.repeated) == (20_000, 20_000, 0, 0)
    assert scan.elapsed_s < 1.0


# --- a limit of refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "every_s"),
    [
        (ADDRESS, 1.0),  # the default of net.ipv4.icmp_ratelimit
        (ADDRESS, 0.1),
        (ADDRESS6, 0.1),  # the default of net.ipv6.icmp.ratelimit
    ],
)
def test_a_rate_limit_of_refusals_is_waited_for(address, every_s) -> None:
    """More than a hundred closed ports of a host that limits its refusals, and silent ones among them."""
    kernel = Kernel(every_s=every_s, opened=[53], silent=range(3050, 3060))
    answers, scan = run(probes([*range(3000, 3120), 53], address), kernel)
    expected = dict.fromkeys(range(3000, 3120), "closed") | dict.fromkeys(range(3050, 3060), "open|filtered")
    assert outcomes(answers) == {53: "open"} | expected
    assert {answers[port].evidence.text for port in range(3050, 3060)} == {PROVEN}
    assert ("rate-limit", address) in {(event.kind, event.address) for event in scan.events}
    # The host could have refused all of them in so long; a proof costs a refusal, so that twice as long is good.
    assert 104 * every_s < scan.elapsed_s < 2 * 110 * every_s


def test_open_ports_are_known_before_the_limit_is_waited_for() -> None:
    scan = Scan(probes([*range(3000, 3120), 53]), Kernel(every_s=1.0, opened=[53]))
    for answer in scan.answers():
        if answer.port == 53:
            break
    assert scan.elapsed_s < 0.1


def test_silence_at_the_deadline_mentions_the_limit() -> None:
    answers, scan = run(probes(range(3000, 3120)), Kernel(every_s=1.0), Limits(deadline_s=2.0))
    silent = [answer for answer in answers.values() if answer.outcome == "open|filtered"]
    assert len(answers) == 120
    assert len(silent) > 60
    assert {answer.evidence.text for answer in silent} == {LIMITED}
    assert [event.kind for event in scan.events].count("deadline") == 1
    assert scan.tally.silent == len(silent)
    assert scan.elapsed_s == pytest.approx(2.0, abs=0.01)


def test_a_host_that_stops_refusing_is_given_up() -> None:
    answers, scan = run(probes(range(3000, 3030)), Kernel(every_s=20.0))  # a new peer finds three
    counts = Counter((answer.outcome, answer.evidence.text) for answer in answers.values())
    assert set(counts) == {("closed", None), ("open|filtered", STOPPED_REFUSING)}
    assert counts["closed", None] < 10
    assert scan.elapsed_s < 20


def test_silent_ports_that_wait_do_not_pile_up(monkeypatch) -> None:
    """Endless ports of a host that refuses one a second: reading ahead has its limit."""
    monkeypatch.setattr(udp, "BUFFER", 500)
    read = count()
    stream = (Probe("x", ADDRESS, 3000 + next(read) % 50000) for _ in count())
    answers = list(Scan(stream, Kernel(every_s=1.0), Limits(deadline_s=3.0)).answers())
    assert 500 <= len(answers) <= next(read) < 500 + 2 * WINDOW


# --- silence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [ADDRESS, ADDRESS6])
def test_silence_is_never_closed(address) -> None:
    answers, scan = run(probes(range(2000, 2020), address), silence, Limits(timeout_s=0.3))
    assert set(outcomes(answers).values()) == {"open|filtered"}
    assert {(a.evidence.kind, a.evidence.text, a.attempts, a.rtt_ms) for a in answers.values()} == {
        ("silence", None, 2, None)
    }
    tally = scan.tally
    assert (tally.probed, tally.repeated, tally.silent, tally.answered) == (20, 20, 20, 20)


def test_silence_is_proven_by_ports_that_are_refused() -> None:
    answers, _ = run(probes([*range(2000, 2010), *range(3000, 3030)]), Kernel(silent=range(2000, 2010)))
    silent, closed = dict.fromkeys(range(2000, 2010), "open|filtered"), dict.fromkeys(range(3000, 3030), "closed")
    assert outcomes(answers) == silent | closed
    assert {answers[port].evidence.text for port in range(2000, 2010)} == {PROVEN}


def test_silence_counts_only_with_a_proof() -> None:
    """The port of the control is refused only now and then: each attempt that it does not prove is repeated."""
    controls = count()

    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        if probe.port == 2000 or (next(controls) % 3 and now > 1000.001):
            return None
        return port_unreachable(probe.address), RTT_S

    answers, scan = run(probes([3000, 2000]), network, Limits(retries=0))
    sent = [at for at, probe, _ in scan.wire.sent if probe.port == 2000]
    assert answers[2000].evidence.text == PROVEN
    assert answers[2000].attempts == len(sent) > 1
    assert any(sent[-1] <= at <= sent[-1] + PROOF_S for at, probe, _ in scan.wire.sent if probe.port == 3000)


def test_the_deadline_of_a_silent_host() -> None:
    answers, scan = run(probes(range(2000, 2010)), silence, Limits(deadline_s=0.5))
    assert {(a.outcome, a.evidence.text) for a in answers.values()} == {("open|filtered", TIME_UP)}
    assert scan.elapsed_s == pytest.approx(0.5, abs=0.01)


def test_the_deadline_ends_the_reading_of_replies(monkeypatch) -> None:
    """A thousand services reply, and each reply takes 50 ms to be understood."""
    scan = Scan(probes(range(1, 1001)), lambda *_: (REPLY, 0.5), Limits(deadline_s=2.0), window=1000)
    replied = scan.schedule.replied

    def slowly(port, reply, now) -> None:
        scan.wire.now += 0.05
        replied(port, reply, now)

    monkeypatch.setattr(scan.schedule, "replied", slowly)
    answers = list(scan.answers())
    assert scan.elapsed_s < 2.0 + LATE_S + 0.1
    assert 10 < sum(answer.outcome == "open" for answer in answers) < 100
    assert len(answers) + scan.tally.skipped == 1000


def test_the_timeouts_of_a_silent_host() -> None:
    """A second without a measurement (RFC 6298 2.1), then what is left until the kernel has given up a neighbour."""
    _, scan = run(probes([2000]), silence)
    first, second = (at for at, _, _ in scan.wire.sent)
    assert second - first == pytest.approx(1.0, abs=0.01)
    assert scan.elapsed_s == pytest.approx(NEIGHBOUR_S, abs=0.01)


def test_a_timeout_of_the_callers_is_kept() -> None:
    _, scan = run(probes(range(2000, 2010)), silence, Limits(timeout_s=0.25, retries=1))
    assert scan.elapsed_s == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_a_silent_port_is_probed_as_often_as_the_limits_say(retries) -> None:
    answers, _ = run(probes([2000, 3000]), Kernel(silent=[2000]), Limits(retries=retries))
    assert answers[2000].attempts == retries + 1


def test_a_reply_to_the_first_attempt_counts_during_the_second() -> None:
    """A service may take longer than the time between two attempts; its socket is kept open meanwhile."""

    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        return (REPLY, 0.5) if probe.port == 4000 else (port_unreachable(probe.address), RTT_S)

    answers, _ = run(probes([4000, 9]), network)
    assert (answers[4000].outcome, answers[4000].attempts) == ("open", 2)


def test_a_reply_while_a_retry_waits_counts() -> None:
    """The host is limited, so that the retry has to wait for its turn."""
    kernel = Kernel(every_s=1.0)

    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        return (REPLY, 0.6) if probe.port == 4000 else kernel(probe, data, now)

    answers, _ = run(probes([*range(3000, 3030), 4000]), network)
    assert answers[4000].outcome == "open"
    assert answers[4000].rtt_ms == pytest.approx(600, abs=1) or answers[4000].attempts > 1


def test_lost_packets_are_noticed_and_made_up_for() -> None:
    """One in twenty is lost each way: of a hundred open ports and two hundred closed ones none is missed."""
    chance = Random(1)
    opened = range(2000, 2300, 3)

    def lossy(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        lost = chance.random() < 0.05 or chance.random() < 0.05
        return None if lost else kernel(probe, data, now)

    for _ in range(20):
        kernel = Kernel(opened=opened, rtt_s=0.02)
        answers, _ = run(probes(range(2000, 2300)), lossy)
        assert outcomes(answers) == {port: "open" if port in opened else "closed" for port in range(2000, 2300)}


def test_an_answer_to_another_request_is_not_taken_for_a_lost_packet() -> None:
    """An unlisted port is first sent an empty datagram. Silence of other ports needs no more attempts for it."""

    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        if probe.port == 2000 or (probe.port == 4000 and not data):
            return None
        return (REPLY if probe.port == 4000 else port_unreachable(probe.address)), RTT_S

    answers, _ = run(probes([4000, 2000, 161]), network)
    assert {port: (a.outcome, a.attempts) for port, a in answers.items()} == {
        161: ("closed", 1),
        2000: ("open|filtered", 2),
        4000: ("open", 2),
    }


# --- other hosts ---------------------------------------------------------------------------------------------------


def test_several_hosts_at_once() -> None:
    kernels = {ADDRESS: Kernel(), OTHER: Kernel(silent=range(3000, 3010))}

    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        kernel = kernels.get(probe.address)
        return (NO_HOST, 3.06) if kernel is None else kernel(probe, data, now)

    stream = [Probe("x", address, port) for port in range(3000, 3020) for address in (ADDRESS, OTHER, NOBODY)]
    answers = list(Scan(stream, network).answers())
    expected = dict.fromkeys(((ADDRESS, port) for port in range(3000, 3020)), "closed")
    expected |= dict.fromkeys(((NOBODY, port) for port in range(3000, 3020)), "unreachable")
    expected |= {(OTHER, port): "open|filtered" if port < 3010 else "closed" for port in range(3000, 3020)}
    assert {(a.address, a.port): a.outcome for a in answers} == expected


def test_a_limited_host_does_not_hold_up_the_others() -> None:
    kernels = {ADDRESS: Kernel(every_s=1.0), OTHER: Kernel(silent=range(3000, 3010))}
    scan = Scan(
        [Probe("x", address, port) for port in range(3000, 3060) for address in (ADDRESS, OTHER)],
        lambda probe, data, now: kernels[probe.address](probe, data, now),
    )
    done_at = {}
    for answer in scan.answers():
        done_at[answer.address] = scan.elapsed_s
    assert done_at[OTHER] < 2 < 50 < done_at[ADDRESS]


def test_unreachable_is_not_believed_of_a_host_that_has_replied() -> None:
    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        if probe.port == 4000:
            return REPLY, RTT_S
        return (NO_HOST, 0.1) if probe.port == 2000 else None

    answers, _ = run(probes([4000, 2000, 2001]), network)
    assert outcomes(answers) == {4000: "open", 2000: "unreachable", 2001: "open|filtered"}


def test_hosts_that_are_done_are_forgotten() -> None:
    stream = (Probe("net", f"10.0.{host >> 8}.{host & 255}", 9) for host in range(30_000))
    scan = Scan(stream, Kernel())
    for _ in scan.answers():
        assert len(scan.schedule._hosts) < 9000


# --- bounds --------------------------------------------------------------------------------------------------------


def test_endless_probes_are_read_as_they_are_sent() -> None:
    """What a port leaves behind is gone soon after its answer: 15,000 more take no more memory."""
    read = count()
    stream = (Probe("x", ADDRESS, 3000 + next(read) % 20000) for _ in count())
    scan = Scan(stream, Kernel(rtt_s=0.0001), Limits())
    answers = scan.answers()
    tracemalloc.start()
    try:
        deque(islice(answers, 5_000), maxlen=0)
        scan.wire.sent.clear()
        before, _ = tracemalloc.get_traced_memory()
        deque(islice(answers, 15_000), maxlen=0)
        scan.wire.sent.clear()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2_500_000
    assert next(read) - 20_000 < 5000


def test_no_more_are_in_flight_than_the_window_allows() -> None:
    tally_in_flight = []

    def stream() -> Iterator[Probe]:
        for probe in probes(range(2000, 2050)):
            tally_in_flight.append(scan.tally.in_flight)
            yield probe

    scan = Scan(stream(), silence, Limits(timeout_s=0.1, retries=0), window=10)
    assert len(list(scan.answers())) == 50
    assert max(tally_in_flight) <= 10
    assert scan.wire.most_open <= 10


def test_the_rate_is_kept() -> None:
    scan = Scan(probes(range(2000, 2900)), silence, Limits(rate=20, deadline_s=1))
    deque(scan.answers(), maxlen=0)
    assert 1 <= len(scan.wire.sent) <= 22  # in a second, and the first at once
    assert scan.tally.probed + scan.tally.repeated == len(scan.wire.sent)


def test_the_rate_is_kept_with_retries() -> None:
    scan = Scan(probes(range(2000, 2020)), silence, Limits(rate=20, timeout_s=0.1, retries=2))
    deque(scan.answers(), maxlen=0)
    for number, (at, _, _) in enumerate(scan.wire.sent, 1):
        assert number <= 20 * (at - scan.began) + 1.01


# --- shortage ------------------------------------------------------------------------------------------------------


def test_descriptors_that_run_out_during_the_scan() -> None:
    scan = Scan(probes(range(30000, 32000)), Kernel(rtt_s=0.01), descriptors=20)
    counts = Counter(answer.outcome for answer in scan.answers())
    assert counts == {"closed": 2000}
    assert {event.kind for event in scan.events} == {"descriptors"}
    assert scan.schedule.window == 20


def test_without_any_descriptor_every_port_is_an_error() -> None:
    answers, scan = run(probes(range(30000, 30010)), silence, descriptors=0)
    assert {(a.outcome, a.evidence.error) for a in answers.values()} == {("error", "EMFILE")}
    assert scan.wire.sent == []


def test_a_full_buffer_of_the_kernel_passes() -> None:
    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | OSError:
        if probe.port != 9 and now < 1000.2:
            return OSError(errno.ENOBUFS, "no buffer")
        return port_unreachable(probe.address), 0.3

    answers, _ = run(probes([9, 3000, 3001]), network)
    assert set(outcomes(answers).values()) == {"closed"}


def test_a_full_buffer_of_the_kernel_that_does_not_pass_is_an_error() -> None:
    """Silent ports whose sockets are kept for late replies: each seems to leave hope for the others."""

    def network(probe: Probe, data: bytes, now: float) -> OSError | None:
        return OSError(errno.ENOBUFS, "no buffer") if now > 1000.5 else None

    answers, scan = run(probes(range(2000, 2010)), network)
    assert {(answer.outcome, answer.evidence.error) for answer in answers.values()} == {("error", "ENOBUFS")}
    assert 10 < scan.elapsed_s < 15


# --- which socket --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("misses_icmp", "expected"), [(False, [True]), (True, [False, True])])
def test_the_reply_of_another_port_needs_an_unconnected_socket(misses_icmp, expected) -> None:
    """Where such a socket misses refusals, the first attempt uses a connected one (macOS, Windows)."""
    modes = []

    def network(probe: Probe, data: bytes, now: float) -> tuple[Signal, float] | None:
        (unconnected,) = [mode for sock, mode in scan.wire.open_sockets.values() if sock == probe]
        modes.append(unconnected)
        return (REPLY, RTT_S) if unconnected else None

    scan = Scan(probes([69]), network, misses_icmp_when_unconnected=misses_icmp)
    (answer,) = scan.answers()
    assert (answer.outcome, answer.attempts) == ("open", len(expected))
    assert modes == expected


def test_the_requests_of_a_listed_port_are_those_of_the_table() -> None:
    _, scan = run(probes([161]), silence, Limits(timeout_s=0.3))
    expected = [payload.data for payload in PAYLOADS if 161 in payload.ports]
    assert [data for _, _, data in scan.wire.sent] == [expected[0], *expected]


def test_sockets_for_late_replies_make_room_for_new_ones() -> None:
    """Of a silent host: never more than the window, though each socket is wanted until the last attempt."""
    answers, scan = run(probes(range(2000, 2100)), silence, Limits(timeout_s=0.1, retries=3), window=8)
    assert len(answers) == 100
    assert scan.wire.most_open <= 8
    assert scan.wire.open_sockets == {}
