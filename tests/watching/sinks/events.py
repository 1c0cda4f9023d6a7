"""Events and settings for the tests of sinks."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from portbook.events import Event
from portbook.watching.sinks import load
from portbook.watching.sinks.base import EncodedEvent, SinkSettings

LIMIT_S = 20.0


def event(number: int = 1, **fields: Any) -> Event:
    given = {
        "at": datetime(2026, 11, 28, 12, 0, number % 60, 123456, UTC),
        "event": "opened",
        "protocol": "tcp",
        "family": "ipv4",
        "local_address": "127.0.0.1",
        "local_port": 8000,
        "state": "LISTEN",
        "reach": "loopback",
        "pid": 4711,
        "name": "nginx",
        "identity": f"tcp/{number}",
        "feed": "bpf",
        "cookie": number,
    }
    return Event(**{**given, **fields})


def encoded(*events: Event) -> list[EncodedEvent]:
    return [EncodedEvent(one) for one in events]


def settings(kind: str, target: object = "", severity: str | None = None, **options: Any) -> SinkSettings:
    row = load(kind, "test")
    assert options.keys() <= row.options.keys()
    defaults = {name: option.default for name, option in row.options.items()}
    return SinkSettings(kind, str(target), severity or row.severity, "test", {**defaults, **options})


def wait_until(condition: Any, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
