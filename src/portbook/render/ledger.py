"""The picture of the history: one line for each port, time to the right, a bar for each holder.

    8080/tcp  ├nginx───────────┤░░░░░░├apache2─────────────→

What was not watched is hatched. Holders at the same time have lines of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from portbook.escaping import safe
from portbook.numerals import counted
from portbook.render.text import Style, cell_count
from portbook.store.records import Interval, Unwatched

MOST_LINES = 200
MOST_LANES = 8  # of one port
MOST_LABEL = 30  # characters of a holder's name
LEAST_LABEL = 3
LEAST_CELLS = 20
DEFAULT_WIDTH = 80
TICK_CELLS = 14  # at least, between two times of the axis
MINUTE, HOUR, DAY = 60, 3600, 86400
STEPS_S = (
    1, 2, 5, 10, 15, 30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR,
    3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 365 * DAY, 3650 * DAY,
)  # fmt: skip


class Glyphs(Struct, frozen=True):
    """The characters of a picture."""

    bar: str
    start: str
    end: str
    earlier: str  # it began before the picture
    later: str  # it has not ended, or ended after the picture
    gap: str
    short: str  # an interval within one column
    several: str  # several within one column


UNICODE = Glyphs("─", "├", "┤", "←", "→", "░", "│", "┼")
ASCII = Glyphs("-", "|", "|", "<", ">", ":", "|", "#")


class Lane:
    """One line of a port: holders that followed each other."""

    def __init__(self, width: int) -> None:
        self.cells = [" "] * width
        self.identity = ""
        self.last = -1  # the last cell that is drawn
        self.until: datetime | None = None  # when the last holder ended; None: it has not


class Picture:
    """Draws intervals as they come; what it keeps has the size of the picture."""

    def __init__(self, since: datetime, until: datetime, style: Style) -> None:
        self._since, self._until = since, max(until, since + timedelta(seconds=1))
        self._glyphs = UNICODE if style.ellipsis == "…" else ASCII
        self._label_width = len("65535/tcp")
        self._width = max((style.width or DEFAULT_WIDTH) - self._label_width - 2, LEAST_CELLS)
        self._cell_s = (self._until - self._since).total_seconds() / self._width
        self._lanes: dict[tuple[int, str], list[Lane]] = {}
        self._left_out = 0

    def add(self, interval: Interval) -> None:
        """Draw an interval; they have to come by their beginning."""
        key = (interval.local_port, interval.protocol)
        lanes = self._lanes.get(key)
        if lanes is None:
            if len(self._lanes) >= MOST_LINES:
                self._left_out += 1
                return
            lanes = self._lanes[key] = []
        for lane in lanes:
            if lane.identity == interval.identity and _follows(lane, interval):
                self._extend(lane, interval)
                return
        for lane in lanes:
            if lane.until is not None and lane.until <= interval.opened_at:
                self._draw(lane, interval)
                return
        if len(lanes) >= MOST_LANES:
            self._left_out += 1
            return
        lanes.append(Lane(self._width))
        self._draw(lanes[-1], interval)

    def lines(self, gaps: Sequence[Unwatched]) -> list[str]:
        """The axis, then a line for each port and its holders, then what the signs mean."""
        hatched = self._hatched(gaps)
        lines = [self._axis()]
        for (port, protocol), lanes in sorted(self._lanes.items()):
            label = f"{port}/{protocol}"
            for lane in lanes:
                cells = [self._over_gap(cell, i in hatched) for i, cell in enumerate(lane.cells)]
                lines.append(f"{label:>{self._label_width}}  {''.join(cells).rstrip()}")
                label = ""
        if hatched:
            lines.append(f"{'':{self._label_width}}  {self._glyphs.gap} not watched")
        if self._left_out:
            lines.append(f"and {counted(self._left_out, 'more interval')}; name ports to see them")
        return lines

    def is_empty(self) -> bool:
        """Whether nothing was drawn."""
        return not self._lanes

    def cell(self) -> timedelta:
        """How long the time of one column is."""
        return timedelta(seconds=self._cell_s)

    # --- bars ------------------------------------------------------------------------------------------------------

    def _cell_of(self, moment: datetime) -> int:
        return int((moment - self._since).total_seconds() / self._cell_s)

    def _ends(self, interval: Interval) -> tuple[int, int]:
        first = max(self._cell_of(interval.opened_at), 0)
        last = self._width - 1
        if interval.closed_at is not None:
            last = min(self._cell_of(interval.closed_at), last)
        return min(first, self._width - 1), max(last, 0)

    def _draw(self, lane: Lane, interval: Interval) -> None:
        first, last = self._ends(interval)
        glyphs = self._glyphs
        is_shared = first <= lane.last
        for cell in range(first, last + 1):
            lane.cells[cell] = glyphs.bar
        lane.cells[first] = glyphs.start
        if interval.opened_at < self._since:
            lane.cells[first] = glyphs.earlier
        self._draw_end(lane, interval, last)
        if first == last:
            lane.cells[first] = glyphs.short
        if is_shared:
            lane.cells[first] = glyphs.several
        self._write_label(lane, interval, first, last)
        self._hatch(lane, interval, first, last)
        lane.identity, lane.last, lane.until = interval.identity, last, interval.closed_at

    def _extend(self, lane: Lane, interval: Interval) -> None:
        """Draw the second socket of a holder: it has one bar, which ends with the last of them."""
        if lane.until is None or (interval.closed_at is not None and interval.closed_at <= lane.until):
            return
        _, last = self._ends(interval)
        for cell in range(max(lane.last, 1), last + 1):
            lane.cells[cell] = self._glyphs.bar
        self._draw_end(lane, interval, last)
        lane.last, lane.until = last, interval.closed_at

    def _draw_end(self, lane: Lane, interval: Interval, last: int) -> None:
        is_later = interval.closed_at is None or interval.closed_at > self._until
        lane.cells[last] = self._glyphs.later if is_later else self._glyphs.end

    def _write_label(self, lane: Lane, interval: Interval, first: int, last: int) -> None:
        """Write the holder's name into its bar, as much of it as fits: each character takes one column."""
        name = safe(interval.name or "?")
        if interval.container:
            name = f"{name} {safe(interval.container)}"
        room = min(last - first - 2, MOST_LABEL)
        if len(name) != cell_count(name) or room < min(LEAST_LABEL, len(name)):
            return
        for offset, character in enumerate(name[:room]):
            lane.cells[first + 1 + offset] = character

    def _hatch(self, lane: Lane, interval: Interval, first: int, last: int) -> None:
        """Hatch the part of a bar that was worked out, before a watch saw it."""
        for gap in interval.gaps:
            for cell in self._covered(gap):
                if first < cell < last and lane.cells[cell] == self._glyphs.bar:
                    lane.cells[cell] = self._glyphs.gap

    def _hatched(self, gaps: Iterable[Unwatched]) -> set[int]:
        return {cell for gap in gaps for cell in self._covered(gap)}

    def _covered(self, gap: Unwatched) -> range:
        """The cells of which a gap covers at least half: a short interruption does not hatch a whole day."""
        since = 0.0 if gap.since is None else (gap.since - self._since).total_seconds() / self._cell_s
        until = float(self._width)
        if gap.until is not None:
            until = (gap.until - self._since).total_seconds() / self._cell_s
        return range(max(round(since), 0), min(round(until), self._width))

    def _over_gap(self, cell: str, is_hatched: bool) -> str:
        if is_hatched and cell in (" ", self._glyphs.bar):
            return self._glyphs.gap
        return cell

    # --- the axis --------------------------------------------------------------------------------------------------

    def _axis(self) -> str:
        steps = [step for step in STEPS_S if step / self._cell_s >= TICK_CELLS]
        step_s = steps[0] if steps else STEPS_S[-1]
        midnight = self._since.astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        number = int((self._since - midnight).total_seconds() // step_s)
        cells = [" "] * self._width
        while True:
            tick = midnight + timedelta(seconds=number * step_s)
            at = self._cell_of(tick)
            number += 1
            if at >= self._width or tick > self._until:
                break
            text = f"|{_tick_text(tick, step_s)}"
            if at >= 0 and tick >= self._since and at + len(text) <= self._width:
                cells[at : at + len(text)] = text
        return f"{'':{self._label_width}}  {''.join(cells).rstrip()}"


def _follows(lane: Lane, interval: Interval) -> bool:
    return lane.until is None or interval.opened_at <= lane.until


def _tick_text(tick: datetime, step_s: int) -> str:
    local = tick.astimezone()
    if step_s >= DAY:
        return f"{local:%Y-%m-%d}"
    if (local.hour, local.minute, local.second) == (0, 0, 0):
        return f"{local:%m-%d}"
    return f"{local:%H:%M:%S}" if step_s < MINUTE else f"{local:%H:%M}"
