"""The pipeline: who gets which events, and that a sink that fails stops nobody."""

from __future__ import annotations

import threading
import time

import pytest

from portbook.errors import StoreError
from portbook.events import LEVELS
from portbook.watching.sinks import SINKS, dispatch, load
from portbook.watching.sinks.base import DeliveryError, Loss, PlainSink
from portbook.watching.sinks.dispatch import Dispatch, open_sinks
from tests.watching.sinks.events import LIMIT_S, event, settings, wait_until


class Collector(PlainSink):
    """Keeps the identities of what it gets; ``trouble`` may raise before."""

    def __init__(self, name="collector", trouble=lambda events: None):
        self.name = name
        self.got: list[str] = []
        self.trouble = trouble
        self.closed = False

    def deliver(self, events):
        self.trouble(events)
        self.got += [one.event.identity or one.event.event for one in events]

    def test(self, one):
        self.deliver([one])

    def close(self, limit_s):
        self.closed = True


def dispatch_of(*sinks, severity="quiet", **options):
    return Dispatch([(sink, settings("text", "-", severity)) for sink in sinks], **options)


def test_a_sink_gets_what_is_at_least_as_severe_as_it_wants():
    sinks = {level: Collector(level) for level in LEVELS}
    pipeline = Dispatch([(sink, settings("text", "-", level)) for level, sink in sinks.items()])
    pipeline.write([event(n, severity=level) for n, level in enumerate(LEVELS)])
    assert pipeline.flush(LIMIT_S)
    assert {level: len(sink.got) for level, sink in sinks.items()} == {
        "quiet": 4, "info": 3, "warning": 2, "critical": 1,
    }  # fmt: skip
    assert pipeline.close() == []
    assert all(sink.closed for sink in sinks.values())


def test_what_fails_for_a_while_is_delivered_afterwards_in_order():
    attempts = []

    def trouble(events):
        attempts.append(len(events))
        if len(attempts) < 3:
            raise DeliveryError("down")

    sink, other = Collector(trouble=trouble), Collector("other")
    pipeline = dispatch_of(sink, other)
    for n in range(100):
        pipeline.write([event(n)])
    assert pipeline.flush(LIMIT_S)
    assert sink.got == other.got == [f"tcp/{n}" for n in range(100)]
    assert pipeline.take_gaps() == []
    notes = pipeline.take_notes()
    assert notes == ["sink collector: down; tried again, the events wait", "sink collector: works again"]
    assert [one.lost for one in pipeline.status()] == [0, 0]
    pipeline.close()


def test_what_was_delivered_before_a_failure_is_not_delivered_again():
    def trouble(events):
        if len(events) > 1:
            sink.got.append(events[0].event.identity)
            raise DeliveryError("one at a time", delivered=1)

    sink = Collector(trouble=trouble)
    pipeline = dispatch_of(sink)
    pipeline.write([event(n) for n in range(4)])
    assert pipeline.flush(LIMIT_S)
    assert sink.got == [f"tcp/{n}" for n in range(4)]
    pipeline.close()


def test_an_event_that_can_never_be_delivered_is_counted_and_the_others_follow():
    def trouble(events):
        for at, one in enumerate(events):
            if one.event.identity == "tcp/3":
                sink.got += [before.event.identity for before in events[:at]]
                raise DeliveryError("refused", delivered=at, refused=True)

    sink = Collector(trouble=trouble)
    pipeline = dispatch_of(sink)
    pipeline.write([event(n) for n in range(6)])
    assert pipeline.flush(LIMIT_S)
    assert sink.got == ["tcp/0", "tcp/1", "tcp/2", "tcp/4", "tcp/5"]
    (gap,) = pipeline.take_gaps()
    assert (gap.event, gap.count, gap.reason, gap.severity) == ("gap", 1, "sink collector: refused", "warning")
    assert gap.since is not None
    assert pipeline.take_notes() == ["sink collector: refused; 1 event lost"]
    pipeline.close()


def test_a_defect_of_a_sink_is_a_loss_and_nothing_else():
    sink, other = Collector("broken", lambda events: 1 / 0), Collector("other")
    pipeline = dispatch_of(sink, other)
    pipeline.write([event(n) for n in range(3)])
    assert pipeline.flush(LIMIT_S)
    assert (sink.got, len(other.got)) == ([], 3)
    (gap,) = pipeline.take_gaps()
    assert (gap.count, gap.reason) == (3, "sink broken: unexpected error: ZeroDivisionError('division by zero')")
    pipeline.close()


@pytest.fixture
def blocked():
    """A sink whose delivery does not return before the event is set."""
    free = threading.Event()
    yield Collector("blocked", lambda events: free.wait(LIMIT_S)), free
    free.set()


def test_a_sink_that_blocks_holds_up_nobody_for_long_and_loses_the_oldest(blocked, monkeypatch):
    monkeypatch.setattr(dispatch, "PATIENCE_S", 0.1)
    sink, free = blocked
    other = Collector("other")
    pipeline = dispatch_of(sink, other, most_bytes=20_000)
    pipeline.write([event(0)])
    wait_until(lambda: other.got)
    started = time.monotonic()
    for n in range(1, 101):
        pipeline.write([event(n)])
        pipeline.take_gaps()
    assert time.monotonic() - started < 5 < 100 * 0.1, "it waits for the sink once, not every time"
    wait_until(lambda: len(other.got) == 101)
    free.set()
    assert pipeline.flush(LIMIT_S)
    lost = next(one.lost for one in pipeline.status() if one.name == "blocked")
    assert lost
    assert sink.got == ["tcp/0", *(f"tcp/{n}" for n in range(lost + 1, 101))]
    pipeline.close()


