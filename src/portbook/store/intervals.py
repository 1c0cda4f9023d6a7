"""In which intervals a port was held, made from events. Pure.

An interval is the time in which one identity held a port at one address: it begins with the first of its sockets and
ends with the last. What a watch did not see is said: an interval may have a start or an end that is inferred, and lie
over times that nobody watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from msgspec import Struct

from portbook.events import Event, EventKind
from portbook.store.records import Basis, Interval, Unwatched
from portbook.store.schema import from_us, to_us


class Times(Struct, gc=False):
    """The times of an interval, in microseconds."""

    id: int
    port: int
    opened_us: int
    start_inferred: bool = False
    closed_us: int | None = None
    closed_by: int | None = None
    end_inferred: bool = False


class OpenInterval(Struct):
    """An interval that has not ended."""

    row: Times
    identity: str
    address: str
    opened_ns: int | None
    sockets: set[SocketId]
    pids: set[int]
    unconfirmed: bool = False  # the watch began again, and has not said yet whether it is still there


class BlindSpan(Struct, gc=False):
    """A time that was not watched, in microseconds."""

    sequence: int  # of the event that says so
    since_us: int
    until_us: int | None
    reason: str


class WatchState(Struct, array_like=True):
    """What a ledger knows of the watch."""

    boot_id: str | None = None
    started_us: int | None = None
    watched_until_us: int | None = None
    seen_before_us: int | None = None
    in_snapshot: bool = False


SocketId = int | tuple[str | None, str | None, int | None]  # the kernel's cookie; else address, family and pid

# The kinds of events that may come between "started" and the end of its snapshot.
_SNAPSHOT: frozenset[EventKind] = frozenset(
    (
        "started", "present", "violation", "requirement_lost", "requirement_restored", "policy_loaded",
        "policy_refused", "gap", "blind", "seeing", "reminder", "recovered", "undecided",
    )
)  # fmt: skip
_BACKDATED: frozenset[EventKind] = frozenset(("closed", "short_lived"))  # withheld for the grace time
CLOCK_STEP_US = 1_000_000
NOT_RUNNING = "the watch did not run"
NOT_RUNNING_REBOOTED = "the watch did not run; the machine was started again"
BLIND = "the watch was blind"


class Ledger:
    """Makes intervals from events, one event after the other.

    ``changed`` and ``spans`` have what is new or different since they were last emptied.
    """

    def __init__(self) -> None:
        self.changed: dict[int, Times] = {}
        self.spans: dict[int, BlindSpan] = {}
        self.watched_until_us: int | None = None
        self._holdings: dict[str, list[OpenInterval]] = {}  # by identity
        self._by_socket: dict[SocketId, OpenInterval] = {}
        self._boot_id: str | None = None
        self._clock_us: int | None = None  # wall time minus monotonic time
        self._started_us: int | None = None
        self._seen_before_us: int | None = None  # until when an earlier watch saw
        self._in_snapshot = False
        self._blind: BlindSpan | None = None
        self._apply: dict[EventKind, Callable[[int, Event, int], int | None]] = {
            "started": self._start,
            "present": self._present,
            "opened": self._open,
            "restarted": self._restart,
            "owner_changed": self._change,
            "reach_changed": self._change,
            "closed": self._close,
            "short_lived": self._close,
            "gap": self._miss,
            "blind": self._go_blind,
            "seeing": self._see,
        }

    def apply(self, sequence: int, event: Event) -> int | None:
        """Take an event; return the id of the interval that it opens, ends or belongs to, None if there is none."""
        kind = event.event
        at_us = to_us(event.at)
        if self._in_snapshot and kind not in _SNAPSHOT:
            self.settle(sequence)
        if kind not in _BACKDATED:
            if event.monotonic_ns is not None:
                self._follow_clock(event, at_us, event.monotonic_ns)
            if kind != "started":
                self.watched_until_us = at_us
        elif self.watched_until_us is None or at_us > self.watched_until_us:
            self.watched_until_us = at_us
        handle = self._apply.get(kind)
        if handle is None:
            return None
        return handle(sequence, event, at_us)

    def open_rows(self) -> Iterator[Times]:
        """The times of the intervals that have not ended."""
        return (holding.row for group in self._holdings.values() for holding in group)

    def open_id(self, event: Event) -> int | None:
        """The interval that an event ends, or would end; None if it ends none."""
        holding = self._find(event)
        return None if holding is None else holding.row.id

    def settle(self, sequence: int) -> None:
        """End what a new watch did not find again; ``sequence`` is that of the event that shows it."""
        self._in_snapshot = False
        for holding in [h for group in self._holdings.values() for h in group if h.unconfirmed]:
            until = self._seen_before_us
            self._end(holding, holding.row.opened_us if until is None else until, sequence, inferred=True)

    def restore(self, event: Event, row: Times, members: Iterable[Event]) -> None:
        """Take an interval that has not ended from the file, with the event that opened it and those that joined it."""
        holding = self._add(row, event)
        for member in members:
            self._join(holding, member)
            if member.event in _BACKDATED:
                self._leave(holding, member)

    def state(self) -> WatchState:
        """What a ledger that goes on later has to know besides the open intervals."""
        return WatchState(
            self._boot_id, self._started_us, self.watched_until_us, self._seen_before_us, self._in_snapshot
        )

    def resume(self, state: WatchState) -> None:
        """Go on where another ledger was."""
        self._boot_id = state.boot_id
        self._started_us = state.started_us
        self.watched_until_us = state.watched_until_us
        self._seen_before_us = state.seen_before_us
        self._in_snapshot = state.in_snapshot

    # --- the watch itself ------------------------------------------------------------------------------------------

    def _start(self, sequence: int, event: Event, at_us: int) -> None:
        # A writer notes in the event until when an earlier watch saw.
        last = self.watched_until_us if event.since is None else to_us(event.since)
        rebooted = None not in (event.boot_id, self._boot_id) and event.boot_id != self._boot_id
        if last is not None:
            reason = NOT_RUNNING_REBOOTED if rebooted else NOT_RUNNING
            self._add_span(sequence, min(last, at_us), at_us, reason)
        if self._blind is not None:
            self._see(sequence, event, at_us)
        if not self._in_snapshot:  # a watch that ended before it had looked at everything tells nothing of the rest
            self._seen_before_us = last
        self._boot_id, self._started_us, self._clock_us = event.boot_id, at_us, None
        self.watched_until_us = at_us
        self._in_snapshot = True
        for holding in [h for group in self._holdings.values() for h in group]:
            if rebooted:
                until = self._seen_before_us
                self._end(holding, holding.row.opened_us if until is None else until, sequence, inferred=True)
            else:
                holding.unconfirmed = True

    def _miss(self, sequence: int, event: Event, at_us: int) -> None:
        if event.feed is None:  # a loss of a sink or the like: nothing was missed here
            return
        since_us = at_us if event.since is None else min(to_us(event.since), at_us)
        self._add_span(sequence, since_us, at_us, event.reason or "events were missed")

    def _go_blind(self, sequence: int, event: Event, at_us: int) -> None:
        if self._blind is None:
            since_us = at_us if event.since is None else min(to_us(event.since), at_us)
            self._blind = self._add_span(sequence, since_us, None, event.reason or BLIND)

    def _see(self, _: int, __: Event, at_us: int) -> None:
        if self._blind is not None:
            self._blind.until_us = max(at_us, self._blind.since_us)
            self.spans[self._blind.sequence] = self._blind
            self._blind = None

    def resume_blind(self, span: BlindSpan) -> None:
        """Take a time from the file in which the watch was blind, and that has not ended."""
        self._blind = span

    def _add_span(self, sequence: int, since_us: int, until_us: int | None, reason: str) -> BlindSpan:
        span = self.spans[sequence] = BlindSpan(sequence, since_us, until_us, reason)
        return span

    def _follow_clock(self, event: Event, at_us: int, monotonic_ns: int) -> None:
        """Move the starts of open intervals with a clock that was set back: they would lie in the future."""
        clock_us = at_us - monotonic_ns // 1000
        before, self._clock_us = self._clock_us, clock_us
        if before is None or self._boot_id not in (None, event.boot_id) or clock_us > before - CLOCK_STEP_US:
            return
        for holding in (h for group in self._holdings.values() for h in group):
            if holding.row.opened_us > at_us:
                holding.row.opened_us = min(holding.row.opened_us + clock_us - before, at_us)
                holding.row.start_inferred = True
                self.changed[holding.row.id] = holding.row

    # --- sockets ---------------------------------------------------------------------------------------------------

    def _open(self, sequence: int, event: Event, at_us: int) -> int | None:
        if event.local_port is None or event.protocol is None:
            return None
        identity = identity_of(event)
        for holding in self._holdings.get(identity, ()):
            if holding.address == event.local_address:
                self._join(holding, event)
                return holding.row.id
        return self._begin(sequence, event, at_us)

    def _present(self, sequence: int, event: Event, at_us: int) -> int | None:
        if event.local_port is None or event.protocol is None:
            return None
        holding = self._find(event)
        if holding is not None and holding.identity == identity_of(event):
            if not holding.unconfirmed:
                self._join(holding, event)
                return holding.row.id
            if self._continues(holding, event):
                holding.unconfirmed = False
                return holding.row.id
        if holding is not None:
            until = at_us
            if holding.unconfirmed and self._seen_before_us is not None:
                until = self._seen_before_us
            self._end(holding, until, sequence, inferred=True)
        bounds = [at_us]
        if event.process_started is not None:
            earliest = self._seen_before_us if self._in_snapshot else self._started_us
            bounds = [to_us(event.process_started)]
            bounds += [] if earliest is None else [earliest]
        return self._begin(sequence, event, min(max(bounds), at_us), inferred=True)

    def _continues(self, holding: OpenInterval, event: Event) -> bool:
        """Whether a socket that was found is the one that an earlier watch saw, in the same boot."""
        if event.cookie is not None:
            return event.cookie in holding.sockets
        return bool(holding.pids.intersection(_pids(event))) and not _began_after(event, holding.row.opened_us)

    def _restart(self, sequence: int, event: Event, at_us: int) -> int | None:
        if event.local_port is None or event.protocol is None:
            return None
        ended_us = at_us - round((event.lasted_ms or 0.0) * 1000)
        for holding in tuple(self._holdings.get(identity_of(event), ())):
            self._end(holding, ended_us, sequence, event.monotonic_ns)
        return self._begin(sequence, event, at_us)

    def _change(self, sequence: int, event: Event, at_us: int) -> int | None:
        if event.local_port is None or event.protocol is None:
            return None
        socket = socket_of(event)
        holding = self._by_socket.get(socket)
        if holding is not None and holding.identity != identity_of(event):
            holding.sockets.discard(socket)
            del self._by_socket[socket]
            if not holding.sockets:
                self._end(holding, at_us, sequence, event.monotonic_ns)
        return self._open(sequence, event, at_us)

    def _close(self, sequence: int, event: Event, at_us: int) -> int | None:
        holding = self._find(event)
        is_last = event.severity != "quiet"
        if holding is not None:
            self._leave(holding, event)
            if not holding.sockets:
                self._end(holding, at_us, sequence, event.monotonic_ns)
        if is_last:
            for other in tuple(self._holdings.get(identity_of(event), ())):
                self._end(other, at_us, sequence, event.monotonic_ns)
                holding = holding or other
        return None if holding is None else holding.row.id

    def _find(self, event: Event) -> OpenInterval | None:
        holding = self._by_socket.get(socket_of(event))
        if holding is not None:
            return holding
        for holding in self._holdings.get(identity_of(event), ()):
            if holding.address == event.local_address:
                return holding
        return None

    def _begin(self, sequence: int, event: Event, opened_us: int, inferred: bool = False) -> int:
        row = Times(sequence, event.local_port or 0, opened_us, inferred)
        self._add(row, event)
        self.changed[sequence] = row
        return sequence

    def _add(self, row: Times, event: Event) -> OpenInterval:
        identity = identity_of(event)
        opened_ns = None if row.start_inferred else event.monotonic_ns
        holding = OpenInterval(row, identity, event.local_address or "", opened_ns, set(), set())
        self._holdings.setdefault(identity, []).append(holding)
        self._join(holding, event)
        return holding

    def _join(self, holding: OpenInterval, event: Event) -> None:
        socket = socket_of(event)
        holding.sockets.add(socket)
        holding.pids.update(_pids(event))
        self._by_socket[socket] = holding

    def _leave(self, holding: OpenInterval, event: Event) -> None:
        socket = socket_of(event)
        holding.sockets.discard(socket)
        self._by_socket.pop(socket, None)

    def _end(
        self, holding: OpenInterval, at_us: int, sequence: int, at_ns: int | None = None, *, inferred: bool = False
    ) -> None:
        row = holding.row
        if at_us < row.opened_us:  # the clock was set back: the start is counted back by the one that never is
            if at_ns is not None and holding.opened_ns is not None:
                row.opened_us = at_us - max(at_ns - holding.opened_ns, 0) // 1000
                row.start_inferred = True
            else:
                at_us, inferred = row.opened_us, True
        row.closed_us, row.closed_by, row.end_inferred = at_us, sequence, inferred
        self.changed[row.id] = row
        for socket in holding.sockets:
            self._by_socket.pop(socket, None)
        group = self._holdings[holding.identity]
        group.remove(holding)
        if not group:
            del self._holdings[holding.identity]


def intervals(events: Iterable[Event]) -> list[Interval]:
    """The intervals that events make, in the order in which they were opened.

    :param events: in the order in which they were recorded. Those without a sequence are numbered from 1 on
    """
    ledger = Ledger()
    rows: dict[int, Times] = {}
    spans: dict[int, BlindSpan] = {}
    members: dict[int, list[Event]] = {}
    for number, event in enumerate(events, 1):
        sequence = event.sequence or number
        interval = ledger.apply(sequence, event)
        if interval is not None:
            members.setdefault(interval, []).append(event)
        rows.update(ledger.changed)
        spans.update(ledger.spans)
        ledger.changed.clear()
        ledger.spans.clear()
    gaps = [to_unwatched(span) for span in spans.values()]
    return [to_interval(rows[id_], members[id_][0], members[id_][1:], gaps) for id_ in sorted(rows)]


def to_interval(row: Times, opening: Event, members: Iterable[Event], gaps: Iterable[Unwatched]) -> Interval:
    """An interval of its times, the event that opened it, and what joined it.

    :param gaps: times that were not watched; those that lie over the interval are kept
    """
    opened_at = from_us(row.opened_us)
    closed_at = None if row.closed_us is None else from_us(row.closed_us)
    pids = dict.fromkeys(_pids(opening))
    for member in members:
        pids.update(dict.fromkeys(_pids(member)))
    inside = [gap for gap in gaps if _overlaps(gap, opened_at, closed_at)]
    if row.start_inferred and opening.event == "present" and opened_at < opening.at:
        inside.append(
            Unwatched(opened_at, opening.at, "it was there when the watch looked, and opened at this time or later")
        )
    end: Basis | None = None
    if closed_at is not None:
        end = "inferred" if row.end_inferred else "observed"
    return Interval(
        identity=identity_of(opening),
        protocol=opening.protocol or "tcp",
        local_address=opening.local_address or "",
        local_port=row.port,
        reach=opening.reach,
        netns=opening.netns,
        netns_name=opening.netns_name,
        name=opening.name,
        exe=opening.exe,
        command_line=opening.command_line,
        uid=opening.uid,
        user=opening.user,
        service=opening.service,
        container=opening.container,
        pids=tuple(pids),
        opened_at=opened_at,
        closed_at=closed_at,
        start="inferred" if row.start_inferred else "observed",
        end=end,
        gaps=tuple(inside),
        sequence=row.id,
        closed_by=row.closed_by,
    )


def to_unwatched(span: BlindSpan) -> Unwatched:
    """The record of a time that was not watched."""
    until = None if span.until_us is None else from_us(span.until_us)
    return Unwatched(from_us(span.since_us), until, span.reason)


def identity_of(event: Event) -> str:
    """The identity of the socket that an event is about; made of what is known, where the event has none."""
    if event.identity is not None:
        return event.identity
    place = f"{event.protocol}/{event.local_port} {event.reach or '?'} {event.exe or event.name or '?'}"
    return " ".join(filter(None, (place, event.container or event.service)))


def socket_of(event: Event) -> SocketId:
    """What tells the socket of an event from others."""
    if event.cookie is not None:
        return event.cookie
    return (f"{event.protocol}/{event.local_port} {event.local_address}", event.family, event.pid)


def _pids(event: Event) -> tuple[int, ...]:
    if event.pids or event.pid is None:
        return event.pids
    return (event.pid,)


def _began_after(event: Event, us: int) -> bool:
    return event.process_started is not None and to_us(event.process_started) > us


def _overlaps(gap: Unwatched, since: datetime, until: datetime | None) -> bool:
    return (until is None or gap.since is None or gap.since < until) and (gap.until is None or gap.until > since)
