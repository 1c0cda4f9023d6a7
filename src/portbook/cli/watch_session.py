"""One run of ``portbook watch``: from the loop to the history, the sinks and standard output, until a signal ends it.

Everything happens in this thread but what waits for others: standard output (``outlet``) and the sinks (``dispatch``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from portbook.cli import exits
from portbook.cli.signals import Signals
from portbook.cli.watch_output import QUIT, RELOAD, WatchOutput
from portbook.errors import PortbookError
from portbook.events import Event
from portbook.numerals import counted

if TYPE_CHECKING:
    from portbook.store.sqlite import Writer
    from portbook.watching.loop import Loop
    from portbook.watching.policy.records import Policy
    from portbook.watching.sinks.dispatch import Dispatch

STEP_S = 0.25  # between two looks at signals, keys, the watchdog and a reader that may have gone
STATUS_S = 2.0  # between two reports to the service manager
TRIM_S = 60.0  # between two looks for old events of the history, while there is nothing to remove
POLICY_FILE_S = 2.0  # Windows has no SIGHUP: how often the policy file is looked at there
SINKS_LIMIT_S = 5.0  # for what waits for sinks at the end


class Manager(Protocol):
    """What started the process and wants to hear of it: ``notify.ServiceManager`` or ``windows_service``."""

    @property
    def listens(self) -> bool:
        """Whether there is one."""
        ...

    def ready(self, status: str) -> None:
        """The start, or a reload, is complete."""
        ...

    def reloading(self) -> None:
        """A reload begins."""
        ...

    def status(self, text: str) -> None:
        """What the process does now."""
        ...

    def alive(self) -> None:
        """The process is alive; called often."""
        ...

    def stopping(self, status: str) -> None:
        """The process is about to end."""
        ...


class Session:
    """A watch with its history, sinks and output. ``run`` returns the exit code."""

    def __init__(
        self,
        loop: Loop,
        output: WatchOutput,
        store: Writer | None,
        sinks: Dispatch,
        manager: Manager,
        *,
        read_policy: Callable[[], Policy | None] | None = None,
        policy_file: str | None = None,
        keep_s: float | None = None,
    ) -> None:
        """Say what a session consists of; all of it is closed by ``run``.

        :param read_policy: reads the policy again; raises PortbookError
        :param keep_s: how long the history is kept, in seconds; None: for ever
        """
        self._loop = loop
        self._output = output
        self._store = store
        self._sinks = sinks
        self._manager = manager
        self._read_policy = read_policy
        self._policy_file = _PolicyFile(policy_file) if policy_file and sys.platform == "win32" else None
        self._keep_s = keep_s
        self._status_at = self._trim_at = float("-inf")
        self._store_problem: str | None = None
        self._quit = False

    def run(self, signals: Signals, first: Sequence[Event]) -> int:
        """Watch until a signal, the key q or the end of the reader; the loop has been started.

        :param first: the events of the start
        :raises SourceError: it is not possible to watch any longer
        """
        failed = True
        try:
            self._deliver(first)
            self._manager.ready(self._status_text())
            while not (signals.ended_by or self._quit or self._reader_is_gone() or self._tells_nobody()):
                self._step(signals)
            failed = False
        finally:
            self._end("ends after an error" if failed else "ends")
        return self._exit_code(signals)

    # --- a step ----------------------------------------------------------------------------------------------------

    def _step(self, signals: Signals) -> None:
        events = [*self._sinks.take_gaps(), *self._output.take_gaps(), *self._loop.wait(self._timeout())]
        self._deliver(events)
        keys = self._output.step()
        self._quit = QUIT in keys
        if signals.reload or RELOAD in keys or (self._policy_file is not None and self._policy_file.changed()):
            signals.reload = False
            self._reload()
        if signals.suspend:
            signals.suspend = False
            self._output.suspend()
        self._report()
        self._maintain()

    def _timeout(self) -> float:
        return min(STEP_S, self._output.step_s)

    def _deliver(self, events: Sequence[Event]) -> None:
        if not events:
            return
        if self._store is not None:
            events = self._store.append(events)
        self._sinks.write(events)
        self._output.write(events)

    def _reload(self) -> None:
        """Read the policy again and open log files again. A policy that is not valid is refused: the old one stays."""
        self._manager.reloading()
        self._sinks.reopen()
        if self._read_policy is not None:
            try:
                policy = self._read_policy()
            except PortbookError as error:
                self._deliver(self._loop.refuse_policy(str(error)))
                self._output.notice(f"the policy is not changed: {error}")
            else:
                self._deliver(self._loop.replace_policy(policy))
                self._output.notice("the policy was read again")
        self._manager.ready(self._status_text())

    def _report(self) -> None:
        """To the service manager, and to people what the sinks and the history have to say."""
        self._manager.alive()
        for text in self._sinks.take_notes():
            self._output.notice(text)
        if self._store is not None and self._store.problem != self._store_problem:
            self._store_problem = self._store.problem
            self._output.notice(self._store_problem or "the history is written again")
        now = monotonic()
        if self._manager.listens and now >= self._status_at + STATUS_S:
            self._status_at = now
            self._manager.status(self._status_text())

    def _maintain(self) -> None:
        """Let the history know that the watch still sees, and remove what is older than it is kept."""
        if self._store is None:
            return
        now = datetime.now(UTC)
        self._store.touch(now)
        if self._keep_s is not None and monotonic() >= self._trim_at:
            more = self._store.trim(now, self._keep_s)
            self._trim_at = monotonic() + (0.0 if more else TRIM_S)

    def _reader_is_gone(self) -> bool:
        """A pipe was closed at its other end: who read it has seen enough. Under a service manager it may come back."""
        return self._output.outlet.reader_is_gone and not self._manager.listens

    def _tells_nobody(self) -> bool:
        """Whether standard output cannot be written, and the events go nowhere else."""
        failure = self._output.outlet.failure
        is_broken = failure is not None and not isinstance(failure, BrokenPipeError)
        return is_broken and self._store is None and not self._sinks.status()

    # --- the end ---------------------------------------------------------------------------------------------------

    def _end(self, status: str) -> None:
        """Report what was withheld, and close everything, each within a limit."""
        self._manager.stopping(status)
        try:
            self._deliver(self._loop.stop())
        finally:
            lost = self._sinks.close(SINKS_LIMIT_S)
            if self._store is not None:
                self._store.append(lost)
                self._store.close()
            self._output.write(lost)
            self._output.close()
            for text in self._sinks.take_notes():
                self._output.notice(text)

    def _exit_code(self, signals: Signals) -> int:
        failure = self._output.outlet.failure
        if self._tells_nobody():
            self._output.notice(f"the output cannot be written: {getattr(failure, 'strerror', None) or failure}")
            return exits.UNKNOWN
        if signals.interrupted:
            return exits.INTERRUPTED
        return exits.YES

    def _status_text(self) -> str:
        status = self._loop.status()
        parts = [
            f"sees by {status.feed}" if status.feed else "no feed works",
            counted(status.listeners, "listener"),
            counted(status.violations, "violation"),
            counted(sum(status.counts.values()), "event"),
            counted(status.gaps, "gap"),
        ]
        if status.blind:
            parts.insert(0, "BLIND")
        waiting = sum(sink.waiting for sink in self._sinks.status())
        if waiting:
            parts.append(f"{counted(waiting, 'event')} for sinks wait")
        if self._store_problem:
            parts.append(self._store_problem)
        return ", ".join(parts)


class _PolicyFile:
    """Whether a file has changed, looked at now and then."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._looked_at = monotonic()
        self._known = self._state()

    def changed(self) -> bool:
        """Whether it has changed since the last call; a file that is missing has not: it may be being replaced."""
        if monotonic() < self._looked_at + POLICY_FILE_S:
            return False
        self._looked_at = monotonic()
        state = self._state()
        if state is None or state == self._known:
            return False
        self._known = state
        return True

    def _state(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size
