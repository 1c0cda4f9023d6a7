"""``portbook history``: what a watch has recorded."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output
from portbook.cli.list_ import QueryCommand
from portbook.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from portbook.store.reader import History
    from portbook.store.records import Excerpt, Interval

VERIFY = "verify"
DAY = timedelta(days=1)
FORMATS = {
    "json": "one JSON object",
    "jsonl": "JSON lines, one interval or event on each line",
    "csv": "CSV, one interval or event on each line",
}
ANCHOR = "print the last event and its hash, to be kept elsewhere; with verify: such text, which has to be in the chain"
database_option = base.option(
    "--db", "--store", "path", metavar="FILE", help="the history; without it that of the user"
)


def _formats(command: base.Decorated) -> base.Decorated:
    for name, text in reversed(FORMATS.items()):
        command = base.option(f"--{name}", "form", flag_value=name, default=None, help=text)(command)
    return command


@base.command("history", cls=QueryCommand)
@click.argument("query", nargs=-1, metavar="[QUERY]...")
@base.option("--at", metavar="TIME", help="what was held at this moment")
@base.option("--since", metavar="TIME", help="from this moment on")
@base.option("--until", metavar="TIME", help="up to this moment")
@base.option("--events", "with_events", is_flag=True, help="events instead of intervals")
@base.option("--list", "as_list", is_flag=True, help="a table instead of a picture")
@_formats
@base.option("--anchor", is_flag=False, flag_value="", default=None, metavar="[ANCHOR]", help=ANCHOR)
@database_option
@output.strict_option
def command(
    query: tuple[str, ...],
    at: str | None,
    since: str | None,
    until: str | None,
    with_events: bool,
    as_list: bool,
    form: str | None,
    anchor: str | None,
    path: str | None,
    strict: bool,
) -> int:
    """Show who held which port when, as portbook watch has recorded it.

    On a terminal, the answer is a picture, of the last 24 hours without --since: one line for each port, time to the
    right, a bar for each holder; what was not watched is hatched. Elsewhere, with --at and with --list, it is a table.
    QUERY selects as for portbook list, and has the field event in addition, which selects events of these kinds:
    event:bind_failed,violation.

    TIME is 14:03, "yesterday 14:03", "monday 09:00", "2h ago", 2026-11-28T14:03 or 2026-11-28T14:03+01:00. Without an
    offset it is local time.

    portbook history verify checks that nothing that was recorded was altered, removed or inserted, and exits with 1 if
    something was.

    \b
    Examples:
      portbook history --since 2h
      portbook history 8080 --at "yesterday 14:03"
      portbook history port:8000-8100 -reach:loopback --since monday
      portbook history event:bind_failed --since today --jsonl
      portbook history verify --anchor 1234:9f86d081884c7d65...
    """
    if query[:1] == (VERIFY,):
        return _verify(query[1:], anchor, form, path)
    from portbook.store.reader import History

    if anchor:
        raise UsageError("an anchor is checked by verify", f"write portbook history verify --anchor {anchor[:20]}…")
    with History(path) as history:
        if anchor is not None:
            sys.stdout.write(f"{history.anchor()}\n")
            return exits.YES
        excerpt = _excerpt(history, at, since, until)
        text = " ".join(query)
        from portbook.store.selection import has_kinds

        if with_events or has_kinds(text):
            return _write_events(history, excerpt, text, form, strict)
        return _write_intervals(history, excerpt, text, form, as_list, strict)


def _excerpt(history: History, at: str | None, since: str | None, until: str | None) -> Excerpt:
    """The time that is wanted, and what is known of it."""
    from portbook.records import SCHEMA
    from portbook.store.records import Excerpt
    from portbook.times import parse_past

    if at is not None and (since is not None or until is not None):
        raise UsageError("--at is one moment, --since and --until are a time", "give either")
    now = datetime.now(UTC)
    moment = None if at is None else parse_past(at, now)
    start = None if since is None else parse_past(since, now)
    end = None if until is None else parse_past(until, now)
    if start is not None and end is not None and start >= end:
        raise UsageError("--since is not before --until", "exchange them")
    if moment is not None:
        gaps = [gap for gap in history.unwatched(moment, moment) if gap.until is None or gap.until > moment]
    else:
        gaps = history.unwatched(start, end)
        if start is None:  # before the first event nothing is known, which is no gap of an answer that begins with it
            gaps = [gap for gap in gaps if gap.since is not None]
    return Excerpt(
        schema=SCHEMA,
        path=history.path,
        at=moment,
        since=start,
        until=end,
        recorded_since=history.begin(),
        watched_until=history.end(),
        complete=not gaps,
        gaps=tuple(gaps),
    )


def _write_intervals(
    history: History, excerpt: Excerpt, query: str, form: str | None, as_list: bool, strict: bool
) -> int:
    from portbook.render import history as render
    from portbook.render.text import style_of

    is_picture = form is None and excerpt.at is None and sys.stdout.isatty() and not as_list
    if is_picture and excerpt.since is None:
        excerpt = _last_day(history, excerpt)
    intervals = history.intervals(query, at=excerpt.at, since=excerpt.since, until=excerpt.until)
    if form is not None:
        output.write_bytes(render.FORMATS[form](excerpt, intervals, "intervals"))
        return _code(excerpt, strict)
    lines = _picture(excerpt, intervals) if is_picture else render.interval_lines(intervals, style_of(sys.stdout))
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    _write_notes(excerpt, bool(lines))
    return _code(excerpt, strict)


def _last_day(history: History, excerpt: Excerpt) -> Excerpt:
    """What a picture shows unless more is wanted: the last 24 hours, as far as they were recorded."""
    from msgspec.structs import replace

    since = (excerpt.until or datetime.now(UTC)) - DAY
    if excerpt.recorded_since is not None and excerpt.recorded_since > since:
        return excerpt
    gaps = history.unwatched(since, excerpt.until)
    return replace(excerpt, since=since, complete=not gaps, gaps=tuple(gaps))


def _picture(excerpt: Excerpt, intervals: Iterable[Interval]) -> list[str]:
    from portbook.render import history as render
    from portbook.render.ledger import Picture
    from portbook.render.text import bold, style_of, wrap

    style = style_of(sys.stdout)
    now = datetime.now(UTC)
    since, until = excerpt.since or excerpt.recorded_since or now, excerpt.until or now
    picture = Picture(since, until, style)
    for interval in intervals:
        picture.add(interval)
    if picture.is_empty():
        return []
    title = render.heading(since, until, picture.cell())
    return [*bold(wrap(title, style, indent="  "), style), *picture.lines(excerpt.gaps)]


def _write_events(history: History, excerpt: Excerpt, query: str, form: str | None, strict: bool) -> int:
    from portbook.render import history as render
    from portbook.render.text import style_of

    if excerpt.at is not None:
        raise UsageError("events have times, and none at one moment", "give --since and --until")
    events = history.events(query, since=excerpt.since, until=excerpt.until)
    if form is not None:
        output.write_bytes(render.FORMATS[form](excerpt, events, "events"))
        return _code(excerpt, strict)
    is_empty = True
    for line in render.event_lines(events, style_of(sys.stdout)):
        sys.stdout.write(f"{line}\n")
        is_empty = False
    sys.stdout.flush()
    _write_notes(excerpt, not is_empty)
    return _code(excerpt, strict)


def _write_notes(excerpt: Excerpt, has_answer: bool) -> None:
    """What an answer for people needs besides itself, on standard error."""
    from portbook.render.history import gap_notes
    from portbook.render.text import note

    if not has_answer:
        sys.stderr.write(note("nothing in the history matches"))
    for text in gap_notes(excerpt.gaps):
        sys.stderr.write(note(text))


def _code(excerpt: Excerpt, strict: bool) -> int:
    return exits.GAPS if strict and excerpt.gaps else exits.YES


def _verify(rest: tuple[str, ...], anchor: str | None, form: str | None, path: str | None) -> int:
    from portbook import store
    from portbook.render import history as render
    from portbook.render.text import style_of
    from portbook.store.verification import verify

    if rest:
        raise UsageError(f"verify checks the whole history; {rest[0][:40]!r} is too much", "omit it")
    if anchor == "":
        raise UsageError("--anchor needs what portbook history --anchor printed", "write 1234:9f86d0…")
    answer = verify(store.find() if path is None else path, anchor)
    if form is not None:
        from portbook.render.machine import ENCODER

        output.write_bytes((ENCODER.encode(answer) + b"\n",))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in render.verification_lines(answer, style_of(sys.stdout))))
        sys.stdout.flush()
    return exits.YES if answer.whole else exits.NO
