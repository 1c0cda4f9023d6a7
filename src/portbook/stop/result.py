"""Who holds a port after its holders were ended: the same processes, restarted ones, or others. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from portbook.query import LISTENING
from portbook.records import Holder, Owner
from portbook.stop import handle
from portbook.stop.records import StopResult, StopTarget


class Conclusion(NamedTuple):
    """The result for a port that is held, and the process that restarted its holder."""

    result: StopResult
    restarted_by: Owner | None = None


def classify(holders: Sequence[Holder], targets: Sequence[StopTarget], inodes: Collection[int]) -> Conclusion:
    """Compare the present holders with the targets, whose sockets had ``inodes``."""
    if not any(s.state in LISTENING for h in holders for s in h.sockets):
        return Conclusion("still-held")  # by connections of processes that have ended or closed their listener
    if any(has_inherited(h, inodes) or _is_target(h, targets) for h in holders):
        return Conclusion("still-held")
    for holder in holders:
        for parent in _common_parents(holder, targets):
            return Conclusion("restarted", parent)
    labels = {label for target in targets for label in _labels(target.holder)}
    if any(not labels.isdisjoint(_labels(h)) for h in holders):
        return Conclusion("restarted")
    return Conclusion("taken")


def has_inherited(holder: Holder, inodes: Collection[int]) -> bool:
    """Whether the holder has one of the sockets of the targets: inherited, or handed over (unix(7), SCM_RIGHTS)."""
    return any(s.inode in inodes for s in holder.sockets)


def is_heir(holder: Holder, targets: Sequence[StopTarget], made_at: datetime | None) -> bool:
    """Whether a holder of a target's socket may be ended as one of the targets, although it was not in the plan.

    Any process can hand its socket to any other that accepts descriptors, for example to a daemon of root. Only a
    process that a target has forked counts: a target is among its parents; or, as a forked process loses its parent
    with the end of that parent, it has the user of a target and started after the plan was made.
    """
    owner = holder.owner
    if any(is_same_process(parent, target.holder.owner) for parent in holder.parents for target in targets):
        return True
    if made_at is None or owner.started is None or owner.user is None:
        return False
    is_of_a_user = any(owner.user == target.holder.owner.user for target in targets)
    return is_of_a_user and owner.started > made_at - handle.SLACK


def is_same_process(one: Owner, other: Owner) -> bool:
    """Whether two records are of one process: the same pid, and the same start."""
    return one.pid == other.pid and handle.is_same(one.started, other.started)


def _is_target(holder: Holder, targets: Sequence[StopTarget]) -> bool:
    started = {t.holder.owner.pid: t.holder.owner.started for t in targets}
    return handle.is_same(started.get(holder.owner.pid), holder.owner.started)


def _labels(holder: Holder) -> set[str]:
    """Service and container: a new process with the same one is a restart."""
    return {label for label in (holder.owner.service, holder.owner.container) if label}


def _common_parents(holder: Holder, targets: Sequence[StopTarget]) -> Iterator[Owner]:
    """The parents that a target had too, nearest first, without the first process."""
    parents_of_targets = {parent.pid for target in targets for parent in target.holder.parents} - {0, 1}
    return (parent for parent in holder.parents if parent.pid in parents_of_targets)
