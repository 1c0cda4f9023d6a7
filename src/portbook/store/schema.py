"""The tables of the history, and the bytes of a row.

``events`` is the truth. The body of a row is the event as a MessagePack array of its fields in their order, without the
sequence; ``at``, ``kind`` and ``port`` are copies for searching. ``intervals`` and
``unwatched`` are made from the events by ``intervals.Ledger``; an interval has the sequence of the event that opened it
as its id, and everything about it that is no time is in that event.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from portbook.events import Event

VERSION = 1  # PRAGMA user_version: of the tables, and of the kinds of events, which an older reader has to know
APPLICATION_ID = 0x706F7274  # PRAGMA application_id: "port"
OPEN = 64  # the span of an interval that has not ended
CHECKPOINT = "checkpoint"  # the kind of a row that is no event: retention removed what came before

# Rows of kinds that are many are not in the index of kinds.
COMMON_KINDS = frozenset(("opened", "closed", "present", "restarted", "short_lived"))
COMMON = "('opened', 'closed', 'present', 'restarted', 'short_lived')"  # as it is in the index, and in queries for it
EARLIEST, LATEST = -(1 << 60), 1 << 60  # microseconds; sums with them stay within 64 bits
TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE events (sequence INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, port INTEGER,"
    " interval INTEGER, hash BLOB NOT NULL, body BLOB NOT NULL)",
    "CREATE INDEX events_by_time ON events(at)",
    # Of events that belong to an interval the port is found by the interval: ports are many, and an index of all would
    # change a page of the file for each event.
    "CREATE INDEX events_by_port ON events(port) WHERE interval IS NULL AND port IS NOT NULL",
    f"CREATE INDEX events_by_kind ON events(kind) WHERE kind NOT IN {COMMON}",
    "CREATE INDEX events_by_interval ON events(interval) WHERE interval < sequence",
    "CREATE TABLE intervals (id INTEGER PRIMARY KEY, port INTEGER NOT NULL, opened_at INTEGER NOT NULL,"
    " closed_at INTEGER, closed_by INTEGER, span INTEGER NOT NULL, marks INTEGER NOT NULL, kept BLOB)",
    "CREATE INDEX intervals_by_span ON intervals(span, opened_at)",
    "CREATE INDEX intervals_by_port ON intervals(port, opened_at)",
    "CREATE TABLE unwatched (sequence INTEGER PRIMARY KEY, since INTEGER NOT NULL, until INTEGER, reason TEXT)",
    "CREATE INDEX unwatched_by_end ON unwatched(until)",
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ENCODER = msgspec.msgpack.Encoder()
_SEQUENCE = Event.__struct_fields__.index("sequence")
MEMBERS = (  # the events that joined an interval, or ended it
    "SELECT sequence, body FROM events WHERE interval = ? AND interval < sequence ORDER BY sequence LIMIT 1000"
)
MOST_BODY = 1 << 16  # bytes: a command line may have two megabytes
MOST_TEXT = 4096  # characters that a text of a larger event keeps


class _Packed(Event, frozen=True, gc=False, kw_only=True, array_like=True):
    """An event as it is in a body."""


class Key(Struct, frozen=True, gc=False, array_like=True):
    """The fields at the beginning of a body."""

    at: datetime
    event: str
    severity: str


class Checkpoint(Struct, frozen=True, array_like=True):
    """The body of a row by which retention says what it removed."""

    first: int  # the sequence of the first row that is kept
    hash: bytes  # of the row before that one


_DECODER = msgspec.msgpack.Decoder(_Packed)
decode_key = msgspec.msgpack.Decoder(Key).decode
decode_checkpoint = msgspec.msgpack.Decoder(Checkpoint).decode


def encode(event: Event) -> bytes:
    """The body of an event. Texts of one that is very large are cut."""
    values = astuple(event)
    if event.sequence is not None:
        values = (*values[:_SEQUENCE], None, *values[_SEQUENCE + 1 :])
    try:
        body = _ENCODER.encode(values)
    except UnicodeEncodeError:  # surrogates, which UTF-8 does not have: RFC 3629 section 3
        body = _ENCODER.encode(_cleaned(values, MOST_BODY))
    if len(body) > MOST_BODY:
        body = _ENCODER.encode(_cleaned(values, MOST_TEXT))
    return body


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """The body of a checkpoint."""
    return _ENCODER.encode(checkpoint)


def decode(body: bytes, sequence: int) -> Event:
    """The event of a body.

    :raises msgspec.MsgspecError: it is not one
    """
    fields = dict(zip(Event.__struct_fields__, astuple(_DECODER.decode(body)), strict=True))
    fields["sequence"] = sequence
    return Event(**fields)


def view(body: bytes) -> Event:
    """The event of a body, without its sequence and of a type of its own: to be read, not to be handed on.

    :raises msgspec.MsgspecError: it is not one
    """
    return _DECODER.decode(body)


def to_us(moment: datetime) -> int:
    """Microseconds since 1970, UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """The moment of such a number, UTC."""
    return _EPOCH + timedelta(microseconds=us)


def span_of(opened_us: int, closed_us: int | None) -> int:
    """The class of an interval's length: it is shorter than two to the power of this number, in microseconds.

    What covers a moment is found without reading every interval before it: those of a class began at most that long
    before.
    """
    if closed_us is None:
        return OPEN
    return min(max(closed_us - opened_us, 0).bit_length(), OPEN - 1)


def _cleaned(values: tuple[Any, ...], most: int) -> tuple[Any, ...]:
    return tuple(_clean(value, most) for value in values)


def _clean(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return value[:most].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, tuple):
        return tuple(_clean(item, most // 8) for item in value[: most // 16])
    return value
