"""The engine's loop against networks that exist in memory only, on a clock that nothing but waiting turns."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, islice, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from portbook.probe import tcp
from portbook.probe.error_queue import QueuedError
from portbook.probe.outcome import Answer
from portbook.probe.request import Limits, Probe, Tally
from portbook.probe.tcp import CLOSED, OPEN, SELF_CONNECTED, ConnectResult
from portbook.resilience import BreakerSettings
from portbook.scanner.tcp.engine import turn
from portbook.scanner.tcp.schedule import BUFFER, TcpSchedule
from portbook.scanner.tcp.state import Attempt

DEFAULTS = Limits()
EMFILE = tcp.errno_result(errno.EMFILE, sent=False)
FORBIDDEN = tcp.errno_result(errno.EACCES, sent=False)
NO_ROUTE = tcp.errno_result(errno.ENETUNREACH, sent=False)
Network = Callable[[Attempt], tuple[ConnectResult, float] | None]  # what comes back, and after how long; None: nothing


class FakeTransport:
    """Connects to a Network; time passes only here."""

    def __init__(self, network: Network, descriptors: int = 10**9) -> None:
        self.network = network
        self.descriptors = descriptors
        self.now = 100.0
        self.arriving: list[tuple[float, int, Attempt, ConnectResult]] = []
        self.flying: set[Attempt] = set()
        self.most_flying = self.begun = 0
        self.begun_at: list[float] = []
        self._number = count()

    def clock(self) -> float:
        return self.now

    def begin(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        decided = []
        for attempt in attempts:
            assert attempt not in self.flying
            self.begun += 1
            self.begun_at.append(self.now)
            if len(self.flying) >= self.descriptors:
                attempt.result = EMFILE
            elif (reply := self.network(attempt)) is not None and reply[1] == 0:
                attempt.result = reply[0]
            else:
                self.flying.add(attempt)
                if reply is not None:
                    heappush(self.arriving, (self.now + reply[1], next(self._number), attempt, reply[0]))
                continue
            decided.append(attempt)
        self.most_flying = max(self.most_flying, len(self.flying))
        return decided

    def wait(self, timeout_s: float) -> list[Attempt]:
        until = self.now + timeout_s
        if self.arriving:
            until = min(until, max(self.now, self.arriving[0][0]))
        self.now = until + 1e-6  # a system is never early
        decided = []
        while self.arriving and self.arriving[0][0] <= self.now:
            at, _, attempt, finding = heappop(self.arriving)
            if attempt in self.flying and attempt.started_at <= at:
                self.flying.remove(attempt)
                attempt.result, attempt.rtt_s = finding, at - attempt.started_at
                decided.append(attempt)
        return decided

    def drop(self, attempt: Attempt) -> None:
        self.flying.remove(attempt)
        self.arriving = [entry for entry in self.arriving if entry[2] is not attempt]
        self.arriving.sort()

    def close(self) -> None:
        pass


class Run:
    """One scan of a Network, to its end."""

    def __init__(
        self,
        probes: Iterable[Probe],
        network: Network,
        limits: Limits = DEFAULTS,
        *,
        window: int = 1000,
        breaker: BreakerSettings | None = None,
        descriptors: int = 10**9,
    ) -> None:
        self.transport = FakeTransport(network, descriptors)
        self.began = self.transport.now
        self.tally = Tally()
        self.events = []
        self.answers: list[Answer] = []
        self.schedule = TcpSchedule(
            probes,
            replace(limits, breaker=breaker),
            window,
            self.began,
            tally=self.tally,
            on_event=self.events.append,
        )
        for _ in range(2_000_000):
            if self.schedule.finished:
                break
            turn(self.schedule, self.transport, self.transport.clock)
            self.answers += self.schedule.answers
            self.schedule.answers = []
        else:
            raise AssertionError("the scan does not end")
        assert not self.transport.flying
        self.elapsed_s = self.transport.now - self.began
        self.outcomes = Counter(answer.outcome for answer in self.answers)


def probes(hosts: int, ports: int) -> Iterator[Probe]:
    """A port of each host in turn."""
    return (
        Probe("net", f"10.0.{host >> 8}.{host & 255}", port) for port in range(1, ports + 1) for host in range(hosts)
    )


def number(attempt: Attempt) -> int:
    """Of the host."""
    third, fourth = attempt.probe.address.split(".")[2:]
    return int(third) << 8 | int(fourth)


def every(divisor: int, rtt_s: float = 0.02) -> Network:
    """Every n-th port is open, the others refuse."""
    return lambda attempt: (CLOSED if attempt.probe.port % divisor else OPEN, rtt_s)


def nothing(_: Attempt) -> None:
    return None


# --- what every scan keeps -----------------------------------------------------------------------------------------

KINDS = st.sampled_from(["open", "closed", "silent", "slow", "unreachable", "at once", "itself", "forbidden"])


@settings(max_examples=60, deadline=None)
@given(
    hosts=st.integers(1, 12),
    ports=st.integers(1, 40),
    kinds=st.lists(KINDS, min_size=1, max_size=9),
    window=st.integers(1, 50),
    retries=st.integers(0, 3),
    rate=st.sampled_from([None, 10.0, 300.0]),
    breaker=st.sampled_from([None, BreakerSettings(failures=4, trials=2)]),
    descriptors=st.sampled_from([3, 10**9]),
)
def test_every_probe_has_one_end(hosts, ports, kinds, window, retries, rate, breaker, descriptors):
    replies = {
        "open": (OPEN, 0.02),
        "closed": (CLOSED, 0.001),
        "silent": None,
        "slow": (CLOSED, 0.8),
        "unreachable": (NO_ROUTE, 0.0),
        "at once": (CLOSED, 0.0),
        "itself": (SELF_CONNECTED, 0.0),
        "forbidden": (FORBIDDEN, 0.0),
    }

    def kind(attempt: Attempt) -> str:
        return kinds[(number(attempt) * 7 + attempt.probe.port) % len(kinds)]

    run = Run(
        probes(hosts, ports),
        lambda attempt: replies[kind(attempt)],
        Limits(retries=retries, rate=rate),
        window=window,
        breaker=breaker,
        descriptors=descriptors,
    )
    places = [(answer.address, answer.port) for answer in run.answers]
    assert len(set(places)) == len(places)
    assert len(places) + run.tally.skipped == hosts * ports
    assert run.tally.answered == len(places)
    assert run.tally.probed == len(places)
    assert run.tally.open == run.outcomes["open"]
    assert run.tally.in_flight == 0
    assert run.transport.most_flying <= min(window, descriptors)
    assert {answer.evidence.error for answer in run.answers if answer.outcome == "error"} <= {"EACCES"}
    if breaker is None:
        assert run.tally.skipped == 0
    if rate is not None:
        for place, at in enumerate(run.transport.begun_at, 1):
            assert place <= rate * (at - run.began) + max(1.0, rate / 50) + 1e-6


@pytest.mark.parametrize("window", [1, 10, 1000])
def test_an_answer_is_never_taken_for_silence_without_losses(window):
    run = Run(probes(3, 200), every(10), window=window)
    assert run.outcomes == {"open": 60, "closed": 540}
    assert run.tally.repeated == run.tally.silent == 0


@pytest.mark.parametrize("limits", [DEFAULTS, Limits(rate=200.0), Limits(deadline_s=60.0)])
def test_it_ends_with_the_last_answer(limits):
    run = Run(probes(1, 100), every(10), limits, window=10)
    assert run.elapsed_s < 100 / 200 + 0.05


# --- silence -------------------------------------------------------------------------------------------------------


def test_a_silent_port_is_repeated_and_then_filtered():
    run = Run(probes(1, 20), nothing, Limits(retries=2))
    assert run.outcomes == {"filtered": 20}
    assert {answer.attempts for answer in run.answers} == {3}
    assert run.tally.repeated == 40


def test_the_timeout_shrinks_to_what_the_host_needs():
    """All begin before the first answer, with a second to wait; one answer is enough to know better."""
    run = Run(probes(1, 500), lambda attempt: (CLOSED, 0.02) if attempt.probe.port == 500 else None)
    assert run.elapsed_s < 1.5  # 0.12 s, then 0.24 s twice for half of the window each; not 1 s and 2 s twice


def test_a_timeout_of_the_callers_is_kept():
    run = Run(probes(1, 10), nothing, Limits(timeout_s=0.25, retries=1))
    assert run.elapsed_s == pytest.approx(0.25 + 0.25, abs=0.01)


def test_a_port_is_not_repeated_before_a_burst_is_over():
    """A short time limit of the caller's is no reason to repeat what a router's queue may still be busy with."""
    run = Run(probes(1, 10), nothing, Limits(timeout_s=0.02, retries=1))
    assert run.elapsed_s == pytest.approx(0.1 + 0.02, abs=0.01)


def test_a_host_is_approached_with_caution():
    """Before anything is heard, a few ports at once; a burst would overflow the queue of an unresolved neighbour."""
    burst = Run(
        probes(1, 500),
        lambda attempt: (CLOSED, 0.02) if attempt.started_at > 100.0 or attempt.probe.port <= 16 else None,
    )
    assert burst.outcomes == {"closed": 500}
    assert burst.tally.repeated == 0
    assert burst.transport.begun_at.count(100.0) == 16


def test_lost_packets_are_noticed_and_made_up_for():
    chance = Random(1)  # 1000 ports of which 100 are open; each attempt is lost with 10 %

    def lossy(attempt: Attempt) -> tuple[ConnectResult, float] | None:
        return None if chance.random() < 0.1 else (CLOSED if attempt.probe.port % 10 else OPEN, 0.02)

    for _ in range(20):
        run = Run(probes(1, 1000), lossy)
        assert run.outcomes == {"open": 100, "closed": 900}


def test_an_answer_of_a_router_is_no_round_trip_of_the_host():
    icmp = tcp.icmp_result(QueuedError(4, 3, 13, "10.9.9.9", 1, errno.EHOSTUNREACH))

    def firewalled(attempt: Attempt) -> tuple[ConnectResult, float]:
        return (icmp, 0.001) if attempt.probe.port < 90 else (CLOSED, 0.7)

    run = Run(probes(1, 100), firewalled)
    assert run.outcomes == {"filtered": 89, "closed": 11}
    assert run.tally.repeated == 0


def test_an_answer_after_the_system_has_repeated_the_syn_is_no_round_trip():
    """It may belong to either of the two: Karn's rule."""
    run = Run(probes(1, 20), lambda attempt: (CLOSED, 1.02), Limits(timeout_s=2))
    (host,) = run.schedule._hosts
    assert run.outcomes == {"closed": 20}
    assert host.round_trip.srtt_s is None


