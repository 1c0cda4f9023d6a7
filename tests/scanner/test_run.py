from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import pytest

from portbook import scanner as package
from portbook.errors import SourceMissing, UsageError
from portbook.probe import resolve
from portbook.probe.outcome import SILENCE, Answer, Evidence
from portbook.probe.request import Limits, Probe, ScanEvent
from portbook.probe.resolve import Resolved, ResolvedAddress
from portbook.records import Socket
from portbook.scanner import canary, run
from portbook.scanner.canary import MOST_CANARIES, MOST_EACH, ScannedAddress, SelfWatch
from portbook.scanner.run import MOST_EVENTS, Scan, scan
from portbook.scanner.targets import parse_target

SYN_ACK, RST = Evidence("syn-ack"), Evidence("rst", 111, "ECONNREFUSED")
HAVE_IPV6 = socket.has_ipv6


class FakeEngine:
    """Answers from a table, in the order asked; everything else is closed."""

    def __init__(self, table=None, events=(), after=None):
        self.table = table or {}
        self.events = events
        self.after = after or {}  # called before the answer of this number
        self.asked: list[Probe] = []
        self.limits: list[Limits] = []
        self.closed = 0

    def __call__(self, probes, limits, *, tally=None, on_event=None):
        self.limits.append(limits)
        for event in self.events:
            on_event(event)
        try:
            for probe in probes:
                self.asked.append(probe)
                if len(self.asked) in self.after:
                    self.after[len(self.asked)]()
                tally.probed += 1
                outcome, evidence = self.answer(probe)
                tally.answered += 1
                yield Answer(probe.target, probe.address, probe.zone, probe.port, "tcp", outcome, evidence)
        finally:
            self.closed += 1

    def answer(self, probe):
        for key in ((probe.address, probe.port), probe.port, probe.address):
            if key in self.table:
                return self.table[key]
        return "closed", RST


class TrueEngine(FakeEngine):
    """Answers by connecting, one port after another."""

    def answer(self, probe):
        if probe.port in self.table:
            return self.table[probe.port]
        with socket.socket(socket.AF_INET6 if ":" in probe.address else socket.AF_INET) as client:
            client.settimeout(10)
            try:
                client.connect((probe.address, probe.port))
            except ConnectionRefusedError:
                return "closed", RST
            return "open", SYN_ACK


def scanned(targets, ports, engine, **more):
    """A scan of remote addresses through an engine that sends nothing."""
    return Scan(
        [parse_target(t) for t in targets.split()],
        list(ports),
        "tcp",
        more.pop("limits", Limits()),
        engine=engine,
        **more,
    )


REMOTE = "203.0.113.1"  # TEST-NET-3 (RFC 5737): for documentation, never used


# --- answers and report --------------------------------------------------------------------------------------------


def test_every_port_is_answered_and_counted():
    table = {22: ("open", SYN_ACK), 23: ("filtered", SILENCE), 24: ("unreachable", Evidence("icmp", icmp_type=3))}
    running = scanned("203.0.113.0/30", range(20, 30), FakeEngine(table))
    answers = list(running)
    assert Counter((a.address, a.port) for a in answers) == Counter(
        (f"203.0.113.{n}", port) for n in range(4) for port in range(20, 30)
    )
    report = running.report
    assert report.outcomes == {"open": 4, "filtered": 4, "unreachable": 4, "closed": 28}
    assert (report.addresses, report.ports, report.asked, report.silent, report.skipped) == (4, 10, 40, 4, 0)
    assert (report.partial, report.self_check, report.events) == (None, None, ())
    assert running.total == 40
    assert report is running.report


def test_answers_carry_the_registered_service():
    running = scanned(REMOTE, [22, 1], FakeEngine({22: ("open", SYN_ACK)}))
    services = {a.port: a.service for a in running}
    assert services[22] == "ssh"


