"""The version of a history's schema: what is made new, brought up to date, or refused.

A migration is a function from one version to the next; it runs in a transaction with those that follow. Bodies of
events are never rewritten: their hashes would change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from portbook.errors import StoreError
from portbook.store import schema

MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}  # from this version to the next


def check(connection: sqlite3.Connection, path: str) -> None:
    """Refuse what is not a history of this version, and one with tables, views or triggers that are not portbook's.

    :raises StoreError: with what to do
    """
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StoreError(f"{path!r} is empty", "portbook watch fills it")
    _refuse_others(connection, path)
    version = _version(connection)
    if version < schema.VERSION:
        raise StoreError(f"{path!r} is of an older version ({version})", "portbook watch brings it up to date")
    found = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT 100")}
    if found != set(schema.TABLES):
        raise StoreError(f"{path!r} is damaged: its tables are not those of a history", "name another with --db")


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables of a new file, or bring those of an older version up to date; raise StoreError."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            _create(connection)
        _refuse_others(connection, path)
        for version in range(_version(connection), schema.VERSION):
            MIGRATIONS[version](connection)
            connection.execute(f"PRAGMA user_version={version + 1}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    check(connection, path)


def _create(connection: sqlite3.Connection) -> None:
    for statement in schema.TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={schema.VERSION}")


def _refuse_others(connection: sqlite3.Connection, path: str) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != schema.APPLICATION_ID:
        raise StoreError(f"{path!r} is a database of another program", "name another file with --db")
    version = _version(connection)
    if version > schema.VERSION:
        raise StoreError(
            f"{path!r} is of a newer version ({version}; this portbook knows {schema.VERSION})",
            "use the newer portbook, or name another file with --db",
        )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
