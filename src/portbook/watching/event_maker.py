"""Events of the register: what is followed becomes the fields of an event. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from portbook.events import Event, EventKind, Level
from portbook.query import Query, Test
from portbook.records import Owner, Socket
from portbook.watching.followed import NO_ORIGIN, Origin
from portbook.watching.judging import label_of
from portbook.watching.records import Moment

if TYPE_CHECKING:
    from portbook.watching.judge import Judgement

MOST_PIDS = 1_000  # of one event
NO_OWNER = Owner(0)


class EventMaker:
    """Makes the events of one watch."""

    def __init__(self, query: Query | None, feed: str | None, boot_id: str | None) -> None:
        """:param query: selects the sockets of which events are made; None: all"""
        self.feed = feed
        self._boot_id = boot_id
        self._tests = _tests_of(query)

    def make(self, kind: EventKind, now: Moment, **fields: Any) -> Event:
        """An event that is about no socket."""
        return Event(
            at=now.wall,
            event=kind,
            feed=self.feed,
            boot_id=self._boot_id,
            monotonic_ns=now.monotonic_ns,
            **fields,
        )

    def of_socket(
        self,
        kind: EventKind,
        at: datetime,
        at_ns: int,
        socket: Socket,
        *,
        identity: str | None,
        severity: Level = "info",
        origin: Origin | None = None,
        lasted_ms: float | None = None,
        count: int = 1,
        reason: str | None = None,
        error: str | None = None,
        judgement: Judgement | None = None,
        before: str | None = None,
        since: datetime | None = None,
    ) -> list[Event]:
        """The event as a list; an empty one when the query does not select the socket."""
        if self._tests and not self.selects(socket):
            return []
        owners = socket.owners
        owner = owners[0] if owners else NO_OWNER
        rule = comment = rule_owner = None
        if judgement is not None:
            rule = label_of(judgement)
            if judgement.rule is not None:
                comment, rule_owner = judgement.rule.comment, judgement.rule.owner
        if origin is None:
            origin = NO_ORIGIN
        event = Event(
            at=at,
            event=kind,
            severity=severity,
            protocol=socket.protocol,
            family=socket.family,
            local_address=socket.local_address,
            local_port=socket.local_port,
            zone=socket.zone,
            interface=socket.interface,
            state=socket.state,
            reach=socket.reach,
            pid=owner.pid or None,
            name=owner.name or socket.kernel,
            exe=owner.exe,
            command_line=owner.command_line,
            uid=socket.uid,
            user=owner.user or socket.user,
            process_started=owner.started,
            parents=origin.parents,
            service=owner.service or socket.service,
            container=owner.container or socket.container,
            cgroup=owner.cgroup,
            netns=socket.netns,
            netns_name=socket.netns_name,
            pids=_pids(owners),
            process_gone=origin.process_gone,
            cookie=socket.cookie,
            identity=identity,
            lasted_ms=lasted_ms,
            count=count,
            reason=reason,
            error=error,
            rule=rule,
            comment=comment,
            rule_owner=rule_owner,
            before=before,
            since=since,
            feed=self.feed,
            boot_id=self._boot_id,
            monotonic_ns=at_ns,
        )
        return [event]

    def selects(self, socket: Socket) -> bool:
        """Whether the query selects the socket."""
        return all(test(socket) for test in self._tests)


def _tests_of(query: Query | None) -> tuple[Test, ...]:
    if query is None:
        return ()
    return tuple(test for test in (query.socket_test(), query.owner_test()) if test is not None)


def _pids(owners: tuple[Owner, ...]) -> tuple[int, ...]:
    if len(owners) == 1:
        return (owners[0].pid,)
    return tuple(owner.pid for owner in owners[:MOST_PIDS])


def owners_text(socket: Socket) -> str:
    """The owners of a socket, for the field ``before``."""
    if not socket.owners:
        return "unknown"
    return ", ".join(f"{owner.name or 'process'}({owner.pid})" for owner in socket.owners[:MOST_PIDS])
