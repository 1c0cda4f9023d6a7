"""The sink ``text``: a line for people."""

from __future__ import annotations

from collections.abc import Sequence

from portbook.watching.sinks.base import EncodedEvent, Sink, SinkKind, SinkSettings
from portbook.watching.sinks.lines import OPTIONS, LineSink


def line_of(event: EncodedEvent) -> str:
    """Local time with its offset, severity, kind of the event, and the sentence."""
    at = event.event.at.astimezone().isoformat(timespec="milliseconds")
    return f"{at} {event.event.severity} {event.event.event} {event.sentence}\n"


def encode(events: Sequence[EncodedEvent]) -> bytes:
    """A line for each event, in UTF-8."""
    return "".join(map(line_of, events)).encode("utf-8", "backslashreplace")


def open_sink(settings: SinkSettings) -> Sink:
    """A text log; raise UsageError or StoreError."""
    return LineSink(settings, encode)


SINK = SinkKind(
    name="text",
    targets=("/var/log/portbook.log", "-"),
    meaning="a text log: one line for people per event",
    severity="info",
    options=OPTIONS,
    open=open_sink,
)
