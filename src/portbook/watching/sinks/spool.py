"""Events that wait on disk until their receiver has them: in order, at least once, bounded in bytes.

A directory with these files:

    lock       held by the one process that uses the spool (flock(2))
    position   what was delivered, and what was being delivered last
    N.spool    records, one a line, the first with the number N: checksum, number, JSON

A record is in the file before it is sent; so it survives the end of the process at any instant, and a line that was
not written completely is recognized by its checksum. ``position`` is 80 bytes that are overwritten in place, which
works on a full disk too. Records that have no room on the disk wait in memory. What exceeds the limits is lost from
the oldest on, and counted.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from zlib import crc32

from msgspec import Struct

from portbook.errors import StoreError
from portbook.numerals import number_or_none
from portbook.system.files import is_writable_by_others, open_directory_of
from portbook.watching.sinks.base import Loss

SUFFIX = ".spool"
POSITION_BYTES = 80
FILES = 8  # a full spool has about so many: the oldest is what is lost at once
LEAST_FILE_BYTES = 16_384
MOST_MEMORY_BYTES = 4 << 20  # of records that have no room on the disk
MODE, DIRECTORY_MODE = 0o600, 0o700
FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class SpoolRecord(Struct, frozen=True, gc=False):
    """One record."""

    number: int  # from 1; never used twice
    json: bytes


class Spool:
    """The spool of one receiver. Two threads may use it: one appends, one takes."""

    def __init__(self, path: str, most_bytes: int) -> None:
        """Open the spool, and make it if there is none.

        :param path: of its directory
        :param most_bytes: of its files
        :raises StoreError: it cannot be used, or another process uses it
        """
        self.path = path
        self._most_bytes = most_bytes
        self._file_bytes = max(most_bytes // FILES, LEAST_FILE_BYTES)
        self._lock = threading.Lock()
        self._files: deque[_SpoolFile] = deque()
        self._memory: deque[SpoolRecord] = deque()
        self._memory_bytes = 0
        self._losses: list[Loss] = []
        self._delivered = self._sending = self._last = 0  # numbers
        self._on_disk = 0  # records that wait there
        self._failure: str | None = None
        self._directory: int | None = None
        self._open_files: list[int] = []
        try:
            self._open_directory()
            self._open_lock()
            self._position = self._open("position", os.O_RDWR | os.O_CREAT)
            self._open_files.append(self._position)
            self.id = self._read_position()
            self._read_files()
        except OSError as error:
            self.close()
            reason = f"the spool {path!r} could not be opened: {error.strerror or error}"
            raise StoreError(reason, "name another directory with spool = in the configuration") from error
        except StoreError:
            self.close()
            raise

    # --- for the thread that appends -------------------------------------------------------------------------------

    def append(self, events: Sequence[bytes]) -> None:
        """Add events, JSON without a line end. What has no room on the disk remains in memory."""
        with self._lock:
            for event in events:
                self._last += 1
                self._memory.append(SpoolRecord(self._last, event))
                self._memory_bytes += len(event)
            try:
                self._write_memory()
                self._failure = None
            except OSError as error:
                self._failure = f"the spool {self.path!r} could not be written: {error.strerror or error}"
            self._limit_memory()

    def _write_memory(self) -> None:
        """Write what is in memory to files; raise OSError. What was not written remains in memory."""
        while self._memory:
            lines: list[bytes] = []
            size = 0
            for record in self._memory:
                line = _line(record)
                if lines and size + len(line) > self._file_bytes:
                    break
                lines.append(line)
                size += len(line)
            self._write_lines(b"".join(lines))
            self._on_disk += len(lines)
            for _ in lines:
                self._memory_bytes -= len(self._memory.popleft().json)
            self._limit_disk()

    def _write_lines(self, lines: bytes) -> None:
        """Append to the last file, or to a new one if it would become too large; raise OSError."""
        if not self._files or self._files[-1].size + len(lines) > self._file_bytes:
            self._begin_file(self._memory[0].number)
        file = self._files[-1]
        descriptor = self._open(file.name, os.O_WRONLY | os.O_APPEND)
        try:
            _write_whole(descriptor, lines, file.size)
        finally:
            os.close(descriptor)
        file.size += len(lines)

    def _begin_file(self, number: int) -> None:
        name = f"{number:020d}{SUFFIX}"
        os.close(self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        self._files.append(_SpoolFile(name, number))

    def _limit_disk(self) -> None:
        """Remove the oldest files while there is too much."""
        while len(self._files) > 1 and sum(file.size for file in self._files) > self._most_bytes:
            file = self._files.popleft()
            lost = sum(record.number > self._delivered for _, record in self._records(file))
            self._remove(file)
            self._on_disk -= lost
            if lost:
                self._losses.append(Loss(lost, f"the spool is full ({self._most_bytes:,} bytes)"))

    def _limit_memory(self) -> None:
        lost = 0
        while self._memory_bytes > MOST_MEMORY_BYTES and len(self._memory) > 1:
            self._memory_bytes -= len(self._memory.popleft().json)
            lost += 1
        if lost:
            self._losses.append(Loss(lost, self._failure or "no memory is left for what waits"))

    # --- for the thread that takes ---------------------------------------------------------------------------------

    def take(self, most_records: int, most_bytes: int) -> list[SpoolRecord]:
        """The oldest records that were not delivered; the same ones again after an interruption.

        What was being delivered when the process ended is taken again in the same portion, so that its key is the same.
        """
        with self._lock:
            records: list[SpoolRecord] = []
            size = 0
            for record in self._waiting_records():
                size += len(record.json)
                repeated = record.number <= self._sending
                full = len(records) >= most_records or size > most_bytes or record.number > self._sending > 0
                if records and full and not repeated:
                    break
                records.append(record)
            if records:
                self._sending = records[-1].number
                self._write_position()
            return records

    def _waiting_records(self) -> Iterator[SpoolRecord]:
        if self._on_disk:
            for file in self._files:
                for _, record in self._records(file, file.offset):
                    if record.number > self._delivered:
                        yield record
        yield from self._memory

    def delivered(self, number: int) -> None:
        """Everything up to this number was delivered."""
        with self._lock:
            self._delivered, self._sending = number, 0
            while self._memory and self._memory[0].number <= number:
                self._memory_bytes -= len(self._memory.popleft().json)
            while self._files and self._on_disk and self._skip_delivered(self._files[0]) and len(self._files) > 1:
                self._remove(self._files.popleft())
            if not self._on_disk:
                self._shrink()
            self._write_position()

    def give_back(self) -> None:
        """What was taken may be taken in other portions: the receiver does not take them together."""
        with self._lock:
            self._sending = 0

    def _skip_delivered(self, file: _SpoolFile) -> bool:
        """Go behind the delivered records of the oldest file; return whether none is left in it."""
        for end, record in self._records(file, file.offset):
            if record.number > self._delivered:
                return False
            file.offset = end
            self._on_disk -= 1
        return True

    def _shrink(self) -> None:
        """Everything was delivered: begin with an empty disk again, once there is something to remove."""
        if sum(file.size for file in self._files) > LEAST_FILE_BYTES:
            while self._files:
                self._remove(self._files.popleft())

    # --- for both --------------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """How many records wait."""
        with self._lock:
            return self._on_disk + len(self._memory)

    def take_losses(self) -> list[Loss]:
        """What was lost since the last call."""
        with self._lock:
            losses, self._losses = self._losses, []
            return losses

    @property
    def failure(self) -> str | None:
        """Why the disk takes nothing at the moment."""
        return self._failure

    def close(self) -> None:
        """Let go of the spool. What is only in memory is lost; ``waiting`` of it is counted."""
        with self._lock:
            with suppress(OSError):
                if self._open_files:
                    self._write_memory()
            if self._memory:
                self._losses.append(Loss(len(self._memory), self._failure or "it was not written to the disk"))
                self._memory.clear()
            while self._open_files:
                os.close(self._open_files.pop())
            if self._directory is not None:
                os.close(self._directory)
                self._directory = None

    # --- files -----------------------------------------------------------------------------------------------------

    def _open_directory(self) -> None:
        if sys.platform == "win32":
            os.makedirs(self.path, exist_ok=True)
            return
        _make_directories(self.path)
        parent, name = open_directory_of(self.path, "used")
        try:
            self._directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | FLAGS, dir_fd=parent)
        finally:
            os.close(parent)
        status = os.fstat(self._directory)
        if status.st_uid != os.geteuid() or is_writable_by_others(status):
            raise StoreError(f"others may write in the spool {self.path!r}", "name a directory that is yours alone")

    def _open(self, name: str, flags: int) -> int:
        if self._directory is None:
            return os.open(os.path.join(self.path, name), flags | FLAGS, MODE)
        return os.open(name, flags | FLAGS, MODE, dir_fd=self._directory)

    def _open_lock(self) -> None:
        lock = self._open("lock", os.O_RDWR | os.O_CREAT)
        self._open_files.append(lock)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            hint = "end it, or name another directory with spool = in the configuration"
            raise StoreError(f"another process uses the spool {self.path!r}", hint) from error

    def _remove(self, file: _SpoolFile) -> None:
        with suppress(OSError):
            if self._directory is None:
                os.unlink(os.path.join(self.path, file.name))
            else:
                os.unlink(file.name, dir_fd=self._directory)

    def _records(self, file: _SpoolFile, offset: int = 0) -> Iterator[tuple[int, SpoolRecord]]:
        """The records of a file from a place on, each with its end; what is damaged is left out."""
        try:
            descriptor = self._open(file.name, os.O_RDONLY)
        except OSError:
            return
        with open(descriptor, "rb") as lines:
            lines.seek(offset)
            for line in lines:
                offset += len(line)
                record = _parse_line(line)
                if record is not None:
                    yield offset, record

    # --- at the start ----------------------------------------------------------------------------------------------

    def _read_position(self) -> str:
        """Read what was delivered; return the name of the spool. A damaged position means: everything once more."""
        words = os.pread(self._position, POSITION_BYTES, 0).split() if sys.platform != "win32" else []
        if sys.platform == "win32":
            os.lseek(self._position, 0, os.SEEK_SET)
            words = os.read(self._position, POSITION_BYTES).split()
        if len(words) == 4 and words[3] == b"%08x" % crc32(b" ".join(words[:3])):
            delivered, sending = number_or_none(words[1]), number_or_none(words[2])
            if delivered is not None and sending is not None:
                self._delivered, self._last = delivered, max(delivered, sending)
                self._sending = sending if sending > delivered else 0
                return words[0].decode("ascii", "replace")
        return os.urandom(8).hex()

    def _write_position(self) -> None:
        words = b"%s %020d %020d" % (self.id.encode(), self._delivered, self._sending)
        line = (words + b" %08x" % crc32(words)).ljust(POSITION_BYTES - 1) + b"\n"
        with suppress(OSError):  # after a restart more is delivered twice: rather that than nothing
            if sys.platform == "win32":
                os.lseek(self._position, 0, os.SEEK_SET)
                os.write(self._position, line)
            else:
                os.pwrite(self._position, line, 0)

    def _read_files(self) -> None:
        """Find what waits; cut off what was not written completely."""
        place: str | int = self.path if self._directory is None else self._directory
        for name in sorted(os.listdir(place)):
            first = number_or_none(name.removesuffix(SUFFIX))
            if not name.endswith(SUFFIX) or first is None:
                continue
            file = _SpoolFile(name, first)
            file.size, lines = self._cut(file)
            for end, record in self._records(file):
                lines -= 1
                self._last = max(self._last, record.number)
                if record.number > self._delivered:
                    self._on_disk += 1
                else:
                    file.offset = end
            if lines:
                self._losses.append(Loss(lines, f"{file.name} of the spool is damaged"))
            self._files.append(file)
        self._write_position()

    def _cut(self, file: _SpoolFile) -> tuple[int, int]:
        """Remove an incomplete last line; return the size of the file, and how many lines it has."""
        descriptor = self._open(file.name, os.O_RDWR)
        try:
            size = os.fstat(descriptor).st_size
            whole, at, lines = 0, 0, 0
            while part := os.read(descriptor, 1 << 20):
                end = part.rfind(b"\n")
                if end >= 0:
                    whole = at + end + 1
                at += len(part)
                lines += part.count(b"\n")
            if whole < size:
                os.ftruncate(descriptor, whole)
            return whole, lines
        finally:
            os.close(descriptor)


class _SpoolFile:
    """One file of records."""

    def __init__(self, name: str, first: int) -> None:
        self.name = name
        self.first = first
        self.size = 0
        self.offset = 0  # of the first record that was not delivered, as far as is known


def _line(record: SpoolRecord) -> bytes:
    rest = b"%d %s" % (record.number, record.json)
    return b"%08x %s\n" % (crc32(rest), rest)


def _parse_line(line: bytes) -> SpoolRecord | None:
    checksum, _, rest = line.rstrip(b"\n").partition(b" ")
    number, _, json = rest.partition(b" ")
    found = number_or_none(number)
    if found is None or checksum != b"%08x" % crc32(rest):
        return None
    return SpoolRecord(found, json)


def _write_whole(descriptor: int, data: bytes, size: int) -> None:
    """Append everything and have it on the disk, or leave the file as it was; raise OSError."""
    try:
        done = 0
        while done < len(data):
            done += os.write(descriptor, data[done:])
        if hasattr(os, "fdatasync"):
            os.fdatasync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _make_directories(path: str) -> None:
    """Make the directory and those above it, for us alone (mkdir(2) follows no link at the end)."""
    with suppress(FileExistsError):
        try:
            os.mkdir(path, DIRECTORY_MODE)
        except FileNotFoundError:
            _make_directories(os.path.dirname(path))
            os.mkdir(path, DIRECTORY_MODE)