def test_a_recognised_service_is_kept():
    class Recognising(FakeEngine):
        def __call__(self, probes, limits, **more):
            for probe in probes:
                yield Answer(
                    probe.target, probe.address, probe.zone, probe.port, "tcp", "open", SYN_ACK, service="mine"
                )

    assert [a.service for a in scanned(REMOTE, [22], Recognising())] == ["mine"]


def test_only_open_hides_answers_and_counts_them():
    running = scanned(
        REMOTE, range(1, 101), FakeEngine({7: ("open", SYN_ACK), 9: ("filtered", SILENCE)}), only_open=True
    )
    assert [a.port for a in running] == [7]
    assert running.report.outcomes == {"open": 1, "filtered": 1, "closed": 98}


def test_silence_is_counted_as_silence_and_never_as_closed():
    running = scanned(REMOTE, [1, 2], FakeEngine({REMOTE: ("filtered", SILENCE)}))
    assert {a.outcome for a in running} == {"filtered"}
    assert running.report.silent == 2
    assert "closed" not in running.report.outcomes


def test_events_are_reported_and_kept_up_to_a_limit():
    events = [ScanEvent("breaker", REMOTE, f"event {n}", 0.1) for n in range(MOST_EVENTS + 5)]
    told = []
    running = scanned(REMOTE, [1], FakeEngine(events=events), on_event=told.append)
    list(running)
    assert told == events
    assert list(running.report.events) == events[:MOST_EVENTS]
    assert running.report.events_dropped == 5


def test_the_same_address_twice_is_scanned_once():
    engine = FakeEngine()
    assert len(list(scanned("203.0.113.1 203.0.113.0/31 203.0.113.0-1", [1, 2], engine))) == 4
    assert len(engine.asked) == 4


# --- ending early --------------------------------------------------------------------------------------------------


def test_close_ends_the_engine_and_leaves_a_partial_report():
    engine = FakeEngine()
    running = scanned(REMOTE, range(1, 101), engine)
    for _ in range(10):
        next(running)
    running.close()
    report = running.report
    assert (report.partial, report.asked, report.skipped, engine.closed) == ("cancelled", 10, 90, 1)
    assert list(running) == []


def test_leaving_the_block_closes():
    engine = FakeEngine()
    with scanned(REMOTE, range(1, 101), engine) as running:
        next(running)
    assert engine.closed == 1
    assert running.report.partial == "cancelled"


def test_closing_a_finished_scan_changes_nothing():
    with scanned(REMOTE, [1, 2], FakeEngine()) as running:
        list(running)
    assert running.report.partial is None


def test_close_before_the_beginning_probes_nothing():
    engine = FakeEngine()
    running = scanned(REMOTE, [1], engine)
    running.close()
    assert list(running) == []
    assert engine.asked == []
    assert (running.report.partial, running.report.asked) == ("cancelled", 0)


def test_close_from_another_thread_ends_the_stream_of_probes():
    engine = FakeEngine()
    running = scanned(REMOTE, range(1, 101), engine)

    def close():
        thread = threading.Thread(target=running.close)
        thread.start()
        thread.join(10)

    engine.after[10] = close
    answers = list(running)
    assert len(answers) == 10
    assert running.report.partial == "cancelled"


def test_ctrl_c_in_the_engine_leaves_a_partial_report():
    def interrupt():
        raise KeyboardInterrupt

    engine = FakeEngine(after={5: interrupt})
    running = scanned(REMOTE, range(1, 101), engine)
    answers = []
    with pytest.raises(KeyboardInterrupt):
        answers.extend(iter(running.__next__, None))
    assert (running.report.partial, running.report.asked, engine.closed) == ("cancelled", 4, 1)


def test_a_deadline_that_the_engine_reports_makes_it_partial():
    class Late(FakeEngine):
        def __call__(self, probes, limits, *, tally=None, on_event=None):
            self.limits.append(limits)
            yield Answer(REMOTE, REMOTE, None, next(iter(probes)).port, "tcp", "closed", RST)
            on_event(ScanEvent("deadline", None, "the time is up", 1.0))

    engine = Late()
    running = scanned(REMOTE, range(1, 11), engine, limits=Limits(deadline_s=60))
    list(running)
    assert (running.report.partial, running.report.skipped) == ("deadline", 9)
    assert 0 < engine.limits[0].deadline_s <= 60


