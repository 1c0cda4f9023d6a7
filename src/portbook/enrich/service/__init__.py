"""Which service a process belongs to: a systemd unit, or on Windows a service of the service control manager."""

from __future__ import annotations

import sys

from msgspec.structs import replace

from portbook.managers.systemd import unit_of
from portbook.records import Gap, Owner


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Name the service of each owner that belongs to one; on macOS every owner stays as it is."""
    if sys.platform == "win32":
        from portbook.enrich.service import windows

        return windows.enrich(owners)
    return _by_cgroup(owners), []


def _by_cgroup(owners: list[Owner]) -> list[Owner]:
    """Linux: pure. Elsewhere no owner has a cgroup."""
    units: dict[str, str | None] = {}  # many owners have the same cgroup
    completed: list[Owner] = []
    for owner in owners:
        unit: str | None = None
        if owner.cgroup:
            if owner.cgroup not in units:
                units[owner.cgroup] = unit_of(owner.cgroup)
            unit = units[owner.cgroup]
        completed.append(replace(owner, service=unit) if unit else owner)
    return completed
