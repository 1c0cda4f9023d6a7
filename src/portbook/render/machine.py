"""Answers for programs: JSON, JSON lines, CSV, in UTF-8. No text of others ends or falsifies them.

JSON has every unprintable character as an escape, which is the same text for who parses it, and harmless on a terminal.
CSV has no escapes: there the text itself gets them, as for people, and a ' in front where a spreadsheet would take it
for a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from portbook.escaping import Encoder, safe
from portbook.records import Listing, Owner, Socket

if TYPE_CHECKING:
    from io import StringIO

# What spreadsheets take for the beginning of a formula (CWE-1236; OWASP, CSV Injection), also as full-width characters.
FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
CHUNK = 1000  # sockets encoded at once: a listing of 100,000 sockets is 60 MB of text, never in memory as a whole
ENCODER = Encoder()


def json(listing: Listing) -> Iterator[bytes]:
    """One object, the Listing, with one socket on each line."""
    head, tail = ENCODER.encode(msgspec.structs.replace(listing, sockets=())).split(b'"sockets":[]', 1)
    yield head + b'"sockets":['
    separator = b"\n"
    for chunk in _chunks(listing):
        yield separator + encode_items(chunk)
        separator = b",\n"
    yield b"]" + tail + b"\n"


def encode_items(records: list[Any] | tuple[Any, ...]) -> bytes:
    """The records as items of an array, each on a line. No string has a line end that is not escaped."""
    return ENCODER.encode_lines(records).rstrip(b"\n").replace(b"\n", b",\n")


def jsonl(listing: Listing) -> Iterator[bytes]:
    """One socket on each line."""
    for chunk in _chunks(listing):
        yield ENCODER.encode_lines(chunk)


def csv(listing: Listing) -> Iterator[bytes]:
    """One socket on each line (RFC 4180); several owners of a socket share a cell, separated by semicolons."""
    from csv import writer
    from io import StringIO

    buffer = StringIO(newline="")
    rows = writer(buffer)
    rows.writerow([*SOCKET_COLUMNS, *OWNER_COLUMNS])
    owners: dict[int, list[str]] = {}  # by identity: sockets of one process share the tuple
    for chunk in _chunks(listing):
        for s in chunk:
            key = id(s.owners)
            if key not in owners:
                owners[key] = _owner_cells(s.owners)
            rows.writerow([*map(csv_cell, SOCKET_VALUES(s)), *owners[key]])
        yield take_written(buffer)
    yield take_written(buffer)


def take_written(buffer: StringIO) -> bytes:
    """The bytes of what was written to a buffer, which is empty afterwards."""
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode()


SOCKET_COLUMNS = tuple(f for f in Socket.__struct_fields__ if f != "owners")
SOCKET_VALUES = attrgetter(*SOCKET_COLUMNS)
OWNER_COLUMNS = {
    "pid": "pid",
    "process": "name",
    "exe": "exe",
    "owner_user": "user",
    "started": "started",
    "owner_service": "service",
    "owner_container": "container",
    "how": "how",
    "confidence": "confidence",
    "command_line": "command_line",
}


def _owner_cells(group: tuple[Owner, ...]) -> list[str]:
    return [";".join(_text(getattr(owner, field)) for owner in group) for field in OWNER_COLUMNS.values()]


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(csv_cell(value))


def csv_cell(value: object) -> object:
    """A value as a cell: text is printable and no formula."""
    if value is None or value.__class__ is int:
        return value
    if value.__class__ is str:
        if value.isprintable() and value[:1] not in FORMULA:
            return value
        return _csv_text(value)
    if isinstance(value, tuple | frozenset):
        return _csv_text(" ".join(map(str, value)))
    if isinstance(value, bool):
        return str(value).lower()
    return msgspec.to_builtins(value)  # a datetime


def _csv_text(text: str) -> str:
    if not text.isprintable():
        text = safe(text)
    if text[:1] in FORMULA:
        return "'" + text
    return text


def _chunks(listing: Listing) -> Iterator[tuple[Socket, ...]]:
    for at in range(0, len(listing.sockets), CHUNK):
        yield listing.sockets[at : at + CHUNK]


FORMATS: dict[str, Callable[[Listing], Iterator[bytes]]] = {"json": json, "jsonl": jsonl, "csv": csv}
