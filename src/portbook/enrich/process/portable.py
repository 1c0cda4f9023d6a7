"""Any platform that psutil supports and that has no module of its own here: macOS, for example.

Every field is read by itself, because each may be refused by itself, with plain OSError as well as with psutil.Error:
psutil does not translate the errors of all system calls on every system.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec.structs import replace

from portbook.numerals import counted
from portbook.records import Gap, Owner

MOST_PARENTS = 64
Value = TypeVar("Value")


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Complete each owner from its pid. An owner whose process has ended is returned as it was, and counted."""
    completed = [_complete(owner) for owner in owners]
    gaps: list[Gap] = []
    ended = completed.count(None)
    if ended:
        gaps.append(
            Gap("process", ended, f"{counted(ended, 'process', 'processes')} ended before the name could be read")
        )
    return [new or old for new, old in zip(completed, owners, strict=True)], gaps


def parents(pid: int, known: dict[int, Owner] | None = None) -> tuple[Owner, ...]:
    """The chain above ``pid``, nearest first."""
    known = {} if known is None else known
    chain: list[Owner] = []
    seen = {pid}
    child = _known_or_read(pid, known)
    while child and child.ppid and child.ppid not in seen and len(chain) < MOST_PARENTS:
        seen.add(child.ppid)
        parent = _known_or_read(child.ppid, known)
        if parent is None or _started_later(parent, child):
            break
        chain.append(parent)
        child = parent
    return tuple(chain)


def _known_or_read(pid: int, known: dict[int, Owner]) -> Owner | None:
    if pid in known:
        return known[pid]
    owner = _complete(Owner(pid))
    if owner is not None:
        known[pid] = owner
    return owner


def add_origin(owner: Owner, _: object = None) -> Owner:
    """Add the working directory."""
    import psutil

    try:
        process = psutil.Process(owner.pid)
    except (psutil.Error, OSError, ValueError, OverflowError):
        return owner
    return replace(owner, directory=_read(process.cwd) or None)


def _started_later(parent: Owner, child: Owner) -> bool:
    """Whether the supposed parent only has a pid that was in use before."""
    if parent.started is None or child.started is None:
        return False
    return parent.started > child.started


def _complete(owner: Owner) -> Owner | None:
    """The owner with everything that psutil returns; None if there is no such process."""
    import psutil

    try:
        process = _process_class()(owner.pid)
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError, ValueError, OverflowError):
        return owner
    exe = _read(process.exe) or None
    name = _read(process.name)
    if not name and exe:
        name = _base_name(exe)
    command_line = _read(process.cmdline)
    return replace(
        owner,
        name=name or owner.name,
        exe=exe,
        user=_read(process.username),
        started=_started(process.create_time),
        command_line=None if command_line is None else tuple(command_line),
        ppid=_read(process.ppid),
    )


def _process_class() -> Any:
    """The class of psutil, whose constructor also reads the start time, and fails if that is refused with an OSError.

    It goes on when that is refused with AccessDenied, in all versions that we allow (6.1 to 7.2): then the other fields
    can be read. Before it returns a parent it compares start times, to notice a pid that was reused.
    """
    import psutil

    class Process(psutil.Process):
        def _get_ident(self) -> Any:
            try:
                return super()._get_ident()  # type: ignore[misc]
            except OSError as error:
                raise psutil.AccessDenied(self.pid) from error

        def is_running(self) -> bool:
            try:
                return super().is_running()
            except OSError:
                return True

    return Process


def _read(field: Callable[[], Value]) -> Value | None:
    """One field; None if it is refused."""
    import psutil

    with suppress(psutil.Error, OSError, ValueError, LookupError):
        return field()
    return None


def _base_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _started(create_time: Callable[[], float]) -> datetime | None:
    seconds = _read(create_time)
    if not seconds:
        return None
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(seconds, UTC)
    return None
