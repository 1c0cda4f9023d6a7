"""A process by a handle: a pid may belong to another process when a signal is sent, a handle always refers to one.

``open_handle(pid)``
    returns a ``Handle``; raises ProcessLookupError if there is no such process, and PermissionError if this user may
    not end it.

Each platform has its module: on Linux the handle is a pidfd, on Windows a process handle. Elsewhere it is the pid with
the start time of the process, which is compared immediately before every signal.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from importlib import import_module
from typing import Any, Protocol

from portbook.sources import PLATFORM

MODULES = {"linux": "linux", "windows": "windows"}  # every other platform: portable
# Start times are computed from two clocks, which are not read at the same instant, and rounded to a tick of 10 ms.
SLACK = timedelta(milliseconds=15)


class Handle(Protocol):
    """An open handle of a process: the interface of every platform."""

    pid: int

    def started(self) -> datetime | None:
        """When the process started (aware, UTC); None if that is not known or the process has ended."""

    def request_end(self) -> str | None:
        """Ask the process to end. Return the action ("SIGTERM"), or None if it cannot be asked. Raises OSError."""

    def force_end(self) -> str:
        """Terminate the process. Return the action ("SIGKILL"). Raises OSError."""

    def ended(self) -> bool:
        """Whether the process has ended."""

    def close(self) -> None:
        """Close the handle."""


def open_handle(pid: int) -> Handle:
    """Open a handle; see the module."""
    handle: Handle = _module().open_handle(pid)
    return handle


def is_same(seen: datetime | None, now: datetime | None) -> bool:
    """Whether two start times belong to one process. An unknown time does not: no process is ended on a guess."""
    return seen is not None and now is not None and abs(seen - now) <= SLACK


def _module() -> Any:
    return import_module(f"{__name__}.{MODULES.get(PLATFORM, 'portable')}")
