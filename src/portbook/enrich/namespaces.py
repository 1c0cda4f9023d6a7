"""Linux: what a network namespace is called: its name in ``ip netns``, or the container whose processes are in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from portbook.records import Owner
from portbook.sources import namespaces


def names(seen: Iterable[tuple[int | None, tuple[Owner, ...]]]) -> dict[int | None, str]:
    """Names by inode, given who holds sockets where; what has no name is left out."""
    inside: dict[int, set[tuple[Owner, ...]]] = {}
    for netns, group in distinct(seen):
        inside.setdefault(netns, set()).add(group)
    if not inside:
        return {}
    found: dict[int | None, str] = {}
    given, machine = namespaces.names(), _machines()
    for netns, groups in inside.items():
        name = given.get(netns) or (None if netns in machine else _container(groups))
        if name:
            found[netns] = name
    return found


def distinct(seen: Iterable[tuple[int | None, tuple[Owner, ...]]]) -> Iterable[tuple[int, tuple[Owner, ...]]]:
    """Each pair once: groups are shared, so that identity will do, and to hash a record is to hash all its fields."""
    return {(netns, id(group)): (netns, group) for netns, group in seen if netns is not None}.values()


def _machines() -> set[int | None]:
    """Namespaces that are no container's, though one may use them (``--network host``): ours, and init's."""
    found = {namespaces.own()}
    with suppress(OSError):  # it is not ours to see: then others are not seen either
        found.add(os.stat("/proc/1/ns/net").st_ino)
    return found


def _container(groups: Iterable[tuple[Owner, ...]]) -> str | None:
    """The container of the process that is there longest: with several in one pod, the one that made the namespace."""
    owners = sorted({o for group in groups for o in group}, key=lambda o: o.pid)
    return next((o.container for o in owners if o.container), None)
