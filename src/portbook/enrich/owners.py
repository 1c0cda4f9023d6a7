"""From bare sockets to sockets with owners: descriptors where the source names no pid, then every enricher."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from msgspec.structs import replace

from portbook.enrich import enrichers, namespaces
from portbook.enrich.names import service_name
from portbook.numerals import counted
from portbook.records import FoundBy, Gap, Owner, Socket
from portbook.system.users import user_name

if TYPE_CHECKING:
    from portbook.enrich.descriptors import Search

PidRanges = tuple[tuple[int, int], ...]
Group = tuple[Owner, ...]

# States that nobody owns by nature: the process has closed the socket, or cannot have accepted it yet.
UNOWNED = frozenset(("TIME_WAIT", "SYN_RECV"))
# A process that started this long after a socket was seen in its hands is another one with the same pid.
CLOCK_SLACK = timedelta(milliseconds=50)


def search_ahead() -> Search:
    """Begin to look for holders before the sockets are known: a second reader works while the tables are read.

    For queries that select much, and sources that cannot name owners (Linux).
    """
    from portbook.enrich.descriptors import Search

    return Search()


def complete(
    sockets: list[Socket], pids: PidRanges | None = None, search: Search | None = None, all_known: bool = False
) -> tuple[list[Socket], list[Gap]]:
    """Give every socket its owners. With ``pids``, only sockets that such a process holds are kept.

    ``all_known``: the source has named every holder already, so that no descriptor need be read.
    """
    refused: list[Gap] = []
    if pids is not None:
        sockets, refused = held_by(sockets, pids, all_known)
    held, gaps = ({}, _not_held(sockets)) if all_known else _descriptors(sockets, search)
    seen_at = datetime.now(UTC)
    bare = [held.get(s.inode or 0) or s.owners for s in sockets] if held else [s.owners for s in sockets]
    distinct = {id(group): group for group in bare}  # by identity: to hash a record is to hash all its fields
    completed, more = _enrich(sorted({o for group in distinct.values() for o in group}, key=lambda o: o.pid))
    groups = {key: tuple(completed[o] for o in group) for key, group in distinct.items()}
    places = namespaces.names(sockets, [groups[id(group)] for group in bare])
    owned = [
        replace(
            s,
            owners=groups[id(group)],
            service_name=service_name(s.local_port, s.protocol),
            user=None if s.uid is None or s.inode == 0 else user_name(s.uid),
            netns_name=places.get(s.netns),
        )
        for s, group in zip(sockets, bare, strict=True)
    ]
    reused = _drop_reused(owned, completed.values(), seen_at)
    bereft = [s for s in owned if not s.owners]
    owned, unasked = _named_by_creator(owned, bereft)
    return owned, list(dict.fromkeys((*refused, *gaps, *more, *reused, *unasked, *_unnamed(bereft))))


def held_by(sockets: list[Socket], pids: PidRanges, all_known: bool = False) -> tuple[list[Socket], list[Gap]]:
    """The sockets that any of these processes holds; other processes are not looked at."""
    inodes = set() if all_known else _by_inode(sockets)
    if not inodes:
        return [s for s in sockets if any(_within(o.pid, pids) for o in s.owners)], []
    from portbook.enrich.descriptors import holders, process_ids

    held = holders(inodes, [pid for pid in process_ids() if _within(pid, pids)])
    gaps = []
    if held.denied:
        processes = "the process" if held.denied == 1 else f"{held.denied} of the processes"
        why = f"the descriptors of {processes} asked for are not visible to uid {os.geteuid()}"
        gaps.append(Gap("owner", None, why, _remedy()))
    return [s for s in sockets if s.inode in held.by_inode], gaps


def _within(pid: int, ranges: PidRanges) -> bool:
    return any(first <= pid <= last for first, last in ranges)


def _enrich(owners: list[Owner]) -> tuple[dict[Owner, Owner], list[Gap]]:
    completed = owners
    gaps: list[Gap] = []
    for enricher in enrichers():
        completed, more = enricher(completed)
        gaps += more
    return dict(zip(owners, completed, strict=True)), gaps


# --- descriptors ---------------------------------------------------------------------------------------------------


def _by_inode(sockets: Iterable[Socket]) -> set[int]:
    """The inodes of sockets that the source knows no pid for."""
    return {s.inode for s in sockets if s.inode and not s.owners}


def _descriptors(sockets: list[Socket], search: Search | None) -> tuple[dict[int, Group], list[Gap]]:
    inodes = _by_inode(sockets)
    if not inodes:
        return {}, []
    from portbook.enrich.descriptors import holders

    found = holders(inodes) if search is None else search.finish(inodes)
    groups = _Groups()
    held = {i: groups[pids, "task-fd" if i in found.by_thread else "fd"] for i, pids in found.by_inode.items()}
    return held, list(_invisible(len(inodes) - len(held), found.denied > 0, found.hidden))


def _not_held(sockets: list[Socket]) -> list[Gap]:
    """What has an inode, and nobody has it."""
    return list(_invisible(len(_by_inode(sockets)), denied=False, hidden=False))


class _Groups(dict[tuple[tuple[int, ...], FoundBy], Group]):
    """Owners of the same pids, made once: a process may hold a hundred thousand sockets."""

    def __missing__(self, key: tuple[tuple[int, ...], FoundBy]) -> Group:
        pids, how = key
        self[key] = tuple(Owner(pid, how=how) for pid in pids)
        return self[key]


def _invisible(count: int, denied: bool, hidden: bool) -> Iterator[Gap]:
    if not count:
        return
    sockets = counted(count, "socket")
    if denied or hidden:
        reason = " (/proc is mounted with hidepid)" if hidden else ""
        yield Gap("owner", count, f"owners of {sockets} are not visible to uid {os.geteuid()}{reason}", _remedy())
    else:
        whose = "the kernel's own, in flight between processes, or another pid namespace's"
        why = f"no process of this pid namespace has a descriptor of {sockets}: {whose}"
        yield Gap("owner", count, why, "look from the host, if this is a container")


def _remedy() -> str:
    """What lets /proc/PID/fd be read: ptrace(2), access mode PTRACE_MODE_READ_FSCREDS."""
    if os.geteuid() != 0:
        return "run with sudo"
    return "their processes have capabilities that this root lacks: run with CAP_SYS_PTRACE, outside the container"


def _unnamed(bereft: list[Socket]) -> Iterator[Gap]:
    """Sockets for which a source that knows pids gave none."""
    count = sum(s.inode is None and s.state not in UNOWNED for s in bereft)
    if count:
        yield Gap("owner", count, f"the system names no process for {count} of the sockets", "run with more privilege")


# --- corrections ---------------------------------------------------------------------------------------------------


def _drop_reused(sockets: list[Socket], owners: Iterable[Owner], seen_at: datetime) -> list[Gap]:
    """Drop owners that started after their socket was made or seen: the pid went to another process meanwhile."""

    def late(socket: Socket, owner: Owner) -> bool:
        return owner.started is not None and owner.started > (socket.created or seen_at) + CLOCK_SLACK

    newest = max((o.started for o in owners if o.started), default=seen_at)
    if newest <= seen_at and not any(s.created for s in sockets):
        return []
    wrong = [i for i, s in enumerate(sockets) if s.owners and any(late(s, o) for o in s.owners)]
    for i in wrong:
        s = sockets[i]
        sockets[i] = replace(s, owners=tuple(o for o in s.owners if not late(s, o)))
    if not wrong:
        return []
    why = f"the pid that held {counted(len(wrong), 'socket')} belongs to a process that started later"
    return [Gap("owner", len(wrong), why, "the owner has ended; whoever inherited the socket is not known")]


def _named_by_creator(sockets: list[Socket], bereft: list[Socket]) -> tuple[list[Socket], list[Gap]]:
    """Where no owner is visible, the cgroup of the socket's creator still names its service and container."""
    ids = {s.cgroup_id for s in bereft if s.cgroup_id}
    if not ids:
        return sockets, []
    from portbook.enrich import cgroup
    from portbook.managers import container
    from portbook.managers.systemd import unit_of

    paths = cgroup.paths_by_id(ids)
    labels, gaps = container.labels(paths.values())
    named = [
        s
        if s.owners or s.cgroup_id not in paths
        else replace(s, service=unit_of(paths[s.cgroup_id]), container=labels.get(paths[s.cgroup_id]))
        for s in sockets
    ]
    return named, gaps
