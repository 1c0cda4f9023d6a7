"""Programs of the system: found in directories that belong to root, run without a shell, within a time and a size.

``run`` returns what the program printed. ``start`` returns a ``Running``, for several programs at the same time.

One class for each platform behind them, with the same promises:

- stdin is empty, or what the caller gives; on Windows no console window opens;
- the time limit includes starting the program, reading its output and waiting for its end;
- a program that exceeds the time or the size is killed together with its descendants: the process group on POSIX, a
  job object on Windows;
- a descendant that keeps the pipes open does not delay the answer: after the program itself has ended, its output is
  read for ``DRAIN_S`` at most.

Errors are SourceErrors: SourceMissing (the program does not exist or does not start), SourceDenied (it may not be
run), SourceTimeout, SourceGarbled (its output is too large).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from portbook.errors import SourceDenied, SourceError, SourceMissing

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

# Not $PATH, which the caller controls. The last two belong to root on some systems only: see _is_trusted.
DIRECTORIES = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/opt/homebrew/bin")
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
ENVIRONMENT = {"LC_ALL": "C", "PATH": PATH}
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
MOST_BYTES = 1 << 20
CHUNK = 1 << 16
DRAIN_S = 0.2  # for output that is still in the pipes when the program has ended
KILL_WAIT_S = 1.0  # SIGKILL takes effect at once, except while the kernel waits for a disk or a network file system
MOST_STDERR = 200  # characters of an error message that are quoted


class Output(NamedTuple):
    """What a program printed, and how it ended."""

    name: str  # of the program, for messages
    code: int  # exit code; on POSIX the negative number of the signal that ended it
    stdout: bytes
    stderr: bytes

    def successful(self) -> bytes:
        """Standard output; raises SourceMissing if the exit code is not 0, with the first line of standard error."""
        if self.code == 0:
            return self.stdout
        message = f"{self.name} ended with exit code {self.code}"
        first_line = self.stderr.decode("utf-8", "replace").strip().partition("\n")[0].strip()
        if first_line:
            message += f": {first_line[:MOST_STDERR]}"
        raise SourceMissing(message)


class RunLimits(NamedTuple):
    """What a program may take and print."""

    limit_s: float
    most_bytes: int
    discards_excess: bool


class Running(Protocol):
    """A program that was started. As a context manager, it is killed at the end of the block if it still runs."""

    def output(self) -> Output:
        """Wait for the end of the program; raises SourceTimeout or SourceGarbled after killing it."""

    def kill(self) -> None:
        """Kill it together with its descendants; another thread may wait for its output."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def find(name: str) -> str | None:
    """The absolute path of a program of the system; for root only one that no other user can change."""
    for directory in directories():
        path = os.path.join(directory, name)
        if _is_trusted(path):
            return path
    return None


def require(name: str) -> str:
    """The same; raises SourceMissing if there is none."""
    path = find(name)
    if path is None:
        raise SourceMissing(f"{name} is not installed in {', '.join(directories())}")
    return path


def directories() -> tuple[str, ...]:
    """Where the programs of the system are; raises SourceMissing if Windows does not return its directory."""
    if sys.platform != "win32":
        return DIRECTORIES
    from portbook.system import console

    return (console.console().directory,)


def _is_trusted(path: str) -> bool:
    """Whether it is a program, and for root: whether the file and its directory are root's alone.

    Symbolic links are followed: in a directory that is root's alone, root made them.
    """
    try:
        file = os.stat(path)
        directory = os.stat(os.path.dirname(path))
    except OSError:
        return False
    if not stat.S_ISREG(file.st_mode) or not os.access(path, os.X_OK):
        return False
    if sys.platform == "win32" or os.geteuid() != 0:
        return True
    return _is_roots_alone(file) and _is_roots_alone(directory)


def _is_roots_alone(status: os.stat_result) -> bool:
    return status.st_uid == 0 and not status.st_mode & WRITABLE_BY_OTHERS


def run(
    command: Sequence[str],
    limit_s: float,
    *,
    environment: Mapping[str, str] | None = None,
    most_bytes: int = MOST_BYTES,
    name: str | None = None,
) -> Output:
    """Run a program to its end; see ``start`` for the arguments, and the module for what is promised.

    :raises SourceError: it could not be run, or was killed because it exceeded a limit
    """
    with start(command, limit_s, environment=environment, most_bytes=most_bytes, name=name) as running:
        return running.output()


def start(
    command: Sequence[str],
    limit_s: float,
    *,
    environment: Mapping[str, str] | None = None,
    most_bytes: int = MOST_BYTES,
    name: str | None = None,
    stdin: bytes = b"",
    discards_excess: bool = False,
) -> Running:
    """Start a program.

    :param command: the absolute path of the program (see ``require``) and its arguments
    :param limit_s: for everything, in seconds
    :param environment: None: the C locale and directories of the system alone; on Windows that of this process
    :param most_bytes: of standard output and standard error together
    :param name: of the program in messages; None: the last part of its path
    :param stdin: what it can read from standard input
    :param discards_excess: what it prints beyond ``most_bytes`` is read and dropped, instead of killing it
    :raises SourceMissing: it does not exist or cannot be started
    :raises SourceDenied: it may not be run
    """
    name = name or os.path.basename(command[0])
    limits = RunLimits(limit_s, most_bytes, discards_excess)
    try:
        if sys.platform == "win32":
            from portbook.system.program.windows import RunningInJob

            return RunningInJob(command, name, environment, limits, stdin)
        from portbook.system.program.posix import RunningInGroup

        return RunningInGroup(command, name, ENVIRONMENT if environment is None else environment, limits, stdin)
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        raise _start_error(name, error) from error


@contextmanager
def input_file(stdin: bytes) -> Iterator[int]:
    """A descriptor from which a program reads this, for ``Popen``. A file, unlike a pipe, is never waited for."""
    import subprocess

    if not stdin:
        yield subprocess.DEVNULL
        return
    from tempfile import TemporaryFile

    with open(os.memfd_create("stdin"), "w+b") if sys.platform == "linux" else TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        yield file.fileno()


def _start_error(name: str, error: OSError | ValueError) -> SourceError:
    reason = getattr(error, "strerror", None) or str(error)
    message = f"{name} cannot be run: {reason}"
    if isinstance(error, PermissionError):
        return SourceDenied(message)
    return SourceMissing(message)
