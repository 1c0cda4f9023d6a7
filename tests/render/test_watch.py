"""The live view as lines: whatever is in it, each picture fits its screen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from portbook.events import Event
from portbook.records import Owner, Socket
from portbook.render import watch
from portbook.render.text import Style, cell_count
from portbook.watching.judge import Judgement
from portbook.watching.records import Listener, Status

AT = datetime(2026, 11, 28, 14, 3, 1, tzinfo=UTC)
STATUS = Status("bpf", (), AT, False, AT, 1, 1, 1, 2, {"opened": 1})
NAMES = ("nginx", "日本語のサーバー", "\x1b[31mred\x07", "a\nb", "x" * 300, "\u202egnp")
JUDGEMENTS = (
    None,
    Judgement(True, None, "allowed", "quiet"),
    Judgement(False, None, "no rule allows it", "warning"),
    Judgement(None, None, "the executable is not known", "info"),
)


def listener(number: int) -> Listener:
    owner = Owner(100 + number, NAMES[number % len(NAMES)])
    socket = Socket("tcp", "ipv4", "127.0.0.1", 1 + number, state="LISTEN", owners=(owner,), netns=number % 2)
    since = AT - timedelta(seconds=number)
    return Listener(socket, f"tcp/{number}", since, JUDGEMENTS[number % len(JUDGEMENTS)])


def view(listeners: int, events: int, **more: object) -> watch.View:
    recent = [
        Event(at=AT, event="opened", protocol="tcp", local_address="::1", local_port=80, pid=1, name=NAMES[i % 6])
        for i in range(events)
    ]
    return watch.View(STATUS, [listener(i) for i in range(listeners)], recent, AT, **more)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("size", [(80, 24), (200, 50), (40, 10), (10, 3), (1, 1), (109, 7)])
@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (60, 0), (0, 60), (60, 60)])
def test_a_picture_has_as_many_lines_as_the_screen_and_none_is_wider(size, counts, colour):
    columns, rows = size
    for more in ({}, {"notice": "\x1b[2J" + "n" * 300, "has_policy": True}):
        for frozen in (False, True):
            lines = watch.screen(view(*counts, **more), columns, rows, Style(None, colour), frozen=frozen)
            assert len(lines) == rows
            plain = [line for line in lines if not colour or "\x1b" not in line]
            assert all(line.isprintable() for line in plain)
            if columns >= 80:
                assert all(cell_count(line) <= columns for line in plain)


def test_what_is_not_allowed_comes_first_then_what_is_newest():
    rows = watch.screen(view(8, 0, has_policy=True), 120, 30, Style())
    table = [line for line in rows if " tcp " in f" {line}"]
    assert [line[0] for line in table] == ["!", "?", "!", "?", " ", " ", " ", " "]
    assert [line[1:].split()[2] for line in table] == ["3", "4", "7", "8", "1", "2", "5", "6"]
    assert "2 violations" in rows[0]


def test_blindness_is_said_in_a_line_of_its_own():
    blind = Status("bpf", (), AT, True, AT, 1, 0, 0, 1, {})
    made = watch.View(blind, [], [], AT)
    assert watch.screen(made, 100, 24, Style())[1].startswith("BLIND: ")


def test_a_line_for_people_is_coloured_by_its_severity():
    event = Event(at=AT, event="gap", severity="warning", count=3, reason="\x1b[2Jfull")
    plain = watch.event_line(event, Style())
    assert plain.isprintable()
    assert watch.event_line(event, Style(None, True)) == f"\x1b[33m{plain}\x1b[0m"
