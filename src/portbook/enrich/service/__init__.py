"""Which service a process belongs to: a systemd unit, or on Windows a service of the service control manager."""

from __future__ import annotations

import sys

from msgspec.structs import replace

from portbook.managers.systemd import unit_of
from portbook.records import Gap, Owner


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Name the service of each owner that has one; on macOS every owner stays as it is."""
    if sys.platform == "win32":
        from portbook.enrich.service import windows

        return windows.enrich(owners)
    return _by_cgroup(owners), []


def _by_cgroup(owners: list[Owner]) -> list[Owner]:
    """Linux: pure. Elsewhere no owner has a cgroup."""
    units = {cgroup: unit_of(cgroup) for cgroup in {owner.cgroup for owner in owners if owner.cgroup}}
    return [
        replace(owner, service=unit) if owner.cgroup and (unit := units[owner.cgroup]) else owner for owner in owners
    ]