# --- the arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "more", "wrong"),
    [
        (("", "80"), {}, "no target"),
        (([], "80"), {}, "no target"),
        (("0.0.0.0/0", "80"), {}, "addresses"),
        (("8.8.8.8", "80"), {}, "--allow-public"),
        (("10.0.0.1 8.8.8.8", "80"), {}, "--allow-public"),
        (("127.0.0.1", "0"), {}, "out of range"),
        (("127.0.0.1", [70000]), {}, "out of range"),
        (("127.0.0.1", []), {}, "no port"),
        (("127.0.0.1", "@mail"), {"udp": True}, "over UDP"),
        (("127.0.0.1", "80"), {"limits": Limits(timeout_s=0)}, "timeout 0"),
        (("127.0.0.1", "80"), {"limits": Limits(timeout_s=float("nan"))}, "timeout nan"),
        (("127.0.0.1", "80"), {"limits": Limits(rate=-1)}, "rate -1"),
        (("127.0.0.1", "80"), {"limits": Limits(deadline_s=float("inf"))}, "deadline inf"),
        (("127.0.0.1", "80"), {"limits": Limits(retries=-1)}, "retries -1"),
        (("127.0.0.1", "80"), {"limits": Limits(concurrency=0)}, "concurrency 0"),
        (("127.0.0.1", "80"), {"limits": Limits(concurrency="4")}, "concurrency 4"),
        (("127.0.0.1", "80"), {"limits": 3}, "type int"),
        (("127.0.0.1", "80"), {"limits": {}}, "type dict"),
    ],
)
def test_a_mistake_is_an_error_before_anything_is_probed(arguments, more, wrong):
    with pytest.raises(UsageError) as caught:
        scan(*arguments, **more)
    assert wrong in str(caught.value)
    assert "\n" not in str(caught.value)


def test_public_targets_need_allow_public():
    assert scan("8.8.8.8", "80", allow_public=True).ports == [80]  # not iterated: nothing is sent


@pytest.mark.parametrize("protocol", run.ENGINES)
def test_the_engines_are_where_the_table_has_them(protocol):
    assert callable(run._load(protocol))


def test_the_package_has_a_docstring():
    assert package.__doc__


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch):
    """A resolver that knows a few names."""
    known = {
        "both.example": [ResolvedAddress("203.0.113.7"), ResolvedAddress("2001:db8::7")],
        "here.example": [ResolvedAddress("203.0.113.7")],
        "public.example": [ResolvedAddress("203.0.113.8"), ResolvedAddress("8.8.8.8")],
        "link.example": [ResolvedAddress("fe80::7", "3")],
    }

    def look_up(name):
        if name in known:
            return known[name]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(resolve, "look_up", look_up)


@pytest.mark.usefixtures("names")
def test_a_name_is_scanned_at_all_its_addresses():
    engine = FakeEngine()
    answers = list(scanned("both.example link.example", [80], engine))
    assert {(a.target, a.address) for a in answers} == {
        ("both.example", "203.0.113.7"),
        ("both.example", "2001:db8::7"),
        ("link.example", "fe80::7"),
    }
    assert {p.zone for p in engine.asked if p.address == "fe80::7"} == {"3"}


@pytest.mark.usefixtures("names")
def test_a_name_and_its_address_are_scanned_once():
    assert [a.target for a in scanned("here.example 203.0.113.7", [80], FakeEngine())] == ["here.example"]


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("only_open", [False, True])
def test_a_name_without_an_address_is_an_answer(only_open):
    running = scanned(
        "nonesuch.example 203.0.113.1", [80, 81], FakeEngine({81: ("open", SYN_ACK)}), only_open=only_open
    )
    (missing,) = [a for a in running if a.outcome == "name-not-found"]
    assert (missing.target, missing.address, missing.port, missing.attempts) == ("nonesuch.example", None, 0, 0)
    assert missing.evidence == Evidence("resolver", socket.EAI_NONAME, "EAI_NONAME", text="Name or service not known")
    assert running.report.outcomes == {"name-not-found": 1, "closed": 1, "open": 1}
    assert running.total == 3


