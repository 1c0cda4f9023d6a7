"""What ``portbook watch`` shows: lines of events, and the live view of a terminal as the lines of its screen. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from portbook.escaping import safe
from portbook.events import Event, Level
from portbook.numerals import counted
from portbook.render import plain
from portbook.render.holding import format_age
from portbook.render.text import BOLD, DIM, RED, YELLOW, Column, Style, cut, paint, table_of_columns
from portbook.times import format_moment
from portbook.watching.description import describe

if TYPE_CHECKING:
    from portbook.watching.records import Listener, Status

COLOURS: dict[Level, str | None] = {"quiet": DIM, "info": None, "warning": YELLOW, "critical": RED}
FORBIDDEN, UNDECIDED = "!", "?"
NARROW = 110  # columns of a terminal; below that a row has the short form
LEAST_EVENTS = 5  # lines of the screen that events have in any case
KEYS = "p freeze   r reload the policy   q quit"
KEYS_FROZEN = "p go on   r reload the policy   q quit"


def event_line(event: Event, style: Style) -> str:
    """One line for people: when, in local time with its offset, and what happened."""
    text = f"{format_moment(event.at)}  {describe(event)}"
    colour = COLOURS[event.severity]
    return paint(text, colour, style) if colour else safe(text)


class View(Struct, frozen=True):
    """What one picture of the live view is made of."""

    status: Status
    listeners: Sequence[Listener]
    recent: Sequence[Event]  # oldest first
    now: datetime
    notice: str = ""  # of the watch itself: a policy that was refused, a sink that fails
    has_policy: bool = False


def screen(view: View, columns: int, rows: int, style: Style, frozen: bool = False) -> list[str]:
    """The lines of the screen: as many as it has at most, none longer than it is wide."""
    style = replace(style, width=columns)
    head = _head(view, style, frozen)
    foot = [paint(cut(KEYS_FROZEN if frozen else KEYS, columns, style), DIM, style)]
    room = max(0, rows - len(head) - len(foot))
    most_events = max(min(LEAST_EVENTS, len(view.recent)) + 2, room - len(view.listeners) - 2)
    table = _listener_lines(view, max(0, room - most_events), style)
    events = _event_lines(view, room - len(table), style)
    body = [*table, *events][:room]
    body += [""] * (room - len(body))
    return [*head, *body, *foot][:rows]


def _head(view: View, style: Style, frozen: bool) -> list[str]:
    status = view.status
    parts = [f"portbook watch: {status.feed or 'no feed'}", counted(len(view.listeners), "listener")]
    if view.has_policy:
        parts.append(counted(sum(mark_of(listener) == FORBIDDEN for listener in view.listeners), "violation"))
    if status.lost_requirements:
        parts.append(counted(status.lost_requirements, "lost requirement"))
    if status.gaps:
        parts.append(counted(status.gaps, "gap"))
    text = ", ".join(parts)
    clock = format_moment(view.now).partition(" ")[2]
    width = style.width or 0
    pad = " " * max(2, width - len(text) - len(clock))
    lines = [paint(cut(f"{text}{pad}{clock}", width, style), BOLD, style)]
    if status.blind:
        seen = f" since {format_moment(status.seen_at)}" if status.seen_at else ""
        lines.append(paint(cut(f"BLIND: the feed has not shown what happens{seen}", width, style), RED, style))
    if frozen:
        lines.append(paint(cut("frozen: the watch goes on, the picture does not", width, style), YELLOW, style))
    if view.notice:
        lines.append(paint(cut(safe(view.notice), width, style), YELLOW, style))
    return [*lines, ""]


# --- the table of listeners ----------------------------------------------------------------------------------------


def mark_of(listener: Listener) -> str:
    """``!``: the policy does not allow it. ``?``: what a rule names could not be known."""
    if listener.judgement is None or listener.judgement.allowed:
        return ""
    return UNDECIDED if listener.judgement.allowed is None else FORBIDDEN


class _Cell(Struct, frozen=True):
    column: Column
    text: Callable[[Listener, datetime], str]


def _of_socket(shown: plain.SocketColumn) -> _Cell:
    return _Cell(shown.column, lambda listener, _: shown.cell(listener.socket))


def _age(listener: Listener, now: datetime) -> str:
    return format_age(max(0.0, (now - listener.since).total_seconds()))


def _rule(listener: Listener, _: datetime) -> str:
    judgement = listener.judgement
    if judgement is None or judgement.rule is None:
        return ""
    return safe(judgement.rule.label)


MARK = _Cell(Column(""), lambda listener, _: mark_of(listener))
FOR = _Cell(Column("FOR"), _age)
RULE = _Cell(Column("RULE", 7), _rule)
NETNS = _of_socket(plain.NETNS)
SHORT_PORT, SHORT_REACH = plain.SHORT[plain.PORT], plain.SHORT[plain.REACHED]
FULL = (
    MARK,
    *map(_of_socket, (plain.PROTOCOL, plain.ADDRESS, plain.PORT, plain.STATE, plain.PID, plain.PROCESS, plain.USER)),
    *map(_of_socket, (plain.SERVICE, plain.REACHED)),
    NETNS,
    RULE,
    FOR,
)
SHORT = (
    MARK,
    *map(_of_socket, (plain.PROTOCOL, plain.ADDRESS, SHORT_PORT, plain.PID, plain.PROCESS, plain.SERVICE, SHORT_REACH)),
    NETNS,
    FOR,
)


def _listener_lines(view: View, most: int, style: Style) -> list[str]:
    """A title, the rows that there is room for, and how many there are besides."""
    if most < 2:
        return []
    if not view.listeners:
        return ["nothing listens", ""]
    ordered = sorted(view.listeners, key=_importance)
    left_out = len(ordered) + 2 - most
    shown = ordered if left_out <= 0 else ordered[: max(0, most - 3)]
    cells = FULL if (style.width or NARROW) >= NARROW else SHORT
    if len({listener.socket.netns for listener in ordered}) == 1:
        cells = tuple(cell for cell in cells if cell is not NETNS)
    contents = [[cell.text(listener, view.now) for listener in shown] for cell in cells]
    kept = [(cell.column, texts) for cell, texts in zip(cells, contents, strict=True) if any(texts)]
    warn = [mark_of(listener) != "" for listener in shown] if style.colour else []
    lines = table_of_columns([column for column, _ in kept], [texts for _, texts in kept], style, warn)
    if left_out > 0:
        lines.append(paint(f"and {len(ordered) - len(shown):,} more", DIM, style))
    return [*lines, ""][:most]


def _importance(listener: Listener) -> tuple[bool, float]:
    """What the policy does not simply allow comes first, and the newest first among each."""
    return mark_of(listener) == "", -listener.since.timestamp()


def _event_lines(view: View, most: int, style: Style) -> list[str]:
    """The last events that there is room for, oldest first."""
    if most < 2 or not view.recent:
        return []
    lines = [paint(cut("recent events", style.width or 0, style), BOLD, style)]
    for event in view.recent[-(most - 1) :]:
        text = cut(f"{event.at.astimezone():%H:%M:%S}  {safe(describe(event))}", style.width or 0, style)
        colour = COLOURS[event.severity]
        lines.append(paint(text, colour, style) if colour else text)
    return lines
