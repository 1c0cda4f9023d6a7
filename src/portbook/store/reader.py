"""Reading the history, while a watch writes it or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from heapq import merge
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from portbook import store
from portbook.errors import StoreError
from portbook.events import Event
from portbook.ports import Ports, parse_one, with_protocol
from portbook.query import Query, term
from portbook.records import SCHEMA
from portbook.store import connection, schema, selection
from portbook.store.chain import Anchor
from portbook.store.intervals import BlindSpan, Times, WatchState, to_interval, to_unwatched
from portbook.store.records import Interval, PastHolding, Unwatched
from portbook.store.sqlite import END_INFERRED, START_INFERRED

if TYPE_CHECKING:
    from portbook.ports import PortLike
    from portbook.records import Protocol
    from portbook.store.records import Verification

PAGE = 1000  # rows that are read at once; no statement is left open, so that the writer is never held up
MOST_PORTS = 16  # ports that are looked up one by one
CROWD = 5_000  # intervals of one port
MOST_GAPS = 10_000
MOST_MEMBERS = 20_000  # events of a page of intervals that are read for their pids
MOST_VALUES = 500  # of one statement
SILENT_S = 30.0  # a watch notes more often than this that it still sees
NEVER_WATCHED = "no watch had begun"

INTERVAL = "i.id, i.port, i.opened_at, i.closed_at, i.closed_by, i.marks, coalesce(i.kept, e.body)"
FROM_INTERVALS = f"SELECT {INTERVAL} FROM intervals i LEFT JOIN events e ON e.sequence = i.id WHERE "


class History:
    """The events and intervals that a watch has recorded.

    >>> with portbook.History() as history:                                # doctest: +SKIP
    ...     for interval in history.intervals("port:8080", at=yesterday):
    ...         print(interval.name, interval.pids, interval.opened_at)

    A connection is used by the thread that made it. Every method raises StoreError when the file is damaged.
    """

    def __init__(self, path: str | None = None) -> None:
        """Open a history.

        :param path: None: that of the user who calls, and where there is none, that of the machine
        :raises StoreError: there is none, it may not be read, or it is not one that this version can read
        """
        self.path = store.find() if path is None else path
        self._connection = connection.open_to_read(self.path)

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def events(
        self, query: Query | str = "", *, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[Event]:
        """The events that a query selects, in the order in which they were recorded.

        :param query: as of a listing, with the field ``event`` in addition: ``event:bind_failed,opened port:80``
        :param since, until: aware moments; events at ``since`` belong to it, those at ``until`` do not
        :raises UsageError: the query is not valid, or is about something that is not recorded
        """
        wanted = selection.parse(query)
        conditions, values = wanted.of_events()
        if since is not None:
            conditions.append("at >= ?")
            values.append(schema.to_us(since))
        if until is not None:
            conditions.append("at < ?")
            values.append(schema.to_us(until))
        statement = f"SELECT sequence, body FROM events WHERE {' AND '.join(conditions)}"
        test = wanted.test
        ports = wanted.few_ports(MOST_PORTS)
        sequences = None if ports is None else self._sequences_on(ports)
        if sequences is None:
            rows = self._pages(f"{statement} AND sequence > ? ORDER BY sequence LIMIT {PAGE}", values, 0, _first)
        else:
            rows = self._rows_of(sequences, statement, values)
        for sequence, body in rows:
            event = self._decode(body, sequence)
            if test is None or test(event):
                yield event

    def _sequences_on(self, ports: Iterable[int]) -> list[int] | None:
        """The sequences of the events on few ports; None if there are so many that to read all events is faster."""
        found: list[int] = []
        for port in ports:
            ids = [row[0] for row in self._fetch("SELECT id FROM intervals WHERE port = ? LIMIT ?", (port, CROWD))]
            if len(ids) == CROWD:
                return None
            alone = "SELECT sequence FROM events WHERE port = ? AND interval IS NULL AND port IS NOT NULL LIMIT ?"
            found += [row[0] for row in self._fetch(alone, (port, CROWD * 10))]
            members = "SELECT sequence FROM events WHERE interval = ? AND interval < sequence LIMIT ?"
            for id_ in ids:
                found += (id_, *(row[0] for row in self._fetch(members, (id_, CROWD * 10))))
        if len(found) >= CROWD * 10:
            return None
        return sorted(set(found))

    def _rows_of(self, sequences: list[int], statement: str, values: list[Any]) -> Iterator[Any]:
        for sequence in sequences:
            yield from self._fetch(f"{statement} AND sequence = ?", (*values, sequence))

    def intervals(
        self,
        query: Query | str = "",
        *,
        at: datetime | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[Interval]:
        """The intervals that a query selects, by their beginning.

        :param query: as of a listing; an interval is waiting, so a state is not needed
        :param at: those that lay over this moment; not with the others
        :param since, until: those that lay over some of this time
        :raises UsageError: as for ``events``
        """
        wanted = selection.parse(query, intervals=True)
        if at is not None:
            us = schema.to_us(at)
            rows: Iterable[Any] = sorted(self._over(us, wanted), key=_time_and_id)
        else:
            since_us = None if since is None else schema.to_us(since)
            until_us = schema.LATEST if until is None else schema.to_us(until)
            rows = self._between(since_us, until_us, wanted)
        for page in _batches(rows):
            yield from self._intervals(page, wanted.test)

    def who(self, port: PortLike, at: datetime, protocol: Protocol | None = None) -> PastHolding:
        """Who held a port at a moment, as far as is known.

        :param port: as for ``portbook.who``
        :param at: an aware moment
        :raises UsageError: the port or the protocol is not valid
        """
        wanted = with_protocol(parse_one(port), protocol)
        terms = [term("port", [str(Ports(wanted.port, wanted.port, None, wanted.host))])]
        if wanted.protocol is not None:
            terms.append(term("protocol", [wanted.protocol]))
        found = tuple(self.intervals(Query(tuple(terms)), at=at))
        ours = (None, self._netns_of_watch(at)) if found else (None, None)
        here = tuple(i for i in found if i.netns in ours or ours[1] is None)
        gaps = tuple(gap for gap in self.unwatched(at, at) if gap.until is None or gap.until > at)
        return PastHolding(
            schema=SCHEMA,
            port=wanted.port,
            protocol=wanted.protocol,
            at=at,
            held=bool(here),
            watched=not gaps,
            intervals=here,
            gaps=gaps,
            intervals_elsewhere=tuple(i for i in found if i not in here),
        )

    def _netns_of_watch(self, at: datetime) -> int | None:
        """The network namespace of the watch that ran at a moment; None: it is not known."""
        rows = self._fetch(
            "SELECT sequence, body FROM events WHERE kind = 'started'"
            f" AND kind NOT IN {schema.COMMON} AND at <= ? ORDER BY sequence DESC LIMIT 1",
            (schema.to_us(at),),
        )
        for sequence, body in rows:
            return self._view(body, sequence).netns
        return None

    def unwatched(self, since: datetime | None = None, until: datetime | None = None) -> list[Unwatched]:
        """The times in which something may have happened that is not recorded, within these bounds."""
        since_us = schema.EARLIEST if since is None else schema.to_us(since)
        until_us = schema.LATEST if until is None else schema.to_us(until)
        gaps = self._gaps_over(since_us, until_us + 1)
        first = self.begin()
        if first is not None and (since is None or since < first):
            gaps.insert(0, Unwatched(None, first, NEVER_WATCHED))
        return gaps

    def begin(self) -> datetime | None:
        """When the recording begins: before this nothing is known; None: nothing was recorded yet."""
        found = self._fetch("SELECT at FROM events ORDER BY sequence LIMIT 1", ())
        return self._guard(lambda row: schema.from_us(row[0]), found[0]) if found else None

    def end(self) -> datetime | None:
        """Until when a watch has seen, as far as it has said so; None: nothing was recorded yet."""
        found = self._fetch("SELECT value FROM meta WHERE key = 'state'", ())
        if not found:
            return None
        state = self._guard(lambda row: msgspec.msgpack.decode(row[0], type=WatchState), found[0])
        us = state.watched_until_us
        return None if us is None else self._guard(schema.from_us, us)

    def anchor(self) -> Anchor:
        """The last row and its hash; see ``verify``."""
        found = self._fetch("SELECT sequence, hash FROM events ORDER BY sequence DESC LIMIT 1", ())
        if not found:
            raise StoreError(f"{self.path!r} has no events yet")
        return Anchor(*found[0])

    def verify(self, anchor: Anchor | str | None = None) -> Verification:
        """Check the hash chain, and that what is searched by agrees with the events.

        :param anchor: a row and its hash that were noted before, as ``anchor()`` returned them
        """
        from portbook.store.verification import verify

        return verify(self.path, anchor)

    # --- rows ------------------------------------------------------------------------------------------------------

    def _over(self, us: int, wanted: selection.EventQuery) -> Iterator[Any]:
        """The rows of the intervals that lay over a moment, in no order."""
        ports = wanted.few_ports(MOST_PORTS)
        if ports is not None and not any(self._is_crowded(port, us) for port in ports):
            for port in ports:
                yield from self._fetch(
                    f"{FROM_INTERVALS} i.port = ? AND i.opened_at <= ? AND (i.closed_at IS NULL OR i.closed_at > ?)",
                    (port, us, us),
                )
            return
        condition, values = wanted.of_intervals()
        for span in self._spans():
            earliest = schema.EARLIEST if span == schema.OPEN else us - (1 << span)
            yield from self._fetch(
                f"{FROM_INTERVALS} i.span = ? AND i.opened_at > ? AND i.opened_at <= ?"
                f" AND (i.closed_at IS NULL OR i.closed_at > ?) AND {condition}",
                (span, earliest, us, us, *values),
            )

    def _is_crowded(self, port: int, us: int) -> bool:
        """Whether a port had so many intervals that to go through the classes of length is faster."""
        statement = "SELECT count(*) FROM (SELECT 1 FROM intervals WHERE port = ? AND opened_at <= ? LIMIT ?)"
        return bool(self._fetch(statement, (port, us, CROWD))[0][0] == CROWD)

    def _spans(self) -> list[int]:
        """The classes of length that there are: the index is skipped through, not read."""
        found: list[int] = []
        span = -1
        while row := self._fetch("SELECT min(span) FROM intervals WHERE span > ?", (span,)):
            if row[0][0] is None:
                break
            span = row[0][0]
            found.append(span)
        return found

    def _between(self, since_us: int | None, until_us: int, wanted: selection.EventQuery) -> Iterator[Any]:
        """The rows of the intervals that lay over some of a time, by their beginning."""
        if since_us is None:
            since_us = schema.EARLIEST
        else:
            yield from sorted(self._over(since_us, wanted), key=_time_and_id)
        places: list[tuple[str, list[Any]]]
        ports = wanted.few_ports(MOST_PORTS)
        if ports is not None:
            places = [("i.port = ?", [port]) for port in ports]
        else:
            condition, values = wanted.of_intervals()
            places = [(f"i.span = ? AND {condition}", [span, *values]) for span in self._spans()]
        streams: list[Iterator[Any]] = []
        for condition, values in places:
            statement = (
                f"{FROM_INTERVALS} {condition} AND i.opened_at < ? AND (i.opened_at, i.id) > (?, ?)"
                f" ORDER BY i.opened_at, i.id LIMIT {PAGE}"
            )
            streams.append(self._pages(statement, [*values, until_us], (since_us, schema.LATEST), _time_and_id))
        yield from merge(*streams, key=_time_and_id)

    def _pages(self, statement: str, values: list[Any], start: Any, position: Callable[[Any], Any]) -> Iterator[Any]:
        """The rows of a statement, a page at a time; its last values are the position behind which it goes on."""
        at = start
        while True:
            place = at if isinstance(at, tuple) else (at,)
            rows = self._fetch(statement, (*values, *place))
            yield from rows
            if len(rows) < PAGE:
                return
            at = position(rows[-1])

    def _intervals(self, rows: list[Any], test: Callable[[Event], bool] | None) -> Iterator[Interval]:
        """The intervals of rows whose first event passes the test. What belongs to them is read for all at once."""
        kept: list[tuple[Times, Event]] = []
        for id_, port, opened_us, closed_us, closed_by, marks, body in rows:
            opening = self._view(body, id_)
            if test is None or test(opening):
                is_start_inferred, is_end_inferred = bool(marks & START_INFERRED), bool(marks & END_INFERRED)
                times = Times(id_, port, opened_us, is_start_inferred, closed_us, closed_by, is_end_inferred)
                kept.append((times, opening))
        if not kept:
            return
        members = self._members([times.id for times, _ in kept])
        latest = max(schema.LATEST if times.closed_us is None else times.closed_us for times, _ in kept)
        gaps = self._gaps_over(min(times.opened_us for times, _ in kept), latest)
        for times, opening in kept:
            yield self._to_interval(times, opening, members.get(times.id, ()), gaps)

    def _to_interval(
        self, times: Times, opening: Event, members: Iterable[Event], gaps: Iterable[Unwatched]
    ) -> Interval:
        try:
            return to_interval(times, opening, members, gaps)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._damaged(f"the interval that begins with event {times.id} is not readable") from error

    def _members(self, ids: list[int]) -> dict[int, list[Event]]:
        """The events that joined or ended intervals, but for those of one holder, which say nothing new."""
        found: dict[int, list[Event]] = {}
        for at in range(0, len(ids), MOST_VALUES):
            some = ids[at : at + MOST_VALUES]
            marks = ", ".join("?" * len(some))
            rows = self._fetch(
                f"SELECT interval, sequence, body FROM events WHERE interval IN ({marks}) AND interval < sequence"
                f" ORDER BY sequence LIMIT {MOST_MEMBERS}",
                some,
            )
            for interval, sequence, body in rows:
                found.setdefault(interval, []).append(self._view(body, sequence))
        return found

    def _gaps_over(self, since_us: int, until_us: int) -> list[Unwatched]:
        found = self._fetch(
            "SELECT sequence, since, until, reason FROM unwatched WHERE until > ? AND since < ?"
            " UNION ALL SELECT sequence, since, until, reason FROM unwatched WHERE until IS NULL AND since < ?"
            f" ORDER BY since LIMIT {MOST_GAPS}",
            (since_us, until_us, until_us),
        )
        gaps = [self._guard(lambda row: to_unwatched(BlindSpan(*row)), row) for row in found]
        ended = self._ended()
        if ended is not None and ended.since is not None and schema.to_us(ended.since) < until_us:
            gaps.append(ended)
        return gaps

    def _ended(self) -> Unwatched | None:
        """The time since the last watch, unless one is running, as far as that can be seen."""
        end = self.end()
        if end is None:
            return None
        last = self._fetch("SELECT kind FROM events ORDER BY sequence DESC LIMIT 1", ())
        if last and last[0][0] == "stopped":
            return Unwatched(end, None, "the watch has ended")
        if (datetime.now(UTC) - end).total_seconds() > SILENT_S:
            return Unwatched(end, None, "the watch has not reported since")
        return None

    def _view(self, body: bytes, sequence: int) -> Event:
        try:
            return schema.view(body)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise self._damaged(f"event {sequence} is not readable") from error

    def _decode(self, body: bytes, sequence: int) -> Event:
        try:
            return schema.decode(body, sequence)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            raise self._damaged(f"event {sequence} is not readable") from error

    def _guard(self, make: Callable[[Any], Any], value: Any) -> Any:
        try:
            return make(value)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            raise self._damaged("a time in it is not one") from error

    def _fetch(self, statement: str, values: Iterable[Any]) -> list[Any]:
        try:
            return self._connection.execute(statement, tuple(values)).fetchall()
        except (*connection.FAULTS, OverflowError) as error:
            if isinstance(error, OverflowError):
                raise self._damaged("a number in it is too large") from error
            raise connection.failure(self.path, error) from error

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self.path!r} is damaged: {what}", "portbook history verify says where")


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while page := list(islice(iterator, PAGE)):
        yield page


def _first(row: Any) -> Any:
    return row[0]


def _time_and_id(row: Any) -> Any:
    return row[2], row[0]
