"""What ``portbook watch`` writes to standard output: JSON lines, lines for people, or the live view of a terminal.

None of them waits for its reader (``outlet``). Lines that found no room are counted, and ``take_gaps`` says so as an
event: to the reader when it reads again, to the history and to the sinks.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Protocol

from portbook.cli.outlet import Outlet
from portbook.events import LEVELS, Event, compact

if TYPE_CHECKING:
    from portbook.cli.screen import Screen
    from portbook.render.watch import View
    from portbook.watching.loop import Loop

END_LIMIT_S = 2.0  # for what waits to be read at the end
REDRAW_S = 0.2
MOST_RECENT = 500  # events that the live view keeps
SHOWN_FROM = LEVELS.index("info")  # severity of events for people
FREEZE, QUIT, RELOAD = "p", "q", "r"
TOO_SLOW = "the reader of standard output was slower than what happened"


class WatchOutput(Protocol):
    """Where the events of a session are shown."""

    outlet: Outlet
    step_s: float  # how long a step may wait for events

    def write(self, events: Sequence[Event]) -> None:
        """Show events."""
        ...

    def step(self) -> str:
        """What is to be done between events; returns the keys that were pressed and concern the session."""
        ...

    def notice(self, text: str) -> None:
        """Show a message about the watch itself."""
        ...

    def take_gaps(self) -> list[Event]:
        """Events about what was not shown, since the last call."""
        ...

    def suspend(self) -> None:
        """Stop as Ctrl-Z does."""
        ...

    def close(self) -> bool:
        """Show the rest, within a limit; return whether everything was shown."""
        ...


class EventLines:
    """One line for each event."""

    step_s = 1.0

    def __init__(self) -> None:
        self.outlet = Outlet()
        self._lost = 0
        self._lost_since: datetime | None = None

    def write(self, events: Sequence[Event]) -> None:
        """Write a line for each."""
        for event in events:
            line = self.line(event)
            if line and not self.outlet.put(line) and self.outlet.failure is None:
                self._lost += 1
                self._lost_since = self._lost_since or event.at

    def line(self, event: Event) -> bytes:
        """The line of an event with its end; empty: it is not shown."""
        return b""

    def step(self) -> str:
        """Nothing is to be done."""
        return ""

    def notice(self, text: str) -> None:
        """Write it to standard error."""
        from portbook.render.text import note

        sys.stderr.write(note(text))
        sys.stderr.flush()

    def take_gaps(self) -> list[Event]:
        """One event for the lines that found no room, once there is some again."""
        if not self._lost or not self.outlet.has_room:
            return []
        lost, since, self._lost, self._lost_since = self._lost, self._lost_since, 0, None
        return [
            Event(
                at=datetime.now(UTC), event="gap", severity="warning", count=lost, reason=TOO_SLOW, since=since,
                monotonic_ns=monotonic_ns(),
            )
        ]  # fmt: skip

    def suspend(self) -> None:
        """Ctrl-Z has its usual effect: nothing was changed in the terminal."""

    def close(self) -> bool:
        """Wait for the reader, within a limit."""
        return self.outlet.close(END_LIMIT_S) and not self._lost


class JsonLines(EventLines):
    """JSON, one object on each line, for programs: every event."""

    def __init__(self) -> None:
        super().__init__()
        from portbook.escaping import Encoder

        self._encode = Encoder().encode

    def line(self, event: Event) -> bytes:
        """The fields that say something."""
        return self._encode(compact(event)) + b"\n"


class NoLines(EventLines):
    """Nothing: a sink writes to standard output."""


class PlainLines(EventLines):
    """Sentences for people: without the quiet events."""

    def __init__(self) -> None:
        super().__init__()
        from portbook.render import text, watch

        self._style = text.style_of(sys.stdout)
        self._render = watch.event_line

    def line(self, event: Event) -> bytes:
        """When, and what."""
        if LEVELS.index(event.severity) < SHOWN_FROM:
            return b""
        return self.outlet.encode(self._render(event, self._style) + "\n")


class Live:
    """The live view: who listens, and what happened last. It is drawn five times a second at most."""

    step_s = 0.1

    def __init__(self, loop: Loop, screen: Screen, outlet: Outlet, has_policy: bool) -> None:
        from portbook.render import text

        self.outlet = outlet
        self._loop = loop
        self._screen = screen
        self._style = text.style_of(sys.stdout)
        self._recent: deque[Event] = deque(maxlen=MOST_RECENT)
        self._notice = ""
        self._drawn_at = float("-inf")
        self._frozen = False
        self._view: View | None = None
        self._has_policy = has_policy

    def write(self, events: Sequence[Event]) -> None:
        """Keep those that people read; what was there at the start is in the table."""
        for event in events:
            if LEVELS.index(event.severity) >= SHOWN_FROM and event.event != "present":
                self._recent.append(event)

    def step(self) -> str:
        """Take keys, and draw if it is time."""
        keys = self._screen.keys()
        if keys.count(FREEZE) % 2:
            self._frozen = not self._frozen
            self._drawn_at = float("-inf")
        if monotonic() >= self._drawn_at + REDRAW_S:
            self._draw()
        return "".join(key for key in keys.lower() if key in (QUIT, RELOAD))

    def notice(self, text: str) -> None:
        """Show it below the first line."""
        self._notice = text

    def take_gaps(self) -> list[Event]:
        """The view shows how it is now: a picture that is left out is no loss."""
        return []

    def suspend(self) -> None:
        """Give the terminal back, and stop."""
        self._screen.suspend()
        self._drawn_at = float("-inf")

    def close(self) -> bool:
        """The screen is left by who entered it."""
        return True

    def _draw(self) -> None:
        from portbook.render.watch import View, screen

        if self._view is None or not self._frozen:
            self._view = View(
                self._loop.status(), self._loop.listeners(), tuple(self._recent), datetime.now(UTC),
                notice=self._notice, has_policy=self._has_policy,
            )  # fmt: skip
        columns, rows = self._screen.size()
        if self._screen.draw(screen(self._view, columns, rows, self._style, frozen=self._frozen)):
            self._drawn_at = monotonic()
