"""The register of the watch: changes become events. Pure: the time is an argument, and nothing here does I/O.

What it keeps is bounded, whatever processes do: sockets (``MOST_SOCKETS``), ends that are withheld for the grace time
(``MOST_WITHHELD``), remembered failures and restarts. Beyond a bound every event is still reported; what cannot be
followed any longer is counted in a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from portbook.events import LEVELS, Event, EventKind, Level
from portbook.query import Test
from portbook.records import Owner, Socket
from portbook.watching import identity as identities
from portbook.watching.failures import FailedBinds, explain
from portbook.watching.feeds.base import Change, SocketKey, key_of
from portbook.watching.flapping import FlapCounter
from portbook.watching.identity import PortIdentity
from portbook.watching.judging import Judging, label_of
from portbook.watching.records import Listener, Moment, Settings
from portbook.watching.requirements import Requirements
from portbook.watching.violations import Violation, Violations

if TYPE_CHECKING:
    from portbook.watching.judge import Judgement

MOST_SOCKETS = 100_000
MOST_WITHHELD = 10_000
MOST_PIDS = 1_000  # of one event
MOST_TEXT = 4_096  # characters of a command line that are kept
SECOND_NS = 1_000_000_000
CONFIRM_NS = SECOND_NS  # two readings that agree are at least so far apart

Suspect = tuple[str, SocketKey]  # "new" or "gone", as the socket tables have it


class Origin(Struct, frozen=True, gc=False):
    """What a feed reports of the process besides the socket."""

    parents: tuple[str, ...] = ()  # as events have them
    process_gone: bool = False


class Followed:
    """An open socket."""

    __slots__ = ("at", "began", "identity", "is_brief", "judgement", "key", "origin", "rule", "since_ns", "socket")

    def __init__(self, key: SocketKey, socket: Socket, change: Change, identity: PortIdentity, at: datetime) -> None:
        self.key = key
        self.socket = socket
        self.origin = _origin_of(change)
        self.identity = identity
        self.at = at
        self.since_ns = change.at_ns
        self.began = True  # False: it was there before it was first seen
        self.is_brief = False  # a TCP port that was bound for a moment: nothing could arrive there
        self.judgement: Judgement | None = None
        self.rule: str | None = None  # that it violates


class Held:
    """An identity that is open, or whose end is withheld."""

    __slots__ = ("ended", "ended_at", "ended_ns", "identity", "sockets", "undecided", "violations")

    def __init__(self, identity: PortIdentity) -> None:
        self.identity = identity
        self.sockets: dict[SocketKey, Followed] = {}
        self.ended: Followed | None = None  # the last one, while the end is withheld
        self.ended_ns = 0
        self.ended_at: datetime | None = None
        self.violations: dict[str, Violation] = {}  # that last, by rule
        self.undecided: set[str] = set()  # rules for which something was not known, and which were reported


class Register:
    """Knows what is open, and makes events of what changes.

    Every method returns the events that follow from its argument, in order. ``tick`` makes those that follow from time
    alone; ``next_ns`` says when that is due.
    """

    def __init__(
        self,
        settings: Settings,
        judging: Judging | None = None,
        *,
        feed: str | None = None,
        boot_id: str | None = None,
        own_netns: int | None = None,
    ) -> None:
        """Nothing is open.

        :param judging: the policy in force; None: there is none
        :param own_netns: the network namespace of the watch
        """
        self.feed = feed
        self._boot_id = boot_id
        self._own_netns = own_netns
        self._grace_ns = _ns(settings.grace_s)
        self._short_lived_ns = _ns(settings.short_lived_s)
        self._bound_ns = _ns(settings.bound_s)
        self._tests = _tests_of(settings)
        self._sockets: dict[SocketKey, Followed] = {}
        self._on_port: dict[tuple[str, int], dict[SocketKey, Followed]] = {}
        self._held: dict[str, Held] = {}  # by identity
        self._by_program: dict[tuple[str, str], dict[str, Held]] = {}  # withheld, by place and program
        self._withheld: dict[str, Held] = {}  # in the order in which they ended
        self._bound: dict[SocketKey, tuple[EventKind, Change]] = {}  # TCP, so far neither listening nor connected
        self._flaps = FlapCounter(settings.flaps, _ns(settings.flap_window_s))
        self._failures = FailedBinds(_ns(settings.remind_s))
        self._violations = Violations(judging, _ns(settings.remind_s))
        self._requirements = Requirements(judging, self._grace_ns, _ns(settings.remind_s))
        self._suspects: dict[Suspect, int] = {}  # differences of a comparison, and when they were first seen
        self._unfollowed = 0
        self._apply: dict[str, Callable[[Change, datetime], Iterator[Event]]] = {
            "bound": self._bind,
            "listening": self._listen,
            "connected": self._connect,
            "ended": self._end_of,
            "failed": self._fail,
            "owners": self._change_owners,
            "lost": self._lose,
        }

    # --- input -----------------------------------------------------------------------------------------------------

    def apply(self, change: Change, now: Moment) -> list[Event]:
        """Take one change of a feed."""
        at = now.wall - timedelta(microseconds=(now.monotonic_ns - change.at_ns) // 1000)
        return list(self._apply[change.kind](change, at))

    def snapshot(self, sockets: Iterable[Socket], now: Moment) -> list[Event]:
        """Take what is there when the watch begins. Changes that were reported meanwhile are applied after it."""
        events: list[Event] = []
        for socket in sockets:
            key = key_of(socket)
            if key not in self._sockets and key not in self._bound:
                change = Change("listening", now.monotonic_ns, key, socket, exact=False)
                if socket.state == "BOUND":
                    self._bound[key] = ("present", change)
                else:
                    events += self._open(key, socket, change, now.wall, "present")
        return events

    def compare(
        self, sockets: Iterable[Socket], now: Moment, *, is_whole: bool = True, began_ns: int | None = None
    ) -> tuple[list[Event], int]:
        """Compare with the socket tables: what the feed cannot tell, or has missed.

        A socket may open or close while the tables are read. A difference counts when a second reading, at least
        CONFIRM_NS later, has it too.

        :param is_whole: the tables show other network namespaces as well
        :param began_ns: when the reading began; what opened later may be missing in it
        :returns: also how many listeners the feed should have reported
        """
        seen = {key_of(socket): socket for socket in sockets}
        suspects, self._suspects = self._suspects, {}
        events: list[Event] = []
        missed = 0
        for key, socket in seen.items():
            followed = self._sockets.get(key)
            if followed is not None and followed.socket.state == socket.state:
                events += self._compare_one(followed, socket, now)
            elif key not in self._bound and self._is_confirmed(("new", key), suspects, now):
                missed += socket.protocol == "tcp" and socket.state == "LISTEN"
                change = Change("listening", now.monotonic_ns, key, socket, exact=False)
                events += self._begin(key, socket, change, now.wall, "present")
        shows_bound = any(socket.state == "BOUND" for socket in seen.values())
        for followed in [followed for key, followed in self._sockets.items() if key not in seen]:
            socket = followed.socket
            is_in_view = is_whole or socket.netns in {None, self._own_netns}
            is_shown = is_in_view and (shows_bound or socket.state != "BOUND")
            is_old = began_ns is None or followed.since_ns < began_ns
            if is_shown and is_old and self._is_confirmed(("gone", followed.key), suspects, now):
                missed += socket.protocol == "tcp" and socket.state == "LISTEN"
                events += self._end(followed, now.monotonic_ns, now.wall)
        return events, missed

    @property
    def has_suspects(self) -> bool:
        """Whether the last comparison found differences that a second one has to confirm."""
        return bool(self._suspects)

    def tick(self, now: Moment) -> list[Event]:
        """What follows from the time."""
        events: list[Event] = []
        now_ns = now.monotonic_ns
        while self._bound:
            key = next(iter(self._bound))
            kind, change = self._bound[key]
            if now_ns - change.at_ns < self._bound_ns:
                break
            del self._bound[key]
            events += self._begin(key, _socket_of(change), change, self._wall(now, change.at_ns), kind)
        while self._withheld:
            held = next(iter(self._withheld.values()))
            if now_ns - held.ended_ns < self._grace_ns:
                break
            events += self._finish(held)
        for text, flaps in self._flaps.settled(now_ns):
            is_open = text in self._held
            reason = "it is open" if is_open else "it is closed"
            events += self._emit("settled", now.wall, now_ns, flaps.socket, identity=text, reason=reason)
        events += self._tick_policy(now)
        if self._unfollowed:
            reason = f"more than {MOST_SOCKETS:,} sockets are open: the ends of further ones are not reported"
            events.append(self.make("gap", now, severity="warning", count=self._unfollowed, reason=reason))
            self._unfollowed = 0
        return events

    def next_ns(self) -> int | None:
        """When ``tick`` is due, by the monotonic clock; None: not before something changes."""
        due: list[int | None] = [self._flaps.next_ns(), self._violations.next_ns(), self._requirements.next_ns()]
        if self._bound:
            due.append(next(iter(self._bound.values()))[1].at_ns + self._bound_ns)
        if self._withheld:
            due.append(next(iter(self._withheld.values())).ended_ns + self._grace_ns)
        return min((ns for ns in due if ns is not None), default=None)

    def replace_policy(self, judging: Judging | None, now: Moment) -> list[Event]:
        """Judge everything by another policy; None: by none."""
        self._violations.judging = judging
        self._requirements.replace(judging)
        events = self._judge_all(now, "the policy has changed")
        return events + self._check_requirements(now)

    def finish(self, now: Moment) -> list[Event]:
        """The watch ends: report the ends that are withheld."""
        events: list[Event] = []
        for held in list(self._withheld.values()):
            events += self._finish(held)
        return events

    # --- output ----------------------------------------------------------------------------------------------------

    def listeners(self) -> tuple[Listener, ...]:
        """What is open."""
        return tuple(
            Listener(f.socket, f.identity.text, f.at, f.judgement)
            for f in self._sockets.values()
            if self._is_selected(f.socket)
        )

    def counts(self) -> tuple[int, int, int]:
        """How many sockets are open, how many violations last, how many requirements are not met."""
        return len(self._sockets), self._violations.count, self._requirements.lost_count

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

    def _emit(
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
        if self._tests and not self._is_selected(socket):
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

    def _is_selected(self, socket: Socket) -> bool:
        return all(test(socket) for test in self._tests)

    def _wall(self, now: Moment, at_ns: int) -> datetime:
        return now.wall - timedelta(microseconds=(now.monotonic_ns - at_ns) // 1000)

    # --- changes ---------------------------------------------------------------------------------------------------

    def _bind(self, change: Change, at: datetime) -> Iterator[Event]:
        socket = _socket_of(change)
        key = change.key
        if key in self._bound:
            return
        if socket.protocol == "tcp":
            if key not in self._sockets:
                self._bound[key] = ("opened", change)
                if len(self._bound) > MOST_WITHHELD:
                    yield from self._begin_oldest(change.at_ns, at)
            return
        yield from self._begin(key, socket, change, at, "opened")

    def _begin_oldest(self, at_ns: int, at: datetime) -> Iterator[Event]:
        """Report a socket that is only bound early, so that not too many wait."""
        key = next(iter(self._bound))
        kind, change = self._bound.pop(key)
        began = at - timedelta(microseconds=(at_ns - change.at_ns) // 1000)
        yield from self._begin(key, _socket_of(change), change, began, kind)

    def _listen(self, change: Change, at: datetime) -> Iterator[Event]:
        self._bound.pop(change.key, None)
        yield from self._begin(change.key, _socket_of(change), change, at, "opened")

    def _begin(self, key: SocketKey, socket: Socket, change: Change, at: datetime, kind: EventKind) -> Iterator[Event]:
        """A socket is there. One that is known already has been reported by the snapshot too."""
        followed = self._sockets.get(key)
        if followed is None:
            yield from self._open(key, socket, change, at, kind)
        elif _place(followed.socket) != _place(socket):
            yield from self._end(followed, change.at_ns, at)
            yield from self._open(key, socket, change, at, kind)
        elif followed.socket.state == "BOUND" and socket.state != "BOUND":
            yield from self._promote(followed, socket, change, at)

    def _promote(self, followed: Followed, socket: Socket, change: Change, at: datetime) -> Iterator[Event]:
        """What was only bound listens now."""
        yield from self._rename(followed, socket)
        followed.origin = _origin_of(change)
        count = len(self._held[followed.identity.text].sockets)
        text = followed.identity.text
        yield from self._emit("opened", at, change.at_ns, socket, identity=text, origin=followed.origin, count=count)
        yield from self._judge(followed, at, change.at_ns, "it is allowed now")

    def _connect(self, change: Change, at: datetime) -> Iterator[Event]:
        if self._bound.pop(change.key, None) is None:
            followed = self._sockets.get(change.key)
            if followed is not None:
                yield from self._end(followed, change.at_ns, at)

    def _end_of(self, change: Change, at: datetime) -> Iterator[Event]:
        waiting = self._bound.pop(change.key, None)
        if waiting is not None:
            kind, bound = waiting
            began = at - timedelta(microseconds=(change.at_ns - bound.at_ns) // 1000)
            yield from self._open(change.key, _socket_of(bound), bound, began, kind, is_brief=True)
        followed = self._sockets.get(change.key)
        if followed is not None:
            yield from self._end(followed, change.at_ns, at)

    def _fail(self, change: Change, at: datetime) -> Iterator[Event]:
        socket = replace(_bounded(_socket_of(change)), state=None)  # it is in none: it has no port
        failure = self._failures.add(socket, change.at_ns)
        error, reason = explain(socket, self._on(socket))
        text = identities.of(socket, self._own_netns).text
        is_first = failure.count == 1
        origin = _origin_of(change)
        yield from self._emit(
            "bind_failed",
            at,
            change.at_ns,
            socket,
            identity=text,
            severity="info" if is_first and failure.is_loud else "quiet",
            origin=origin,
            count=failure.count,
            reason=reason or change.reason or None,
            error=error,
        )
        if is_first:
            judgement = self._violations.judge(socket, at)
            if judgement is not None and judgement.allowed is False:
                yield from self._emit(
                    "violation",
                    at,
                    change.at_ns,
                    socket,
                    identity=text,
                    severity=judgement.severity if failure.is_loud else "quiet",
                    origin=origin,
                    reason=judgement.why,
                    error=error,
                    judgement=judgement,
                )

    def _on(self, socket: Socket) -> list[Socket]:
        followed = self._on_port.get((socket.protocol, socket.local_port), {})
        return [f.socket for f in followed.values()]

    def _change_owners(self, change: Change, at: datetime) -> Iterator[Event]:
        followed = self._sockets.get(change.key)
        if followed is not None and change.socket is not None:
            yield from self._set_owners(followed, change.socket, change.at_ns, at)

    def _lose(self, change: Change, at: datetime) -> Iterator[Event]:
        yield Event(
            at=at,
            event="gap",
            severity="warning",
            count=change.count,
            reason=change.reason or "the feed lost changes",
            feed=self.feed,
            boot_id=self._boot_id,
            monotonic_ns=change.at_ns,
        )

    # --- sockets ---------------------------------------------------------------------------------------------------

    def _open(
        self, key: SocketKey, socket: Socket, change: Change, at: datetime, kind: EventKind, *, is_brief: bool = False
    ) -> list[Event]:
        """A socket that was not there before. One of an identity whose end is withheld is a restart.

        :param is_brief: a TCP port that was bound for a moment, at which nothing could arrive
        """
        severity: Level = "quiet" if is_brief else "info"
        socket = _bounded(socket)
        identity = identities.of(socket, self._own_netns)
        text = identity.text
        events: list[Event] = []
        held = self._held.get(text)
        if held is not None and held.ended is not None and not self._is_restart(held, held.ended, socket, change.at_ns):
            events += self._finish(held)
            held = None
        before = previous = lasted_ms = flaps = None
        begins = False
        began = kind != "present"
        if held is None:
            before = self._end_elsewhere(identity, events)
            held = self._held[text] = Held(identity)
        elif held.ended is not None:
            kind = "restarted"
            severity = "quiet"
            lasted_ms = max(0, change.at_ns - held.ended_ns) / 1e6
            previous, held.ended = held.ended, None
            self._forget_withheld(held)
        if held.sockets:
            severity = "quiet"
        else:
            flaps, begins = self._flaps.returned(text, change.at_ns)
            if flaps is not None and flaps.flapping and not begins:
                severity = "quiet"
        followed = Followed(key, socket, change, identity, at)
        followed.began = began
        followed.is_brief = is_brief
        self._follow(followed, held)
        count = max(1, len(held.sockets))
        events += self._emit(
            kind,
            at,
            change.at_ns,
            socket,
            identity=text,
            severity=severity,
            origin=followed.origin,
            lasted_ms=lasted_ms,
            count=count,
        )
        if previous is not None:
            events += self._compare_users(previous, followed, at)
        if before is not None:
            events += self._report_reach(followed, before, at, change.at_ns)
        if begins and flaps is not None:
            count = len(flaps.times)
            events += self._emit("flapping", at, change.at_ns, socket, identity=text, severity="warning", count=count)
        events += self._judge(followed, at, change.at_ns, "it is allowed now")
        if not held.sockets:
            self._drop_unfollowed(held)
        return events

    def _is_restart(self, held: Held, ended: Followed, socket: Socket, at_ns: int) -> bool:
        """Whether what opens continues what ended. A port that was only bound does not make a listener a restart."""
        return at_ns - held.ended_ns < self._grace_ns and ended.socket.state == socket.state

    def _follow(self, followed: Followed, held: Held) -> None:
        if len(self._sockets) >= MOST_SOCKETS:
            self._unfollowed += 1
            return
        key, socket = followed.key, followed.socket
        self._sockets[key] = held.sockets[key] = followed
        self._on_port.setdefault((socket.protocol, socket.local_port), {})[key] = followed
        self._requirements.is_due = True

    def _drop_unfollowed(self, held: Held) -> None:
        """Keep nothing of an identity of which no socket is followed."""
        del self._held[held.identity.text]
        for violation in held.violations.values():
            self._violations.remove(violation)

    def _end_elsewhere(self, identity: PortIdentity, events: list[Event]) -> str | None:
        """The same program on the same port had another reach until now: report that end, and return that reach."""
        others = self._by_program.get((identity.place, identity.program))
        if not others or identity.program == identities.UNKNOWN:
            return None
        other = next(iter(others.values()))
        events += self._finish(other)
        return other.identity.reach

    def _report_reach(self, followed: Followed, before: str, at: datetime, at_ns: int) -> list[Event]:
        socket = followed.socket
        severity: Level = "warning" if WIDTH[socket.reach] > WIDTH.get(before, 0) else "info"
        text = followed.identity.text
        return self._emit("reach_changed", at, at_ns, socket, identity=text, severity=severity, before=before)

    def _compare_users(self, previous: Followed, followed: Followed, at: datetime) -> Iterator[Event]:
        """A restart by another user is none of the same server, though the program is the same."""
        before, after = previous.socket, followed.socket
        if before.uid is not None and after.uid is not None and before.uid != after.uid:
            yield from self._emit(
                "owner_changed",
                at,
                followed.since_ns,
                after,
                identity=followed.identity.text,
                severity="warning",
                origin=followed.origin,
                before=f"{_owners_text(before)} of user {before.user or before.uid}",
            )

    def _end(self, followed: Followed, at_ns: int, at: datetime) -> Iterator[Event]:
        key = followed.key
        del self._sockets[key]
        self._leave_port(followed)
        held = self._held[followed.identity.text]
        del held.sockets[key]
        self._requirements.is_due = True
        if held.sockets:
            yield from self._emit(
                "closed",
                at,
                at_ns,
                followed.socket,
                identity=held.identity.text,
                severity="quiet",
                lasted_ms=_lasted_ms(followed, at_ns),
                count=len(held.sockets) + 1,
            )
            yield from self._release(held, followed, at, at_ns, "it ended")
            return
        held.ended, held.ended_ns, held.ended_at = followed, at_ns, at
        if followed.rule is not None:
            self._violations.leave(held.violations[followed.rule])
        self._withheld[held.identity.text] = held
        self._by_program.setdefault((held.identity.place, held.identity.program), {})[held.identity.text] = held
        self._flaps.ended(held.identity.text, followed.socket, at_ns)
        if len(self._withheld) > MOST_WITHHELD:
            yield from self._finish(next(iter(self._withheld.values())))

    def _finish(self, held: Held) -> list[Event]:
        """Report an end that was withheld."""
        followed = held.ended
        self._forget_withheld(held)
        text = held.identity.text
        del self._held[text]
        if followed is None or held.ended_at is None:
            return []
        lasted_ms = _lasted_ms(followed, held.ended_ns)
        kind: EventKind = "closed"
        if lasted_ms is not None and lasted_ms * 1e6 < self._short_lived_ns:
            kind = "short_lived"
        is_quiet = self._flaps.of(text) is not None or _is_brief_bind(followed, kind)
        events = self._emit(
            kind,
            held.ended_at,
            held.ended_ns,
            followed.socket,
            identity=text,
            severity="quiet" if is_quiet else "info",
            origin=followed.origin,
            lasted_ms=lasted_ms,
        )
        for violation in list(held.violations.values()):
            events += self._recover(held, violation, held.ended_at, held.ended_ns, "it ended")
        return events

    def _forget_withheld(self, held: Held) -> None:
        self._withheld.pop(held.identity.text, None)
        group = (held.identity.place, held.identity.program)
        others = self._by_program.get(group)
        if others is not None:
            others.pop(held.identity.text, None)
            if not others:
                del self._by_program[group]

    def _leave_port(self, followed: Followed) -> None:
        place = (followed.socket.protocol, followed.socket.local_port)
        on_port = self._on_port[place]
        del on_port[followed.key]
        if not on_port:
            del self._on_port[place]

    def _rename(self, followed: Followed, socket: Socket) -> list[Event]:
        """Put a socket, about which more or something else is known now, below the identity that it has now."""
        socket = _bounded(socket)
        followed.socket = socket
        identity = identities.of(socket, self._own_netns)
        if identity.text == followed.identity.text:
            return []
        events: list[Event] = []
        old = self._held[followed.identity.text]
        del old.sockets[followed.key]
        rule, violation = followed.rule, None
        if rule is not None:
            violation = old.violations[rule]
            self._violations.leave(violation)
            if not violation.sockets:
                self._violations.remove(violation)
                del old.violations[rule]
        if not old.sockets:
            del self._held[old.identity.text]
        held = self._held.get(identity.text)
        if held is not None and held.ended is not None:
            events += self._finish(held)
            held = None
        if held is None:
            held = self._held[identity.text] = Held(identity)
        held.sockets[followed.key] = followed
        followed.identity = identity
        if rule is not None and violation is not None:
            if rule not in held.violations:
                judgement = violation.judgement
                moved = self._violations.add(rule, followed, judgement, followed.since_ns, followed.at)
                moved.reported = violation.reported
                held.violations[rule] = moved
            self._violations.join(held.violations[rule])
        return events

    # --- comparisons -----------------------------------------------------------------------------------------------

    def _is_confirmed(self, suspect: Suspect, suspects: dict[Suspect, int], now: Moment) -> bool:
        first_ns = suspects.get(suspect, now.monotonic_ns)
        if now.monotonic_ns - first_ns >= CONFIRM_NS:
            return True
        self._suspects[suspect] = first_ns
        return False

    def _compare_one(self, followed: Followed, socket: Socket, now: Moment) -> Iterator[Event]:
        if socket.reach != followed.socket.reach:
            before = followed.socket.reach
            yield from self._rename(followed, replace(followed.socket, reach=socket.reach))
            yield from self._report_reach(followed, before, now.wall, now.monotonic_ns)
            yield from self._judge(followed, now.wall, now.monotonic_ns, "it is allowed now")
        if socket.owners:
            yield from self._set_owners(followed, socket, now.monotonic_ns, now.wall)

    def _set_owners(self, followed: Followed, socket: Socket, at_ns: int, at: datetime) -> Iterator[Event]:
        before = followed.socket
        if not _are_others(before.owners, socket.owners):
            return
        old_text = followed.identity.text
        changed = replace(before, owners=socket.owners, service=socket.service, container=socket.container)
        yield from self._rename(followed, changed)
        is_other = followed.identity.text != old_text and bool(before.owners)
        yield from self._emit(
            "owner_changed",
            at,
            at_ns,
            followed.socket,
            identity=followed.identity.text,
            severity="warning" if is_other else "quiet",
            before=_owners_text(before),
        )
        yield from self._judge(followed, at, at_ns, "it is allowed now")
        self._requirements.is_due = True

    # --- policy ----------------------------------------------------------------------------------------------------

    def _judge(self, followed: Followed, at: datetime, at_ns: int, why_recovered: str) -> list[Event]:
        """Judge a socket, and report what that changes for its identity."""
        judgement = followed.judgement = self._violations.judge(followed.socket, at)
        held = self._held[followed.identity.text]
        rule = None
        if judgement is not None:
            if judgement.allowed is False:
                rule = label_of(judgement)
            elif judgement.allowed is None:  # undecided: what was a violation before remains one
                rule = followed.rule or next(iter(held.violations), None)
        events: list[Event] = []
        if rule is None and judgement is not None and judgement.allowed is None:
            events += self._report_undecided(held, followed, judgement, at, at_ns)
        if rule != followed.rule:
            events += self._release(held, followed, at, at_ns, why_recovered, rule)
            if rule is not None and judgement is not None:
                events += self._violate(held, followed, judgement, rule, at, at_ns)
        if held.violations:
            for violation in list(held.violations.values()):
                if not violation.sockets:
                    events += self._recover(held, violation, at, at_ns, why_recovered)
        return events

    def _report_undecided(
        self, held: Held, followed: Followed, judgement: Judgement, at: datetime, at_ns: int
    ) -> list[Event]:
        """Say once of an identity and a rule that it could not be judged."""
        label = label_of(judgement)
        if label in held.undecided:
            return []
        held.undecided.add(label)
        return self._emit(
            "undecided",
            at,
            at_ns,
            followed.socket,
            identity=held.identity.text,
            severity="quiet" if followed.is_brief else "info",
            origin=followed.origin,
            reason=judgement.why,
            judgement=judgement,
        )

    def _violate(
        self, held: Held, followed: Followed, judgement: Judgement, rule: str, at: datetime, at_ns: int
    ) -> list[Event]:
        """A socket violates a rule. Of an identity and rule that is reported once, unless it becomes more severe."""
        followed.rule = rule
        severity: Level = "quiet" if followed.is_brief else judgement.severity
        flaps = self._flaps.of(held.identity.text)
        if flaps is not None:
            if rule in flaps.rules:
                severity = "quiet"
            flaps.rules.add(rule)
        violation = held.violations.get(rule)
        is_new = violation is None
        if violation is None:
            violation = held.violations[rule] = self._violations.add(rule, followed, judgement, at_ns, at)
        self._violations.join(violation)
        if not is_new and LEVELS.index(severity) <= LEVELS.index(violation.reported):
            return []
        violation.reported = severity
        violation.followed = followed
        return self._emit(
            "violation",
            at,
            at_ns,
            followed.socket,
            identity=held.identity.text,
            severity=severity,
            origin=followed.origin,
            reason=judgement.why,
            judgement=judgement,
        )

    def _release(
        self, held: Held, followed: Followed, at: datetime, at_ns: int, reason: str, next_rule: str | None = None
    ) -> list[Event]:
        """A socket does not violate its rule any longer; the last one of the identity recovers it."""
        rule, followed.rule = followed.rule, None
        if rule is None:
            return []
        violation = held.violations[rule]
        self._violations.leave(violation)
        if violation.sockets:
            return []
        if next_rule is not None:
            self._violations.remove(violation)  # the next one is reported instead
            del held.violations[rule]
            return []
        return self._recover(held, violation, at, at_ns, reason)

    def _recover(self, held: Held, violation: Violation, at: datetime, at_ns: int, reason: str) -> list[Event]:
        self._violations.remove(violation)
        del held.violations[violation.rule]
        followed = violation.followed
        is_quiet = followed.is_brief or self._flaps.of(held.identity.text) is not None
        return self._emit(
            "recovered",
            at,
            at_ns,
            followed.socket,
            identity=held.identity.text,
            severity="quiet" if is_quiet else "info",
            reason=reason,
            judgement=violation.judgement,
            since=violation.since,
            count=violation.count,
        )

    def _judge_all(self, now: Moment, why_recovered: str) -> list[Event]:
        events: list[Event] = []
        for followed in self._sockets.values():
            events += self._judge(followed, now.wall, now.monotonic_ns, why_recovered)
        return events

    def _tick_policy(self, now: Moment) -> list[Event]:
        events: list[Event] = []
        judging = self._violations.judging
        if judging is not None and judging.has_changed(now.wall):
            events += self._judge_all(now, "it is allowed now")
            self._requirements.is_due = True
        for violation in self._violations.due(now.monotonic_ns):
            followed = violation.followed
            events += self._emit(
                "reminder",
                now.wall,
                now.monotonic_ns,
                followed.socket,
                identity=followed.identity.text,
                severity=violation.judgement.severity,
                count=violation.take_count(),
                reason=violation.judgement.why,
                judgement=violation.judgement,
                since=violation.since,
            )
        return events + self._check_requirements(now)

    def _check_requirements(self, now: Moment) -> list[Event]:
        reports = self._requirements.check(self._open_sockets, now)
        return [self.make(report.kind, now, **report.fields) for report in reports]

    def _open_sockets(self) -> list[Socket]:
        return [followed.socket for followed in self._sockets.values()]


NO_OWNER = Owner(0)
NO_ORIGIN = Origin()
# How far a socket can be reached, narrowest first.
WIDTH: dict[str, int] = {"none": 0, "loopback": 1, "multicast": 2, "broadcast": 2, "address": 3, "any": 4}


def _ns(seconds: float) -> int:
    return int(seconds * SECOND_NS)


def _tests_of(settings: Settings) -> tuple[Test, ...]:
    if settings.query is None:
        return ()
    return tuple(test for test in (settings.query.socket_test(), settings.query.owner_test()) if test is not None)


def _origin_of(change: Change) -> Origin:
    if not change.parents and not change.process_gone:
        return NO_ORIGIN
    return Origin(tuple(f"{parent.name}({parent.pid})" for parent in change.parents), change.process_gone)


def _socket_of(change: Change) -> Socket:
    """The socket of a change that has one by its kind."""
    if change.socket is None:
        raise ValueError(f"a change of the kind {change.kind} has no socket")
    return change.socket


def _bounded(socket: Socket) -> Socket:
    """The socket without the rest of a very long command line of its first owner: it is kept while it is open."""
    if not socket.owners:
        return socket
    owner = socket.owners[0]
    command_line = owner.command_line
    if command_line is None or sum(map(len, command_line)) <= MOST_TEXT:
        return socket
    kept: list[str] = []
    left = MOST_TEXT
    for word in command_line[:MOST_TEXT]:
        if left <= 0:
            break
        kept.append(word[:left])
        left -= len(word) + 1
    return replace(socket, owners=(replace(owner, command_line=(*kept, "…")), *socket.owners[1:]))


def _place(socket: Socket) -> tuple[object, ...]:
    return socket.protocol, socket.local_address, socket.local_port


def _pids(owners: tuple[Owner, ...]) -> tuple[int, ...]:
    if len(owners) == 1:
        return (owners[0].pid,)
    return tuple(owner.pid for owner in owners[:MOST_PIDS])


def _are_others(before: tuple[Owner, ...], after: tuple[Owner, ...]) -> bool:
    """Whether the processes are others. Of one that ends just now less may be known than before."""
    starts = {owner.pid: owner.started for owner in before}
    if starts.keys() != {owner.pid for owner in after}:
        return True
    return any(_is_later(starts[owner.pid], owner.started) for owner in after)


def _is_later(before: datetime | None, after: datetime | None) -> bool:
    """Whether the pid is that of another process now. Two ways to read a start may differ by a tick of the clock."""
    return before is not None and after is not None and after - before > timedelta(seconds=1)


def _owners_text(socket: Socket) -> str:
    if not socket.owners:
        return "unknown"
    return ", ".join(f"{owner.name or 'process'}({owner.pid})" for owner in socket.owners[:MOST_PIDS])


def _lasted_ms(followed: Followed, at_ns: int) -> float | None:
    """How long it was open; None: it was there before it was first seen."""
    if not followed.began:
        return None
    return max(0, at_ns - followed.since_ns) / 1e6


def _is_brief_bind(followed: Followed, kind: EventKind) -> bool:
    """A TCP port that was bound for a moment, and at which nothing could arrive: programs look for free ones so."""
    return kind == "short_lived" and followed.socket.state == "BOUND"
