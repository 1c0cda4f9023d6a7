"""How many sockets may be open at once: what is wanted, within what is left of the descriptor limit (getrlimit(2))."""

from __future__ import annotations

import os
import sys

# A window of our own below what most descriptor limits allow. More SYNs at once are not faster where hosts answer (a
# thousand fill a round trip of 20 ms with 50,000 probes a second) and overrun small routers and their tables of
# connections where not: then open ports are missed. ``concurrency`` goes beyond it.
WINDOW = 1000
RESERVE = 32  # descriptors left to the caller: its files, a resolver, modules that are imported meanwhile
LEAST = 1


def window_size(concurrency: int | None = None) -> int:
    """How many sockets may be open at once: never more than RLIMIT_NOFILE allows, less what is open and a reserve.

    The soft limit is taken as it is and not raised to the hard one. It belongs to the process, which is the caller's:
    children inherit it, and select() in any of them breaks on a descriptor above 1023 (select(2); systemd leaves
    the soft limit at 1024 for that reason). Most soft limits hold the whole window anyway.
    """
    wanted = WINDOW if concurrency is None else concurrency
    limit = _descriptor_limit()
    return wanted if limit is None else within(wanted, limit, _descriptors_open())


def within(wanted: int, limit: int, used: int) -> int:
    """So many of the wanted sockets fit under a limit when so many descriptors are used."""
    return max(LEAST, min(wanted, limit - used - min(RESERVE, limit // 4)))


def _descriptor_limit() -> int | None:
    """RLIMIT_NOFILE; None where there is none: sockets of Windows are handles, 16 million to a process."""
    if sys.platform == "win32":
        return None
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

    soft = getrlimit(RLIMIT_NOFILE)[0]
    return None if soft == RLIM_INFINITY else soft


def _descriptors_open() -> int:
    """How many descriptors this process has; /dev/fd is on Linux, macOS and the BSDs."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return RESERVE
