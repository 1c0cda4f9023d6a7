"""Linux: what a network namespace is called: its name in ``ip netns``, or the container whose processes are in it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress

from portbook.records import Owner, Socket
from portbook.system import namespaces


def names(sockets: Sequence[Socket], owners: Sequence[tuple[Owner, ...]]) -> dict[int | None, str]:
    """Names by inode of the namespaces in which these sockets are, given who holds each; what has none is left out."""
    seen = {s.netns for s in sockets} - {None}
    if not seen:
        return {}
    found: dict[int | None, str] = {netns: name for netns, name in namespaces.names().items() if netns in seen}
    unnamed = seen - found.keys() - _machines()
    if unnamed:
        found.update(_by_container(sockets, owners, unnamed))
    return found


def _by_container(
    sockets: Sequence[Socket], owners: Sequence[tuple[Owner, ...]], wanted: set[int | None]
) -> dict[int | None, str]:
    inside: dict[int | None, dict[int, tuple[Owner, ...]]] = defaultdict(dict)
    for s, group in zip(sockets, owners, strict=True):
        if s.netns in wanted:
            inside[s.netns][id(group)] = group  # by identity: to hash a record is to hash all its fields
    labels = {netns: _container(groups.values()) for netns, groups in inside.items()}
    return {netns: label for netns, label in labels.items() if label}


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
