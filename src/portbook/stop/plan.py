"""Who would have to end for a port to be free, in which order, and what forbids it. Pure.

A holder is a process that waits on the port: it listens, or is bound. Connections are its consequence: a process that
has only an accepted one is left alone as long as somebody waits, and a client, whose port is another one, always.
Where nobody waits and the port can still not be bound, those that have connections from it are in the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from portbook.addresses import EVERYWHERE, Endpoint
from portbook.holding import PASSED
from portbook.managers.supervisor import Supervisor, is_relay, stop_instruction
from portbook.query import LISTENING
from portbook.records import Gap, Holder, Holding, Platform, Protocol, Socket
from portbook.stop import protected
from portbook.stop.records import Override, Refusal, StopPlan, StopTarget

HTTP_SYS = "netsh http show servicestate names the service behind it"

CONNECTED = "it does not wait on the port: it only has connections from it, as a client or a server that has closed"


class StopContext(NamedTuple):
    """What has to be known of this process and of the system, besides who holds the port."""

    platform: Platform
    pid: int  # ours
    ancestors: frozenset[int]
    denied: frozenset[int] = frozenset()  # processes that this user may not end
    supervisors: Mapping[int, Supervisor] = {}  # by pid


def blocking_sockets(sockets: Sequence[Socket]) -> tuple[Socket, ...]:
    """The sockets that hold their port: those that wait; without any, those that are connected."""
    waiting = tuple(s for s in sockets if s.state in LISTENING)
    return waiting or tuple(s for s in sockets if s.state not in PASSED)


def bind_endpoints(sockets: Sequence[Socket]) -> tuple[Endpoint, ...]:
    """Where a exec_command would bind: at every address that is waited on. Connections say nothing of that."""
    waiting = [s for s in sockets if s.state in LISTENING]
    return tuple(dict.fromkeys(map(_endpoint, waiting))) or EVERYWHERE


def _endpoint(s: Socket) -> Endpoint:
    return Endpoint(s.local_address, s.zone, s.local_address == "::" and s.v6only is not True)


def blocking_holders(holding: Holding) -> tuple[Holder, ...]:
    """Those that hold one of the sockets in the way."""
    blocking = set(map(id, blocking_sockets(holding.sockets)))
    return tuple(h for h in holding.holders if any(id(s) in blocking for s in h.sockets))


def make_plan(holding: Holding, protocol: Protocol, held: bool, situation: StopContext) -> StopPlan:
    """What would be done; ``held`` is whether the port is in use: a socket waits on it, or it cannot be bound."""
    where = bind_endpoints(holding.sockets)
    if not held:
        return StopPlan(holding.port, protocol, False, where, (), (), holding.gaps)
    targets = tuple(sorted(_targets(blocking_holders(holding), situation), key=lambda t: (t.wave, t.holder.owner.pid)))
    unseen = tuple(_unseen(holding))
    return StopPlan(holding.port, protocol, True, where, targets, unseen, holding.gaps)


def _targets(found: Sequence[Holder], situation: StopContext) -> Iterator[StopTarget]:
    pids = {h.owner.pid for h in found}
    for holder in found:
        wave = sum(parent.pid in pids for parent in holder.parents)
        supervisor = situation.supervisors.get(holder.owner.pid)
        yield StopTarget(holder, wave, supervisor, tuple(_refusals(holder, supervisor, situation)))


# --- refusals ------------------------------------------------------------------------------------------------------


def _unseen(holding: Holding) -> Iterator[Refusal]:
    blocking = blocking_sockets(holding.sockets)
    if not blocking:
        yield Refusal(
            "not-found", "the port cannot be bound, and no socket is visible that has it", _hint(holding.gaps)
        )
    elif any(not s.owners for s in blocking):
        reasons = [gap for gap in holding.gaps if gap.what == "owner"]
        why = reasons[0].why if reasons else "the system does not say which process has it"
        yield Refusal("not-visible", f"who holds it is not visible: {why}", _hint(reasons))


def _hint(gaps: Sequence[Gap]) -> str | None:
    return next((gap.hint for gap in gaps if gap.hint), None)


def _refusals(holder: Holder, supervisor: Supervisor | None, situation: StopContext) -> Iterator[Refusal]:
    owner = holder.owner
    if why := protected.kernel(owner, situation.platform):
        yield Refusal("kernel", why, HTTP_SYS if situation.platform == "windows" else None)
    elif owner.pid == situation.pid:
        yield Refusal("self", "it is this very process")
    elif supervisor and supervisor.command and protected.activates(owner):
        yield Refusal(
            "managed", f"it holds the port for {supervisor.name}", stop_instruction(supervisor), ("via-manager",)
        )
    else:
        yield from _against_ending(holder, supervisor, situation)


def _against_ending(holder: Holder, supervisor: Supervisor | None, situation: StopContext) -> Iterator[Refusal]:
    owner = holder.owner
    if all(s.state not in LISTENING for s in holder.sockets):
        yield Refusal("connected", CONNECTED, None, ("override",))
    by_manager: tuple[Override, ...] = ("via-manager",) if supervisor and supervisor.command else ()
    if owner.pid in situation.ancestors:
        yield Refusal("ancestor", "portbook runs below it, and would end with it", None, ("override",))
    if why := protected.reason(owner, situation.platform):
        yield Refusal("protected", why, None, ("override",))
    if supervisor and is_relay(owner):
        why = f"it holds the port for container {supervisor.name}".rstrip() + ", which would run on without"
        yield Refusal("managed", why, stop_instruction(supervisor), (*by_manager, "override"))
    elif supervisor and supervisor.restarts is not False:
        yield _managed(supervisor, (*by_manager, "override"))
    if owner.pid in situation.denied:
        hint = "run as administrator" if situation.platform == "windows" else "run with sudo"
        yield Refusal("not-permitted", f"it belongs to {owner.user or 'another user'}", hint, by_manager)
    elif owner.started is None:
        why = "when it started is not known, so that it cannot be told from another process with its pid"
        yield Refusal("unknown", why, None, by_manager)


def _managed(supervisor: Supervisor, overrides: tuple[Override, ...]) -> Refusal:
    again = "starts it again" if supervisor.restarts else "may start it again"
    why = (
        f"{supervisor.kind} {supervisor.name}".strip()
        + f" {again}"
        + (f" ({supervisor.why})" if supervisor.why else "")
    )
    return Refusal("managed", why, stop_instruction(supervisor), overrides)
