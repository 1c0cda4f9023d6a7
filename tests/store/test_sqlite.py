"""Writing a history and reading it back."""

from __future__ import annotations

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
    import os

    with Writer(path), pytest.raises(portbook.StoreError, match=f"pid {os.getpid()}"):
        Writer(path)
    Writer(path).close()
