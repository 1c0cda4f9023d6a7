"""Writing the history. One process writes it, and every number of processes may read meanwhile (``reader``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType

import msgspec
from msgspec.structs import replace

from portbook import store
from portbook.errors import StoreError
from portbook.events import Event
from portbook.store import chain, connection, retention, schema
from portbook.store.backlog import Backlog
from portbook.store.chain import Anchor
from portbook.store.intervals import BlindSpan, Ledger, Times, WatchState

INSERT_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"
# An interval that ends is found by its id; a row that was never written is made.
PUT_INTERVAL = (
    "INSERT INTO intervals(id, port, opened_at, closed_at, closed_by, span, marks) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT(id) DO UPDATE SET opened_at=excluded.opened_at, closed_at=excluded.closed_at,"
    " closed_by=excluded.closed_by, span=excluded.span, marks=excluded.marks"
)
PUT_SPAN = "INSERT INTO unwatched VALUES (?, ?, ?, ?) ON CONFLICT(sequence) DO UPDATE SET until=excluded.until"
PUT_STATE = "INSERT INTO meta VALUES ('state', ?) ON CONFLICT(key) DO UPDATE SET value=excluded.value"
LAST_ROW = "SELECT sequence, hash FROM events ORDER BY sequence DESC LIMIT 1"
OPEN_INTERVALS = (
    "SELECT i.id, i.port, i.opened_at, i.marks, coalesce(i.kept, e.body) FROM intervals i"
    f" LEFT JOIN events e ON e.sequence = i.id WHERE i.span = {schema.OPEN} ORDER BY i.id"
)
BLIND_SPAN = "SELECT sequence, since, reason FROM unwatched WHERE until IS NULL ORDER BY sequence DESC LIMIT 1"
START_INFERRED, END_INFERRED = 1, 2  # bits of marks
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
TOUCH_S = 10.0

EventRow = tuple[int, int, str, int | None, int | None, bytes, bytes]


class Writer:
    """Appends events to a history.

    ``append`` never raises because the disk is full or fails: what could not be written waits in memory, within bounds,
    and what is lost is said by a ``gap`` event when writing works again. ``problem`` says what is wrong meanwhile.
    """

    def __init__(self, path: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Open the history, or make it.

        :param path: None: that of the user who calls, ``store.path()``
        :param clock: in seconds, never set back
        :raises StoreError: another process writes it; it is of a newer version, damaged, or no history; it cannot be
            written, or others could replace it. The message has what to do
        """
        self.path = store.path() if path is None else path
        self.problem: str | None = None
        self._clock = clock
        self._retry_at, self._retry_s = 0.0, FIRST_RETRY_S
        self._touched_at = clock()
        self._rows: list[EventRow] = []  # prepared, not written
        self._changed: dict[int, Times] = {}
        self._spans: dict[int, BlindSpan] = {}
        self._backlog = Backlog()
        self._ledger = Ledger()
        connection.prepare_directory(self.path)
        self._sequence, self._hash = 0, chain.START
        self._lock = connection.Lock(self.path)
        try:
            self._connection = connection.open_to_write(self.path)
            try:
                self._load()
            except BaseException:
                self._connection.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def append(self, events: Sequence[Event]) -> list[Event]:
        """Write events, in one transaction, and return them with their sequences.

        An event that could not be written yet has none. When events were lost, and writing works again, the returned
        list has a ``gap`` event that says so in addition.
        """
        recovered: list[Event] = []
        if self._backlog.is_full(self._rows):
            if not self._flush():
                self._backlog.drop(events, self._ledger)
                return list(events)
            recovered = self._recover()
        numbered = self._prepare(events)
        if self._flush():
            return [*recovered, *numbered]
        return [*recovered, *events]

    def touch(self, now: datetime) -> None:
        """Note that the watch still sees: an interval that it does not find after an interruption ended after this.

        It writes at most every ten seconds, and may be called as often as one likes.
        """
        if self._clock() - self._touched_at < TOUCH_S:
            return
        self._touched_at = self._clock()
        self._ledger.watched_until_us = schema.to_us(now)
        self._flush(True)

    def trim(self, now: datetime, keep_s: float | None = None, most_bytes: int | None = None) -> bool:
        """Remove a part of what is older or more than is kept; return whether there is more to remove.

        One call takes a few milliseconds; a watch calls it between events.

        :param keep_s: how long events are kept, in seconds; None: for ever
        :param most_bytes: how large the file may become; None: of any size
        """
        if self._rows or self.problem is not None:
            return False
        before = self._sequence, self._hash
        cut_us = None if keep_s is None else schema.to_us(now) - round(keep_s * 1e6)
        try:
            removal = retention.plan(self._connection, cut_us, most_bytes)
            if removal is None:
                return False
            body = schema.encode_checkpoint(schema.Checkpoint(removal.first, removal.hash))
            self._connection.execute("BEGIN IMMEDIATE")
            row = self._link(schema.to_us(now), schema.CHECKPOINT, None, None, body)
            self._connection.execute(INSERT_EVENT, row)
            retention.remove(self._connection, removal)
            self._connection.execute("COMMIT")
        except (*connection.FAULTS, TypeError, OverflowError) as error:
            self._roll_back()
            self._sequence, self._hash = before
            self._fail(error)
            return False
        return True

    def anchor(self) -> Anchor:
        """The last row and its hash: who keeps it in another place can prove later that nothing before it changed."""
        return Anchor(self._sequence, self._hash)

    def close(self) -> None:
        """Write what waits, if that is possible, and close the file."""
        if self._lock is None:
            return
        self._retry_at = 0.0
        if self._flush(True):
            self._recover()
        connection.close_writer(self._connection)
        self._lock.release()
        self._lock = None  # type: ignore[assignment]  # closed

    # --- rows ------------------------------------------------------------------------------------------------------

    def _prepare(self, events: Iterable[Event]) -> list[Event]:
        """Give events their sequences, and make their rows."""
        numbered: list[Event] = []
        ledger = self._ledger
        for event in events:
            if event.event == "started" and event.since is None and ledger.watched_until_us is not None:
                since = schema.from_us(ledger.watched_until_us)  # until when an earlier watch saw: part of the chain
                event = replace(event, since=min(since, event.at))  # noqa: PLW2901
            sequence = self._sequence + 1
            interval = ledger.apply(sequence, event)
            at_us = schema.to_us(event.at)
            self._rows.append(self._link(at_us, event.event, event.local_port, interval, schema.encode(event)))
            numbered.append(replace(event, sequence=sequence))
        if ledger.changed:
            self._changed.update(ledger.changed)
            ledger.changed.clear()
        if ledger.spans:
            self._spans.update(ledger.spans)
            ledger.spans.clear()
        return numbered

    def _link(self, at_us: int, kind: str, port: int | None, interval: int | None, body: bytes) -> EventRow:
        self._sequence += 1
        self._hash = chain.link(self._hash, self._sequence, at_us, kind, port, interval, body)
        return self._sequence, at_us, kind, port, interval, self._hash, body

    def _flush(self, with_state: bool = False) -> bool:
        """Write the rows that wait; return whether there are none any more."""
        if not (self._rows or self._changed or self._spans or with_state):
            return True
        if self.problem is not None and self._clock() < self._retry_at:
            return False
        intervals = [_interval_row(row) for row in self._changed.values()]
        spans = [(s.sequence, s.since_us, s.until_us, s.reason) for s in self._spans.values()]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(INSERT_EVENT, self._rows)
            self._connection.executemany(PUT_INTERVAL, intervals)
            self._connection.executemany(PUT_SPAN, spans)
            self._connection.execute(PUT_STATE, (msgspec.msgpack.encode(self._ledger.state()),))
            self._connection.execute("COMMIT")
        except connection.FAULTS as error:
            self._roll_back()
            self._fail(error)
            return False
        self._rows.clear()
        self._changed.clear()
        self._spans.clear()
        self.problem, self._retry_s = None, FIRST_RETRY_S
        return True

    def _recover(self) -> list[Event]:
        """Write what the backlog has kept of events that were dropped, and how many were lost."""
        kept = self._backlog.take(datetime.now(UTC))
        if not kept:
            return []
        numbered = self._prepare(kept)
        return numbered[-1:] if self._flush() else kept[-1:]

    def _fail(self, error: Exception) -> None:
        self.problem = str(connection.failure(self.path, error))
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(self._retry_s * 2, LONGEST_RETRY_S)

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except connection.FAULTS:
            pass  # SQLite has rolled back already, or does when the file is used next

    # --- opening ---------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read the end of the chain, and the intervals that have not ended."""
        try:
            self._reload_head()
            self._load_state()
        except connection.FAULTS as error:
            raise connection.failure(self.path, error) from error
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            hint = f"portbook history verify says where; {connection.MOVE}"
            raise StoreError(f"{self.path!r} is damaged ({error})", hint) from error

    def _reload_head(self) -> None:
        last = self._connection.execute(LAST_ROW).fetchone()
        self._sequence, self._hash = last or (0, chain.START)
        if not isinstance(self._hash, bytes) or len(self._hash) != len(chain.START):
            raise ValueError("the last event has no hash")

    def _load_state(self) -> None:
        found = self._connection.execute("SELECT value FROM meta WHERE key = 'state'").fetchone()
        if found is not None:
            self._ledger.resume(msgspec.msgpack.decode(found[0], type=WatchState))
        blind = self._connection.execute(BLIND_SPAN).fetchone()
        if blind is not None:
            self._ledger.resume_blind(BlindSpan(blind[0], blind[1], None, blind[2]))
        for id_, port, opened_us, marks, body in self._connection.execute(OPEN_INTERVALS).fetchall():
            members = [schema.decode(b, s) for s, b in self._connection.execute(schema.MEMBERS, (id_,))]
            row = Times(id_, port, opened_us, bool(marks & START_INFERRED))
            self._ledger.restore(schema.decode(body, id_), row, members)


def _interval_row(row: Times) -> tuple[int | None, ...]:
    marks = START_INFERRED * row.start_inferred + END_INFERRED * row.end_inferred
    span = schema.span_of(row.opened_us, row.closed_us)
    return row.id, row.port, row.opened_us, row.closed_us, row.closed_by, span, marks
