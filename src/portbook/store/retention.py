"""Which rows are old enough to be removed. A few at a time: the writer must not wait.

The rows are removed from the beginning of the chain. A checkpoint, which is a row of the chain like others, says up to
where, and has the hash of the last row that was removed: the chain can be checked from there on. The pages that become
free are used again; the file does not become smaller.
"""

from __future__ import annotations

import sqlite3

from msgspec import Struct

STEP = 500  # rows that are removed in one transaction


class Removal(Struct, frozen=True):
    """What one step removes."""

    before: int  # the sequence of the first row that is there now
    first: int  # the sequence of the first row that is kept
    hash: bytes  # of the row before it
    cut_us: int  # intervals that ended before this are removed too


def plan(connection: sqlite3.Connection, cut_us: int | None, most_bytes: int | None) -> Removal | None:
    """The next step; None if there is nothing to remove.

    :param cut_us: rows that are older are removed, in microseconds since 1970
    """
    is_large = most_bytes is not None and _used_bytes(connection) > most_bytes
    rows = connection.execute("SELECT sequence, at, hash FROM events ORDER BY sequence LIMIT ?", (STEP + 1,)).fetchall()
    last: tuple[int, int, bytes] | None = None
    for row in rows[:-1]:  # one row always stays: it has the end of the chain
        if not is_large and (cut_us is None or row[1] >= cut_us):
            break
        last = row
    if last is None:
        return None
    return Removal(rows[0][0], last[0] + 1, last[2], max(cut_us or 0, last[1]))


def remove(connection: sqlite3.Connection, removal: Removal) -> None:
    """Remove what was planned; the caller's transaction has the checkpoint already."""
    connection.execute(
        "UPDATE intervals SET kept = (SELECT body FROM events WHERE sequence = id)"
        " WHERE id >= ? AND id < ? AND (closed_at IS NULL OR closed_at >= ?)",
        (removal.before, removal.first, removal.cut_us),
    )
    connection.execute(
        "DELETE FROM intervals WHERE id < ? AND closed_at IS NOT NULL AND closed_at < ?",
        (removal.first, removal.cut_us),
    )
    connection.execute("DELETE FROM unwatched WHERE sequence < ? AND until < ?", (removal.first, removal.cut_us))
    connection.execute("DELETE FROM events WHERE sequence < ?", (removal.first,))


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)
