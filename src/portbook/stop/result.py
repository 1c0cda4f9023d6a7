"""Who has a port after its holders were to end: they themselves, a exec_command of theirs, or somebody else. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from portbook.query import LISTENING
from portbook.records import Holder, Owner
from portbook.stop import handle
from portbook.stop.records import StopResult, StopTarget


class Conclusion(NamedTuple):
    """What a held port means."""

    result: StopResult
    restarted_by: Owner | None = None


def classify(found: Sequence[Holder], targets: Sequence[StopTarget], inodes: Collection[int]) -> Conclusion:
    """Tell the holders of now from those that were to end, whose sockets have ``inodes``."""
    if not any(s.state in LISTENING for h in found for s in h.sockets):
        return Conclusion("still-held")  # by connections of those that have ended or let go
    if any(has_inherited(h, inodes) or _is_one(h, targets) for h in found):
        return Conclusion("still-held")
    starters = [parent for h in found for parent in _starters(h, targets)]
    again = starters or any(_labels(h) & {label for t in targets for label in _labels(t.holder)} for h in found)
    return Conclusion("restarted", starters[0] if starters else None) if again else Conclusion("taken")


def has_inherited(holder: Holder, inodes: Collection[int]) -> bool:
    """Whether it has one of the very sockets that were to go, and so comes from the same tree of forks."""
    return any(s.inode in inodes for s in holder.sockets)


def _is_one(holder: Holder, targets: Sequence[StopTarget]) -> bool:
    before = {t.holder.owner.pid: t.holder.owner.started for t in targets}
    return handle.is_same(before.get(holder.owner.pid), holder.owner.started)


def _labels(holder: Holder) -> set[str]:
    """Service and container: a new process of the same one is a restart."""
    return {label for label in (holder.owner.service, holder.owner.container) if label}


def _starters(holder: Holder, targets: Sequence[StopTarget]) -> Iterator[Owner]:
    """Its parents that were parents of a target too, nearest first, without the first process."""
    before = {p.pid for t in targets for p in t.holder.parents} - {0, 1}
    return (p for p in holder.parents if p.pid in before)
