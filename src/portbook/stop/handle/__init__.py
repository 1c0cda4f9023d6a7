"""A process that stays the one it was: a pid may be another's by the time a signal is sent, a handle is not.

``open_handle(pid)``
    returns a ``Handle``; raises ProcessLookupError when there is no such process, PermissionError when it may not be
    ended by this user.

One module for each platform behind it: on Linux a pidfd, on Windows a process handle; elsewhere the start time, which
is compared again right before every signal.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from importlib import import_module
from typing import Any, Protocol

from portbook.sources import PLATFORM

MODULES = {"linux": "linux", "windows": "windows"}  # any other: portable
# Start times are computed from two clocks that are not read in the same instant, and rounded to a tick of 10 ms.
SLACK = timedelta(milliseconds=15)


class Handle(Protocol):
    """What is promised of each platform."""

    pid: int

    def started(self) -> datetime | None:
        """When the process started, aware, UTC; None when it cannot be told or has ended."""

    def request_end(self) -> str | None:
        """Ask the process to end; what was done ("SIGTERM"), None when it cannot be asked. Raises OSError."""

    def force_end(self) -> str:
        """End it whether it wants or not; what was done ("SIGKILL"). Raises OSError."""

    def ended(self) -> bool:
        """Whether it has ended."""

    def close(self) -> None:
        """Let go of the handle."""


def open_handle(pid: int) -> Handle:
    """Open a handle; see the module."""
    handle: Handle = _module().open_handle(pid)
    return handle


def is_same(seen: datetime | None, now: datetime | None) -> bool:
    """Whether two start times are of one process. Unknown is not the same: nobody is ended on a guess."""
    return seen is not None and now is not None and abs(seen - now) <= SLACK


def _module() -> Any:
    return import_module(f"{__name__}.{MODULES.get(PLATFORM, 'portable')}")
