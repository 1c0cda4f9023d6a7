"""The whole screen of a terminal, and single keys from it. Afterwards the terminal is as it was, whatever happened.

Facts: ECMA-48 (CUP, EL, ED, SGR) and xterm's control sequences for the alternate screen (?1049) and the cursor (?25),
which the Windows console has since Windows 10; termios(3); job control as in termios(4) and signal(7), SIGTSTP.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from portbook.cli.outlet import Outlet

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J", "\x1b[0m\x1b[?25h\x1b[?1049l"
HOME = "\x1b[H"
CLEAR_LINE = "\x1b[K"  # in front of a text: behind one that fills its line, it would clear the last character
FALLBACK = 80, 24  # a terminal that does not say its size
MOST_KEYS = 100  # bytes that are read at once
LEAVE_LIMIT_S = 1.0  # a terminal that was stopped with Ctrl-S does not hold up the end for longer


def is_possible() -> bool:
    """Whether standard output is a terminal that understands the control sequences."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return False
    if sys.platform == "win32":
        from portbook.render.text import understands_escapes

        return understands_escapes()
    return bool(os.environ.get("TERM"))


class Screen:
    """While it is entered, the terminal shows what ``draw`` was given last, and keys are not echoed."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._mode: list[Any] | None = None  # of the terminal, before: tcgetattr(3)
        self._has_keys = sys.stdin is not None and sys.stdin.isatty()

    def __enter__(self) -> Screen:
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def keys(self) -> str:
        """The keys that were pressed since the last call; a terminal that has gone presses q."""
        if not self._has_keys:
            return ""
        if sys.platform == "win32":
            import msvcrt

            pressed = ""
            while msvcrt.kbhit() and len(pressed) < MOST_KEYS:
                pressed += msvcrt.getwch()
            return pressed
        import select

        try:
            readable, _, _ = select.select([sys.stdin], [], [], 0)
            if not readable:
                return ""
            return os.read(sys.stdin.fileno(), MOST_KEYS).decode("utf-8", "replace") or "q"
        except (OSError, ValueError):
            return "q"

    def key_descriptor(self) -> int:
        """A descriptor that is readable when a key was pressed; -1 where there is none."""
        return sys.stdin.fileno() if self._has_keys and sys.platform != "win32" else -1

    def size(self) -> tuple[int, int]:
        """Columns and rows, now: a window may change its size."""
        try:
            size = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return FALLBACK
        return size.columns or FALLBACK[0], size.lines or FALLBACK[1]

    def draw(self, lines: list[str]) -> bool:
        """Show these lines, as many as the screen has; False if the terminal has not taken the last ones yet."""
        if not self._outlet.idle:
            return False
        body = "\r\n".join(CLEAR_LINE + line for line in lines)
        return self._outlet.put((HOME + body).encode(self._outlet.encoding, "replace"))

    def suspend(self) -> None:
        """Give the shell its terminal back as it was and stop, as Ctrl-Z does; with ``fg`` the screen comes back."""
        if sys.platform == "win32":
            return
        self._leave()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # this process stands still here
        signal.signal(signal.SIGTSTP, handler)
        self._enter()

    def _enter(self) -> None:
        if self._has_keys and sys.platform != "win32":
            import termios
            import tty

            try:
                self._mode = termios.tcgetattr(sys.stdin)
                tty.setcbreak(sys.stdin, termios.TCSANOW)
            except termios.error:
                self._has_keys = False  # the terminal has gone
        self._outlet.put(ENTER.encode())

    def _leave(self) -> None:
        self._outlet.put(LEAVE.encode())
        self._outlet.drain(LEAVE_LIMIT_S)
        if self._mode is not None and sys.platform != "win32":
            import termios

            try:
                termios.tcsetattr(sys.stdin, termios.TCSANOW, self._mode)  # TCSADRAIN could wait for ever
            except termios.error:
                return
