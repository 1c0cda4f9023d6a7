"""What the history answers. No I/O here; field names are an API, as those of ``portbook.records``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

from portbook.events import Event
from portbook.records import Protocol, Reach

# observed: an event says so. inferred: it was worked out from the start of the process, the end of a watch or a boot.
Basis = Literal["observed", "inferred"]


class Unwatched(Struct, frozen=True):
    """A time in which something may have happened that the history does not have."""

    since: datetime | None  # None: nobody had watched before
    until: datetime | None  # None: it lasts
    reason: str


class Interval(Struct, frozen=True, kw_only=True):
    """A time in which an identity held a port. Texts are hostile input, as those of an event."""

    identity: str
    protocol: Protocol
    local_address: str
    local_port: int
    reach: Reach | None = None
    netns: int | None = None
    netns_name: str | None = None
    name: str | None = None  # of the process
    exe: str | None = None
    command_line: tuple[str, ...] | None = None
    uid: int | None = None
    user: str | None = None
    service: str | None = None
    container: str | None = None
    pids: tuple[int, ...] = ()  # of all that held it
    opened_at: datetime
    closed_at: datetime | None = None  # None: it lasts, as far as is known
    start: Basis = "observed"
    end: Basis | None = None  # None: it lasts
    gaps: tuple[Unwatched, ...] = ()  # inside of it
    sequence: int | None = None  # of the event that opened it
    closed_by: int | None = None  # the sequence of the event that ended it


class Excerpt(Struct, frozen=True):
    """A part of the history: the intervals, or the events, that a query selects."""

    schema: int
    path: str
    at: datetime | None  # the moment that was asked for
    since: datetime | None  # the time that was asked for
    until: datetime | None
    recorded_since: datetime | None  # before this nothing is known
    watched_until: datetime | None  # up to when a watch has seen, as far as it has said so
    complete: bool  # no gaps
    gaps: tuple[Unwatched, ...] = ()  # within the time that was asked for
    intervals: tuple[Interval, ...] = ()
    events: tuple[Event, ...] = ()


class PastHolding(Struct, frozen=True):
    """The answer to "who held this port at that moment?"."""

    schema: int
    port: int
    protocol: Protocol | None  # None: both were looked at
    at: datetime
    held: bool  # as far as is known
    watched: bool  # whether a watch saw what happened at that moment
    intervals: tuple[Interval, ...]
    gaps: tuple[Unwatched, ...] = ()  # that lie over the moment
    # Linux: in other network namespaces than that of the watch. The port is held there, and may have been free here.
    intervals_elsewhere: tuple[Interval, ...] = ()


class Break(Struct, frozen=True):
    """The first place where a history is not what was written."""

    sequence: int
    at: datetime | None  # the time that the row has, or the one before it
    what: str


class Verification(Struct, frozen=True):
    """Whether a history is as it was written."""

    path: str
    whole: bool
    rows: int  # that were checked
    first: int | None  # sequences of the first and the last row
    last: int | None
    removed: int  # rows that retention removed, as the chain says
    head: str | None  # the last row and its hash: the anchor to keep
    anchored: bool | None  # whether the anchor that was given is in the chain; None: none was given
    broken: Break | None = None
