"""Any Unix: the pid, with the start time of the process compared immediately before every signal.

For a signal to hit another process, the process would have to end and be reaped, and its pid be reused, between the
comparison and kill(2). macOS has no handle that a signal can be sent through.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from datetime import datetime

from portbook.enrich import process
from portbook.records import Owner
from portbook.stop import handle

CHECK = 0


def open_handle(pid: int) -> handle.Handle:
    """Record when the process started, and check that a signal may be sent to it."""
    os.kill(pid, CHECK)
    started = _started(pid)
    if started is None:
        raise ProcessLookupError(f"there is no process {pid}, or its start time cannot be read")
    return PidHandle(pid, started)


class PidHandle:
    """A process by its pid and start time."""

    def __init__(self, pid: int, started: datetime) -> None:
        self.pid = pid
        self.first_started = started

    def started(self) -> datetime | None:
        """Read from the system by pid."""
        return _started(self.pid)

    def request_end(self) -> str | None:
        """SIGTERM, then SIGCONT: a stopped process acts on no other signal but SIGKILL."""
        action = self._send(signal.SIGTERM)
        if sys.platform != "win32":
            with suppress(ProcessLookupError):
                self._send(signal.SIGCONT)
        return action

    def force_end(self) -> str:
        """SIGKILL."""
        return self._send(
            signal.Signals(9)
        )  # SIGKILL; type checkers check this for Windows too, which has no such name

    def ended(self) -> bool:
        """A zombie counts as ended: it has no sockets any longer."""
        return not handle.is_same(self.first_started, _started(self.pid)) or _is_zombie(self.pid)

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _send(self, number: signal.Signals) -> str:
        if self.ended():
            raise ProcessLookupError(f"process {self.pid} has ended")
        os.kill(self.pid, number)
        return number.name


def _started(pid: int) -> datetime | None:
    (owner,), _ = process.enrich([Owner(pid)])
    return owner.started


def _is_zombie(pid: int) -> bool:
    import psutil

    if sys.platform == "win32":
        return False
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        return False
