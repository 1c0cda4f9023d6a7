"""The fields of an event as texts, for what has names and values: structured data, the journal, an environment. Pure.

Every text is one printable line of bounded length; JSON has the exact text.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from portbook.escaping import safe

MOST_TEXT = 1024  # characters of one value: a command line may have megabytes
OMISSION = "..."


def texts_of(fields: Mapping[str, object]) -> dict[str, str]:
    """The text of each field that has a value, by its name.

    A dictionary of texts is one object, which Python's garbage collector leaves alone.

    :param fields: of an event, as ``events.compact`` has them
    """
    texts: dict[str, str] = {}
    for name, value in fields.items():
        if value.__class__ is str and len(value) <= MOST_TEXT and value.isprintable():
            texts[name] = value
        elif value.__class__ is int:
            texts[name] = str(value)
        elif value is not None:
            texts[name] = text_of(value)
    return texts


def text_of(value: object) -> str:
    """A value as one printable line."""
    if isinstance(value, tuple):
        return _bounded(" ".join([str(part) for part in value]))
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, bool):
        return str(value).lower()
    return _bounded(str(value))


def timestamp(at: datetime) -> str:
    """UTC with microseconds (RFC 3339, and RFC 5424 section 6.2.3)."""
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return at.isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"


def _bounded(text: str) -> str:
    if len(text) > MOST_TEXT:
        text = text[:MOST_TEXT] + OMISSION
    if text.isprintable():
        return text
    return safe(text)[: 4 * MOST_TEXT]