def test_later_attempts_are_given_more_time_up_to_four_times_as_much():
    limits = Limits(retries=4, most_retries=4)
    run = Run(probes(1, 2), lambda attempt: (CLOSED, 0.02) if attempt.probe.port == 1 else None, limits)
    begun = run.transport.begun_at[1:]
    gaps = [later - earlier for earlier, later in pairwise(begun)]
    assert gaps == pytest.approx([0.12 * factor for factor in (1, 2, 4, 4)], abs=0.01)


# --- breaker -------------------------------------------------------------------------------------------------------


def mostly_dead(live: int) -> Network:
    return lambda attempt: every(5)(attempt) if number(attempt) < live else None


def test_dead_hosts_are_given_up_and_live_ones_are_not():
    with_breaker = Run(probes(256, 100), mostly_dead(6), breaker=BreakerSettings())
    without = Run(probes(256, 100), mostly_dead(6))
    assert with_breaker.outcomes["open"] == without.outcomes["open"] == 6 * 20
    assert with_breaker.outcomes["closed"] == 6 * 80
    assert with_breaker.elapsed_s < without.elapsed_s / 3
    assert with_breaker.transport.begun < without.transport.begun / 3
    assert with_breaker.tally.skipped > 250 * 70
    per_host = Counter(event.address for event in with_breaker.events if event.kind == "breaker")
    assert len(per_host) == 250
    # open, then three trials of two changes each, then given up
    assert set(per_host.values()) == {1 + 3 * 2 + 1}


