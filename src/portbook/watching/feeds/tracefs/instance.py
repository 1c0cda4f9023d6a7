"""A trace buffer of our own: an instance in tracefs, whose name says which process made it.

Its directory is worked with by a descriptor, so that it does not matter where tracefs is mounted. Where it is not, it
is mounted in a mount namespace that nobody else is in, and that ends at once: the descriptor keeps the mount.

An instance stays when its process is killed. The next start removes those whose process is gone; a directory that has
another kind of name, or is in use (rmdir(2) fails with EBUSY), is left alone.

Facts: Documentation/trace/ftrace.rst ("Instances"), Documentation/trace/events.rst; mount_namespaces(7),
proc_pid_stat(5).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from time import sleep

from portbook.errors import SourceDenied, SourceError, SourceMissing
from portbook.system import privilege

PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
EVENT = "events/sock/inet_sock_set_state"
# LISTEN is 10, CLOSE 7 (include/net/tcp_states.h). "oldstate==10" alone would record every incoming connection.
FILTER = b"newstate==10||(oldstate==10&&newstate==7)"
CLOCK = b"mono"  # CLOCK_MONOTONIC, that of time.monotonic_ns()
NAME = re.compile(r"portbook-([1-9]\d{0,9})-(\d{1,20})-(\d{1,9})", re.ASCII)
LEAST_KB, MOST_KB = 64, 1 << 16  # of a processor
MOST_BYTES = 1 << 16
MOST_INSTANCES = 1000  # that are looked at
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x00020000, 0x4000, 0x40000
REMOVE_TRIES, REMOVE_PAUSE_S = 20, 0.01
WRITABLE = "in a unit of systemd, ReadWritePaths=/sys/kernel/tracing makes it writable"
_numbers = count(1)


class Instance:
    """The buffer, and the event in it."""

    def __init__(self, buffer_bytes: int) -> None:
        """Make it, and begin to trace.

        :param buffer_bytes: of all processors together
        :raises SourceError: this is not possible here
        """
        self._root = open_tracefs()
        self.name = f"portbook-{os.getpid()}-{start_of(os.getpid())}-{next(_numbers)}"
        self._directory = -1
        try:
            check_event(self._root)
            remove_stale(self._root)
            self._make()
            self.page_format = self.read("events/header_page")
            self.event_format = self.read(f"{EVENT}/format")
            self._begin(buffer_bytes)
        except OSError as error:
            self.close()
            raise SourceMissing(f"tracefs: {error.strerror}: {error.filename or self.name}") from error
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        path = f"instances/{self.name}"
        os.mkdir(path, 0o700, dir_fd=self._root)
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)

    def _begin(self, buffer_bytes: int) -> None:
        kilobytes = buffer_bytes // 1024 // max(1, len(self.processors()))
        self.write("buffer_size_kb", b"%d" % min(max(kilobytes, LEAST_KB), MOST_KB))
        self.write("trace_clock", CLOCK)
        with suppress(FileNotFoundError):
            self.write("buffer_percent", b"0")  # wake a reader for every event: Linux 5.0, before that it is always so
        self.write(f"{EVENT}/filter", FILTER)
        self.write(f"{EVENT}/enable", b"1")

    def processors(self) -> list[str]:
        """The names of the directories of processors."""
        directory = self._open("per_cpu", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.listdir(directory))
        finally:
            os.close(directory)

    def open_buffer(self, processor: str) -> int:
        """A descriptor of a processor's pages; reading does not wait."""
        return self._open(f"per_cpu/{processor}/trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK)

    def read(self, path: str) -> bytes:
        """A file of the instance; of the whole tracefs if the instance has none; raises OSError."""
        try:
            descriptor = self._open(path, os.O_RDONLY)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            parts = iter(lambda: file.read(MOST_BYTES), b"")
            return b"".join(part for part, _ in zip(parts, range(16), strict=False))

    def write(self, path: str, text: bytes) -> None:
        """Write to a file of the instance; raises OSError."""
        descriptor = self._open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(descriptor)

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=self._directory)

    def close(self) -> None:
        """Remove it; every descriptor of its files has to be closed before."""
        if self._directory >= 0:
            with suppress(OSError):
                self.write(f"{EVENT}/enable", b"0")
            os.close(self._directory)
            self._directory = -1
            self._remove()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _remove(self) -> None:
        for _ in range(REMOVE_TRIES):
            try:
                os.rmdir(f"instances/{self.name}", dir_fd=self._root)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return
                sleep(REMOVE_PAUSE_S)  # a reader of this process has just been closed
            else:
                return


def check_event(root: int) -> None:
    """Raise SourceMissing where the kernel does not have the event."""
    try:
        os.stat(EVENT, dir_fd=root)
    except OSError as error:
        why = "tracefs: the kernel has no trace event sock/inet_sock_set_state"
        raise SourceMissing(why, "Linux 4.16 and later have it") from error


def remove_stale(root: int) -> None:
    """Remove the instances of portbook whose process is gone."""
    directory = os.open("instances", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        for name in _stale(os.listdir(directory)[:MOST_INSTANCES]):
            with suppress(OSError):  # it is in use after all, or somebody else removed it
                os.rmdir(name, dir_fd=directory)
    finally:
        os.close(directory)


def _stale(names: list[str]) -> Iterator[str]:
    for name in names:
        match = NAME.fullmatch(name)
        if match and start_of(int(match[1])) != int(match[2]):
            yield name


def start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read(4096).rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


# --- where it is ---------------------------------------------------------------------------------------------------


def open_tracefs() -> int:
    """A descriptor of the root of tracefs; raise SourceError."""
    for place in PLACES:
        with suppress(OSError):
            directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if "instances" in os.listdir(directory):
                if os.access("instances", os.W_OK, dir_fd=directory):
                    return directory
                os.close(directory)
                raise SourceDenied(f"tracefs: {place} may not be written here", WRITABLE)  # on purpose: a hardened unit
            os.close(directory)
    return _mount_privately()


def _mount_privately() -> int:
    if not privilege.has("CAP_SYS_ADMIN"):
        raise SourceDenied("tracefs: it is for root only", privilege.remedy("CAP_SYS_ADMIN"))
    if not os.path.isdir(PLACES[0]):
        raise SourceMissing("tracefs: the kernel has none", "Linux 4.16 with CONFIG_FTRACE has what is needed")
    from threading import Thread

    answers: list[int | OSError] = []
    thread = Thread(target=_mount, args=(answers,), name="portbook-mount")
    thread.start()
    thread.join()
    answer = answers[0] if answers else OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if isinstance(answer, OSError):
        raise SourceError(f"tracefs: it is not mounted, and cannot be ({answer.strerror})") from answer
    return answer


def _mount(answers: list[int | OSError]) -> None:
    """Mount in a mount namespace of the calling thread's own, and open the directory."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    place = PLACES[0].encode()
    try:
        check(libc.unshare(CLONE_NEWNS))
        check(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
        check(libc.mount(b"tracefs", place, b"tracefs", ctypes.c_ulong(0), None))
        answers.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        answers.append(error)
