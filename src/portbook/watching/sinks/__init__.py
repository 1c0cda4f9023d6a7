"""Where events go: logs, collectors, receivers, commands."""

from __future__ import annotations

from importlib import import_module

from portbook.errors import UsageError, nearest
from portbook.watching.sinks.base import SinkKind

# kind: module. Each has a SINK: SinkKind.
SINKS: dict[str, str] = {
    "text": "text",
    "jsonl": "jsonl",
    "syslog": "syslog",
    "journald": "journald",
    "webhook": "webhook",
    "command": "command",
}


def load(kind: str, place: str) -> SinkKind:
    """Import a kind of sink; raise UsageError, with the place where it was written, if there is none of that name."""
    if kind not in SINKS:
        near = nearest(kind, SINKS)
        hint = f"valid kinds are {', '.join(SINKS)}"
        if near is not None:
            hint = f"did you mean {near!r}? {hint}"
        raise UsageError(f"{place}: there is no sink {kind[:40]!r}", hint)
    found: SinkKind = import_module(f"portbook.watching.sinks.{SINKS[kind]}").SINK
    return found