def test_the_probed_ports_of_a_dead_host_have_timed_out():
    run = Run(probes(2, 100), mostly_dead(1), breaker=BreakerSettings())
    dead = [answer for answer in run.answers if answer.address == "10.0.0.1"]
    assert {(answer.outcome, answer.attempts) for answer in dead} <= {("timeout", 1), ("filtered", 2)}
    assert len(dead) + run.tally.skipped == 100


def test_a_single_host_is_scanned_to_the_end():
    run = Run(
        probes(1, 300), lambda attempt: (OPEN, 0.02) if attempt.probe.port == 300 else None, breaker=BreakerSettings()
    )
    assert run.outcomes == {"open": 1, "filtered": 299}
    assert run.events == []


def test_a_host_that_has_answered_is_never_given_up():
    def firewalled(attempt: Attempt) -> tuple[ConnectResult, float] | None:
        return (OPEN, 0.02) if attempt.probe.port in (3, 500) else None

    run = Run(probes(2, 500), firewalled, breaker=BreakerSettings())
    assert run.outcomes == {"open": 4, "filtered": 996}
    assert run.tally.skipped == 0


def test_a_trial_takes_the_port_that_is_likeliest_to_answer():
    """One host drops all but HTTPS. Its turn comes long after the breaker has opened; the trial asks for it first."""

    def web_only(attempt: Attempt) -> tuple[ConnectResult, float] | None:
        return (OPEN, 0.02) if attempt.probe.port == 443 or number(attempt) == 0 else None

    run = Run(probes(2, 500), web_only, breaker=BreakerSettings())
    assert run.outcomes == {"open": 501, "filtered": 499}
    moves = [event.text.split(":")[0] for event in run.events]
    assert moves == ["closed to open", "open to half-open", "half-open to closed"]


