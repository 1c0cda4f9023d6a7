"""Events as a watch makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from portbook.events import Event, EventKind

T0 = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
BOOT = "11111111-2222-3333-4444-555555555555"
NEXT_BOOT = "66666666-7777-8888-9999-aaaaaaaaaaaa"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def event(kind: EventKind, seconds: float, **fields: Any) -> Event:
    """An event about the watch."""
    fields = {"boot_id": BOOT, "feed": "bpf", "monotonic_ns": round((1000 + seconds) * 1e9)} | fields
    return Event(at=at(seconds), event=kind, **fields)


def socket_event(kind: EventKind, seconds: float, port: int = 8080, **fields: Any) -> Event:
    """An event about a socket that listens."""
    exe = fields.get("exe", "/usr/bin/web")
    reach = fields.get("reach", "any")
    given = {
        "protocol": "tcp",
        "family": "ipv4",
        "local_address": "0.0.0.0",
        "local_port": port,
        "state": "LISTEN",
        "reach": reach,
        "pid": 4711,
        "name": exe.rpartition("/")[2],
        "exe": exe,
        "uid": 0,
        "user": "root",
        "cookie": 100,
        "identity": f"tcp/{port} {reach} {exe}",
    }
    return event(kind, seconds, **(given | fields))