@pytest.mark.usefixtures("names")
def test_a_name_with_a_public_address_is_refused_before_anything_is_probed():
    engine = FakeEngine()
    running = scanned("203.0.113.1 public.example", [80], engine, allow_public=False)
    with pytest.raises(UsageError, match=r"^public\.example \(8\.8\.8\.8\) is globally routable"):
        next(running)
    assert engine.asked == []


def test_a_resolver_that_hangs_is_given_up():
    gate = threading.Event()

    def look_up(name):
        if name == "slow":
            gate.wait(60)
        return [ResolvedAddress("203.0.113.1")]

    try:
        slow, fast = resolve.resolve(["slow", "fast"], 0.3, look_up)
    finally:
        gate.set()
    assert fast == Resolved("fast", (ResolvedAddress("203.0.113.1"),))
    assert slow.addresses == ()
    assert slow.failure is not None
    assert "no answer from the resolver within 0.3 s" in str(slow.failure.text)


def test_all_names_have_one_time_limit():
    """Each name alone is answered in time; the threads begin no further one after the end."""
    begun = []

    def look_up(name):
        begun.append(name)
        time.sleep(0.05)
        return [ResolvedAddress("203.0.113.1")]

    names = [f"host{n}" for n in range(5000)]
    resolved = resolve.resolve(names, 10, look_up, total_s=1.0)
    assert [r.name for r in resolved] == names
    done = sum(bool(r.addresses) for r in resolved)
    assert 0 < done <= len(begun) < 3000
    time.sleep(0.2)
    assert len(begun) <= done + 3 * resolve.MOST_THREADS


def test_more_names_than_threads_are_all_looked_up():
    names = [f"host{n}" for n in range(resolve.MOST_THREADS * 3)]
    assert [r.name for r in resolve.resolve(names, 10, lambda name: [ResolvedAddress(name)])] == names


@pytest.mark.parametrize("name", ["a" * 70 + ".example", "a..b"])
def test_what_cannot_be_a_name_is_an_answer_not_an_exception(name):
    """Refused without a lookup: labels have 1 to 63 characters (RFC 1035 section 2.3.4)."""
    (resolved,) = resolve.resolve([name], 10)
    assert resolved.addresses == ()
    assert resolved.failure is not None
    assert resolved.failure.kind == "resolver"


def test_localhost_is_looked_up():
    assert ResolvedAddress("127.0.0.1") in resolve.look_up("localhost")


# --- the check of itself -------------------------------------------------------------------------------------------


@contextmanager
def listening(host="127.0.0.1", count=1):
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        servers = [stack.enter_context(socket.create_server((host, 0), family=family)) for _ in range(count)]
        yield [server.getsockname()[1] for server in servers]


def test_canaries_and_listeners_of_this_machine_are_found():
    with listening(count=3) as ports:
        running = scanned("127.0.0.1", ports, TrueEngine())
        answers = list(running)
    assert {(a.port, a.outcome) for a in answers} == {(port, "open") for port in ports}
    check = running.report.self_check
    assert check is not None
    assert (check.addresses, check.canaries, check.canaries_missed) == (1, MOST_EACH, 0)
    assert (check.known, check.known_missed, check.missed) == (3, 0, ())


def test_canaries_are_probed_among_the_rest_and_are_not_in_the_report():
    engine = TrueEngine()
    with listening(count=20) as ports:
        running = scanned("127.0.0.1", ports, engine)
        answers = list(running)
    assert len(engine.asked) == 20 + MOST_EACH
    places = [i for i, probe in enumerate(engine.asked) if probe.port not in ports]
    assert len(places) == MOST_EACH
    assert max(places) - min(places) > 8, "spread over the scan"
    assert len(answers) == running.report.asked == 20
    assert running.report.outcomes == {"open": 20}


