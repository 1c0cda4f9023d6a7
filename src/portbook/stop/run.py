"""``plan_stop(port)`` says what would be done, ``carry_out(plan)`` does it and looks what came of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from time import monotonic, sleep

from msgspec.structs import replace

from portbook import inventory, query
from portbook.enrich import owners, process
from portbook.errors import UsageError
from portbook.holding import who
from portbook.managers import control, supervisor
from portbook.managers.supervisor import Supervisor, stop_instruction
from portbook.query import LISTENING, Query
from portbook.records import PROTOCOLS, SCHEMA, Holder, Protocol, Socket
from portbook.sources import PLATFORM
from portbook.stop import handle, plan, result
from portbook.stop.bindable import Bindable, bindable
from portbook.stop.ending import Ending, Event, OpenTarget, open_target
from portbook.stop.records import (
    Ended,
    Fate,
    Override,
    Refusal,
    StopPlan,
    StopReport,
    StopResult,
    StopTarget,
    forbidden,
)
from portbook.stop.result import Conclusion, has_inherited

TIMEOUT_S = 10.0
MANAGER_LIMIT_S = 100.0  # systemd gives a unit 90 s before it kills: DefaultTimeoutStopSec in systemd-system.conf(5)
SETTLE_S = 0.5  # how long a freed port is watched: systemd waits 0.1 s before it starts a service again, RestartSec
LEAST_WAIT_S = 0.5
LOOK_EVERY_S = 0.05
MOST_FORK_ROUNDS = 8  # rounds of processes that were forked while their parents were being ended


def plan_stop(port: int, protocol: Protocol = "tcp") -> StopPlan:
    """Find who would have to end for a port to be free, and what forbids it. Ends nothing.

    Service managers and container runtimes that look after a holder are asked about it, each within 3 seconds.

    :param port: 1 to 65535
    :param protocol: "tcp" or "udp"
    :raises UsageError: the port or the protocol makes no sense
    :raises SourceError: this machine could not be read
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}", f"valid are {', '.join(PROTOCOLS)}")
    holding = who(port, protocol)
    held = any(s.state in LISTENING for s in holding.sockets)
    held = held or not bindable(port, protocol, plan.bind_endpoints(holding.sockets)).free
    holders = plan.blocking_holders(holding) if held else ()
    return plan.make_plan(holding, protocol, held, _context(holders, port, protocol))


def _context(holders: Sequence[Holder], port: int, protocol: Protocol) -> plan.StopContext:
    ours = os.getpid()
    pids = [h.owner.pid for h in holders]
    found = {h.owner.pid: r for h in holders if (r := supervisor.find_supervisor(h.owner, h.parents, PLATFORM, uid()))}
    completed: dict[Supervisor, Supervisor] = {r: control.query_manager(r, port, protocol) for r in set(found.values())}
    return plan.StopContext(
        PLATFORM,
        ours,
        frozenset(p.pid for p in process.parents(ours)) if holders else frozenset(),
        frozenset(pid for pid in pids if pid != ours and not _may_end(pid)),
        {pid: completed[r] for pid, r in found.items()},
    )


