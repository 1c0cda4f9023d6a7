"""Names of Unix users, each asked for once: the answer may come from a directory server (nsswitch.conf(5))."""

from __future__ import annotations

from functools import cache


@cache
def user_name(uid: int) -> str:
    """The name of a user, or its number as text when it has none."""
    try:
        import pwd
    except ImportError:  # Windows has no uids
        return str(uid)
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