def test_misses_are_counted_and_named():
    with listening(count=2) as (deaf, heard):
        engine = TrueEngine({deaf: ("filtered", SILENCE)})
        running = scanned("127.0.0.1", [deaf, heard], engine)
        list(running)
    check = running.report.self_check
    assert check is not None
    assert (check.known, check.known_missed, check.missed) == (2, 1, (f"127.0.0.1:{deaf}",))
    assert check.canaries_missed == 0


def test_an_engine_that_loses_everything_is_found_out():
    with listening(count=2) as ports:
        running = scanned("127.0.0.1", ports, FakeEngine({"127.0.0.1": ("filtered", SILENCE)}))
        list(running)
    check = running.report.self_check
    assert check is not None
    assert (check.canaries, check.canaries_missed) == (MOST_EACH, MOST_EACH)
    assert (check.known, check.known_missed) == (2, 2)
    assert sum(name.startswith("canary 127.0.0.1:") for name in check.missed) == MOST_EACH
    assert {f"127.0.0.1:{port}" for port in ports} < set(check.missed)


def test_an_engine_that_forgets_probes_is_found_out():
    class Forgetful(TrueEngine):
        def __call__(self, probes, limits, **more):
            return super().__call__([p for p in probes if p.port != forgotten], limits, **more)

    with listening(count=2) as (forgotten, other):
        running = scanned("127.0.0.1", [forgotten, other], Forgetful())
        list(running)
    assert running.report.self_check.missed == (f"127.0.0.1:{forgotten}",)
    assert running.report.skipped == 1


def test_the_port_of_a_canary_is_probed_again_when_it_is_closed(monkeypatch):
    """As when every port of an address is scanned: the canary must not be reported as a service."""
    free = []

    def open_one(protocol, place, asked):
        bird = socket.socket()
        bird.bind((place.address, free[len(opened)]))
        bird.listen()
        opened.append(bird)
        return bird

    with listening("127.0.0.9", MOST_EACH) as some:
        free += some  # free again after this block, and no other process uses this address
    opened: list[socket.socket] = []
    monkeypatch.setattr(canary, "_open_canary", open_one)
    engine = TrueEngine()
    running = scanned("127.0.0.9", [1, 2, 3, *free], engine)
    answers = list(running)
    assert Counter(a.port for a in answers) == Counter([1, 2, 3, *free]), "each port has one answer"
    assert {a.outcome for a in answers} == {"closed"}
    assert Counter(p.port for p in engine.asked) == Counter([1, 2, 3, *free, *free])
    assert {p.port for p in engine.asked[-MOST_EACH:]} == set(free)
    check = running.report.self_check
    assert (check.canaries, check.canaries_missed) == (MOST_EACH, 0)


def test_many_addresses_share_few_canaries():
    engine = TrueEngine()
    running = scanned("127.0.0.0/24", [1], engine)
    list(running)
    check = running.report.self_check
    assert (check.addresses, check.canaries, check.canaries_missed) == (256, MOST_CANARIES, 0)


def test_a_partial_scan_is_judged_by_the_ports_with_an_answer():
    with listening(count=20) as ports:
        running = scanned("127.0.0.1", ports, TrueEngine())
        for _ in range(5):
            next(running)
        running.close()
    check = running.report.self_check
    assert (check.known, check.known_missed) == (5, 0)
    assert check.canaries < MOST_EACH
    assert check.canaries_missed == 0


def test_a_listener_that_ended_meanwhile_was_not_missed():
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    engine = TrueEngine({port: ("closed", RST)}, after={1: server.close})
    running = scanned("127.0.0.1", [port], engine)
    list(running)
    assert (running.report.self_check.known, running.report.self_check.missed) == (0, ())


