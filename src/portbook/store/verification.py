"""Whether a history is as it was written: its hash chain, and what is searched by.

The chain is checked in segments, two at a time where a second process may be forked. Each segment begins with the hash
that the row before it has, which the segment before checks.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from datetime import datetime
from struct import error as StructError  # noqa: N812
from typing import Any

import msgspec
from msgspec import Struct

from portbook.store import chain, connection, schema
from portbook.store.chain import Anchor, parse_anchor
from portbook.store.intervals import Ledger, WatchState
from portbook.store.records import Break, Verification
from portbook.store.schema import COMMON_KINDS

FORK_FROM = 100_000  # rows
PAGE = 5_000
ALTERED = "it was altered, or inserted"
MOST_ANSWER = 1 << 16  # bytes that the second process answers

ROWS = (
    "SELECT sequence, at, kind, port, interval, hash, body FROM events WHERE sequence > ? AND sequence <= ?"
    f" ORDER BY sequence LIMIT {PAGE}"
)
LAST_CHECKPOINT = (
    f"SELECT sequence, body FROM events WHERE kind = '{schema.CHECKPOINT}' AND kind NOT IN {schema.COMMON}"
    " ORDER BY sequence DESC LIMIT 1"
)
# Times of an interval that were observed are those of the events that opened and ended it. What retention removed is
# not compared: events before the first row.
WRONG_INTERVAL = """
SELECT i.id FROM intervals i
LEFT JOIN events o ON o.sequence = i.id LEFT JOIN events c ON c.sequence = i.closed_by
WHERE i.id > ? AND i.id <= ? AND (
    (i.id >= ?3 AND (o.interval IS NOT i.id OR o.port IS NOT i.port OR i.kept IS NOT NULL
        OR (i.marks & 1 = 0 AND o.at != i.opened_at)))
    OR (i.id < ?3 AND i.kept IS NULL)
    OR (i.closed_at IS NULL) != (i.closed_by IS NULL) OR (i.closed_at IS NULL) != (i.span = 64)
    OR (i.closed_by >= ?3 AND c.sequence IS NULL)
    OR typeof(i.marks) != 'integer' OR i.marks NOT BETWEEN 0 AND 3
    OR (i.marks & 1 AND o.kind != 'present' AND i.opened_at = o.at)
    OR (i.marks & 2 AND c.kind IN ('closed', 'short_lived') AND i.closed_at = c.at)
    OR (i.marks & 2 = 0 AND c.kind IN ('closed', 'short_lived') AND (c.at != i.closed_at OR c.port IS NOT i.port))
) ORDER BY i.id LIMIT 1
"""
MISSING_INTERVAL = """
SELECT o.sequence FROM events o LEFT JOIN intervals i ON i.id = o.sequence
WHERE o.interval = o.sequence AND o.sequence > ? AND o.sequence <= ? AND i.id IS NULL ORDER BY o.sequence LIMIT 1
"""
# What says that an interval ended: an end that is not quiet is that of its last socket.
ENDS_OF_OPEN = f"""
SELECT e.sequence, e.body FROM intervals i JOIN events e ON e.interval = i.id AND e.interval < e.sequence
WHERE i.span = {schema.OPEN} AND e.kind IN ('closed', 'short_lived')
"""
WATCH = (
    "SELECT sequence, body FROM events WHERE kind IN ('started', 'gap', 'blind', 'seeing')"
    f" AND kind NOT IN {schema.COMMON} AND sequence > ? ORDER BY sequence LIMIT {PAGE}"
)


def verify(path: str, anchor: Anchor | str | None = None) -> Verification:
    """Check a history; see ``History.verify``.

    :raises UsageError: the anchor is not one
    :raises StoreError: the file cannot be read
    """
    if isinstance(anchor, str):
        anchor = parse_anchor(anchor)
    with closing(connection.open_to_read(path)) as database:
        try:
            return _Check(path, database).run(anchor)
        except connection.FAULTS as error:
            raise connection.failure(path, error) from error


# Sums that an index and its table have alike, of each row's values and its number: every bit of a time counts. SQLite
# and Python agree on "&" and ">>".
MASK = (1 << 36) - 1
INDEXES = {
    "events_by_time": f"SELECT sum((at + (at >> 30) + 7 * sequence) & {MASK}) FROM events INDEXED BY events_by_time"
    " WHERE sequence <= :last",
    "events_by_interval": f"SELECT sum((interval + 7 * sequence) & {MASK}) FROM events INDEXED BY events_by_interval"
    " WHERE interval < sequence AND sequence <= :last",
    "events_by_port": f"SELECT sum((port + 7 * sequence) & {MASK}) FROM events INDEXED BY events_by_port"
    " WHERE interval IS NULL AND port IS NOT NULL AND sequence <= :last",
    "events_by_kind": f"SELECT sum((length(kind) + 7 * sequence) & {MASK}) FROM events INDEXED BY events_by_kind"
    f" WHERE kind NOT IN {schema.COMMON} AND sequence <= :last",
}
WRONG_KIND = (
    f"SELECT count(*) FROM events e INDEXED BY events_by_kind WHERE kind NOT IN {schema.COMMON}"
    " AND kind != (SELECT t.kind FROM events t NOT INDEXED WHERE t.sequence = e.sequence)"
)
SPAN_SUM = f"SELECT sum((opened_at + (opened_at >> 30) + 7 * id + 13 * span) & {MASK}) FROM intervals"
PORT_SUM = f"SELECT sum((opened_at + (opened_at >> 30) + 7 * id + 13 * port) & {MASK}) FROM intervals"
END_SUM = f"SELECT sum((coalesce(until, 1) + (coalesce(until, 1) >> 30) + 7 * sequence) & {MASK}) FROM unwatched"
PAIRS = {"intervals_by_span": SPAN_SUM, "intervals_by_port": PORT_SUM, "unwatched_by_end": END_SUM}


class Sums(Struct):
    """What the indexes of events have to add up to."""

    time: int = 0
    interval: int = 0
    port: int = 0
    kind: int = 0


class _Check:
    def __init__(self, path: str, database: sqlite3.Connection) -> None:
        self._path = path
        self._database = database

    def run(self, anchor: Anchor | None) -> Verification:
        bounds = "SELECT min(sequence), max(sequence), count(*) FROM events"
        try:
            self._database.execute("BEGIN")  # one state of the file, though a watch may go on writing
            first, last, count = self._database.execute(bounds).fetchone()
        except connection.FAULTS as error:
            return self._answer(None, None, 0, None, None, Break(0, None, f"the file cannot be read: {error}"))
        if first is None:
            broken = None
            if anchor is not None:
                broken = Break(anchor.sequence, None, "the history is empty, and has not the row of the anchor")
            return self._answer(None, None, 0, None, anchor, broken)
        broken = self._break_in(first, last)
        if broken is None and anchor is not None:
            broken = self._break_of_anchor(anchor, first, last)
        return self._answer(first, last, count, self._head(last), anchor, broken)

    def _answer(
        self,
        first: int | None,
        last: int | None,
        rows: int,
        head: str | None,
        anchor: Anchor | None,
        broken: Break | None,
    ) -> Verification:
        whole = broken is None
        anchored = None if anchor is None else whole
        removed = 0 if first is None else first - 1
        return Verification(self._path, whole, rows, first, last, removed, head, anchored, broken)

    def _head(self, last: int) -> str | None:
        with suppress(*connection.FAULTS, TypeError):
            (digest,) = self._database.execute("SELECT hash FROM events WHERE sequence = ?", (last,)).fetchone()
            return str(Anchor(last, bytes(digest)))
        return None

    def _break_in(self, first: int, last: int) -> Break | None:
        before = self._hash_before(first)
        if isinstance(before, Break):
            return before
        middle = first + (last - first) * 9 // 20  # the first half has the indexes to check, too
        sums = Sums()
        second: _Forked | None = None
        if last - first >= FORK_FROM and _may_fork():
            second = _Forked(self._path, middle, last, first)
        try:
            broken = _Segment(self._database, first, sums).check(first - 1, middle, before)
            if broken is None:
                if second is not None:
                    broken = second.answer(sums)
                else:
                    broken = _Segment(self._database, first, sums).check(middle, last, None)
        finally:
            if second is not None:
                second.end()
        try:
            return broken or self._break_of_watch(first) or self._break_of_indexes(first, last, sums)
        except (*connection.FAULTS, msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            return Break(first, None, f"what was derived from the events cannot be read: {error}")

    def _break_of_indexes(self, first: int, last: int, sums: Sums) -> Break | None:
        """Whether what is searched in agrees with what is found there."""
        made = (sums.time, sums.interval, sums.port, sums.kind)
        try:
            for (name, statement), expected in zip(INDEXES.items(), made, strict=True):
                (total,) = self._database.execute(statement, {"last": last}).fetchone()
                if (total or 0) != expected:
                    return Break(first, None, f"the index {name} is damaged")
            for name, statement in PAIRS.items():
                indexed = self._database.execute(f"{statement} INDEXED BY {name}").fetchone()
                if indexed != self._database.execute(f"{statement} NOT INDEXED").fetchone():
                    return Break(first, None, f"the index {name} is damaged")
            if self._database.execute(WRONG_KIND).fetchone() != (0,):
                return Break(first, None, "the index events_by_kind is damaged")
        except (*connection.FAULTS, msgspec.MsgspecError, TypeError) as error:
            return Break(first, None, f"an index, or the state of the watch, cannot be read: {error}")
        return None

    def _hash_before(self, first: int) -> bytes | Break:
        """The hash that the first row continues: that of a checkpoint, where retention removed what was before."""
        found = self._database.execute(LAST_CHECKPOINT).fetchone()
        if found is None:
            if first == 1:
                return chain.START
            return Break(1, None, f"the rows before {first} were removed, and no checkpoint says so")
        try:
            checkpoint = schema.decode_checkpoint(found[1])
        except msgspec.MsgspecError:
            return Break(found[0], None, "the checkpoint is not readable")
        if checkpoint.first < first:
            what = f"the rows from {checkpoint.first} to {first - 1} were removed, and no checkpoint says so"
            return Break(checkpoint.first, None, what)
        if checkpoint.first > first:
            return Break(first, None, f"the rows before {checkpoint.first} had been removed, and are there")
        return checkpoint.hash

    def _break_of_anchor(self, anchor: Anchor, first: int, last: int) -> Break | None:
        if anchor.sequence < first:
            what = f"the row of the anchor was removed by retention: the history begins with {first}"
            return Break(anchor.sequence, None, what)
        if anchor.sequence > last:
            return Break(last + 1, None, f"the history ends with {last}, before the anchor: its end was cut off")
        row = self._database.execute("SELECT hash, at FROM events WHERE sequence = ?", (anchor.sequence,)).fetchone()
        if row is None or row[0] != anchor.hash:
            what = "it is not the row of the anchor: this one or some before it were written anew"
            return Break(anchor.sequence, _moment(None if row is None else row[1]), what)
        return None

    def _break_of_watch(self, first: int) -> Break | None:
        """Make the unwatched times anew from the events, and compare them."""
        ledger = Ledger()
        at = 0
        while rows := self._database.execute(WATCH, (at,)).fetchall():
            for sequence, body in rows:
                ledger.apply(sequence, schema.decode(body, sequence))
            at = rows[-1][0]
        last = ledger.state()
        (value,) = self._database.execute("SELECT value FROM meta WHERE key = 'state'").fetchone()
        state = msgspec.msgpack.decode(value, type=WatchState)
        if last.boot_id is not None and (state.boot_id, state.started_us) != (last.boot_id, last.started_us):
            return Break(at, None, "the state of the watch is not what the events say")
        made = {s.sequence: (s.since_us, s.until_us, s.reason) for s in ledger.spans.values()}
        statement = "SELECT sequence, since, until, reason FROM unwatched WHERE sequence >= ?"
        kept = {row[0]: tuple(row[1:]) for row in self._database.execute(statement, (first,))}
        if first > 1 and made:  # whether the machine was started again before it is in an event that was removed
            oldest = min(made)
            kept[oldest] = (*kept.get(oldest, ())[:2], made[oldest][2])
        wrong = sorted(s for s in made.keys() | kept.keys() if made.get(s) != kept.get(s))
        if not wrong:
            return None
        return Break(wrong[0], None, "a time that was not watched is not what the events say")


class _Segment:
    """Checks the rows behind ``start`` up to ``end``."""

    def __init__(self, database: sqlite3.Connection, first: int, sums: Sums) -> None:
        self._database = database
        self._first = first
        self._sums = sums
        self._expected, self._before = 0, b""
        self._at_us: int | None = None

    def check(self, start: int, end: int, before: bytes | None) -> Break | None:
        """Return the first break; ``before`` is the hash of row ``start``, None: the one that it has."""
        try:
            if before is None:
                (before,) = self._database.execute("SELECT hash FROM events WHERE sequence = ?", (start,)).fetchone()
            broken = self._check_chain(start, end, before or b"")
            return broken or self._check_intervals(start, end)
        except (sqlite3.Error, TypeError, ValueError, OverflowError) as error:
            return Break(start + 1, None, f"the rows from {start + 1} to {end} cannot be read: {error}")

    def _check_chain(self, start: int, end: int, before: bytes) -> Break | None:
        self._expected, self._before, self._at_us = start, before, None
        while self._expected < end:
            at = self._expected
            try:
                rows = self._rows(at, end)
            except connection.FAULTS as error:
                return Break(at + 1, _moment(self._at_us), f"the rows behind {at} cannot be read: {error}")
            if not rows:
                return Break(at + 1, _moment(self._at_us), f"removed: the rows up to {end} are missing")
            try:
                what = self._check_rows(rows)
            except (TypeError, ValueError, OverflowError, AttributeError, StructError):
                what = ALTERED  # a value is not of its type
            if what is not None:
                return Break(self._expected, _moment(self._at_us), what)
        return None

    def _check_rows(self, rows: list[Any]) -> str | None:
        """Check some rows; return what is wrong with the one at ``_expected``."""
        before, expected, sums = self._before, self._expected, self._sums
        link = chain.link
        for sequence, at_us, kind, port, interval, digest, body in rows:
            expected += 1
            self._expected, self._at_us = expected, at_us
            if sequence != expected:
                missing = f"{expected}" if sequence == expected + 1 else f"{expected} to {sequence - 1}"
                return f"removed: {missing} is missing before this time"
            if link(before, sequence, at_us, kind, port, interval, body) != digest:
                return ALTERED
            before = digest
            sums.time += (at_us + (at_us >> 30) + 7 * sequence) & MASK
            if interval is None or kind not in COMMON_KINDS:
                self._add_rare(sequence, kind, port, interval)
            elif interval < sequence:
                sums.interval += (interval + 7 * sequence) & MASK
        self._before = before
        return None

    def _add_rare(self, sequence: int, kind: str, port: int | None, interval: int | None) -> None:
        if kind not in COMMON_KINDS:
            self._sums.kind += (len(kind) + 7 * sequence) & MASK
        if interval is None and port is not None:
            self._sums.port += (port + 7 * sequence) & MASK
        if interval is not None and interval < sequence:
            self._sums.interval += (interval + 7 * sequence) & MASK

    def _rows(self, start: int, end: int) -> list[Any]:
        try:
            return self._database.execute(ROWS, (start, end)).fetchall()
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
        # Where a hash or a body was replaced by text that is not UTF-8, the row is to be named.
        self._database.text_factory = lambda text: text.decode("utf-8", "replace")
        try:
            return self._database.execute(ROWS, (start, end)).fetchall()
        finally:
            self._database.text_factory = str

    def _check_intervals(self, start: int, end: int) -> Break | None:
        start = 0 if start < self._first else start  # intervals whose opening was removed are before the first row
        found = self._database.execute(WRONG_INTERVAL, (start, end, self._first)).fetchone()
        if found is not None:
            return Break(found[0], self._time_of(found[0]), "an interval that begins with it was altered")
        found = self._database.execute(MISSING_INTERVAL, (start, end)).fetchone()
        if found is not None:
            return Break(found[0], self._time_of(found[0]), "the interval that begins with it was removed")
        if start >= self._first:
            return None
        for sequence, body in self._database.execute(ENDS_OF_OPEN):
            key = schema.decode_key(body)
            if key.severity != "quiet":
                return Break(sequence, key.at, "the interval that it ended was altered")
        return None

    def _time_of(self, sequence: int) -> datetime | None:
        row = self._database.execute("SELECT at FROM events WHERE sequence = ?", (sequence,)).fetchone()
        return None if row is None else _moment(row[0])


class _Forked:
    """Checks a segment in a forked process."""

    def __init__(self, path: str, start: int, end: int, first: int) -> None:
        self._answer, sender = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _check_and_exit(sender, path, start, end, first)
        os.close(sender)

    def answer(self, sums: Sums) -> Break | None:
        """Wait for what it found, and add its sums."""
        parts: list[bytes] = []
        while (part := os.read(self._answer, MOST_ANSWER)) and len(parts) < 100:
            parts.append(part)
        try:
            broken, more = msgspec.json.decode(b"".join(parts), type=tuple[Break | None, Sums])
        except msgspec.MsgspecError:
            return Break(0, None, "the process that checked one half has ended too early")
        for name in Sums.__struct_fields__:
            setattr(sums, name, getattr(sums, name) + getattr(more, name))
        return broken

    def end(self) -> None:
        """End the process, if it has not ended yet."""
        os.close(self._answer)
        with suppress(OSError):
            os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)


def _check_and_exit(sender: int, path: str, start: int, end: int, first: int) -> None:
    try:
        with closing(connection.open_to_read(path)) as database:
            sums = Sums()
            broken = _Segment(database, first, sums).check(start, end, None)
        os.write(sender, msgspec.json.encode((broken, sums)))
    finally:
        os._exit(0)


def _may_fork() -> bool:
    """Whether a fork is safe and useful: in the copy of a process with threads, a lock may never be released."""
    try:
        has_one_thread = os.stat("/proc/self/task").st_nlink == 3  # ".", ".." and the thread
        return has_one_thread and len(os.sched_getaffinity(0)) > 1
    except OSError:
        return False


def _moment(us: Any) -> datetime | None:
    with suppress(TypeError, OverflowError):
        return None if us is None else schema.from_us(us)
    return None
