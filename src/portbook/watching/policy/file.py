"""The file of a policy: where it is, and reading it without trusting others.

Who may write the policy decides what root calls allowed. So a policy belongs to root or to the user who reads it, and
nobody else may write it; it is a regular file of limited size, so that reading it ends.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from portbook.errors import PolicyError, StoreError
from portbook.numerals import UINT32, number_or_none
from portbook.watching.policy.records import Policy, Problem
from portbook.watching.policy.text import MOST_BYTES, parse

NAME = "policy.toml"
# What programs write in front of a text in another encoding: PowerShell 5 redirects output as UTF-16.
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def default_path() -> str:
    """Where the policy is if no other place is given: of the machine for root, of the user for others."""
    if sys.platform == "win32":
        return os.path.join(os.environ.get("PROGRAMDATA", r"C:\ProgramData"), "portbook", NAME)
    if os.geteuid() == 0:
        return f"/etc/portbook/{NAME}"
    home = os.environ.get("XDG_CONFIG_HOME", "")
    if not home.startswith("/"):  # relative paths are to be ignored (XDG Base Directory Specification)
        home = os.path.expanduser("~/.config")
    return os.path.join(home, "portbook", NAME)


def read(path: str | None = None) -> Policy:
    """Read a policy.

    :param path: None: the default place
    :raises StoreError: there is no such file, or it cannot be read
    :raises PolicyError: it is not valid, or others may write it
    """
    place = default_path() if path is None else path
    return parse(read_text(place), place)


def read_text(path: str) -> str:
    """The text of a policy; raises as ``read``."""
    return _decode(_read_bytes(path), path)


def _read_bytes(path: str) -> bytes:
    try:
        descriptor = os.open(path, OPEN)
    except OSError as error:
        raise _unreadable(path, error) from error
    with open(descriptor, "rb") as file:
        problem = _why_not_trusted(path, os.fstat(descriptor))
        if problem is not None:
            raise PolicyError([problem])
        try:
            data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
    if len(data) > MOST_BYTES:
        raise PolicyError([Problem(path, 0, f"it is longer than {MOST_BYTES >> 20} MiB", "write fewer rules")])
    return data


def _unreadable(path: str, error: OSError) -> StoreError:
    hints = {
        errno.ENOENT: f"make one: portbook policy init -o {path}",
        errno.EACCES: "read it as its owner, or give another file with --policy",
    }
    return StoreError(f"the policy {path!r} could not be read: {error.strerror or error}", hints.get(error.errno or 0))


def _why_not_trusted(path: str, status: os.stat_result) -> Problem | None:
    """What is wrong with the file itself."""
    if not stat.S_ISREG(status.st_mode):
        return Problem(path, 0, "it is not a regular file", "give a file with --policy")
    if sys.platform == "win32":
        return None  # the directory has the access rights
    if status.st_uid not in _trusted(os.geteuid(), "SUDO_UID"):
        hint = f"chown root {path}" if os.geteuid() == 0 else "copy it to a file of your own"
        return Problem(path, 0, f"it belongs to uid {status.st_uid}, who decides what is in it", hint)
    if status.st_mode & stat.S_IWOTH:
        return Problem(path, 0, "every user may write it", f"chmod o-w {path}")
    if status.st_mode & stat.S_IWGRP and status.st_gid not in _trusted(os.getegid(), "SUDO_GID"):
        return Problem(path, 0, f"the group {status.st_gid} may write it", f"chmod g-w {path}")
    return None


def _trusted(own: int, variable: str) -> set[int]:
    """Root, who reads it, and who became root for this command by sudo(8): as users or groups."""
    trusted = {0, own}
    caller = number_or_none(os.environ.get(variable, ""), UINT32)
    if os.geteuid() == 0 and caller is not None:
        trusted.add(caller)
    return trusted


def _decode(data: bytes, path: str) -> str:
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PolicyError([Problem(path, line, "it is not UTF-8", "save it in UTF-8")]) from error
