"""Writing a file that is there as a whole or not at all."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from portbook.errors import StoreError

MOST_LINKS = 40  # that path resolution follows (path_resolution(7))


class NewFile:
    """A file under a name of its own until it is complete."""

    def __init__(self, path: str) -> None:
        self._shown = path
        self._path = real_path(path)
        self._temporary = f"{self._path}.{os.getpid()}.part"
        if os.path.lexists(self._path) and not os.path.isfile(self._path):
            raise StoreError(f"{path!r} is not a file")
        try:
            # O_EXCL follows no link and takes no file that somebody else has put there (open(2)).
            descriptor = os.open(
                self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
            )
        except OSError as error:
            raise self._failure(error) from error
        self._file = os.fdopen(descriptor, "wb")

    def write(self, part: bytes) -> None:
        """Add to the file; raise StoreError."""
        try:
            self._file.write(part)
        except OSError as error:
            raise self._failure(error) from error

    def keep(self) -> None:
        """Put the file in its place, in one step (rename(2)); raise StoreError."""
        try:
            self._file.close()
            os.replace(self._temporary, self._path)
        except OSError as error:
            raise self._failure(error) from error

    def drop(self) -> None:
        """Forget the file, unless it was kept."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            os.unlink(self._temporary)

    def _failure(self, error: OSError) -> StoreError:
        return StoreError(f"{self._shown!r} could not be written: {error.strerror or error}")


@contextmanager
def new_file(path: str) -> Iterator[NewFile]:
    """A file that replaces ``path`` when all went well; raise StoreError."""
    file = NewFile(path)
    try:
        yield file
        file.keep()
    finally:
        file.drop()


def real_path(path: str) -> str:
    """Where a path leads; raise StoreError at a link in a directory that everybody can write.

    Anybody could have put it there, to have a file overwritten that only we may write (CWE-59).
    """
    if os.name == "nt":
        return os.path.realpath(path)
    done, links = "/", 0
    parts = deque(os.path.join(os.getcwd(), path).split("/"))
    while parts:
        part = parts.popleft()
        if part in ("", "."):
            continue
        step = os.path.dirname(done) if part == ".." else os.path.join(done, part)
        if not os.path.islink(step):
            done = step
            continue
        links += 1
        if links > MOST_LINKS or os.stat(done).st_mode & stat.S_IWOTH:
            raise StoreError(
                f"{path!r} leads through the link {step!r}, which anybody could have made", "name the file"
            )
        target = os.readlink(step)
        done = "/" if target.startswith("/") else done
        parts.extendleft(reversed(target.split("/")))
    return done
