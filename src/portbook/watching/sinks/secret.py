"""Secrets: from a file that is ours alone, or from the environment; never from a command line, never in a message."""

from __future__ import annotations

import os
import stat
import sys

from portbook.errors import StoreError, UsageError
from portbook.system.files import open_directory_of
from portbook.watching.sinks.base import SinkOption, SinkSettings

MOST_BYTES = 4096
FOR_OTHERS = 0o077


class Secret:
    """A secret. Neither its text nor its length appears where it is printed."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


def options(name: str, meaning: str, variable: str | None = None) -> dict[str, SinkOption]:
    """The two options that name a secret: NAME_file and NAME_env."""
    return {
        f"{name}_file": SinkOption("text", None, f"file with {meaning}; it must be yours, and for nobody else (0600)"),
        f"{name}_env": SinkOption("text", variable, f"environment variable with {meaning}"),
    }


def read(settings: SinkSettings, name: str) -> Secret | None:
    """The secret that the options NAME_file or NAME_env name; None: neither is there.

    :raises UsageError: the variable that was named is not set, or both are given
    :raises StoreError: the file cannot be read, or others may read or replace it
    """
    path, variable = settings.text(f"{name}_file"), settings.text(f"{name}_env")
    if path is not None:
        return _checked(read_file(path), repr(path))
    if variable is None:
        return None
    value = os.environ.get(variable)
    if value is None:
        if f"{name}_env" in settings.given:
            raise UsageError(f"{settings.place}: the environment has no {variable}", "set it, or name a file")
        return None
    return _checked(os.fsencode(value), f"the environment variable {variable}")


def read_file(path: str) -> bytes:
    """The content of a file that belongs to us or to root and that nobody else may read; raise StoreError."""
    if sys.platform == "win32":  # access rights are lists there; the directory of a user is the user's
        return _read(os.open(path, os.O_RDONLY | os.O_BINARY), path)
    directory, name = open_directory_of(path, "read")
    try:
        if os.path.islink(path):
            raise StoreError(f"{path!r} is a link", "name the file that it leads to")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return _read(os.open(name, flags, dir_fd=directory), path)
    except OSError as error:
        raise StoreError(f"{path!r} could not be read: {error.strerror or error}") from error
    finally:
        os.close(directory)


def _read(file: int, path: str) -> bytes:
    try:
        _check(os.fstat(file), path)
        return os.read(file, MOST_BYTES + 1)
    finally:
        os.close(file)


def _check(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path!r} is not a file")
    if sys.platform == "win32":
        return
    if status.st_uid not in (0, os.geteuid()):
        raise StoreError(
            f"the secret {path!r} belongs to another user (uid {status.st_uid})", f"chown {os.geteuid()} {path}"
        )
    if status.st_mode & FOR_OTHERS:
        raise StoreError(f"others may read the secret {path!r}", f"chmod 600 {path}")


def _checked(value: bytes, source: str) -> Secret:
    if len(value) > MOST_BYTES:
        raise StoreError(f"the secret in {source} is longer than {MOST_BYTES:,} bytes")
    value = value.rstrip(b"\r\n")
    if not value:
        raise StoreError(f"the secret in {source} is empty")
    return Secret(value)
