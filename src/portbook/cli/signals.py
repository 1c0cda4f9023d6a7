"""Signals as flags, for a command that runs until it is told to end: it looks at them between two steps.

An exception in the middle of a step would lose what the step was about to write. A second signal ends at once.

Facts: signal(7); the Python documentation, signal: handlers run in the main thread, set_wakeup_fd, CTRL_BREAK_EVENT.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

SIGNALLED = 128  # and the number of the signal: the exit code that shells show
# By the name in signal: Windows has SIGBREAK for Ctrl-Break, and neither SIGHUP nor SIGQUIT.
ENDING = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGBREAK")
INTERRUPTS = frozenset(getattr(signal, name, signal.SIGINT) for name in ("SIGINT", "SIGBREAK"))
RELOADING = ("SIGHUP",)
SUSPENDING = ("SIGTSTP",)


class Signals:
    """While it is entered, signals set flags. Main thread only."""

    def __init__(self, suspends: bool = False) -> None:
        """Say which signals are wanted.

        :param suspends: also Ctrl-Z: who has changed the terminal changes it back first
        """
        handlers = dict.fromkeys(ENDING, self._end) | dict.fromkeys(RELOADING, self._reload)
        if suspends:
            handlers |= dict.fromkeys(SUSPENDING, self._suspend)
        self._handlers = handlers
        self.ended_by: int | None = None  # the signal that asks for the end
        self.reload = False  # a signal asks for a reload; who reloads sets it back
        self.suspend = False  # Ctrl-Z was pressed; who suspends sets it back
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._wakeup: tuple[int, int] | None = None

    def __enter__(self) -> Signals:
        for name, handler in self._handlers.items():
            number = getattr(signal, name, None)
            if number is None:
                continue
            # What nohup(1) ignores ends nothing here: a reload is harmless. An ignored SIGINT is that of a shell which
            # started the command in the background, and stays ignored (POSIX, Shell Command Language, 2.11).
            if name in ENDING and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, handler)
        if os.name == "posix":
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            os.set_blocking(writing, False)
            self._wakeup = reading, writing
            self._wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            for descriptor in self._wakeup:
                os.close(descriptor)
            self._wakeup = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C, or Ctrl-Break of Windows, asks for the end."""
        return self.ended_by in INTERRUPTS

    def end(self) -> None:
        """Ask for the end as SIGTERM does; from another thread, too."""
        if self.ended_by is None:
            self.ended_by = signal.SIGTERM

    def ask_for_reload(self) -> None:
        """Ask for a reload as SIGHUP does; from another thread, too."""
        self.reload = True

    def fileno(self) -> int:
        """A descriptor that is readable when a signal has come; -1 where there is none."""
        return self._wakeup[0] if self._wakeup else -1

    def drain(self) -> None:
        """Make the descriptor wait for the next signal."""
        if self._wakeup is not None:
            try:
                os.read(self._wakeup[0], 1024)
            except BlockingIOError:
                return

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self.reload = True

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self.suspend = True

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.ended_by is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(SIGNALLED + number)
        self.ended_by = number
