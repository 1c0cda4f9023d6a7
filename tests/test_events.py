"""Events: what their JSON line has."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import get_type_hints

from msgspec.structs import fields

from portbook.escaping import Encoder
from portbook.events import ALWAYS, EVENT_KINDS, LEVELS, MEANINGS, Event, compact

AT = datetime(2026, 11, 28, 14, 3, 1, 250000, UTC)


def test_every_kind_has_a_meaning():
    assert MEANINGS.keys() == set(EVENT_KINDS)
    assert LEVELS[0] == "quiet"


def test_only_the_first_two_fields_are_required_so_that_more_can_be_added():
    assert [field.name for field in fields(Event) if field.required] == ["at", "event"]
    assert get_type_hints(Event).keys() == set(Event.__struct_fields__)


def test_a_line_has_what_says_something_and_always_the_fields_of_a_socket():
    event = Event(at=AT, event="opened", protocol="tcp", local_address="::", local_port=80, count=2, process_gone=True)
    line = json.loads(Encoder().encode(compact(event)))
    assert line == {
        "at": "2026-11-28T14:03:01.250000Z",
        "event": "opened",
        "severity": "info",
        "protocol": "tcp",
        "local_address": "::",
        "local_port": 80,
        "pid": None,
        "name": None,
        "netns": None,
        "process_gone": True,
        "count": 2,
    }
    assert set(ALWAYS) < line.keys()


def test_a_line_about_the_watch_itself_has_no_fields_of_a_socket():
    assert compact(Event(at=AT, event="gap", count=5, reason="the ring was full")) == {
        "at": AT, "event": "gap", "severity": "info", "count": 5, "reason": "the ring was full",
    }  # fmt: skip


def test_a_whole_line_has_every_field():
    values = dict.fromkeys(Event.__struct_fields__, "x")
    event = Event(**values | {"at": AT})
    assert compact(event).keys() == set(Event.__struct_fields__)
