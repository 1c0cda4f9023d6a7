"""Writing a file that is there as a whole or not at all.

The new file is written under another name in the same directory, then renamed over the old one (rename(2)). It keeps
the permissions of the file that it replaces, and as root also its owner.

Where others may write, they can put a symbolic link, to have a file overwritten that only we may write (CWE-59). So the
directory is opened step by step from the root, no such link is followed, and the file is made and renamed relative to
the directory that was opened, whatever its path leads to by then.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from portbook.errors import StoreError

MOST_LINKS = 40  # that path resolution follows (path_resolution(7))
PERMISSIONS = 0o777  # kept of the old file: not the set-user-ID bits
GROUP_PERMISSIONS = 0o070
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# O_PATH needs no permission to list the directory (open(2)); macOS does not have it.
DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


class NewFile:
    """A file under a name of its own until it is complete; see ``new_file``."""

    def __init__(self, path: str, directory: int | None = None, mode: int | None = None) -> None:
        self._path = path
        self._own_directory: int | None = None
        self._directory, self._name = directory, path
        if directory is None and os.name == "nt":
            self._name = os.path.realpath(path)
        elif directory is None:
            self._own_directory, self._name = open_directory_of(path)
            self._directory = self._own_directory
        self._temporary = f"{self._name}.{os.urandom(6).hex()}.part"
        self._mode = mode
        self._replaces = directory is None
        self._file: BinaryIO | None = None

    def create(self) -> None:
        """Make the file, still under the other name; raise StoreError."""
        try:
            old = self._old_status() if self._replaces else None
            self._file = self._create(old, self._mode)
        except OSError as error:
            raise self._failure(error) from error

    def _old_status(self) -> os.stat_result | None:
        """The status of the file to replace; None if there is none."""
        try:
            status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{self._path!r} is not a file")
        return status

    def _create(self, old: os.stat_result | None, mode: int | None) -> BinaryIO:
        permissions = 0o600  # until the final ones are set
        if old is None and mode is None:
            permissions = 0o666  # the system applies the umask
        # O_EXCL: it follows no link and takes no file that another user has put there (open(2)).
        descriptor = os.open(self._temporary, NEW_FILE, permissions, dir_fd=self._directory)
        try:
            _set_permissions(descriptor, old, mode)
        except OSError:
            os.close(descriptor)
            os.unlink(self._temporary, dir_fd=self._directory)
            raise
        return os.fdopen(descriptor, "wb")

    def write(self, part: bytes) -> None:
        """Add to the file; raise StoreError."""
        try:
            self._open_file().write(part)
        except OSError as error:
            raise self._failure(error) from error

    def keep(self) -> None:
        """Put the file in its place; raise StoreError."""
        try:
            self._open_file().close()
            os.replace(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError as error:
            raise self._failure(error) from error

    def drop(self) -> None:
        """Remove the file, unless it was kept."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        with suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._directory)
        self._close_directory()

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise StoreError(f"{self._path!r} was not created")
        return self._file

    def _close_directory(self) -> None:
        if self._own_directory is not None:
            os.close(self._own_directory)
            self._own_directory = None

    def _failure(self, error: OSError) -> StoreError:
        return StoreError(f"{self._path!r} could not be written: {error.strerror or error}")


@contextmanager
def new_file(path: str, *, directory: int | None = None, mode: int | None = None) -> Iterator[NewFile]:
    """Replace a file when the block ends without an error; leave the old file as it is otherwise.

    :param directory: the descriptor of a directory that the caller has checked. ``path`` is then a name in it, and
        anything of that name is replaced, also a link. None: ``path`` is resolved, see the module
    :param mode: the permissions. None: those of the file that is replaced; of a new file those of the umask
    :raises StoreError: it cannot be written, or the path leads through a link that others may have made
    """
    file = NewFile(path, directory, mode)
    try:  # from here on, also the exception of a signal leaves no file
        file.create()
        yield file
        file.keep()
    finally:
        file.drop()


def _set_permissions(descriptor: int, old: os.stat_result | None, mode: int | None) -> None:
    if sys.platform == "win32":
        return  # the file has the access rights of its directory
    if mode is not None:
        os.fchmod(descriptor, mode)
    elif old is not None:
        os.fchmod(descriptor, _copy_owner(descriptor, old))


def _copy_owner(descriptor: int, old: os.stat_result) -> int:
    """Give the new file the group of the old one, and as root the owner; return the permissions that it may have.

    Where that is refused, the group has none: it would be another group.
    """
    permissions = stat.S_IMODE(old.st_mode) & PERMISSIONS
    owner = old.st_uid if os.geteuid() == 0 else -1
    try:
        os.fchown(descriptor, owner, old.st_gid)
    except OSError:
        return permissions & ~GROUP_PERMISSIONS
    return permissions


def open_directory_of(path: str, purpose: str = "written") -> tuple[int, str]:
    """POSIX: the directory of a file, as a descriptor that the caller closes, and the name of the file in it.

    :param purpose: what the file was to be, for the message: "written", "read"
    :raises StoreError: it does not exist, names no file, or leads through a link that others may have made
    """
    try:
        return _Walk(path).end()
    except OSError as error:
        raise StoreError(f"{path!r} could not be {purpose}: {error.strerror or error}") from error


class _Walk:
    """The steps of a path from the root, each relative to the directory that the one before has opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.links = 0
        self.names = deque(os.path.join(os.getcwd(), path).split("/"))
        self.directory = os.open("/", DIRECTORY)

    def end(self) -> tuple[int, str]:
        try:
            name = self._follow()
        except BaseException:
            os.close(self.directory)
            raise
        return self.directory, name

    def _follow(self) -> str:
        """Go to the last directory; return the name that is left."""
        while self.names:
            name = self.names.popleft()
            if name in ("", "."):
                continue
            if self._is_link(name):
                self._read_link(name)
            elif any(rest not in ("", ".") for rest in self.names) or name == "..":
                self._enter(name)
            else:
                return name
        raise StoreError(f"{self.path!r} is not a file")

    def _is_link(self, name: str) -> bool:
        try:
            return stat.S_ISLNK(os.stat(name, dir_fd=self.directory, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def _read_link(self, name: str) -> None:
        self.links += 1
        if self.links > MOST_LINKS:
            raise StoreError(f"{self.path!r} leads through more than {MOST_LINKS} links")
        if is_writable_by_others(os.fstat(self.directory)):
            raise StoreError(
                f"{self.path!r} leads through the link {name!r}, which another user may have made",
                "name the file that the link leads to",
            )
        target = os.readlink(name, dir_fd=self.directory)
        if target.startswith("/"):
            self._enter("/")
        self.names.extendleft(reversed(target.split("/")))

    def _enter(self, name: str) -> None:
        opened = os.open(name, DIRECTORY, dir_fd=self.directory)
        os.close(self.directory)
        self.directory = opened


def is_writable_by_others(directory: os.stat_result) -> bool:
    """Whether another user than root and ours can create files in the directory.

    Our own group counts as us: many systems give each user a group, and directories that it may write.
    """
    if directory.st_uid not in (0, os.geteuid()):
        return True
    if directory.st_mode & stat.S_IWOTH:
        return True
    return bool(directory.st_mode & stat.S_IWGRP) and directory.st_gid not in (0, os.getegid())
