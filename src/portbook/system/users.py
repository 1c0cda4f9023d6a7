"""Names of Unix users, each looked up once: a directory server may have to answer (nsswitch.conf(5))."""

from __future__ import annotations

from functools import cache


@cache
def user_name(uid: int) -> str:
    """The name of a user; its uid as text if it has none."""
    try:
        import pwd
    except ImportError:  # Windows has no uids
        return str(uid)
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
