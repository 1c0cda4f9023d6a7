"""The fields of an event as texts, for what has names and values: structured data, the journal, an environment. Pure.

Every text is one printable line of bounded length, whoever chose it; JSON has the exact one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from operator import attrgetter

from portbook.escaping import safe
from portbook.events import Event

MOST_TEXT = 1024  # characters of one value: a command line may have megabytes
OMISSION = "..."
NAMES = Event.__struct_fields__
_DEFAULTS = dict(zip(reversed(NAMES), reversed(Event.__struct_defaults__), strict=False))
# Fields whose default says something: an event has always a severity, and a count of 1 is no news.
_OMITTED = tuple(None if name == "severity" else _DEFAULTS.get(name) for name in NAMES)
_VALUES = attrgetter(*NAMES)


def texts_of(event: Event) -> tuple[tuple[str, str], ...]:
    """Name and text of each field that has a value: not those that are None, empty, False, or a count of 1."""
    texts: list[tuple[str, str]] = []
    for name, value, omitted in zip(NAMES, _VALUES(event), _OMITTED, strict=True):
        if value is None or value == omitted:
            continue
        texts.append((name, text_of(value)))
    return tuple(texts)


def text_of(value: object) -> str:
    """A value as one printable line."""
    if value.__class__ is str:
        return _bounded(str(value))
    if value.__class__ is int:
        return str(value)
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return _bounded(" ".join(map(str, value)))
    return _bounded(str(value))


def timestamp(at: datetime) -> str:
    """UTC with microseconds (RFC 3339, and RFC 5424 section 6.2.3)."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _bounded(text: str) -> str:
    if len(text) > MOST_TEXT:
        text = text[:MOST_TEXT] + OMISSION
    if text.isprintable():
        return text
    return safe(text)[: 4 * MOST_TEXT]
