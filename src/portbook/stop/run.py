"""``plan_stop(port)`` finds what would be done, ``carry_out(plan)`` does it and checks the result."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING

from msgspec.structs import replace

from portbook import inventory, query
from portbook.enrich import owners, process
from portbook.errors import UsageError
from portbook.holding import who
from portbook.managers import control, supervisor
from portbook.managers.supervisor import Supervisor, stop_instruction
from portbook.ports import parse_one, with_protocol
from portbook.query import LISTENING, Query
from portbook.records import SCHEMA, Holder, Owner, Protocol, Socket
from portbook.sources import PLATFORM
from portbook.stop import handle, plan, result, supervision
from portbook.stop.bindable import Bindable, try_bind
from portbook.stop.ending import Ending, Notify, OpenTarget, open_target
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

if TYPE_CHECKING:
    from portbook.ports import PortLike

TIMEOUT_S = 10.0
MANAGER_LIMIT_S = 100.0  # systemd gives a unit 90 s before it kills: DefaultTimeoutStopSec in systemd-system.conf(5)
WATCH_S = 0.5  # how long a freed port is watched: systemd waits 0.1 s before it restarts a service, RestartSec
KNOWN_RESTART_S = 2.0  # the same if a supervisor is known to start it again, and may be slow
LEAST_WAIT_S = 0.5
PAUSE_S = 0.05
MOST_FORK_ROUNDS = 8  # of ending processes that were forked while their parents were being ended
MOST_MANAGER_OUTPUT = 500  # characters
UNSIGNALABLE = "the remaining processes cannot be asked to end; --force terminates them"


def plan_stop(port: PortLike, protocol: Protocol | None = None) -> StopPlan:
    """Find which processes have to end for a port to be free, and what forbids it. Ends nothing.

    Service managers and container runtimes that supervise a holder are queried, each for 3 seconds at most.

    :param port: 1 to 65535, or text such as ``53/udp``; without an address, because it is stopped at every address
    :param protocol: None: that of the port, else "tcp"
    :raises UsageError: the port or the protocol is invalid
    :raises SourceError: the sockets of this machine could not be read
    """
    wanted = with_protocol(parse_one(port), protocol)
    if wanted.host is not None:
        raise UsageError(f"{wanted} has an address", f"write {wanted.port}: a port is stopped at every address")
    port, protocol = wanted.port, wanted.protocol or "tcp"
    made_at = datetime.now(UTC)
    holding = who(port, protocol)
    held = any(s.state in LISTENING for s in holding.sockets)
    held = held or not try_bind(port, protocol, plan.bind_endpoints(holding.sockets)).free
    holders = plan.blocking_holders(holding) if held else ()
    planned = plan.make_plan(holding, protocol, held, _context(holders, port, protocol))
    return replace(planned, made_at=made_at)


def _context(holders: Sequence[Holder], port: int, protocol: Protocol) -> plan.StopContext:
    own_pid = os.getpid()
    if not holders:
        return plan.StopContext(PLATFORM, own_pid, frozenset())
    pids = [h.owner.pid for h in holders]
    return plan.StopContext(
        PLATFORM,
        own_pid,
        ancestors=frozenset(parent.pid for parent in process.parents(own_pid)),
        denied=frozenset(pid for pid in pids if pid != own_pid and not _may_end(pid)),
        supervisors=_supervisors(holders, port, protocol),
        port=port,
        protocol=protocol,
    )


def _supervisors(holders: Sequence[Holder], port: int, protocol: Protocol) -> dict[int, Supervisor]:
    """The supervisors by pid of the holder; each is queried once, although it may supervise many of them."""
    supervisors: dict[int, Supervisor] = {}
    queried: dict[Supervisor, Supervisor] = {}
    holding = {h.owner.pid for h in holders}
    for holder in holders:
        known = supervisor.find_supervisor(holder.owner, holder.parents, PLATFORM, effective_uid())
        if known is None:
            continue
        if known not in queried:
            queried[known] = control.query_manager(known, port, protocol)
        answered = queried[known]
        is_interactive = _is_interactive(holder.owner.pid, answered.main_pid)
        main = _main_process(answered)
        supervisors[holder.owner.pid] = supervision.judge(answered, holder, holding, main, is_interactive)
    return supervisors


def _is_interactive(pid: int, main_pid: int | None) -> bool:
    """Whether a process has a controlling terminal that is not that of the main process of its unit."""
    if not main_pid:
        return False
    from portbook.enrich.process import origin

    return bool(origin.terminal_of(pid)) and origin.terminal_of(pid) != origin.terminal_of(main_pid)


def _main_process(known: Supervisor) -> Owner | None:
    """The main process of a unit, with its name."""
    if not known.main_pid:
        return None
    (main,), _ = process.enrich([Owner(known.main_pid)])
    return main


def effective_uid() -> int:
    """The user id of this process; 0 on Windows, which has none."""
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
    notify: Notify = lambda _: None,
) -> StopReport:
    """End the processes of a plan, wait until the port can be bound, and find who holds it then.

    Each process is ended through a handle, after a check that it is the planned process and still holds the port. If
    one of them may not be ended, none is.

    :param timeout_s: how long the processes have to end after they were asked
    :param force: after the timeout, end what is left with SIGKILL or TerminateProcess
    :param overrides: which refusals do not count: "override"; with "via-manager", service managers and container
        runtimes stop what they supervise
    :param notify: called with a line about each action
    :raises SourceError: the sockets of this machine could not be read
    """
    if not planned.held:
        return report_nothing_ended(planned, "free", note=_try_bind(planned).note)
    if refusals := planned.forbidden(overrides):
        return report_nothing_ended(planned, "refused", refusals)
    return _Stop(planned, timeout_s, force, overrides, notify).run()


def report_nothing_ended(
    planned: StopPlan, result: StopResult, refusals: tuple[Refusal, ...] = (), note: str | None = None
) -> StopReport:
    """The report if nothing was done."""
    return StopReport(
        SCHEMA, planned.port, planned.protocol, result, planned.targets, refusals, note=note, gaps=planned.gaps
    )


class _Stop:
    """The ending of the holders of one port."""

    def __init__(
        self, planned: StopPlan, timeout_s: float, force: bool, overrides: Collection[Override], notify: Notify
    ) -> None:
        self.plan = planned
        self.timeout_s = timeout_s
        self.force = force
        self.overrides = overrides
        self.notify = notify
        self.began = monotonic()
        self.targets = {t.holder.owner.pid: t for t in planned.targets}  # grows with forked children
        self.inodes: set[int] = set()
        for target in planned.targets:
            self.inodes |= {s.inode for s in plan.blocking_sockets(target.holder.sockets) if s.inode}
        self.ended: list[Ended] = []
        self.notes: list[str] = []
        if planned.twin:
            self.notes.append(f"{planned.twin} was held by the same process, too")

    def run(self) -> StopReport:
        """First what managers stop, then the other processes, then children that were forked meanwhile."""
        managed = [t for t in self.plan.targets if self._is_managed(t)]
        direct = [t for t in self.plan.targets if not self._is_managed(t)]
        if self._stop_by_managers(managed):
            refusals = self._end(direct)
            if refusals:
                return replace(report_nothing_ended(self.plan, "refused", refusals), ended=tuple(self.ended))
        self._end_forked_children()
        return self._check()

    def _is_managed(self, target: StopTarget) -> bool:
        return "via-manager" in self.overrides and bool(_command(target))

    # --- by a manager ---

    def _stop_by_managers(self, targets: Sequence[StopTarget]) -> bool:
        """Run each command once, and stop at the first that fails; return whether all succeeded."""
        by_command: dict[str, list[StopTarget]] = {}
        for target in targets:
            by_command.setdefault(" ".join(_command(target)), []).append(target)
        return all(self._stop_by_manager(group) for group in by_command.values())

    def _stop_by_manager(self, targets: Sequence[StopTarget]) -> bool:
        manager = targets[0].supervisor
        assert manager is not None  # noqa: S101  a managed target has one
        command = stop_instruction(manager) or ""
        self.notify(command)
        done = control.stop_by_manager(manager, max(self.timeout_s, MANAGER_LIMIT_S))
        if done.code != 0:
            code = f" with exit code {done.code}" if done.code else ""
            output = " ".join(done.text.split())[:MOST_MANAGER_OUTPUT]
            self.notes.append(f"{command} failed{code}: {output}")
        deadline = monotonic() + (self.timeout_s if done.code == 0 else 0)
        pids = [t.holder.owner.pid for t in targets]
        while (holding := self._holding_pids(pids)) and monotonic() < deadline:
            sleep(PAUSE_S)  # a Windows service ends later than sc.exe
        for target in targets:
            owner = target.holder.owner
            fate: Fate = "still-running" if owner.pid in holding else "ended"
            self.ended.append(Ended(owner.pid, owner.name, fate, (command,)))
        return done.code == 0

    # --- directly ---

    def _end(self, targets: Sequence[StopTarget]) -> tuple[Refusal, ...]:
        """End the processes. If this user may not end one of them, end none and return the refusal."""
        with ExitStack() as stack:
            opened: list[OpenTarget] = []
            for target in targets:
                try:
                    each = open_target(target, self._holding_pids)
                except PermissionError as error:
                    return (Refusal("not-permitted", str(error), "run with more privilege"),)
                if each.handle:
                    stack.callback(each.handle.close)
                opened.append(each)
            ending = Ending(opened, self._holding_pids, self.notify)
            ending.run(self.timeout_s, self.force)
            self.ended += ending.fates()
            if ending.unsignalable and not self.force:
                self.notes.append(UNSIGNALABLE)
        return ()

    def _end_forked_children(self) -> None:
        """End processes that were forked meanwhile and have a socket of the targets."""
        for _ in range(MOST_FORK_ROUNDS):
            new = [h for h in self._holders() if h.owner.pid not in self.targets and has_inherited(h, self.inodes)]
            forked_children = {h.owner.pid for h in new if self._is_heir(h)}
            self._note_handed_over([h.owner for h in new if h.owner.pid not in forked_children])
            if not forked_children or any(e.fate in ("still-running", "untouched") for e in self.ended):
                return
            replanned = plan_stop(self.plan.port, self.plan.protocol)
            targets = [t for t in replanned.targets if t.holder.owner.pid in forked_children]
            self.targets.update((t.holder.owner.pid, t) for t in targets)
            if any(forbidden(t.refusals, self.overrides) for t in targets) or self._end(targets):
                return

    def _is_heir(self, holder: Holder) -> bool:
        return result.is_heir(holder, tuple(self.targets.values()), self.plan.made_at)

    def _note_handed_over(self, strangers: Sequence[Owner]) -> None:
        for owner in strangers:
            note = f"its socket was handed to {owner.name or '?'} (pid {owner.pid}), which was not touched"
            if note not in self.notes:
                self.notes.append(note)

    # --- the present state of the port ---

    def _blocking_sockets(self) -> list[Socket]:
        """The sockets that hold the port now: listeners, or connections while the port cannot be bound."""
        terms = query.term("port", [str(self.plan.port)]), query.term("protocol", [self.plan.protocol])
        sockets = plan.blocking_sockets(inventory.select(Query(terms), None)[1])
        only_connections = all(s.state not in LISTENING for s in sockets)
        if sockets and only_connections and _try_bind(self.plan).free:
            return []
        return list(sockets)

    def _holding_pids(self, pids: Collection[int]) -> Collection[int]:
        """Which of these processes have a blocking socket."""
        sockets = self._blocking_sockets()
        if not sockets:
            return set()
        return {pid for pid in pids if owners.owned_by(sockets, ((pid, pid),))[0]}

    def _holders(self) -> tuple[Holder, ...]:
        return plan.blocking_holders(who(self.plan.port, self.plan.protocol))

    def _has_listener(self) -> bool:
        return any(s.state in LISTENING for s in self._blocking_sockets())

    # --- the result ---

    def _check(self) -> StopReport:
        """Whether the port can be bound and stays free for a moment; if not, who holds it."""
        bound = self._wait_until_free()
        if bound.note:
            self.notes.append(bound.note)
        will_restart = self._will_restart()
        if bound.free and not self._is_taken_again(KNOWN_RESTART_S if will_restart else WATCH_S):
            self.notes += self._later_restarts()
            return self._report(Conclusion("will-restart" if will_restart else "stopped"), ())
        self.notes += self._orphans()
        holders = self._holders()
        return self._report(result.classify(holders, tuple(self.targets.values()), self.inodes), holders)

    def _wait_until_free(self) -> Bindable:
        """A closed port is mostly free at once; connections may keep it for the rest of the timeout."""
        deadline = max(self.began + self.timeout_s, monotonic() + LEAST_WAIT_S)
        while not (bound := _try_bind(self.plan)).free and monotonic() < deadline and not self._has_listener():
            sleep(PAUSE_S)
        return bound

    def _is_taken_again(self, watch_s: float) -> bool:
        """Watch the freed port by reading the sockets: a bind of ours would block a restart."""
        deadline = monotonic() + watch_s
        while monotonic() < deadline:
            if self._has_listener():
                return True
            sleep(PAUSE_S)
        return False

    def _will_restart(self) -> bool:
        """Whether a supervisor is known to start an ended process again: a slow machine has not done it yet."""
        ended = {each.pid for each in self.ended if each.fate == "ended"}
        for target in self.plan.targets:
            known = target.supervisor
            if known and known.restarts and not self._is_managed(target) and target.holder.owner.pid in ended:
                return True
        return False

    def _later_restarts(self) -> Iterator[str]:
        """Supervisors that may wait longer than the port is watched: RestartSec= in systemd.service(5)."""
        for known in dict.fromkeys(t.supervisor for t in self.plan.targets if not self._is_managed(t)):
            if known and known.restarts is not False:
                verb = "restarts it" if known.restarts else "may restart it later"
                reason = f" ({known.why})" if known.why else ""
                yield f"{known.kind} {known.name} {verb}{reason}; to stop it: {stop_instruction(known)}"

    def _orphans(self) -> list[str]:
        """Connections that the kernel keeps after their process: tcp(7), tcp_fin_timeout, tcp_orphan_retries."""
        states = [s.state for s in self._blocking_sockets() if s.inode == 0 and s.state not in LISTENING]
        if not states:
            return []
        kinds = ", ".join(sorted({str(state) for state in states}))
        connections = "a connection" if len(states) == 1 else f"{len(states)} connections"
        return [f"held by {connections} without a process ({kinds}), for about a minute, or until the peer closes them"]

    def _report(self, conclusion: Conclusion, holders: tuple[Holder, ...]) -> StopReport:
        return StopReport(
            SCHEMA,
            self.plan.port,
            self.plan.protocol,
            conclusion.result,
            self.plan.targets,
            ended=tuple(self.ended),
            held_by=tuple(h.owner for h in holders),
            restarted_by=conclusion.restarted_by,
            note="; ".join(dict.fromkeys(self.notes)) or None,
            gaps=self.plan.gaps,
        )


def _command(target: StopTarget) -> tuple[str, ...]:
    """The command with which its supervisor stops it; empty without one."""
    return (target.supervisor.command if target.supervisor else None) or ()


def _try_bind(planned: StopPlan) -> Bindable:
    return try_bind(planned.port, planned.protocol, planned.endpoints)