def uid() -> int:
    """Who we are; 0 on Windows, which has no such numbers."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _may_end(pid: int) -> bool:
    try:
        handle.open_handle(pid).close()
    except PermissionError:
        return False
    except OSError:
        return True  # it has ended: nothing forbids anything
    return True


def carry_out(
    planned: StopPlan,
    *,
    timeout_s: float = TIMEOUT_S,
    force: bool = False,
    overrides: Collection[Override] = (),
    tell: Event = lambda _: None,
) -> StopReport:
    """End the processes of a plan, wait until the port can be bound, and look who has it then.

    Each is ended through a handle, after it was seen to be the process that was planned and to hold the port still.
    When one of them may not be ended, none is.

    :param timeout_s: how long the processes have after they were asked
    :param force: end what is left when the time is up: SIGKILL, TerminateProcess
    :param overrides: which refusals do not count: "override"; with "via-manager" service managers stop what they
        started
    :param tell: called with a line about each thing that is done
    :raises SourceError: this machine could not be read
    """
    if not planned.held:
        return stopping(planned, "free", note=_bindable(planned).note)
    if stands := planned.forbidden(overrides):
        return stopping(planned, "refused", stands)
    return _Stop(planned, timeout_s, force, overrides, tell).run()


def stopping(
    planned: StopPlan, result: StopResult, refusals: tuple[Refusal, ...] = (), note: str | None = None
) -> StopReport:
    """The answer when nothing was done."""
    return StopReport(
        SCHEMA, planned.port, planned.protocol, result, planned.targets, refusals, note=note, gaps=planned.gaps
    )


class _Stop:
    """One port being freed."""

    def __init__(
        self, planned: StopPlan, timeout_s: float, force: bool, overrides: Collection[Override], tell: Event
    ) -> None:
        self.plan = planned
        self.timeout_s = timeout_s
        self.force = force
        self.overrides = overrides
        self.tell = tell
        self.old = {t.holder.owner.pid: t for t in planned.targets}
        self.began = monotonic()
        self.inodes = {s.inode for t in planned.targets for s in plan.blocking_sockets(t.holder.sockets) if s.inode}
        self.ended: list[Ended] = []
        self.notes: list[str] = []

    def run(self) -> StopReport:
        """Managers first, then whoever they do not look after, then whoever was forked meanwhile."""
        managed = [t for t in self.plan.targets if self._is_managed(t)]
        direct = [t for t in self.plan.targets if not self._is_managed(t)]
        if self._have_stopped(managed) and (refused := self._end(direct)):
            return replace(stopping(self.plan, "refused", refused), ended=tuple(self.ended))
        self._end_forked_children()
        return self._answer()

    def _is_managed(self, target: StopTarget) -> bool:
        return "via-manager" in self.overrides and bool(_command(target))

    # --- by a manager ---

    def _have_stopped(self, managed: Sequence[StopTarget]) -> bool:
        """Run each command once; False when one failed."""
        by_command: dict[str, list[StopTarget]] = {}
        for target in managed:
            by_command.setdefault(" ".join(_command(target)), []).append(target)
        return all(self._stop_by(targets) for targets in by_command.values())

    def _stop_by(self, targets: Sequence[StopTarget]) -> bool:
        found = targets[0].supervisor
        assert found is not None  # noqa: S101  that is what managed means
        command = stop_instruction(found) or ""
        self.tell(command)
        done = control.stop_by_manager(found, max(self.timeout_s, MANAGER_LIMIT_S))
        if done.code != 0:
            said = " ".join(done.text.split())[:500]
            self.notes.append(f"{command} failed" + (f" with {done.code}" if done.code else "") + f": {said}")
        deadline = monotonic() + (self.timeout_s if done.code == 0 else 0)
        pids = [t.holder.owner.pid for t in targets]
        while (left := self._holding(pids)) and monotonic() < deadline:  # a Windows service ends after sc.exe has
            sleep(LOOK_EVERY_S)
        for target in targets:
            owner = target.holder.owner
            fate: Fate = "still-running" if owner.pid in left else "ended"
            self.ended.append(Ended(owner.pid, owner.name, fate, (command,)))
        return done.code == 0

    # --- directly ---

    def _end(self, targets: Sequence[StopTarget]) -> tuple[Refusal, ...]:
        """End them; the refusals when one of them turns out not to be ours to end, and then none was."""
        with ExitStack() as stack:
            opened: list[OpenTarget] = []
            for target in targets:
                try:
                    one = open_target(target, self._holding)
                except PermissionError as error:
                    return (Refusal("not-permitted", str(error), "run with more privilege"),)
                if one.handle:
                    stack.callback(one.handle.close)
                opened.append(one)
            ending = Ending(opened, self._holding, self.tell)
            ending.run(self.timeout_s, self.force)
            self.ended += ending.fates()
            if ending.unsignalable and not self.force:
                self.notes.append("what is left cannot be asked to end, only be made to: --force")
        return ()

    def _end_forked_children(self) -> None:
        """End what was forked meanwhile: it has one of the very sockets that were to go, so it is of the same tree."""
        for _ in range(MOST_FORK_ROUNDS):
            found = [h for h in self._holders() if h.owner.pid not in self.old]
            forked_children = {h.owner.pid for h in found if has_inherited(h, self.inodes)}
            if not forked_children or any(e.fate in ("still-running", "untouched") for e in self.ended):
                return
            targets = [
                t
                for t in plan_stop(self.plan.port, self.plan.protocol).targets
                if t.holder.owner.pid in forked_children
            ]
            self.old.update((t.holder.owner.pid, t) for t in targets)
            if any(forbidden(t.refusals, self.overrides) for t in targets) or self._end(targets):
                return

    # --- what is there now ---

    def _sockets(self) -> list[Socket]:
        """Those that are in the way now: they wait, or they are connected and the port cannot be bound."""
        port, protocol = query.term("port", [str(self.plan.port)]), query.term("protocol", [self.plan.protocol])
        sockets = plan.blocking_sockets(inventory.select(Query((port, protocol)), None)[1])
        if sockets and all(s.state not in LISTENING for s in sockets) and _bindable(self.plan).free:
            return []
        return list(sockets)

    def _holding(self, pids: Collection[int]) -> Collection[int]:
        """Which of these processes have a socket that is in the way."""
        sockets = self._sockets()
        return {pid for pid in pids if sockets and owners.owned_by(sockets, ((pid, pid),))[0]}

    def _holders(self) -> tuple[Holder, ...]:
        return plan.blocking_holders(who(self.plan.port, self.plan.protocol))

    def _is_held(self) -> bool:
        return any(s.state in LISTENING for s in self._sockets())

    def _answer(self) -> StopReport:
        """Whether it can be had, and stays so for a moment; if not, who has it."""
        free = self._until_free()
        self.notes += [free.note] if free.note else []
        if free.free and not self._watched():
            self.notes += self._promises()
            return self._stopping(Conclusion("stopped"), ())
        return self._held_again()

    def _promises(self) -> Iterator[str]:
        """Managers may wait longer than we watch: RestartSec= in systemd.service(5)."""
        for found in dict.fromkeys(t.supervisor for t in self.plan.targets if not self._is_managed(t)):
            if found and found.restarts is not False:
                command = stop_instruction(found)
                yield f"{found.kind} {found.name} may start it again later; what really stops it: {command}"

    def _until_free(self) -> Bindable:
        """What was closed is mostly free at once; connections may keep it for what is left of the time."""
        deadline = max(self.began + self.timeout_s, monotonic() + LEAST_WAIT_S)
        while not (free := _bindable(self.plan)).free and monotonic() < deadline and not self._is_held():
            sleep(LOOK_EVERY_S)
        return free

    def _watched(self) -> bool:
        """Whether somebody takes the freed port. By looking: a bind of ours would be in the way of a restart."""
        deadline = monotonic() + SETTLE_S
        while monotonic() < deadline:
            if self._is_held():
                return True
            sleep(LOOK_EVERY_S)
        return False

    def _held_again(self) -> StopReport:
        self.notes += self._orphans()
        found = self._holders()
        return self._stopping(result.classify(found, tuple(self.old.values()), self.inodes), found)

    def _orphans(self) -> list[str]:
        """What the kernel keeps of connections whose process has ended: tcp(7), tcp_fin_timeout, tcp_orphan_retries."""
        states = [s.state for s in self._sockets() if s.inode == 0 and s.state not in LISTENING]
        if not states:
            return []
        kinds = ", ".join(sorted({str(state) for state in states}))
        what = "a connection" if len(states) == 1 else f"{len(states)} connections"
        return [f"kept by {what} without a process ({kinds}): for about a minute, or until the peer ends"]

    def _stopping(self, after: Conclusion, found: tuple[Holder, ...]) -> StopReport:
        owners_now = tuple(h.owner for h in found)
        note = "; ".join(dict.fromkeys(self.notes)) or None
        return StopReport(
            SCHEMA, self.plan.port, self.plan.protocol, after.result, self.plan.targets, (), tuple(self.ended),
            owners_now, after.restarted_by, note, self.plan.gaps,
        )  # fmt: skip


def _command(target: StopTarget) -> tuple[str, ...]:
    """What stops it, if somebody looks after it."""
    return (target.supervisor.command if target.supervisor else None) or ()


def _bindable(planned: StopPlan) -> Bindable:
    return bindable(planned.port, planned.protocol, planned.endpoints)
