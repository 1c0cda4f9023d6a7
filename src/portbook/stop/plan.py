"""Which processes have to end for a port to be free, in which order, and what forbids it. Pure.

A holder is a process that listens on the port or is bound to it. A process that only has an accepted connection is left
alone as long as another process listens; a client, whose own port is another one, always is. If no process listens and
the port still cannot be bound, the processes with connections from it block the bind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from portbook.addresses import EVERYWHERE, Endpoint
from portbook.holding import PASSED
from portbook.managers import relay
from portbook.managers.relay import Relay, RelayKind
from portbook.managers.supervisor import Supervisor, is_service_manager, stop_instruction
from portbook.numerals import UINT32, number_or_none
from portbook.query import LISTENING
from portbook.records import Gap, Holder, Holding, Platform, Protocol, Socket
from portbook.stop import protected
from portbook.stop.records import Override, Refusal, StopPlan, StopTarget

HTTP_SYS = "netsh http show servicestate shows which service uses it"
SELF = "it is the portbook process itself"
ROOT = "root"
HANDED_OVER = "user {} made its socket, and may have handed it over to end this process"
CONNECTED = "it does not listen on the port; it only has connections from it, as a client or after closing its listener"
ANCESTOR = "it is a parent process of portbook, which would end with it"
NO_START = "its start time is not known, so it cannot be distinguished from another process with the same pid"
NOT_FOUND = "the port cannot be bound, and no socket on it is visible"
NO_OWNER = "the system does not report which process holds it"


class StopContext(NamedTuple):
    """What a plan depends on besides the sockets: this process, and what is known of the holders."""

    platform: Platform
    pid: int  # of this process
    ancestors: frozenset[int]  # of this process
    denied: frozenset[int] = frozenset()  # pids of processes that this user may not end
    supervisors: Mapping[int, Supervisor] = {}  # by pid
    port: int = 0
    protocol: Protocol = "tcp"


def blocking_sockets(sockets: Sequence[Socket]) -> tuple[Socket, ...]:
    """The sockets that hold their port: listening and bound ones; without any, the connected ones."""
    listeners = tuple(s for s in sockets if s.state in LISTENING)
    return listeners or tuple(s for s in sockets if s.state not in PASSED)


def blocking_holders(holding: Holding) -> tuple[Holder, ...]:
    """The holders of the blocking sockets."""
    blocking = {id(s) for s in blocking_sockets(holding.sockets)}
    return tuple(h for h in holding.holders if any(id(s) in blocking for s in h.sockets))


def bind_endpoints(sockets: Sequence[Socket]) -> tuple[Endpoint, ...]:
    """Where a new server would bind the port: at the addresses of the listeners. Connections do not show it."""
    listeners = [s for s in sockets if s.state in LISTENING]
    return tuple(dict.fromkeys(map(_endpoint, listeners))) or EVERYWHERE


def _endpoint(s: Socket) -> Endpoint:
    is_dual = s.local_address == "::" and s.v6only is not True
    return Endpoint(s.local_address, s.zone, is_dual)


def make_plan(holding: Holding, protocol: Protocol, held: bool, context: StopContext) -> StopPlan:
    """The plan for a port; ``held`` is true if a socket listens on it, or if it cannot be bound."""
    endpoints = bind_endpoints(holding.sockets)
    if not held:
        return StopPlan(holding.port, protocol, False, endpoints, (), (), holding.gaps)
    targets = sorted(_targets(blocking_holders(holding), context), key=lambda t: (t.wave, t.holder.owner.pid))
    return StopPlan(
        holding.port, protocol, True, endpoints, tuple(targets), tuple(_refusals_of_port(holding)), holding.gaps
    )


def _targets(holders: Sequence[Holder], context: StopContext) -> Iterator[StopTarget]:
    pids = {h.owner.pid for h in holders}
    for holder in holders:
        wave = sum(parent.pid in pids for parent in holder.parents)
        supervisor = context.supervisors.get(holder.owner.pid)
        refusals = [*_refusals(holder, supervisor, context)]
        creator = handed_over_by(holder, holders)
        if creator is not None:
            refusals.append(Refusal("handed-over", HANDED_OVER.format(creator), None, ("override",)))
        yield StopTarget(holder, wave, supervisor, tuple(refusals))


def handed_over_by(holder: Holder, holders: Sequence[Holder]) -> str | None:
    """The user who made the socket of this holder, if it probably handed it over: unix(7), SCM_RIGHTS.

    A daemon that makes its socket as root and then becomes another user is the ordinary case, and so is a process that
    inherited its socket. The users of a container without privilege are neither root nor the host's: uids from 65536 on
    (subuid(5)).
    """
    owner = holder.owner
    creators = {s.user for s in blocking_sockets(holder.sockets)}
    if len(creators) != 1 or owner.user is None:
        return None
    (creator,) = creators
    if creator is None or creator in (owner.user, ROOT):
        return None
    if _is_subordinate(creator) and _is_subordinate(owner.user):
        return None
    if any(other is not holder and _is_related(holder, other) for other in holders):
        return None
    return creator


def _is_subordinate(user: str) -> bool:
    """Whether it is the number of a user inside a user namespace."""
    return (number_or_none(user, UINT32) or 0) >= 65_536


def _is_related(one: Holder, other: Holder) -> bool:
    """Whether one process is above the other."""
    above = {parent.pid for parent in one.parents}, {parent.pid for parent in other.parents}
    return other.owner.pid in above[0] or one.owner.pid in above[1]


# --- refusals ------------------------------------------------------------------------------------------------------


def _refusals_of_port(holding: Holding) -> Iterator[Refusal]:
    """What forbids to stop the port as a whole: a holder that is not visible."""
    blocking = blocking_sockets(holding.sockets)
    if not blocking:
        yield Refusal("not-found", NOT_FOUND, _hint(holding.gaps))
    elif any(not s.owners for s in blocking):
        gaps = [gap for gap in holding.gaps if gap.what == "owner"]
        reason = gaps[0].why if gaps else NO_OWNER
        yield Refusal("not-visible", f"its holder is not visible: {reason}", _hint(gaps))


def _hint(gaps: Sequence[Gap]) -> str | None:
    return next((gap.hint for gap in gaps if gap.hint), None)


def _refusals(holder: Holder, supervisor: Supervisor | None, context: StopContext) -> Iterator[Refusal]:
    owner = holder.owner
    if why := protected.kernel(owner, context.platform):
        yield Refusal("kernel", why, HTTP_SYS if context.platform == "windows" else None)
    elif owner.pid == context.pid:
        yield Refusal("self", SELF)
    elif supervisor and supervisor.command and is_service_manager(owner):
        why = f"it holds the port for {supervisor.name}"
        yield Refusal("managed", why, stop_instruction(supervisor), ("via-manager",))
    else:
        yield from _refusals_of_signal(holder, supervisor, context)


def _refusals_of_signal(holder: Holder, supervisor: Supervisor | None, context: StopContext) -> Iterator[Refusal]:
    """The refusals for a process that could be signalled."""
    owner = holder.owner
    by_manager: tuple[Override, ...] = ("via-manager",) if supervisor and supervisor.command else ()
    if all(s.state not in LISTENING for s in holder.sockets):
        yield Refusal("connected", CONNECTED, None, ("override",))
    if owner.pid in context.ancestors:
        yield Refusal("ancestor", ANCESTOR, None, ("override",))
    if why := protected.reason(owner, context.platform):
        yield Refusal("protected", why, None, ("override",))
    forwarding = relay.behind(owner, context.port, context.protocol)
    if forwarding is not None and forwarding.kind in KEPT:
        hint = forwarding.remedy
        if by_manager and supervisor:
            hint = stop_instruction(supervisor)
        yield Refusal("managed", _relayed(forwarding, supervisor), hint, (*by_manager, "override"))
    elif supervisor and supervisor.restarts is not False:
        yield Refusal("managed", _restarted(supervisor), stop_instruction(supervisor), (*by_manager, "override"))
    if owner.pid in context.denied:
        hint = "run as administrator" if context.platform == "windows" else "run with sudo"
        yield Refusal("not-permitted", f"it belongs to {owner.user or 'another user'}", hint, by_manager)
    elif owner.started is None:
        yield Refusal("unknown", NO_START, None, by_manager)


# Relays that are not ended for the port, and what would happen: by kind.
KEPT: Mapping[RelayKind, str] = {
    "container": "it holds the port for {}, which would keep running without the port",
    "machine": "it holds the port for {}, which would lose the port, or end",
    "super-server": "it holds the port for {}, and the ports of all other lines of its configuration",
}


def _relayed(forwarding: Relay, supervisor: Supervisor | None) -> str:
    to = forwarding.to
    if supervisor and supervisor.name and forwarding.kind == "container":
        to = f"container {supervisor.name}"
    return KEPT[forwarding.kind].format(to)


def _restarted(supervisor: Supervisor) -> str:
    label = f"{supervisor.kind} {supervisor.name}".strip()
    verb = "restarts" if supervisor.restarts else "may restart"
    reason = f" ({supervisor.why})" if supervisor.why else ""
    return f"{label} {verb} it{reason}"
