"""How far a scan is, on a terminal, for whoever waits; elsewhere nothing is shown and nothing is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from portbook.probe.request import Event

if TYPE_CHECKING:
    from rich.console import RenderableType


class Counted(Protocol):
    """What is under way."""

    total: int | None  # None: not known yet

    @property
    def done(self) -> int:
        """How many are answered, or will not be asked."""

    @property
    def found(self) -> int:
        """How many are open."""


class Silent:
    """No progress."""

    def tell(self, event: Event) -> None:
        """Nobody is told."""

    def aside(self) -> AbstractContextManager[None]:
        """Nothing is in the way."""
        return nullcontext()

    def shown(self, counted: Counted) -> AbstractContextManager[None]:
        """Nothing is shown."""
        return nullcontext()


class Meter:
    """A line on stderr: how much is done, what was found, the rate, the time left, what happened last."""

    def __init__(self) -> None:
        self._last = ""
        self._pause: Callable[[], AbstractContextManager[None]] = nullcontext

    def tell(self, event: Event) -> None:
        """Show an event from now on."""
        from portbook.render.text import safe

        self._last = safe(f"{event.address}: {event.text}" if event.address else event.text)

    def aside(self) -> AbstractContextManager[None]:
        """Take the line away while something else is written to the terminal."""
        return self._pause()

    @contextmanager
    def shown(self, counted: Counted) -> Iterator[None]:
        """Show the line while something is under way."""
        from rich.console import Console
        from rich.live import Live

        began = monotonic()
        live = Live(
            get_renderable=lambda: self._line(counted, monotonic() - began),
            console=Console(stderr=True),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,  # would send stdout to stderr
            redirect_stderr=False,
        )

        @contextmanager
        def pause() -> Iterator[None]:
            live.stop()
            yield
            live.start()

        with live:
            self._pause = pause
            try:
                yield
            finally:
                self._pause = nullcontext

    def _line(self, counted: Counted, elapsed_s: float) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        line.add_column(width=20)
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=counted.total, completed=counted.done, pulse=counted.total is None, width=20)
        line.add_row(bar, Text(f"{in_words(counted, elapsed_s)}  {self._last}"))
        return line


def in_words(counted: Counted, elapsed_s: float) -> str:
    """How many of how many, what was found, how fast, how long it may still take."""
    if counted.total is None:
        return "looking up names"
    done = counted.done
    words = f"{done:,} of {counted.total:,}, {counted.found:,} open"
    if not (done and elapsed_s):
        return words
    left_s = round(elapsed_s * (counted.total - done) / done)
    clock = f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"
    return f"{words}, {done / elapsed_s:,.0f}/s, {clock} left"


def meter(streams_rows: bool) -> Meter | Silent:
    """A line, if somebody looks and rows on the same terminal would not get in between."""
    return Meter() if sys.stderr.isatty() and not (streams_rows and sys.stdout.isatty()) else Silent()
