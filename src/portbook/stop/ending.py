"""Ending processes that share a port: the first of a fork tree first, each through a handle, gently before by force.

A server that has forked workers ends them itself when it is asked; workers that are ended first it starts again. So
each wave is asked when the one before it has ended or let go, and has had a moment to take the others along.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from time import monotonic, sleep
from typing import NamedTuple

from portbook.stop.handle import Handle, is_same, open_handle
from portbook.stop.records import Ended, Fate, StopTarget

FIRST_PAUSE_S, MOST_PAUSE_S = 0.01, 0.1
FOLLOW_S = 2.0  # for the workers to end with their master
KILLED_S = 5.0  # for the kernel to take down what was killed: a process may be deep in a driver

Holding = Callable[[Collection[int]], Collection[int]]  # of some processes, those that are in the way now
Event = Callable[[str], None]  # told what is done


class OpenTarget(NamedTuple):
    """A target by its handle, or why there is none."""

    target: StopTarget
    handle: Handle | None
    fate: Fate = "untouched"


def open_target(target: StopTarget, holds: Holding) -> OpenTarget:
    """Open a handle, then see that it is the process that was shown, then that it still holds the port.

    In this order: from the first step on the handle refers to one process, so what the next two find is true of the
    one that will be ended. Raises PermissionError.
    """
    owner = target.holder.owner
    try:
        handle = open_handle(owner.pid)
    except ProcessLookupError:
        return OpenTarget(target, None, "gone")
    try:
        fate = _changed(target, handle, holds)
    except BaseException:
        handle.close()
        raise
    if fate is None:
        return OpenTarget(target, handle)
    handle.close()
    return OpenTarget(target, None, fate)


def _changed(target: StopTarget, handle: Handle, holds: Holding) -> Fate | None:
    started = handle.started()
    if handle.ended():
        return "gone"
    if not is_same(target.holder.owner.started, started):
        return "replaced"
    return None if holds([handle.pid]) else "not-holding"


class Ending:
    """Several processes on their way out."""

    def __init__(self, opened: Sequence[OpenTarget], holds: Holding, tell: Event) -> None:
        self.opened = list(opened)
        self.holds = holds
        self.tell = tell
        self.done: dict[int, list[str]] = {}
        self.unsignalable: list[int] = []  # pids that cannot be asked

    def run(self, timeout_s: float, force: bool) -> None:
        """Ask wave after wave; with ``force`` end what is left when the time is up."""
        deadline = monotonic() + timeout_s
        for wave in sorted({one.target.wave for one in self.opened}):
            asked = [one for one in self.left() if one.target.wave == wave]
            if not asked:
                continue
            if not self._ask(asked, deadline):
                break
            self._wait(self.left(), min(deadline, monotonic() + FOLLOW_S))
        if force:
            self._force()

    def left(self) -> list[OpenTarget]:
        """Those that run and are in the way."""
        running = [one for one in self.opened if one.handle and not one.handle.ended()]
        holding = self.holds([one.target.holder.owner.pid for one in running]) if running else ()
        return [one for one in running if one.target.holder.owner.pid in holding]

    def _ask(self, wave: Sequence[OpenTarget], deadline: float) -> bool:
        for one in wave:
            if not self._do(one, "request_end"):
                self.unsignalable.append(one.target.holder.owner.pid)
        asked = [one for one in wave if one.target.holder.owner.pid not in self.unsignalable]
        self._wait(asked, deadline)
        return not self._still(wave)

    def _force(self) -> None:
        """The first of a tree first here too, so that it starts no others."""
        for wave in sorted({one.target.wave for one in self.left()}):
            ending = [one for one in self.left() if one.target.wave == wave]
            for one in ending:
                self._do(one, "force_end")
            self._wait(ending, monotonic() + KILLED_S)

    def _do(self, one: OpenTarget, what: str) -> bool:
        """Ask or force; False when that cannot be done."""
        assert one.handle is not None  # noqa: S101  only those are left
        try:
            how = getattr(one.handle, what)()
        except ProcessLookupError:
            return True  # it has ended meanwhile
        except OSError:
            return False  # it has become another user's (exec of a set-user-ID program), or will not go
        if how is None:
            return False
        self.done.setdefault(one.handle.pid, []).append(how)
        self.tell(f"{how} to {one.target.holder.owner.name or '?'} (pid {one.handle.pid})")
        return True

    def _wait(self, wave: Sequence[OpenTarget], deadline: float) -> None:
        pause_s = FIRST_PAUSE_S
        while self._still(wave) and (left_s := deadline - monotonic()) > 0:
            sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, MOST_PAUSE_S)

    def _still(self, wave: Sequence[OpenTarget]) -> bool:
        return any(one in wave for one in self.left())

    def close(self) -> None:
        """Let go of every handle."""
        for one in self.opened:
            if one.handle:
                one.handle.close()

    def fates(self) -> tuple[Ended, ...]:
        """What became of each."""
        return tuple(self._fate(one) for one in self.opened)

    def _fate(self, one: OpenTarget) -> Ended:
        owner = one.target.holder.owner
        by = tuple(self.done.get(owner.pid, ()))
        return Ended(owner.pid, owner.name, self._what(one, bool(by)), by)

    def _what(self, one: OpenTarget, touched: bool) -> Fate:
        if one.handle is None:
            return one.fate
        if one.handle.ended():
            return "ended"
        if not self.holds([one.handle.pid]):
            return "let-go"
        return "still-running" if touched else "untouched"