def test_a_trial_that_cannot_be_made_does_not_hold_up_the_rest():
    def network(attempt: Attempt) -> tuple[ConnectResult, float] | None:
        if number(attempt) == 0:
            return CLOSED, 0.02
        return (FORBIDDEN, 0.0) if attempt.started_at > 101.5 else None

    run = Run(probes(2, 100), network, breaker=BreakerSettings())
    assert len(run.answers) + run.tally.skipped == 200


def test_a_host_that_comes_back_is_probed_again():
    """While a stream lasts, a host that was given up is tried now and then."""
    up_at = 110.0

    def late(attempt: Attempt) -> tuple[ConnectResult, float] | None:
        return (CLOSED, 0.02) if number(attempt) == 0 or attempt.started_at > up_at else None

    run = Run(probes(2, 20_000), late, Limits(rate=1000.0), breaker=BreakerSettings())
    revived = [answer for answer in run.answers if answer.address == "10.0.0.1" and answer.outcome == "closed"]
    assert len(revived) > 1000


# --- shortage ------------------------------------------------------------------------------------------------------


def test_without_descriptors_fewer_are_in_flight():
    run = Run(probes(1, 500), every(10), descriptors=20)
    assert run.outcomes == {"open": 50, "closed": 450}
    assert run.transport.most_flying == 20
    assert {event.kind for event in run.events} == {"descriptors"}
    assert len(run.events) < 10


def test_without_any_descriptor_it_waits_for_one():
    def network(attempt: Attempt) -> tuple[ConnectResult, float]:
        return (EMFILE, 0.0) if attempt.started_at < 105.0 else (CLOSED, 0.02)

    run = Run(probes(1, 5), network)
    assert run.outcomes == {"closed": 5}
    assert run.transport.begun < 60  # it did not spin meanwhile


