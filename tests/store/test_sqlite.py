"""Writing a history and reading it back."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import portbook
from portbook.store.sqlite import Writer
from tests.store.samples import at, event, socket_event


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "portbook" / "history.db")


def test_what_was_appended_is_read_back(path):
    events = [event("started", 0), socket_event("present", 0, process_started=at(-60)), socket_event("closed", 90)]
    with Writer(path) as writer:
        numbered = writer.append(events)
    assert [e.sequence for e in numbered] == [1, 2, 3]
    with portbook.History(path) as history:
        assert list(history.events()) == numbered
        assert list(history.events("event:closed")) == numbered[2:]
        assert list(history.events("port:8080 process:web", until=at(1))) == numbered[1:2]
        (interval,) = history.intervals()
        assert (interval.opened_at, interval.start) == (at(-60), "inferred")
        assert (interval.closed_at, interval.end) == (at(90), "observed")
        assert list(history.intervals("port:8080", at=at(89.9))) == [interval]
        assert list(history.intervals("8080", at=at(90))) == []


def test_a_reader_sees_what_is_written_while_it_is_open(path):
    with Writer(path) as writer:
        writer.append([event("started", 0)])
        with portbook.History(path) as history:
            writer.append([socket_event("opened", 1)])
            assert [e.event for e in history.events()] == ["started", "opened"]
            assert [i.closed_at for i in history.intervals(at=at(2))] == [None]


def test_a_history_goes_on_where_it_ended(path):
    with Writer(path) as writer:
        writer.append([event("started", 0), socket_event("opened", 1), event("stopped", 10)])
    with Writer(path) as writer:
        written = writer.append([event("started", 60), socket_event("present", 60), socket_event("closed", 70)])
    assert [e.sequence for e in written] == [4, 5, 6]
    assert written[0].since == at(10)
    with portbook.History(path) as history:
        (interval,) = history.intervals()
        assert (interval.opened_at, interval.closed_at) == (at(1), at(70))
        assert [(gap.since, gap.until) for gap in interval.gaps] == [(at(10), at(60))]
        assert history.verify().whole


def test_a_second_writer_is_refused_and_named(path):
    with Writer(path), pytest.raises(portbook.StoreError, match=f"pid {os.getpid()}"):
        Writer(path)
    Writer(path).close()


def test_a_watch_that_sees_without_events_is_believed(path):
    """Until when the watch saw is noted every ten seconds, and no more often."""
    clock = [0.0]
    with Writer(path, clock=lambda: clock[0]) as writer:
        writer.append([event("started", 0), socket_event("opened", 1)])
        for seconds in range(1, 100):
            clock[0] = float(seconds)
            writer.touch(at(seconds))
        with portbook.History(path) as history:
            assert history.end() == at(90)
        writer.append([event("started", 200)])  # after a kill: nothing says "stopped"
    with portbook.History(path) as history:
        first = history.unwatched(at(0), at(300))[0]
        assert (first.since, first.until) == (at(90), at(200))


def test_the_time_after_the_last_watch_is_not_watched(path):
    with Writer(path) as writer:
        writer.append([event("started", 0), socket_event("opened", 1)])
        writer._touched_at = float("-inf")
        writer.touch(datetime.now(UTC))
        with portbook.History(path) as history:
            assert history.unwatched(at(1)) == []
            assert history.who(8080, at(5)).watched
        writer.append([event("stopped", 50)])
    with portbook.History(path) as history:
        (gap,) = history.unwatched(at(1))
        assert (gap.since, gap.until, gap.reason) == (at(50), None, "the watch has ended")
        answer = history.who(8080, at(60))
        assert (answer.held, answer.watched) == (True, False)
        assert history.unwatched(at(1), at(40)) == []


def test_a_silent_watch_is_not_believed(path):
    with Writer(path) as writer:
        writer.append([event("started", -3600 * 24 * 365)])
        with portbook.History(path) as history:
            (gap,) = history.unwatched(datetime.now(UTC) - timedelta(hours=1))
            assert gap.reason == "the watch has not reported since"


def test_a_large_and_a_broken_text_is_written(path):
    command_line = ("x" * 1_000_000, "y\udc80")
    with Writer(path) as writer:
        (written,) = writer.append([socket_event("opened", 0, command_line=command_line, name="\ud800")])
        assert writer.problem is None
    assert os.path.getsize(path) < 200_000
    with portbook.History(path) as history:
        (read,) = history.events()
        assert (read.name, read.local_port, read.sequence) == ("\ufffd", 8080, written.sequence)
        assert (read.command_line or ("",))[0].startswith("xxx")


def test_many_threads_of_a_program_do_not_stop_a_check(path):
    import threading

    with Writer(path) as writer:
        writer.append([event("started", 0)])
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, args=(60,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with portbook.History(path) as history:
            assert history.verify().whole
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_holder_in_another_network_namespace_does_not_count(path):
    with Writer(path) as writer:
        writer.append(
            [
                event("started", 0, netns=1),
                socket_event("opened", 1, netns=2, netns_name="blue", cookie=1, identity="tcp/8080 any a netns:blue"),
                socket_event("opened", 9, netns=1, cookie=2),
            ]
        )
    with portbook.History(path) as history:
        before, after = history.who(8080, at(5)), history.who(8080, at(10))
    assert (before.held, before.intervals) == (False, ())
    assert [i.netns_name for i in before.intervals_elsewhere] == ["blue"]
    assert (after.held, [i.netns for i in after.intervals]) == (True, [1])