def test_a_flood_does_not_push_out_what_is_more_severe(blocked, monkeypatch):
    monkeypatch.setattr(dispatch, "PATIENCE_S", 0.0)
    sink, free = blocked
    pipeline = dispatch_of(sink, most_bytes=20_000)
    pipeline.write([event(0)])
    wait_until(lambda: pipeline._workers[0]._in_hand)
    pipeline.write([event(1, severity="critical"), event(2, severity="warning")])
    for n in range(3, 1000):
        pipeline.write([event(n)])
    free.set()
    assert pipeline.flush(LIMIT_S)
    assert sink.got[:3] == ["tcp/0", "tcp/1", "tcp/2"], "and the order is kept"
    assert sink.got[-1] == "tcp/999"
    (gap,) = pipeline.take_gaps()
    assert gap.count == 1000 - len(sink.got)
    pipeline.close()


def test_losses_are_reported_at_once_and_then_at_a_pace(monkeypatch):
    sink = Collector(trouble=lambda events: (_ for _ in ()).throw(DeliveryError("no", refused=True)))
    pipeline = dispatch_of(sink)
    pipeline.write([event(1)])
    pipeline.flush(LIMIT_S)
    assert [gap.count for gap in pipeline.take_gaps()] == [1]
    pipeline.write([event(n) for n in range(5)])
    pipeline.flush(LIMIT_S)
    assert pipeline.take_gaps() == []
    monkeypatch.setattr(dispatch, "monotonic", lambda: time.monotonic() + dispatch.REPORT_S)
    assert [gap.count for gap in pipeline.take_gaps()] == [5]
    monkeypatch.undo()
    pipeline.write([event(n) for n in range(7)])
    pipeline.flush(LIMIT_S)
    assert [gap.count for gap in pipeline.close()] == [7], "at the end everything is reported"


def test_a_gap_that_a_sink_caused_and_cannot_deliver_causes_no_other():
    sink = Collector(trouble=lambda events: (_ for _ in ()).throw(DeliveryError("no", refused=True)))
    pipeline = dispatch_of(sink)
    pipeline.write([event(1)])
    pipeline.flush(LIMIT_S)
    gaps = pipeline.take_gaps()
    assert len(gaps) == 1
    for _ in range(3):
        pipeline.write(gaps)
        pipeline.flush(LIMIT_S)
    assert pipeline.close() == []


def test_what_waits_at_the_end_is_lost_and_counted():
    def trouble(events):
        raise DeliveryError("down")

    pipeline = dispatch_of(Collector(trouble=trouble))
    pipeline.write([event(n) for n in range(9)])
    (gap,) = pipeline.close(0.3)
    assert (gap.count, gap.reason) == (9, "sink collector: down")


def test_after_a_hang_up_it_is_tried_at_once():
    """The pauses have grown meanwhile; whoever sends SIGHUP has repaired something."""
    down = [True]

    def trouble(events):
        if down[0]:
            raise DeliveryError("down", pause_s=3600)

    sink = Collector(trouble=trouble)
    sink.reopen = lambda: down.clear() or down.append(False)
    pipeline = dispatch_of(sink)
    pipeline.write([event(1)])
    wait_until(lambda: pipeline.status()[0].failure == "down")
    pipeline.reopen()
    assert pipeline.flush(LIMIT_S)
    assert sink.got == ["tcp/1"]
    pipeline.close()


def test_each_sink_says_whether_a_test_event_was_delivered():
    def trouble(events):
        raise DeliveryError("nobody listens")

    good, bad, broken = Collector("good"), Collector("bad", trouble), Collector("broken", lambda events: {}[1])
    results = dispatch_of(good, bad, broken, severity="critical").test()
    assert [(one.name, one.delivered, one.reason) for one in results] == [
        ("good", True, None),
        ("bad", False, "nobody listens"),
        ("broken", False, "unexpected error: KeyError(1)"),
    ]
    assert good.got == ["test"]


def test_reports_of_a_sink_that_keeps_events_are_reported_too():
    sink = Collector()
    reports = [([Loss(3, "the spool is full")], ["it is down"])]
    sink.reports = lambda: reports.pop() if reports else ([], [])
    pipeline = dispatch_of(sink)
    assert [(gap.count, gap.reason) for gap in pipeline.take_gaps()] == [(3, "sink collector: the spool is full")]
    assert pipeline.take_notes() == ["sink collector: it is down", "sink collector: the spool is full; 3 events lost"]
    pipeline.close()


def test_without_sinks_nothing_happens():
    pipeline = Dispatch()
    pipeline.start()
    pipeline.write([event(1)])
    assert (pipeline.take_gaps(), pipeline.test(), pipeline.status(), pipeline.close()) == ([], (), (), [])


def test_a_sink_that_cannot_be_opened_lets_go_of_the_others(tmp_path):
    good = tmp_path / "good.log"
    with pytest.raises(StoreError):
        open_sinks([settings("text", good), settings("text", tmp_path / "none" / "x.log")])
    assert good.exists()


def test_two_sinks_of_one_name_are_told_apart():
    pipeline = open_sinks([settings("text", "-"), settings("text", "-"), settings("jsonl", "-")])
    assert [one.name for one in pipeline.status()] == ["text:-", "text:-#2", "jsonl:-"]
    pipeline.close()


@pytest.mark.parametrize("name", SINKS)
def test_a_kind_agrees_with_the_table(name):
    kind = load(name, "test")
    assert kind.name == name
    assert kind.meaning
    assert kind.severity in LEVELS
    for option in kind.options.values():
        assert option.meaning
