"""Who a process is: its name, executable, user, start, command line and parent.

Two functions, one module for each platform behind them:

``enrich(owners)``
    is an enricher (see ``portbook.enrich``): it completes each owner from its pid. What it may not read, or what the
    platform does not have, stays None. An owner whose process has ended is returned as it was.
``parents(pid)``
    returns the chain of processes above ``pid``, nearest first, as far as it is visible. It always ends, and it never
    contains a process that started after its supposed child: that one only has a pid that was in use before.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from portbook.records import Gap, Owner
from portbook.sources import PLATFORM

MODULES = {"linux": "linux", "windows": "windows"}  # any other: portable


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Complete the owners; see the module."""
    completed: tuple[list[Owner], list[Gap]] = _module().enrich(owners)
    return completed


def parents(pid: int) -> tuple[Owner, ...]:
    """The processes above ``pid``, nearest first; see the module."""
    chain: tuple[Owner, ...] = _module().parents(pid)
    return chain


def _module() -> Any:
    return import_module(f"{__name__}.{MODULES.get(PLATFORM, 'portable')}")
