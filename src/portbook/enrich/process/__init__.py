"""Who a process is: its name, executable, user, start, command line and parent.

Functions with one module for each platform behind them:

``enrich(owners)``
    is an enricher (see ``portbook.enrich``): it completes each owner from its pid. What it may not read, or what the
    platform does not have, stays None. An owner whose process has ended is returned as it was.
``parents(pid, known)``
    returns the chain of processes above ``pid``, nearest first, as far as it is visible. It always ends, and it never
    contains a process that started after its supposed child: that one only has a pid that was in use before.
    ``known`` has what was read before, by pid, and takes what is read now: workers share their parents.
``add_origin(owner, known)``
    adds what is read for few processes, and on request: directory, project, terminal, tracer. ``known`` takes what
    several processes share, and is only useful to the same function.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from msgspec.structs import replace

from portbook.records import Gap, Owner
from portbook.sources import PLATFORM

MODULES = {"linux": "linux", "windows": "windows"}  # any other: portable


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Complete the owners; see the module."""
    completed: tuple[list[Owner], list[Gap]] = _module().enrich(owners)
    return completed


def parents(pid: int, known: dict[int, Owner] | None = None) -> tuple[Owner, ...]:
    """The processes above ``pid``, nearest first; see the module."""
    chain: tuple[Owner, ...] = _module().parents(pid, known)
    return chain


def add_origin(owner: Owner, known: dict[int, Any] | None = None) -> Owner:
    """The owner with what is read on request; see the module."""
    with_origin: Owner = _module().add_origin(add_script(owner), known)
    return with_origin


def add_script(owner: Owner) -> Owner:
    """The owner with what it runs, if it is an interpreter."""
    from portbook.enrich.process.script import find_script

    script = find_script(owner.command_line, owner.exe)
    if script is None:
        return owner
    return replace(owner, script=script)


def _module() -> Any:
    return import_module(f"{__name__}.{MODULES.get(PLATFORM, 'portable')}")
