"""Events become intervals: each rule, and any order of events against a model that is as simple as can be."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import portbook
from portbook.events import Event
from portbook.store.intervals import BLIND, NOT_RUNNING, NOT_RUNNING_REBOOTED, intervals
from portbook.store.records import Interval
from portbook.store.sqlite import Writer
from tests.store.samples import NEXT_BOOT, at, event, socket_event


def times(events: Iterable[Event]) -> list[tuple[datetime, datetime | None]]:
    return [(i.opened_at, i.closed_at) for i in intervals(events)]


def test_open_and_close():
    (interval,) = intervals([socket_event("opened", 10), socket_event("closed", 20)])
    assert (interval.opened_at, interval.start, interval.closed_at, interval.end) == (
        at(10),
        "observed",
        at(20),
        "observed",
    )
    assert (interval.name, interval.pids, interval.identity) == ("web", (4711,), "tcp/8080 any /usr/bin/web")


def test_workers_of_one_server_are_one_holder():
    events = [
        socket_event("opened", 0, cookie=1, pid=1),
        socket_event("opened", 1, cookie=2, pid=2, severity="quiet", count=2),
        socket_event("closed", 2, cookie=1, pid=1, severity="quiet"),
        socket_event("closed", 5, cookie=2, pid=2),
    ]
    (interval,) = intervals(events)
    assert (interval.opened_at, interval.closed_at, interval.pids) == (at(0), at(5), (1, 2))


def test_the_end_of_the_last_socket_ends_what_was_missed_too():
    events = [
        socket_event("opened", 0, cookie=1),
        socket_event("opened", 1, cookie=2, severity="quiet"),
        socket_event("closed", 5, cookie=2),  # of the first socket no end was seen
    ]
    assert times(events) == [(at(0), at(5))]


def test_two_addresses_are_two_intervals_that_end_together():
    events = [
        socket_event("opened", 0, cookie=1),
        socket_event("opened", 1, cookie=2, local_address="::", family="ipv6", severity="quiet"),
        socket_event("restarted", 9, cookie=3, lasted_ms=1000.0),
        socket_event("closed", 20, cookie=3),
    ]
    assert times(events) == [(at(0), at(8)), (at(1), at(8)), (at(9), at(20))]


def test_a_restart_is_two_intervals_with_the_interruption_between():
    assert times([socket_event("opened", 0), socket_event("restarted", 60, cookie=101, lasted_ms=1500.0)]) == [
        (at(0), at(58.5)),
        (at(60), None),
    ]


def test_a_late_close_ends_only_its_own_identity():
    """The end of the last socket is withheld for the grace time: another program may have the port by then."""
    events = [
        socket_event("opened", 0, exe="/usr/bin/a", cookie=1),
        socket_event("opened", 10, exe="/usr/bin/b", cookie=2),
        socket_event("closed", 9, exe="/usr/bin/a", cookie=1),
    ]
    assert times(events) == [(at(0), at(9)), (at(10), None)]


@pytest.mark.parametrize("kind", ["owner_changed", "reach_changed"])
def test_a_socket_of_another_identity_is_another_interval(kind):
    events = [
        socket_event("opened", 0, exe="/lib/systemd/systemd"),
        socket_event(kind, 5, exe="/usr/sbin/sshd"),
        socket_event("closed", 9, exe="/usr/sbin/sshd"),
    ]
    found = intervals(events)
    assert [(i.exe, i.opened_at, i.closed_at) for i in found] == [
        ("/lib/systemd/systemd", at(0), at(5)),
        ("/usr/sbin/sshd", at(5), at(9)),
    ]


def test_other_owners_of_the_same_program_add_their_pids():
    (interval,) = intervals([socket_event("opened", 0, pids=(1,)), socket_event("owner_changed", 5, pids=(2, 3))])
    assert interval.pids == (1, 2, 3)


# --- what was not watched ------------------------------------------------------------------------------------------


def test_what_was_there_before_the_first_watch_opened_with_its_process_at_the_earliest():
    (interval,) = intervals([event("started", 0), socket_event("present", 0, process_started=at(-60))])
    assert (interval.opened_at, interval.start) == (at(-60), "inferred")
    assert [(gap.since, gap.until) for gap in interval.gaps] == [(at(-60), at(0))]
    (interval,) = intervals([event("started", 0), socket_event("present", 0)])
    assert (interval.opened_at, interval.start) == (at(0), "inferred")


@pytest.mark.parametrize("stopped", [True, False])
def test_the_same_socket_goes_on_over_an_interruption(stopped):
    end = [event("stopped", 50)] if stopped else [socket_event("opened", 50, port=9, cookie=9)]
    events = [event("started", 0), socket_event("opened", 10), *end]
    events += [event("started", 90), socket_event("present", 90), socket_event("closed", 100)]
    found = [i for i in intervals(events) if i.local_port == 8080]
    assert [(i.opened_at, i.closed_at, i.end) for i in found] == [(at(10), at(100), "observed")]
    assert [(gap.since, gap.until, gap.reason) for gap in found[0].gaps] == [(at(50), at(90), NOT_RUNNING)]


def test_what_is_not_found_again_ended_when_it_was_last_known_or_later():
    events = [event("started", 0), socket_event("opened", 10), event("stopped", 50), event("started", 90)]
    assert times(events) == [(at(10), None)], "the new watch has not said yet what is there"
    found = intervals([*events, socket_event("opened", 91, port=9, cookie=9)])
    assert (found[0].closed_at, found[0].end) == (at(50), "inferred")


def test_another_socket_of_the_same_identity_after_an_interruption_is_another_interval():
    events = [event("started", 0), socket_event("opened", 10), event("stopped", 50), event("started", 90)]
    events.append(socket_event("present", 90, cookie=200, process_started=at(-60)))
    first, second = intervals(events)
    assert (first.closed_at, first.end) == (at(50), "inferred")
    assert (second.opened_at, second.start) == (at(50), "inferred"), "before that the watch saw that it was not there"


def test_a_boot_ends_everything():
    boot = {"boot_id": NEXT_BOOT, "monotonic_ns": 5_000_000_000}
    events = [event("started", 0), socket_event("opened", 10), event("stopped", 50)]
    events += [event("started", 90, **boot), socket_event("present", 90, process_started=at(80), **boot)]
    first, second = intervals(events)
    assert (first.closed_at, first.end) == (at(50), "inferred")
    assert (second.opened_at, second.start) == (at(80), "inferred")
    assert second.gaps[0].reason == NOT_RUNNING_REBOOTED


def test_without_cookies_the_same_process_goes_on():
    plain = {"cookie": None, "boot_id": None, "process_started": at(5)}
    events = [event("started", 0), socket_event("opened", 10, **plain), event("stopped", 50), event("started", 90)]
    assert times([*events, socket_event("present", 90, **plain)]) == [(at(10), None)]
    other = plain | {"pid": 99, "process_started": at(60)}
    assert times([*events, socket_event("present", 90, **other)]) == [(at(10), at(50)), (at(60), None)]


def test_gaps_and_blindness_lie_in_the_intervals_over_them():
    events = [
        socket_event("opened", 0),
        event("gap", 20, since=at(10), reason="ring full"),
        event("gap", 25, since=at(22), reason="webhook: down", feed=None),
        event("blind", 30, since=at(28)),
        event("seeing", 40),
        socket_event("opened", 45, port=9, cookie=9),
    ]
    first, second = intervals(events)
    assert [(g.since, g.until, g.reason) for g in first.gaps] == [
        (at(10), at(20), "ring full"),
        (at(28), at(40), BLIND),
    ]
    assert second.gaps == ()


# --- the clock -----------------------------------------------------------------------------------------------------


def test_a_clock_that_was_set_back_turns_no_interval_round():
    """Opened at 100 by a clock that is an hour fast; closed 50 seconds later by the right one."""
    opened = socket_event("opened", 3700, monotonic_ns=100_000_000_000)
    (interval,) = intervals([opened, socket_event("closed", 150, monotonic_ns=150_000_000_000)])
    assert (interval.opened_at, interval.closed_at, interval.start) == (at(100), at(150), "inferred")


def test_what_is_open_when_the_clock_is_set_back_does_not_begin_in_the_future():
    opened = socket_event("opened", 3700, monotonic_ns=100_000_000_000)
    other = socket_event("opened", 150, port=9, cookie=9, monotonic_ns=150_000_000_000)
    first = intervals([opened, other])[0]
    assert (first.opened_at, first.closed_at, first.start) == (at(100), None, "inferred")


# --- any order -----------------------------------------------------------------------------------------------------

PROGRAMS = ("/usr/bin/a", "/usr/bin/b")
steps = st.lists(
    st.tuples(st.sampled_from(["open", "close", "watch"]), st.integers(0, 5), st.integers(0, 1), st.integers(0, 1)),
    max_size=40,
)


def history_of(
    chosen: list[tuple[str, int, int, int]],
) -> tuple[list[Event], set[tuple[str, int]], list[tuple[int, int]]]:
    """Events as the register makes them, which sockets are open at their end, and the interruptions of the watch."""
    events: list[Event] = [event("started", 0)]
    sockets: dict[int, tuple[str, int]] = {}
    interruptions: list[tuple[int, int]] = []
    for number, (what, cookie, program, port) in enumerate(chosen, 1):
        exe = PROGRAMS[program]
        second = number * 10
        if what == "open" and cookie not in sockets:
            sockets[cookie] = (exe, 8000 + port)
            events.append(socket_event("opened", second, 8000 + port, exe=exe, cookie=cookie, pid=cookie + 1))
        elif what == "close" and cookie in sockets:
            closed, number_ = sockets.pop(cookie)
            severity = "quiet" if (closed, number_) in sockets.values() else "info"
            fields = {"exe": closed, "cookie": cookie, "pid": cookie + 1, "severity": severity}
            events.append(socket_event("closed", second, number_, **fields))
        elif what == "watch":
            events += [event("stopped", second), event("started", second + 5)]
            for known, (exe_, number_) in sockets.items():
                fields = {"exe": exe_, "cookie": known, "pid": known + 1}
                events.append(socket_event("present", second + 5, number_, **fields))
            interruptions.append((second, second + 5))
    return events, set(sockets.values()), interruptions


@given(steps)
def test_any_events_make_intervals_that_say_who_holds_what(chosen):
    events, still_open, interruptions = history_of(chosen)
    found = intervals(events)
    assert {(i.exe, i.local_port) for i in found if i.closed_at is None} == still_open
    for interval in found:
        assert interval.closed_at is None or interval.closed_at >= interval.opened_at
        assert [(g.since, g.until) for g in interval.gaps] == [
            (at(a), at(b))
            for a, b in interruptions
            if at(b) > interval.opened_at and (interval.closed_at is None or at(a) < interval.closed_at)
        ]
    by_holder: dict[tuple[str | None, int], list[Interval]] = {}
    for interval in found:
        by_holder.setdefault((interval.exe, interval.local_port), []).append(interval)
    for mine in by_holder.values():  # one holder has a port once at a time
        assert all(a.closed_at is not None and a.closed_at <= b.opened_at for a, b in pairwise(mine))


@settings(max_examples=15)
@given(steps, st.lists(st.integers(5, 20), min_size=1, max_size=4))
def test_the_file_has_the_intervals_that_the_events_make(tmp_path_factory, chosen, batches):
    """Also when the writer is opened anew between any two batches."""
    events, _, _ = history_of(chosen)
    path = str(tmp_path_factory.mktemp("intervals") / "history.db")
    waiting = list(events)
    turn = 0
    while waiting:
        size = batches[turn % len(batches)]
        turn += 1
        with Writer(path) as writer:
            writer.append(waiting[:size])
        del waiting[:size]
    with portbook.History(path) as history:
        stored = list(history.intervals())
        assert sorted((i.sequence, i.opened_at, i.closed_at, i.pids, i.end) for i in stored) == [
            (i.sequence, i.opened_at, i.closed_at, i.pids, i.end) for i in intervals(events)
        ]
        assert history.verify().whole


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 60)), max_size=20), st.integers(0, 170))
@settings(max_examples=25)
def test_what_lay_over_a_moment_is_found_by_its_length(tmp_path_factory, spans, moment):
    path = str(tmp_path_factory.mktemp("moment") / "history.db")
    events: list[Event] = []
    for number, (start, length) in enumerate(spans):
        exe = f"/usr/bin/p{number}"
        events.append(socket_event("opened", start, exe=exe, cookie=number))
        if length < 50:
            events.append(socket_event("closed", start + length, exe=exe, cookie=number))
    with Writer(path) as writer:
        writer.append(events)
    expected = {
        f"/usr/bin/p{number}"
        for number, (start, length) in enumerate(spans)
        if start <= moment and (length >= 50 or moment < start + length)
    }
    with portbook.History(path) as history:
        for query in ("", "8080", "1-65535"):
            assert {i.exe for i in history.intervals(query, at=at(moment))} == expected
        later = [i.exe for i in history.intervals(since=at(moment))]
        assert sorted(later) == sorted(
            f"/usr/bin/p{number}"
            for number, (start, length) in enumerate(spans)
            if length >= 50 or start + length > moment or start > moment
        )
