"""Opening the file of the history: who may have written it, who writes it now, and whether it is one at all.

SQLite opens files by their paths, and makes ``-wal`` and ``-shm`` beside them. So a directory in which another user can
put files is refused for writing, and for reading everything that is no regular file, which could be a link or a pipe.

Facts: SQLite, "Write-Ahead Logging", "PRAGMA Statements", "Defense Against The Dark Arts"; path_resolution(7),
flock(2).
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from contextlib import suppress
from urllib.parse import quote

from portbook.errors import PortbookError, StoreError
from portbook.numerals import UINT32, number_or_none
from portbook.store import migrations

BUSY_S = 0.25  # how long another program may keep the file locked before that is trouble
LONGEST_VALUE = 1 << 22  # bytes of one value or row that is read
SIDES = ("", "-wal", "-shm", "-journal")
DIRECTORY_MODE = 0o750
FILE_MODE = 0o640
# What sqlite3 raises: also where a damaged file has text that is not UTF-8, which the message of an error quotes.
FAULTS = (sqlite3.Error, UnicodeDecodeError)
MOVE = "move it away, or name another with --db"


def open_to_read(path: str) -> sqlite3.Connection:
    """Open a history that is only read, perhaps while a watch writes it.

    :raises StoreError: there is none, or it is not one that this version can read
    """
    _check_regular(path)
    try:
        return _open_read_only(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # WAL needs its index beside the file; where that cannot be made nobody writes, unless there is a log already.
        if _size(path + "-wal"):
            raise failure(path, error) from error
    except FAULTS as error:
        raise failure(path, error) from error
    try:
        return _open_read_only(path, "mode=ro&immutable=1")
    except FAULTS as error:
        raise failure(path, error) from error


def _open_read_only(path: str, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(os.path.abspath(path))}?{options}", uri=True, timeout=BUSY_S * 20, isolation_level=None
    )
    try:
        connection.execute("PRAGMA query_only=ON")
        _restrict(connection)
        migrations.check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_write(path: str) -> sqlite3.Connection:
    """Open a history, or make one. The caller has the lock.

    :raises StoreError: it cannot be written, or is not one that this version can write
    """
    try:
        if not _size(path):
            _create(path)
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            _restrict(connection)
            migrations.migrate(connection, path)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")  # kill -9 loses nothing; a power cut the last seconds
            connection.execute("PRAGMA cache_size=-4096")
        except BaseException:
            connection.close()
            raise
    except FAULTS as error:
        raise failure(path, error) from error
    return connection


def close_writer(connection: sqlite3.Connection) -> None:
    """Close a connection that wrote, and leave a file that needs no other beside it to be read."""
    with suppress(*FAULTS):  # somebody reads it, or the disk is full: the log stays, and is read with the file
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()


def _restrict(connection: sqlite3.Connection) -> None:
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")


def _create(path: str) -> None:
    """Make an empty file with its permissions; SQLite gives those to the files beside it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        os.close(os.open(path, flags, FILE_MODE))
    except OSError as error:
        raise StoreError(f"{path!r} could not be created: {error.strerror or error}") from error


def prepare_directory(path: str) -> None:
    """Make the directory of a history, and check that no other user can put files into it; raise StoreError."""
    directory = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(directory, DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{directory!r} could not be created: {error.strerror or error}") from error
    if sys.platform == "win32":
        return
    from portbook.system.files import open_directory_of

    descriptor, _ = open_directory_of(os.path.abspath(path))  # raises for a link that another user may have made
    try:
        owner = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    mine = (0, os.geteuid())
    if owner.st_uid not in mine or owner.st_mode & stat.S_IWOTH or _is_others_group(owner):
        hint = "name a file in a directory that only you can write, with --db"
        raise StoreError(f"other users can write to {directory!r}, and could replace the history there", hint)
    for side in SIDES:
        _check_own(path + side, mine)


def _is_others_group(directory: os.stat_result) -> bool:
    return bool(directory.st_mode & stat.S_IWGRP) and directory.st_gid not in (0, os.getegid())


def _check_own(path: str, users: tuple[int, ...]) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path!r} could not be read: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path!r} is not a file", MOVE)
    if status.st_uid not in users:
        raise StoreError(f"{path!r} belongs to another user (uid {status.st_uid})", MOVE)


def _check_regular(path: str) -> None:
    for side in SIDES:
        try:
            status = os.lstat(path + side) if side else os.stat(path)
        except FileNotFoundError:
            if not side:
                hint = "portbook watch keeps one; another is read with --db FILE"
                raise StoreError(f"there is no history at {path!r}", hint) from None
            continue
        except OSError as error:
            raise StoreError(f"{path!r} could not be read: {error.strerror or error}", _hint_of(error)) from error
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path + side!r} is not a file")
    try:
        os.close(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
    except OSError as error:
        raise StoreError(f"{path!r} could not be read: {error.strerror or error}", _hint_of(error)) from error


def _hint_of(error: OSError) -> str | None:
    if isinstance(error, PermissionError) and hasattr(os, "geteuid") and os.geteuid() != 0:
        return "run with sudo, or as a user of the group that may read it"
    return None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def failure(path: str, error: Exception) -> PortbookError:
    """An error of SQLite in one line, with what to do."""
    text = str(error)
    if "not a database" in text:
        return StoreError(f"{path!r} is not a history", MOVE)
    if isinstance(error, UnicodeDecodeError):
        text = "it has text that is not UTF-8"
    if "malformed" in text or "corrupt" in text or isinstance(error, UnicodeDecodeError):
        return StoreError(f"{path!r} is damaged ({text})", f"portbook history verify says where; {MOVE}")
    if "readonly" in text or "unable to open" in text:
        return StoreError(f"{path!r} could not be opened: {text}", "check the permissions of its directory")
    return StoreError(f"{path!r} could not be used: {text}")


# --- one writer ----------------------------------------------------------------------------------------------------


class Lock:
    """The right to write a history. The kernel takes it back when the process ends, however that happens."""

    def __init__(self, path: str) -> None:
        """:raises StoreError: another process has it."""
        self._path = f"{path}.lock"
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(self._path, flags, FILE_MODE)
        except OSError as error:
            raise StoreError(f"{self._path!r} could not be opened: {error.strerror or error}") from error
        try:
            _lock(self._descriptor)
        except OSError:
            pid = self._pid()
            os.close(self._descriptor)
            who = "another process" if pid is None else f"the process with pid {pid}"
            raise StoreError(f"{path!r} is written by {who}", "stop it first, or name another with --db") from None
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, b"%d\n" % os.getpid())

    def _pid(self) -> int | None:
        try:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            return number_or_none(os.read(self._descriptor, 20).strip(), UINT32, 1)
        except OSError:
            return None

    def release(self) -> None:
        """Give the right back. The file stays: who removed it could remove the lock of another."""
        os.close(self._descriptor)


# Windows locks bytes, and who has no lock cannot read them: one that is far behind the pid.
_FAR = 1 << 20

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
