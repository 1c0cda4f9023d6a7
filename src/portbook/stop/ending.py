"""End processes that share a port: in a fork tree the first process first, each through a handle.

A server that has forked workers ends them itself when it is asked to end, but restarts workers that end before it.
Therefore the processes are ended in waves: each wave is asked to end after the wave before it has ended or closed the
port, and has had a moment to end its children.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from time import monotonic, sleep
from typing import NamedTuple

from portbook.stop.handle import Handle, is_same, open_handle
from portbook.stop.records import Ended, Fate, StopTarget

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.1
FOLLOW_S = 2.0  # for the workers to end with their master
KILLED_S = 5.0  # for the kernel to end a killed process, which may be deep in a driver

HoldingPids = Callable[[Collection[int]], Collection[int]]  # of these pids, those that hold the port now
Notify = Callable[[str], None]  # called with a line about each action


class OpenTarget(NamedTuple):
    """A target with its open handle, or the reason why it has none."""

    target: StopTarget
    handle: Handle | None
    fate: Fate = "untouched"

    @property
    def pid(self) -> int:
        """The pid of the target."""
        return self.target.holder.owner.pid


def open_target(target: StopTarget, holding_pids: HoldingPids) -> OpenTarget:
    """Open a handle, then check that it is the planned process, then check that the process still holds the port.

    The order matters: once it is open, the handle refers to one process, so both checks are about the process that
    will be ended.

    :raises PermissionError: this user may not end the process
    """
    try:
        handle = open_handle(target.holder.owner.pid)
    except ProcessLookupError:
        return OpenTarget(target, None, "gone")
    try:
        fate = _changed(target, handle, holding_pids)
    except BaseException:
        handle.close()
        raise
    if fate is None:
        return OpenTarget(target, handle)
    handle.close()
    return OpenTarget(target, None, fate)


def _changed(target: StopTarget, handle: Handle, holding_pids: HoldingPids) -> Fate | None:
    started = handle.started()
    if handle.ended():
        return "gone"
    if not is_same(target.holder.owner.started, started):
        return "replaced"
    return None if holding_pids([handle.pid]) else "not-holding"


class Ending:
    """Several processes that are being ended."""

    def __init__(self, opened: Sequence[OpenTarget], holding_pids: HoldingPids, notify: Notify) -> None:
        self.opened = list(opened)
        self.holding_pids = holding_pids
        self.notify = notify
        self.actions: dict[int, list[str]] = {}  # by pid, in order: "SIGTERM", "SIGKILL"
        self.unsignalable: list[int] = []  # pids of processes that cannot be asked to end

    def run(self, timeout_s: float, force: bool) -> None:
        """Ask wave after wave to end; with ``force``, kill what is left after the timeout."""
        deadline = monotonic() + timeout_s
        for number in sorted({each.target.wave for each in self.opened}):
            wave = [each for each in self.left() if each.target.wave == number]
            if not wave:
                continue
            self._request_end(wave, deadline)
            if self._is_any_left(wave):
                break
            self._wait(self.left(), min(deadline, monotonic() + FOLLOW_S))
        if force:
            self._force_end()

    def left(self) -> list[OpenTarget]:
        """The targets that run and still hold the port."""
        running = [each for each in self.opened if each.handle and not each.handle.ended()]
        if not running:
            return []
        holding = self.holding_pids([each.pid for each in running])
        return [each for each in running if each.pid in holding]

    def _request_end(self, wave: Sequence[OpenTarget], deadline: float) -> None:
        signalled: list[OpenTarget] = []
        for each in wave:
            if self._act(each, force=False):
                signalled.append(each)
            else:
                self.unsignalable.append(each.pid)
        self._wait(signalled, deadline)

    def _force_end(self) -> None:
        """In waves as well: a master that is killed first restarts no worker."""
        for number in sorted({each.target.wave for each in self.left()}):
            wave = [each for each in self.left() if each.target.wave == number]
            for each in wave:
                self._act(each, force=True)
            self._wait(wave, monotonic() + KILLED_S)

    def _act(self, target: OpenTarget, force: bool) -> bool:
        """Ask a process to end, or force it; return False if that is not possible."""
        handle = target.handle
        assert handle is not None  # noqa: S101  ``left`` has none without
        try:
            action = handle.force_end() if force else handle.request_end()
        except ProcessLookupError:
            return True  # it has ended meanwhile
        except OSError:
            return False  # it belongs to another user by now (exec of a set-user-ID program), or the system refuses
        if action is None:
            return False
        self.actions.setdefault(target.pid, []).append(action)
        self.notify(f"{action} to {target.target.holder.owner.name or '?'} (pid {target.pid})")
        return True

    def _wait(self, wave: Sequence[OpenTarget], deadline: float) -> None:
        pause_s = FIRST_PAUSE_S
        while self._is_any_left(wave) and (left_s := deadline - monotonic()) > 0:
            sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _is_any_left(self, wave: Sequence[OpenTarget]) -> bool:
        return any(each in wave for each in self.left())

    def fates(self) -> tuple[Ended, ...]:
        """What became of each process."""
        fates: list[Ended] = []
        for each in self.opened:
            actions = tuple(self.actions.get(each.pid, ()))
            fates.append(Ended(each.pid, each.target.holder.owner.name, self._fate(each, bool(actions)), actions))
        return tuple(fates)

    def _fate(self, target: OpenTarget, touched: bool) -> Fate:
        if target.handle is None:
            return target.fate
        if target.handle.ended():
            return "ended"
        if not self.holding_pids([target.pid]):
            return "let-go"
        return "still-running" if touched else "untouched"
