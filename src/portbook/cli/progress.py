"""The progress of a scan, on a terminal; elsewhere nothing is shown and nothing is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType

    from portbook.probe.request import ScanEvent


class Progress(Protocol):
    """What is in progress."""

    total: int | None  # None: not known yet

    @property
    def done(self) -> int:
        """How many are answered, or will not be probed."""

    @property
    def found(self) -> int:
        """How many are open."""


class NoMeter:
    """Shows no progress."""

    def show_event(self, event: ScanEvent) -> None:
        """Show nothing."""

    def aside(self) -> AbstractContextManager[None]:
        """Do nothing: there is no line to hide."""
        return nullcontext()

    def running(self, progress: Progress) -> AbstractContextManager[None]:
        """Show nothing."""
        return nullcontext()


class Meter:
    """A line on stderr: how much is done, how many are open, the rate, the time left, the last event."""

    def __init__(self) -> None:
        self._last_event = ""
        self._pause: Callable[[], AbstractContextManager[None]] = nullcontext

    def show_event(self, event: ScanEvent) -> None:
        """Show an event until the next."""
        from portbook.escaping import safe

        self._last_event = safe(str(event))

    def aside(self) -> AbstractContextManager[None]:
        """Hide the line while something else is written to the terminal."""
        return self._pause()

    @contextmanager
    def running(self, progress: Progress) -> Iterator[None]:
        """Show the line while something is in progress."""
        from rich.console import Console
        from rich.live import Live

        began = monotonic()
        live = Live(
            get_renderable=lambda: self._line(progress, monotonic() - began),
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

    def _line(self, progress: Progress, elapsed_s: float) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        line.add_column(width=20)
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=progress.total, completed=progress.done, pulse=progress.total is None, width=20)
        line.add_row(bar, Text(f"{format_progress(progress, elapsed_s)}  {self._last_event}"))
        return line


def format_progress(progress: Progress, elapsed_s: float) -> str:
    """Describe how many are done and open, the rate, and the estimated time left."""
    if progress.total is None:
        return "looking up names"
    done = progress.done
    text = f"{done:,} of {progress.total:,}, {progress.found:,} open"
    if not (done and elapsed_s):
        return text
    left_s = round(elapsed_s * (progress.total - done) / done)
    clock = f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"
    return f"{text}, {done / elapsed_s:,.0f}/s, {clock} left"


def meter(streams_rows: bool) -> Meter | NoMeter:
    """Return a line, if stderr is a terminal and no rows are written to the same terminal."""
    mixes_with_rows = streams_rows and sys.stdout.isatty()
    if sys.stderr.isatty() and not mixes_with_rows:
        return Meter()
    return NoMeter()
