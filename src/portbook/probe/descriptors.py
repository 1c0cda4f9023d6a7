"""How many sockets may be open at once, within the descriptor limit of the process (getrlimit(2))."""

from __future__ import annotations

import os
import sys

# Less than most descriptor limits allow. More SYNs at once are not faster where hosts answer (a thousand fill a round
# trip of 20 ms with 50,000 probes a second); where hosts do not, they overflow the connection tables of small routers,
# and open ports are missed. ``concurrency`` may be greater.
WINDOW = 1000
RESERVE = 32  # descriptors for the caller: its files, a resolver, modules that are imported meanwhile


def window_size(concurrency: int | None = None) -> int:
    """Return how many sockets may be open at once: at most RLIMIT_NOFILE less the open descriptors and a reserve.

    The soft limit is not raised to the hard one. It belongs to the caller's process: children inherit it, and select()
    in any of them fails on a descriptor above 1023 (select(2); systemd keeps the soft limit at 1024 for that reason).
    Most soft limits allow the whole window anyway.

    :param concurrency: the wanted number; None: WINDOW
    """
    wanted = WINDOW if concurrency is None else concurrency
    limit = _descriptor_limit()
    if limit is None:
        return wanted
    return window_within(wanted, limit, _descriptors_open())


def window_within(wanted: int, limit: int, used: int) -> int:
    """Return how many of the wanted sockets a limit allows when ``used`` descriptors are open; at least one."""
    reserve = min(RESERVE, limit // 4)
    return max(1, min(wanted, limit - used - reserve))


def _descriptor_limit() -> int | None:
    """Return the soft RLIMIT_NOFILE; None if there is none. On Windows sockets are handles, 16 million per process."""
    if sys.platform == "win32":
        return None
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

    soft = getrlimit(RLIMIT_NOFILE)[0]
    if soft == RLIM_INFINITY:
        return None
    return soft


def _descriptors_open() -> int:
    """Return how many descriptors this process has. Linux, macOS and the BSDs have /dev/fd."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return RESERVE
