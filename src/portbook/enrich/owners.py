"""Sockets with their owners: descriptors where the source names no pid, then every enricher."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from msgspec.structs import replace

from portbook.enrich import enrichers, namespaces
from portbook.names import service_names
from portbook.numerals import counted
from portbook.records import FoundBy, Gap, Owner, Socket
from portbook.system.users import user_name

if TYPE_CHECKING:
    from portbook.enrich.descriptors import Search

PidRanges = tuple[tuple[int, int], ...]
_Group = tuple[Owner, ...]  # the owners of one socket

# States that have no owner by nature: the process has closed the socket, or cannot have accepted it yet.
UNOWNED = frozenset(("TIME_WAIT", "SYN_RECV"))
# A process that started this long after a socket was seen with its pid is another process with the same pid.
CLOCK_SLACK = timedelta(milliseconds=50)


def search_ahead() -> Search:
    """Begin to look for owners before the sockets are known: a second reader works while the tables are read.

    For queries that select much, and sources that do not report owners (Linux).
    """
    from portbook.enrich.descriptors import Search

    return Search()


def complete(
    sockets: list[Socket], pids: PidRanges | None = None, search: Search | None = None, all_known: bool = False
) -> tuple[list[Socket], list[Gap]]:
    """Give every socket its owners, the names of its port, user and namespace, and report what could not be known.

    :param pids: keep only the sockets that one of these processes has
    :param search: a search for owners that was begun earlier
    :param all_known: the source has reported every owner, so that no descriptor needs to be read
    """
    gaps: list[Gap] = []
    if pids is not None:
        sockets, pid_gaps = owned_by(sockets, pids, all_known)
        gaps += pid_gaps

    groups, group_gaps = _groups(sockets, search, all_known)
    seen_at = datetime.now(UTC)
    groups, owners, owner_gaps = _complete_groups(groups)
    completed = _complete_sockets(sockets, groups)

    gaps += group_gaps
    gaps += owner_gaps
    gaps += _drop_reused(completed, owners, seen_at)
    unowned = [s for s in completed if not s.owners]
    completed, creator_gaps = _name_by_creator(completed, unowned)
    gaps += creator_gaps
    gaps += _without_pid(unowned)
    return completed, list(dict.fromkeys(gaps))


def owned_by(sockets: list[Socket], pids: PidRanges, all_known: bool = False) -> tuple[list[Socket], list[Gap]]:
    """The sockets that any of these processes has; the descriptors of other processes are not read."""
    inodes = set() if all_known else _inodes_without_owner(sockets)
    if not inodes:
        return [s for s in sockets if any(_within(owner.pid, pids) for owner in s.owners)], []
    from portbook.enrich.descriptors import find_owners, process_ids

    found = find_owners(inodes, [pid for pid in process_ids() if _within(pid, pids)])
    gaps = []
    if found.denied:
        processes = "the process" if found.denied == 1 else counted(found.denied, "process", "processes")
        why = f"the descriptors of {processes} in question are not visible to uid {os.geteuid()}"
        gaps.append(Gap("owner", None, why, _remedy()))
    return [s for s in sockets if s.inode in found.pids_by_inode], gaps


def _within(pid: int, ranges: PidRanges) -> bool:
    return any(first <= pid <= last for first, last in ranges)


def with_origins(sockets: Iterable[Socket]) -> list[Socket]:
    """The sockets, whose owners have what is read on request only: script, directory, project, terminal, tracer."""
    from portbook.enrich import process

    detailed: dict[int, Owner] = {}  # by pid
    groups: dict[int, _Group] = {}  # by identity
    completed: list[Socket] = []
    for s in sockets:
        key = id(s.owners)
        if key not in groups:
            for owner in s.owners:
                if owner.pid not in detailed:
                    detailed[owner.pid] = process.add_origin(owner)
            groups[key] = tuple(detailed[owner.pid] for owner in s.owners)
        completed.append(replace(s, owners=groups[key]))
    return completed


# --- steps ---------------------------------------------------------------------------------------------------------
# There may be a hundred thousand sockets, and mostly few processes that own them: the owners of one process's sockets
# are one object, looked up by identity (to hash a record is to hash all its fields).


def _groups(sockets: list[Socket], search: Search | None, all_known: bool) -> tuple[list[_Group], list[Gap]]:
    """The owners of every socket, with no more than their pids."""
    inodes = _inodes_without_owner(sockets)
    if all_known or not inodes:
        return [s.owners for s in sockets], list(_invisible(len(inodes), denied=False, hidden=False))
    from portbook.enrich.descriptors import find_owners

    found = find_owners(inodes) if search is None else search.finish(inodes)
    made = _Groups()
    by_inode: dict[int | None, _Group] = {}
    for inode, pids in found.pids_by_inode.items():
        by_inode[inode] = made[pids, "task-fd" if inode in found.by_thread else "fd"]
    groups = [by_inode.get(s.inode) or s.owners for s in sockets]
    return groups, list(_invisible(len(inodes) - len(by_inode), found.denied > 0, found.hidden))


class _Groups(dict[tuple[tuple[int, ...], FoundBy], _Group]):
    """Owners of the same pids, made once."""

    def __missing__(self, key: tuple[tuple[int, ...], FoundBy]) -> _Group:
        pids, how = key
        self[key] = tuple(Owner(pid, how=how) for pid in pids)
        return self[key]


def _complete_groups(groups: list[_Group]) -> tuple[list[_Group], Iterable[Owner], list[Gap]]:
    """The same groups with completed owners; all the completed owners."""
    distinct = {id(group): group for group in groups}
    owners = sorted({owner for group in distinct.values() for owner in group}, key=lambda owner: owner.pid)
    completed = owners
    gaps: list[Gap] = []
    for enricher in enrichers():
        completed, enricher_gaps = enricher(completed)
        gaps += enricher_gaps
    by_owner = dict(zip(owners, completed, strict=True))
    by_group = {key: tuple(by_owner[owner] for owner in group) for key, group in distinct.items()}
    return [by_group[id(group)] for group in groups], completed, gaps


def _complete_sockets(sockets: list[Socket], groups: list[_Group]) -> list[Socket]:
    """The sockets with their owners, and with the names of port, user and network namespace.

    One for which nothing is known, as thousands in TIME_WAIT on ephemeral ports, stays as it is.
    """
    name_of = service_names().get
    netns_names = namespaces.names(sockets, groups)
    completed: list[Socket] = []
    for s, group in zip(sockets, groups, strict=True):
        name = name_of((s.local_port, s.protocol))
        user = None
        if s.uid is not None and s.inode != 0:  # of a socket without a descriptor the kernel does not keep the user
            user = user_name(s.uid)
        if netns_names:
            s = replace(s, netns_name=netns_names.get(s.netns))  # noqa: PLW2901
        if name or user or group:
            s = replace(s, owners=group, service_name=name, user=user)  # noqa: PLW2901
        completed.append(s)
    return completed


def _inodes_without_owner(sockets: Iterable[Socket]) -> set[int]:
    """The inodes of sockets for which the source reports no pid."""
    return {s.inode for s in sockets if s.inode and not s.owners}


# --- gaps ----------------------------------------------------------------------------------------------------------


def _invisible(count: int, denied: bool, hidden: bool) -> Iterator[Gap]:
    """Sockets that have an inode, and no process that was seen to have it."""
    if not count:
        return
    sockets = counted(count, "socket")
    if denied or hidden:
        reason = " (/proc is mounted with hidepid)" if hidden else ""
        yield Gap("owner", count, f"owners of {sockets} are not visible to uid {os.geteuid()}{reason}", _remedy())
    else:
        cause = "held by the kernel, in flight between processes, or of another pid namespace"
        why = f"no process of this pid namespace has a descriptor of {sockets}: {cause}"
        yield Gap("owner", count, why, "in a container, run on the host instead")


def _remedy() -> str:
    """What makes /proc/PID/fd readable: ptrace(2), access mode PTRACE_MODE_READ_FSCREDS."""
    if os.geteuid() != 0:
        return "run with sudo"
    return "their processes have capabilities that this root lacks: run with CAP_SYS_PTRACE, outside the container"


def _without_pid(unowned: list[Socket]) -> Iterator[Gap]:
    """Sockets for which a source that reports pids gave none."""
    count = sum(s.inode is None and s.state not in UNOWNED for s in unowned)
    if count:
        why = f"the system reports no process for {counted(count, 'socket')}"
        yield Gap("owner", count, why, "run with more privilege")


# --- corrections ---------------------------------------------------------------------------------------------------


def _drop_reused(sockets: list[Socket], owners: Iterable[Owner], seen_at: datetime) -> list[Gap]:
    """Drop, in place, owners that started after their socket was made or seen: the pid has been reused since."""

    def is_late(socket: Socket, owner: Owner) -> bool:
        return owner.started is not None and owner.started > (socket.created or seen_at) + CLOCK_SLACK

    newest = max((owner.started for owner in owners if owner.started), default=seen_at)
    if newest <= seen_at and not any(s.created for s in sockets):
        return []
    wrong = [i for i, s in enumerate(sockets) if any(is_late(s, owner) for owner in s.owners)]
    if not wrong:
        return []
    for i in wrong:
        s = sockets[i]
        sockets[i] = replace(s, owners=tuple(owner for owner in s.owners if not is_late(s, owner)))
    why = f"the pid that {counted(len(wrong), 'socket')} had belongs to a process that started later"
    return [Gap("owner", len(wrong), why, "the owner has ended; a process that inherited the socket is not known")]


def _name_by_creator(sockets: list[Socket], unowned: list[Socket]) -> tuple[list[Socket], list[Gap]]:
    """Where no owner is visible, the cgroup of the socket's creator still names its service and container."""
    ids = {s.cgroup_id for s in unowned if s.cgroup_id}
    if not ids:
        return sockets, []
    from portbook.enrich import cgroup
    from portbook.managers import container, systemd

    paths = cgroup.paths_by_id(ids)
    labels, gaps = container.labels(paths.values())
    named: list[Socket] = []
    for s in sockets:
        path = None if s.owners else paths.get(s.cgroup_id or 0)
        if path is None:
            named.append(s)
        else:
            named.append(replace(s, service=systemd.unit_of(path), container=labels.get(path)))
    return named, gaps
