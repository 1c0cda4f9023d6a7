"""Linux: the name of a network namespace: that of ``ip netns``, or the container whose processes are in it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import attrgetter

from portbook.records import Owner, Socket
from portbook.system import namespaces


def names(
    sockets: Sequence[Socket], owners: Sequence[tuple[Owner, ...]], unowned: Sequence[Socket] = ()
) -> dict[int | None, str]:
    """The names of the network namespaces of these sockets, by inode, without those that have no name.

    :param owners: of each socket, in the same order
    :param unowned: more sockets, which have no owners
    """
    netns_of = attrgetter("netns")
    present = {*map(netns_of, sockets), *map(netns_of, unowned)} - {None}
    if not present:
        return {}
    found: dict[int | None, str] = {netns: name for netns, name in namespaces.names().items() if netns in present}
    unnamed = present - found.keys() - _machines()
    if unnamed:
        found.update(_by_container(sockets, owners, unnamed))
    return found


def _by_container(
    sockets: Sequence[Socket], owners: Sequence[tuple[Owner, ...]], wanted: set[int | None]
) -> dict[int | None, str]:
    groups_by_netns: dict[int | None, dict[int, tuple[Owner, ...]]] = defaultdict(dict)
    for s, group in zip(sockets, owners, strict=True):
        if s.netns in wanted:
            groups_by_netns[s.netns][id(group)] = group  # by identity: to hash a record is to hash all its fields
    labels = {netns: _container(groups.values()) for netns, groups in groups_by_netns.items()}
    return {netns: label for netns, label in labels.items() if label}


def _machines() -> set[int | None]:
    """Our namespace and that of init: no container's, even if a container uses one of them (``--network host``)."""
    machines = {namespaces.own()}
    with suppress(OSError):  # without the privilege to see it, we see no other namespaces either
        machines.add(os.stat("/proc/1/ns/net").st_ino)
    return machines


def _container(groups: Iterable[tuple[Owner, ...]]) -> str | None:
    """The container of the oldest process. Of several containers in a pod that is the one that made the namespace."""
    owners = sorted({o for group in groups for o in group}, key=lambda o: o.pid)
    return next((o.container for o in owners if o.container), None)
