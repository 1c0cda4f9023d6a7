"""The history for people and for programs; the picture of it is in ``ledger``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from msgspec.structs import replace

from portbook.escaping import safe
from portbook.events import Event, compact
from portbook.numerals import counted
from portbook.render.holding import format_age
from portbook.render.machine import CHUNK, ENCODER, csv_cell, encode_items, take_written
from portbook.render.text import Column, Style, bold, room, safe_endpoint, table_of_columns, wrap
from portbook.store.records import Excerpt, Interval, PastHolding, Unwatched, Verification
from portbook.times import format_moment
from portbook.watching.description import describe

MOST_LISTED = 10_000  # intervals of a table: its columns are as wide as their widest cell
MOST_GAPS = 5
INFERRED = "~"  # before a time
COLUMNS = (
    Column("ENDPOINT"),
    Column("NETNS", 3),
    Column("PROCESS", 4, 10),
    Column("PID", 1, 6),
    Column("SERVICE", 5, 12),
    Column("FROM"),
    Column("TO"),
    Column("LASTED"),
)
ENDPOINT, NETNS, PROCESS, PID, SERVICE, FROM, TO, LASTED = range(8)  # of COLUMNS
NEEDED = frozenset((ENDPOINT, PROCESS, FROM, TO))
OPTIONAL = (LASTED, SERVICE, PID, NETNS)  # in the order in which they are left out
INTERVAL_COLUMNS = Interval.__struct_fields__
EVENT_COLUMNS = Event.__struct_fields__

Records = Iterator[Interval] | Iterator[Event]


def json(excerpt: Excerpt, records: Records, field: str) -> Iterator[bytes]:
    """One object, the Excerpt, with one interval or event on each line; ``field`` is what it has them in."""
    empty = b'"%s":[]' % field.encode()
    head, tail = ENCODER.encode(replace(excerpt, intervals=(), events=())).split(empty, 1)
    yield head + empty[:-1]
    separator = b"\n"
    for chunk in _chunks(records):
        yield separator + encode_items(chunk)
        separator = b",\n"
    yield b"]" + tail + b"\n"


def jsonl(_: Excerpt, records: Records, __: str) -> Iterator[bytes]:
    """One interval or event on each line."""
    for chunk in _chunks(records):
        yield ENCODER.encode_lines(chunk)


def csv(_: Excerpt, records: Records, field: str) -> Iterator[bytes]:
    """One interval or event on each line (RFC 4180)."""
    from csv import writer
    from io import StringIO

    buffer = StringIO(newline="")
    rows = writer(buffer)
    columns = INTERVAL_COLUMNS if field == "intervals" else EVENT_COLUMNS
    rows.writerow(columns)
    for chunk in iter(lambda: list(islice(records, CHUNK)), []):
        for record in chunk:
            rows.writerow([csv_cell(_csv_value(getattr(record, name))) for name in columns])
        yield take_written(buffer)
    yield take_written(buffer)


FORMATS: dict[str, Callable[[Excerpt, Records, str], Iterator[bytes]]] = {"json": json, "jsonl": jsonl, "csv": csv}


def _chunks(records: Records) -> Iterator[list[Any]]:
    """The records for JSON, some at a time: of an event the fields that say something."""
    while chunk := list(islice(records, CHUNK)):
        yield [compact(record) if isinstance(record, Event) else record for record in chunk]


def _csv_value(value: Any) -> Any:
    if isinstance(value, tuple) and value and isinstance(value[0], Unwatched):
        return tuple(f"{_iso(gap.since)}/{_iso(gap.until)} ({gap.reason})" for gap in value)
    return value


def _iso(moment: datetime | None) -> str:
    return ".." if moment is None else moment.isoformat().replace("+00:00", "Z")


# --- for people ----------------------------------------------------------------------------------------------------


def heading(since: datetime, until: datetime, cell: timedelta) -> str:
    """Of what time a picture is, and how long the time of a column."""
    return f"{format_moment(since)} to {format_moment(until)}; a column is {_format_cell(cell)}"


def interval_lines(intervals: Iterable[Interval], style: Style) -> list[str]:
    """A table of intervals; on a narrow terminal without what can be missed. Empty if there are none."""
    listed = list(islice(intervals, MOST_LISTED + 1))
    if not listed:
        return []
    columns, rows = _columns(listed[:MOST_LISTED])
    kept = [i for i, column in enumerate(columns) if i in NEEDED or any(rows[i])]
    for left_out in OPTIONAL:
        if room([columns[i] for i in kept], [rows[i] for i in kept], style) >= 0:
            break
        kept = [i for i in kept if i != left_out]
    lines = table_of_columns([columns[i] for i in kept], [rows[i] for i in kept], style)
    if any(text.startswith(INFERRED) for text in (*rows[FROM], *rows[TO])):
        lines.append(f"{INFERRED} inferred: at this time or later")
    if len(listed) > MOST_LISTED:
        lines.append(f"only the first {MOST_LISTED:,} are shown; --jsonl has all")
    return lines


def _columns(intervals: list[Interval]) -> tuple[list[Column], list[tuple[str, ...]]]:
    """The columns and the cells of each. An offset that all times have is in the title."""
    offsets = {_offset(moment) for i in intervals for moment in (i.opened_at, i.closed_at) if moment is not None}
    rows = list(zip(*(_row(interval, len(offsets) > 1) for interval in intervals), strict=True))
    columns = list(COLUMNS)
    if len(offsets) == 1:
        columns[FROM] = Column(f"FROM ({offsets.pop()})")
    return columns, rows


def _offset(moment: datetime) -> str:
    text = f"{moment.astimezone():%z}"
    return f"{text[:3]}:{text[3:5]}"


def event_lines(events: Iterable[Event], style: Style) -> Iterator[str]:
    """A line for each event."""
    for event in events:
        yield from wrap(f"{format_moment(event.at)}  {describe(event)}", style, indent="    ")


def gap_notes(gaps: Iterable[Unwatched]) -> Iterator[str]:
    """A sentence for each time that was not watched, of many the first ones."""
    listed = list(gaps)
    for gap in listed[:MOST_GAPS]:
        yield _describe_gap(gap)
    if len(listed) > MOST_GAPS:
        yield f"{counted(len(listed) - MOST_GAPS, 'more time')} not watched; --json has them"


def past_lines(answers: Iterable[PastHolding], style: Style) -> list[str]:
    """The answer of ``who --at``: a heading for each port, then its holders."""
    blocks: list[str] = []
    for answer in answers:
        if blocks:
            blocks.append("")
        blocks += bold(wrap(_past_heading(answer), style, indent="  "), style)
        for interval in (*answer.intervals, *answer.intervals_elsewhere):
            blocks.append("")
            for title, text in _interval_rows(interval):
                if text:
                    blocks += wrap(text, style, f"  {title:<12}", " " * 14)
    return blocks


def verification_lines(answer: Verification, style: Style) -> list[str]:
    """The answer of ``history verify``."""
    lines: list[str] = []
    if answer.broken is not None:
        broken = answer.broken
        when = "" if broken.at is None else f" ({format_moment(broken.at)})"
        text = f"{safe(answer.path)} is not as it was written: event {broken.sequence}{when}: {safe(broken.what)}"
        lines += bold(wrap(text, style, indent="  "), style)
    elif answer.first is None:
        lines += bold(wrap(f"{safe(answer.path)} has no events", style), style)
    else:
        events = f"{counted(answer.rows, 'row')}, {answer.first} to {answer.last}"
        lines += bold(wrap(f"{safe(answer.path)} is as it was written: {events}", style, indent="  "), style)
    if answer.removed and answer.whole:
        lines += wrap(f"{counted(answer.removed, 'earlier row')} removed by retention, as the chain says", style)
    if answer.anchored:
        lines += wrap("the anchor is in it: nothing before the anchor was altered", style)
    if answer.head is not None and answer.whole:
        lines += wrap(f"anchor: {answer.head}", style)
    return lines


def _row(interval: Interval, with_offset: bool) -> tuple[str, ...]:
    endpoint = f"{safe_endpoint(interval.local_address, interval.local_port)}/{interval.protocol}"
    start = INFERRED if interval.start == "inferred" else ""
    return (
        endpoint,
        safe(interval.netns_name or ""),
        safe(interval.name or "?"),
        _pids(interval),
        safe(interval.container or interval.service or ""),
        start + _local_text(interval.opened_at, with_offset),
        _end_text(interval, with_offset),
        _lasted(interval),
    )


def _pids(interval: Interval) -> str:
    more = f" +{len(interval.pids) - 1}" if len(interval.pids) > 1 else ""
    return f"{interval.pids[0]}{more}" if interval.pids else ""


def _local_text(moment: datetime, with_offset: bool) -> str:
    text = format_moment(moment)
    return text if with_offset else text.rpartition(" ")[0]


def _end_text(interval: Interval, with_offset: bool) -> str:
    """When it ended: on the same day the time alone."""
    if interval.closed_at is None:
        return "holds it"
    mark = INFERRED if interval.end == "inferred" else ""
    text = _local_text(interval.closed_at, with_offset)
    if interval.closed_at.astimezone().date() == interval.opened_at.astimezone().date():
        text = text.partition(" ")[2]
    return mark + text


def _lasted(interval: Interval) -> str:
    if interval.closed_at is None:
        return ""
    seconds = (interval.closed_at - interval.opened_at).total_seconds()
    if seconds < 0.01:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return format_age(seconds)


def _interval_rows(interval: Interval) -> Iterator[tuple[str, str]]:
    """What ``who --at`` says of a holder."""
    yield "process", f"{safe(interval.name or '?')} (pid {', '.join(map(str, interval.pids[:8])) or '?'})"
    yield "executable", safe(interval.exe or "")
    yield "command", safe(" ".join(interval.command_line or ()))[:400]
    yield "user", safe(interval.user or ("" if interval.uid is None else str(interval.uid)))
    yield "service", safe(interval.service or "")
    yield "container", safe(interval.container or "")
    yield "namespace", safe(interval.netns_name or "")
    yield "listened on", f"{safe_endpoint(interval.local_address, interval.local_port)}/{interval.protocol}"
    inferred = " (inferred; this time or later)" if interval.start == "inferred" else ""
    yield "from", f"{format_moment(interval.opened_at)}{inferred}"
    if interval.closed_at is None:
        yield "to", "it has not ended, as far as is known"
    else:
        inferred = " (inferred; this time or later)" if interval.end == "inferred" else ""
        yield "to", f"{format_moment(interval.closed_at)}{inferred}"


def _past_heading(answer: PastHolding) -> str:
    port = f"port {answer.port}"
    if answer.protocol:
        port += f"/{answer.protocol}"
    when = format_moment(answer.at)
    if not answer.held and answer.watched:
        where = " in the network namespace of the watch" if answer.intervals_elsewhere else ""
        return f"nobody held {port}{where} at {when}"
    if not answer.held:
        return f"it is not known who held {port} at {when}: nobody watched"
    names = ", ".join(dict.fromkeys(_holder_text(interval) for interval in answer.intervals))
    known = "" if answer.watched else ", as far as is known"
    return f"{port} was held by {names} at {when}{known}"


def _holder_text(interval: Interval) -> str:
    pids = f" (pid {_pids(interval)})" if interval.pids else ""
    return f"{safe(interval.name or 'an unknown process')}{pids}"


def _describe_gap(gap: Unwatched) -> str:
    reason = safe(gap.reason)
    if gap.since is None and gap.until is not None:
        return f"not watched before {format_moment(gap.until)}: {reason}"
    if gap.since is None:
        return f"not watched: {reason}"
    if gap.until is None:
        return f"not watched since {format_moment(gap.since)}: {reason}"
    return f"not watched from {format_moment(gap.since)} to {format_moment(gap.until)}: {reason}"


def _format_cell(cell: timedelta) -> str:
    seconds = cell.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return format_age(seconds)
