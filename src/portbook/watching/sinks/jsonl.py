"""The sink ``jsonl``: JSON lines, with every field of the event."""

from __future__ import annotations

from collections.abc import Sequence

from portbook.watching.sinks.base import EncodedEvent, Sink, SinkKind, SinkSettings
from portbook.watching.sinks.lines import OPTIONS, LineSink


def encode(events: Sequence[EncodedEvent]) -> bytes:
    """A line for each event."""
    return b"\n".join([*(event.json for event in events), b""])


def open_sink(settings: SinkSettings) -> Sink:
    """JSON lines; raise UsageError or StoreError."""
    return LineSink(settings, encode)


SINK = SinkKind(
    name="jsonl",
    targets=("/var/log/portbook.jsonl", "-"),
    meaning="JSON lines: every field of every event",
    severity="quiet",
    options=OPTIONS,
    open=open_sink,
)