def test_without_any_descriptor_to_the_end_it_is_an_error():
    run = Run(probes(1, 50), lambda _: (EMFILE, 0.0))
    assert run.outcomes == {"error": 50}
    assert {answer.evidence.error for answer in run.answers} == {"EMFILE"}


# --- self-connects -------------------------------------------------------------------------------------------------


def test_a_connect_to_itself_is_repeated():
    once: set[int] = set()

    def itself_once(attempt: Attempt) -> tuple[ConnectResult, float]:
        first = attempt.probe.port not in once
        once.add(attempt.probe.port)
        return (SELF_CONNECTED, 0.001) if first else (CLOSED, 0.001)

    run = Run(probes(1, 50), itself_once)
    assert run.outcomes == {"closed": 50}
    assert {answer.evidence.kind for answer in run.answers} == {"rst"}
    assert run.tally.probed == 50


def test_repeated_connects_to_itself_are_closed():
    run = Run(probes(1, 3), lambda _: (SELF_CONNECTED, 0.001))
    assert run.outcomes == {"closed": 3}
    assert {answer.evidence.kind for answer in run.answers} == {"self-connect"}


# --- bounds --------------------------------------------------------------------------------------------------------


def test_the_deadline_ends_it():
    run = Run(probes(1, 5000), nothing, Limits(deadline_s=1.5), window=100)
    assert run.elapsed_s == pytest.approx(1.5, abs=0.01)
    assert run.outcomes == {"timeout": 116}  # sixteen had been silent once, a hundred were in flight
    assert [event.kind for event in run.events] == ["deadline"]


class Stream:
    """Counts what is read of it."""

    def __init__(self, probes: Iterator[Probe]) -> None:
        self.read = 0
        self._probes = probes

    def __iter__(self) -> Iterator[Probe]:
        for probe in self._probes:
            self.read += 1
            yield probe


def test_no_more_is_read_than_is_probed_when_every_port_answers():
    stream = Stream(Probe("x", "127.0.0.1", port) for port in count(1))
    schedule = TcpSchedule(stream, Limits(), 1000, 100.0)
    transport = FakeTransport(every(10))
    given_out = 0
    while given_out < 5000:
        turn(schedule, transport, transport.clock)
        given_out += len(schedule.answers)
        schedule.answers = []
    assert stream.read <= given_out + 1000


@pytest.mark.parametrize("hosts", [1, 65536])
def test_silence_does_not_fill_the_memory(hosts):
    """The stream is endless and no port answers: what waits for a retry stays within the buffer."""
    stream = Stream(probes(hosts, 10**9))
    schedule = TcpSchedule(stream, Limits(timeout_s=0.01, retries=3), 20_000, 100.0)
    transport = FakeTransport(nothing)
    given_out = turns = 0
    while given_out < 5000:
        turn(schedule, transport, transport.clock)
        given_out += len(schedule.answers)
        schedule.answers = []
        turns += 1
        assert stream.read - given_out <= BUFFER + 20_000
        assert turns < 50_000


def test_dead_hosts_do_not_stop_the_others():
    """Half of the hosts are dead; their ports fill the buffer, are skipped, live ones are scanned to the end."""
    run = Run(
        probes(200, 1000), lambda attempt: (CLOSED, 0.01) if number(attempt) % 2 else None, breaker=BreakerSettings()
    )
    assert run.outcomes["closed"] == 100 * 1000
    assert run.tally.skipped > 100 * 900


def test_hosts_that_are_done_are_forgotten():
    schedule = TcpSchedule(islice(probes(30_000, 1), 30_000), Limits(), 1000, 100.0)
    transport = FakeTransport(every(10))
    while not schedule.finished:
        turn(schedule, transport, transport.clock)
        schedule.answers = []
        assert len(list(schedule._hosts)) < 9000
