"""A file that lines are appended to, with rotation: NAME, NAME.1 (the newest of the old ones), NAME.2 and so on.

Whoever may write in the directory of the file could put a link there, to have root append to another file (CWE-59,
CWE-61). So no link is followed where others may write, and a file is used only if it is a plain one of our own with one
name. A line is there as a whole or not at all, also after the disk was full.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from time import localtime, time

from portbook.errors import StoreError
from portbook.system.files import open_directory_of
from portbook.watching.sinks.base import DeliveryError

MODE = 0o640  # the command lines of all processes are in it
APPEND = os.O_WRONLY | os.O_APPEND
NO_SURPRISES = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO that nobody reads (open(2)); it has no effect on a regular file
    | getattr(os, "O_BINARY", 0)
)
MOST_TRIES = 5  # of opening a file that others create and remove meanwhile
RETRY_S = 60.0  # between two tries to rotate where that is refused
DAY_S = 86_400


class LogFile:
    """An open log file."""

    def __init__(
        self,
        path: str,
        *,
        rotate_bytes: int = 0,
        rotate_days: int = 0,
        keep: int = 7,
        clock: Callable[[], float] = time,
    ) -> None:
        """Open the file.

        :param path: made with the mode 0640 if it does not exist
        :param rotate_bytes: it is rotated before it becomes larger; 0: never
        :param rotate_days: it is rotated at the first line after so many midnights of local time; 0: never
        :param keep: how many old files remain
        :param clock: seconds since 1970
        :raises StoreError: it cannot be opened, or must not be
        """
        self.path = path
        self._rotate_bytes, self._rotate_days, self._keep = rotate_bytes, rotate_days, keep
        self._clock = clock
        self._directory: int | None = None
        self._name = path
        self._file = -1
        self._rotate_not_before = 0.0
        self._torn = False  # the file ends with a part of a line
        self._open()

    # --- opening ---------------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Open the path again: another program has renamed the file (logrotate(8)). Keep the old one if that fails.

        :raises StoreError: it cannot be opened, or must not be
        """
        file, directory, name = self._file, self._directory, self._name
        try:
            self._file, self._directory = -1, None
            self._open()
        except StoreError:
            self.close()
            self._file, self._directory, self._name = file, directory, name
            raise
        _close(file)
        _close(directory)

    def _open(self) -> None:
        if os.name == "nt":
            self._name = os.path.realpath(self.path)
        else:
            self._directory, self._name = open_directory_of(self.path)
        try:
            self._open_file()
        except (OSError, StoreError) as error:
            _close(self._directory)
            self._directory = None
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.path!r} could not be opened: {error.strerror or error}") from error

    def _open_file(self) -> None:
        for _ in range(MOST_TRIES):
            try:
                self._file = self._open_existing()
                self._period = self._period_of(os.fstat(self._file).st_mtime)  # the lines that are there are that old
            except FileNotFoundError:
                with suppress(FileExistsError):
                    self._file = self._create()
                    self._period = self._period_of(self._clock())
                    return
            else:
                return
        raise StoreError(f"{self.path!r} could not be opened: others make and remove it")

    def _create(self) -> int:
        return os.open(self._name, APPEND | NO_SURPRISES | os.O_CREAT | os.O_EXCL, MODE, dir_fd=self._directory)

    def _open_existing(self) -> int:
        # Before it is opened: opening a device may do something.
        self._check(os.stat(self._name, dir_fd=self._directory, follow_symlinks=False))
        file = os.open(self._name, APPEND | NO_SURPRISES, dir_fd=self._directory)
        try:
            self._check(os.fstat(file))
        except StoreError:
            os.close(file)
            raise
        return file

    def _check(self, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            raise StoreError(f"{self.path!r} is a link", "name the file that it leads to")
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{self.path!r} is not a file", "for standard output write -")
        if sys.platform == "win32":
            return
        if status.st_uid not in (0, os.geteuid()):
            raise StoreError(f"{self.path!r} belongs to another user (uid {status.st_uid})", "name a file of your own")
        if status.st_nlink > 1:
            raise StoreError(f"{self.path!r} has another name too (a hard link)", "name a file of its own")

    def close(self) -> None:
        """Close the file."""
        _close(self._file)
        _close(self._directory)
        self._file, self._directory = -1, None

    # --- writing ---------------------------------------------------------------------------------------------------

    def append(self, lines: bytes) -> None:
        """Append whole lines.

        :raises DeliveryError: not all of them could be written; it says how many were
        """
        try:
            size = self._size_after_rotation(len(lines))
            if self._torn:
                os.write(self._file, b"\n")
                size, self._torn = size + 1, False
        except (OSError, StoreError) as error:
            raise self._failure(error) from error
        written, failed = _write(self._file, lines)
        if failed is not None:
            raise self._failure(failed, self._cut(lines, size, written)) from failed

    def _cut(self, lines: bytes, size: int, written: int) -> int:
        """Remove the part of a line that was written; return how many whole ones were."""
        whole = lines.rfind(b"\n", 0, written) + 1
        self._torn = whole < written
        with suppress(OSError):
            if self._torn and os.fstat(self._file).st_size == size + written:  # nobody else appended meanwhile
                os.ftruncate(self._file, size + whole)
                self._torn = False
        return lines.count(b"\n", 0, whole)

    def _failure(self, error: OSError | StoreError, delivered: int = 0) -> DeliveryError:
        reason = getattr(error, "strerror", None) or str(error)
        return DeliveryError(f"it could not be written: {reason}", delivered)

    # --- rotation --------------------------------------------------------------------------------------------------

    def _size_after_rotation(self, more: int) -> int:
        status = os.fstat(self._file)
        now = self._clock()
        period = self._period_of(now)
        due = period != self._period or (self._rotate_bytes and status.st_size + more > self._rotate_bytes)
        if not due or now < self._rotate_not_before:
            return status.st_size
        if status.st_size:
            self._rotate(now)
        self._period = period
        return os.fstat(self._file).st_size

    def _period_of(self, at: float) -> int:
        if not self._rotate_days:
            return 0
        offset = localtime(at).tm_gmtoff or 0
        return int((at + offset) // DAY_S) // self._rotate_days

    def _rotate(self, now: float) -> None:
        """Rename the files. Where that is refused, the lines go on into the file that is open."""
        old = self._file
        try:
            if os.name == "nt":  # an open file cannot be renamed there
                os.close(old)
                self._file = -1
            for number in range(self._keep - 1, 0, -1):
                with suppress(FileNotFoundError):
                    self._rename(f"{self._name}.{number}", f"{self._name}.{number + 1}")
            self._rename(self._name, f"{self._name}.1")
            self._open_file()
        except (OSError, StoreError):
            self._rotate_not_before = now + RETRY_S
            if self._file == -1:
                self._open_file()
        if self._file != old and os.name != "nt":
            os.close(old)

    def _rename(self, old: str, new: str) -> None:
        os.replace(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)


def _write(file: int, data: bytes) -> tuple[int, OSError | None]:
    """Write everything; return how much was written, and why not all."""
    done = 0
    while done < len(data):
        try:
            done += os.write(file, data[done:])
        except OSError as error:
            return done, error
    return done, None


def _close(descriptor: int | None) -> None:
    if descriptor is not None and descriptor >= 0:
        os.close(descriptor)
