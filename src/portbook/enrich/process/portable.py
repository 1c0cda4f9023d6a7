"""Any platform that psutil knows: macOS, and wherever there is no module of its own.

Every field is asked for by itself, because each may be refused by itself, and with plain OSError as well as with
psutil.Error: below psutil are system calls that it does not translate on every system.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec.structs import replace

from portbook.records import Gap, Owner

MOST_PARENTS = 64
T = TypeVar("T")


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Complete each owner from its pid. One that is gone is returned as it was, and counted."""
    completed = [_complete(owner) for owner in owners]
    gone = sum(owner is None for owner in completed)
    gaps = [Gap("process", gone, f"processes that ended before they could be named: {gone}")] if gone else []
    return [new or old for new, old in zip(completed, owners, strict=True)], gaps


def parents(pid: int) -> tuple[Owner, ...]:
    """The chain above ``pid``, nearest first."""
    chain: list[Owner] = []
    seen = {pid}
    child = _complete(Owner(pid))
    while child and child.ppid and child.ppid not in seen and len(chain) < MOST_PARENTS:
        seen.add(child.ppid)
        parent = _complete(Owner(child.ppid))
        if parent is None or (parent.started and child.started and parent.started > child.started):
            break
        chain.append(parent)
        child = parent
    return tuple(chain)


def _complete(owner: Owner) -> Owner | None:
    """The owner with all that psutil tells; None if there is no such process."""
    import psutil

    try:
        process = psutil.Process(owner.pid)
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError, ValueError, OverflowError):
        return owner
    created = _ask(process.create_time)
    command = _ask(process.cmdline)
    exe = _ask(process.exe) or None
    return replace(
        owner,
        name=_ask(process.name) or (_base(exe) if exe else owner.name),
        exe=exe,
        user=_ask(process.username),
        started=_moment(created) if created else None,
        command_line=tuple(command) if command is not None else None,
        ppid=_ask(process.ppid),
    )


def _ask(question: Callable[[], T]) -> T | None:
    import psutil

    with suppress(psutil.Error, OSError, ValueError, LookupError):
        return question()
    return None


def _base(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _moment(seconds: Any) -> datetime | None:
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(seconds, UTC)
    return None