def test_canaries_are_gone_after_the_scan(monkeypatch):
    opened = []
    real = canary._open_canary
    monkeypatch.setattr(canary, "_open_canary", lambda *a: opened.append(real(*a)) or opened[-1])
    with scanned("127.0.0.1", range(1, 50), TrueEngine()) as running:
        next(running)
    assert len(opened) == MOST_EACH
    assert [bird.fileno() for bird in opened] == [-1] * MOST_EACH


def test_without_descriptors_there_are_no_canaries_and_no_error(monkeypatch):
    def full(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(canary, "_open_canary", full)
    with listening() as ports:
        running = scanned("127.0.0.1", ports, TrueEngine())
        assert [a.outcome for a in running] == ["open"]
    assert (running.report.self_check.canaries, running.report.self_check.known) == (0, 1)


def test_tables_that_cannot_be_read_are_reported_as_unknown(monkeypatch):
    def unreadable(*_):
        raise SourceMissing("no way to read this machine works")

    monkeypatch.setattr("portbook.inventory.select", unreadable)
    running = scanned("127.0.0.1", [1], TrueEngine())
    list(running)
    assert (running.report.self_check.known, running.report.self_check.known_missed) == (None, None)


def test_an_address_of_another_machine_has_no_canary():
    assert not canary.is_local(ScannedAddress(REMOTE, REMOTE, None))
    assert not canary.is_local(ScannedAddress("fe80::1%nonesuch", "fe80::1", "nonesuch"))
    assert canary.is_local(ScannedAddress("127.3.2.1", "127.3.2.1", None))


@pytest.mark.skipif(not HAVE_IPV6, reason="IPv6")
def test_ipv6_is_checked_too():
    with listening("::1") as ports:
        running = scanned("::1", ports, TrueEngine())
        assert [a.outcome for a in running] == ["open"]
    check = running.report.self_check
    assert (check.canaries, check.canaries_missed, check.known, check.missed) == (MOST_EACH, 0, 1, ())


def listener(address, **more):
    return Socket("tcp", "ipv6" if ":" in address else "ipv4", address, 80, state="LISTEN", **more)


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (listener("127.0.0.1"), {"127.0.0.1"}),
        (listener("0.0.0.0", reach="any"), {"127.0.0.1", "127.0.0.2"}),
        (listener("::", reach="any", v6only=False), {"127.0.0.1", "127.0.0.2", "::1", "fe80::1"}),
        (listener("::", reach="any", v6only=True), {"::1", "fe80::1"}),
        (listener("::", reach="any", v6only=None), {"::1", "fe80::1"}),
        (listener("::1"), {"::1"}),
        (listener("fe80::1", zone="eth0"), {"fe80::1"}),
        (listener("fe80::1", zone="eth1"), set()),
        (listener("0.0.0.0", reach="any", interface="eth0"), set()),
    ],
)
def test_which_addresses_reach_a_listener(row, reached):
    places = [
        ScannedAddress("t", a, "eth0" if a.startswith("fe80") else None)
        for a in ("127.0.0.1", "127.0.0.2", "::1", "fe80::1")
    ]
    assert {address for address, _ in canary._covered([row], places, frozenset([80]))} == reached
    assert list(canary._covered([row], places, frozenset([81]))) == []


def test_udp_canaries_answer_this_machine():
    watch = SelfWatch("udp", [parse_target("127.0.0.1")], [1])
    try:
        assert len(watch.extras()) == MOST_EACH
        for probe in watch.extras():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(10)
                client.connect((probe.address, probe.port))
                client.send(b"")
                assert client.recv(100) == b"canary"
    finally:
        watch.close()


def test_udp_canaries_stop_answering_after_a_limit():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bird:
        bird.bind(("127.0.0.1", 0))
        bird.setblocking(False)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(bird.getsockname())
            for _ in range(3):
                client.send(b"")
            canary.answer_datagrams([bird], most=2)
            assert [client.recv(100) for _ in range(2)] == [b"canary"] * 2
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(100)
