"""Sockets with their owners: descriptors where the source names no pid, then every enricher."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING

from msgspec import Struct
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
PORT_KEY = attrgetter("local_port", "protocol")  # of service_names()


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

    sockets, closed = _apart(sockets)
    found = _find(sockets, search, all_known)
    if found.gone:
        sockets = [s for s in sockets if s.inode not in found.gone]
    groups = [found.by_inode.get(s.inode) or s.owners for s in sockets]
    group_gaps = _invisible(found)
    seen_at = datetime.now(UTC)
    groups, owners, owner_gaps = _complete_groups(groups)
    netns_names = namespaces.names(sockets, groups, closed)
    completed = _complete_sockets(sockets, groups, found.kernel, netns_names)

    gaps += group_gaps
    gaps += owner_gaps
    gaps += _drop_reused(completed, owners, seen_at)
    unowned = [s for s in completed if not s.owners]
    gaps += _without_pid(unowned)
    closed = _complete_closed(closed, netns_names)
    completed, creator_gaps = _name_by_creator(completed + closed, unowned + closed)
    gaps += creator_gaps
    return completed, list(dict.fromkeys(gaps))


def owned_by(sockets: list[Socket], pids: PidRanges, all_known: bool = False) -> tuple[list[Socket], list[Gap]]:
    """The sockets that any of these processes has; the descriptors of other processes are not read."""
    inodes = _inodes_without_owner(sockets)
    if not inodes:
        return [s for s in sockets if _has_owner(s, pids)], []
    from portbook.enrich.descriptors import NO_OWNERS, find_in_rings, find_owners, process_ids
    from portbook.system import privilege

    wanted_pids = [pid for pid in process_ids() if _within(pid, pids)]
    found = NO_OWNERS if all_known else find_owners(inodes, wanted_pids)
    gaps = []
    if found.denied:
        processes = "the process" if found.denied == 1 else counted(found.denied, "process", "processes")
        why = f"the descriptors of {processes} in question are not visible to uid {os.geteuid()}"
        gaps.append(Gap("owner", None, why, privilege.remedy("CAP_SYS_PTRACE")))
    in_rings = find_in_rings(inodes - found.pids_by_inode.keys(), wanted_pids)
    owned = found.pids_by_inode.keys() | in_rings.keys()
    return [s for s in sockets if s.inode in owned or _has_owner(s, pids)], gaps


def _has_owner(s: Socket, pids: PidRanges) -> bool:
    return any(_within(owner.pid, pids) for owner in s.owners)


def _within(pid: int, ranges: PidRanges) -> bool:
    return any(first <= pid <= last for first, last in ranges)


def with_origins(sockets: Iterable[Socket]) -> list[Socket]:
    """The sockets, whose owners have what is read on request only: script, directory, project, terminal, tracer."""
    from portbook.enrich import process

    detailed: dict[int, Owner] = {}  # by pid
    known: dict[int, object] = {}
    groups: dict[int, _Group] = {}  # by identity
    completed: list[Socket] = []
    for s in sockets:
        key = id(s.owners)
        if key not in groups:
            for owner in s.owners:
                if owner.pid not in detailed:
                    detailed[owner.pid] = process.add_origin(owner, known)
            groups[key] = tuple(detailed[owner.pid] for owner in s.owners)
        completed.append(replace(s, owners=groups[key]))
    return completed


# --- steps ---------------------------------------------------------------------------------------------------------
# There may be a hundred thousand sockets, and mostly few processes that own them: the owners of one process's sockets
# are one object, looked up by identity (to hash a record is to hash all its fields).


class _Found(Struct):
    """Who has the sockets for which the source reports no pid."""

    by_inode: dict[int | None, _Group] = {}  # owners with no more than their pids
    kernel: dict[int, str] = {}  # by inode, what in the kernel has a socket
    gone: frozenset[int] = frozenset()  # inodes of sockets that vanished meanwhile
    unknown: int = 0  # sockets that nobody was seen to have
    denied: bool = False  # some processes could not be read
    hidden: str = ""  # why some could not be seen


def _find(sockets: list[Socket], search: Search | None, all_known: bool) -> _Found:
    found = _Found()
    inodes = _inodes_without_owner(sockets)
    if not inodes:
        return found
    made = _Groups()
    if not all_known:
        from portbook.enrich.descriptors import find_owners

        pids = find_owners(inodes) if search is None else search.finish(inodes)
        found.denied, found.hidden = pids.denied > 0, pids.hidden
        for inode, its_pids in pids.pids_by_inode.items():
            found.by_inode[inode] = made[its_pids, "task-fd" if inode in pids.by_thread else "fd"]
    unowned = inodes - found.by_inode.keys()
    if unowned:
        _look_again(sockets, unowned, found, made)
    return found


def _look_again(sockets: list[Socket], unowned: set[int], found: _Found, made: _Groups) -> None:
    """Where no descriptor led to a process: the kernel itself, a socket that has gone, or a ring of io_uring."""
    from portbook.enrich import unowned as second_look
    from portbook.enrich.descriptors import find_in_rings

    look = second_look.look_again([s for s in sockets if s.inode in unowned and not s.owners])
    found.kernel, found.gone = look.kernel, look.gone
    unowned = unowned - look.kernel.keys() - look.gone - look.ending
    gone = second_look.wait_for_end([s for s in sockets if s.inode in unowned and not s.owners])
    found.gone |= gone
    unowned -= gone
    if unowned:
        from portbook.sources import bpf

        for inode, pids in find_in_rings(unowned, bpf.pids_with_rings()).items():
            found.by_inode[inode] = made[pids, "io-uring"]
    found.unknown = len(unowned - found.by_inode.keys())


def _apart(sockets: list[Socket]) -> tuple[list[Socket], list[Socket]]:
    """The sockets, and apart from them those that no descriptor refers to and that have no owner."""
    if not any(s.inode == 0 for s in sockets):
        return sockets, []
    others: list[Socket] = []
    closed: list[Socket] = []
    for s in sockets:
        if s.inode == 0 and not s.owners:
            closed.append(s)
        else:
            others.append(s)
    return others, closed


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


def _complete_sockets(
    sockets: list[Socket], groups: list[_Group], kernel: dict[int, str], netns_names: dict[int | None, str]
) -> list[Socket]:
    """The sockets with their owners, and with the names of port, user and network namespace."""
    if not sockets:
        return []  # without reading the file of names
    name_of = service_names().get
    completed: list[Socket] = []
    for s, group in zip(sockets, groups, strict=True):
        name = name_of((s.local_port, s.protocol))
        user = None if s.uid is None else user_name(s.uid)
        if netns_names:
            s = replace(s, netns_name=netns_names.get(s.netns))  # noqa: PLW2901
        if name or user or group:
            s = replace(s, owners=group, service_name=name, user=user)  # noqa: PLW2901
        if s.inode in kernel:
            s = replace(s, kernel=kernel[s.inode])  # noqa: PLW2901
        completed.append(s)
    return completed


def _complete_closed(sockets: list[Socket], netns_names: dict[int | None, str]) -> list[Socket]:
    """Sockets without a descriptor, with the names of port and network namespace. The kernel does not keep their user.

    There may be tens of thousands in TIME_WAIT: those for which nothing is known stay as they are.
    """
    if not sockets:
        return []
    names = list(map(service_names().get, map(PORT_KEY, sockets)))
    if any(names):
        sockets = [replace(s, service_name=name) if name else s for s, name in zip(sockets, names, strict=True)]
    if netns_names:
        sockets = [replace(s, netns_name=netns_names.get(s.netns)) for s in sockets]
    return sockets


def _inodes_without_owner(sockets: Iterable[Socket]) -> set[int]:
    """The inodes of sockets for which the source reports no pid."""
    return {s.inode for s in sockets if s.inode and not s.owners}


# --- gaps ----------------------------------------------------------------------------------------------------------


def _invisible(found: _Found) -> list[Gap]:
    """Sockets that have an inode, and nobody who was seen to have them."""
    if not found.unknown:
        return []
    from portbook.enrich import descriptors
    from portbook.system import namespaces as system
    from portbook.system import privilege

    sockets = counted(found.unknown, "socket")
    if found.denied or found.hidden:
        reason = f" ({found.hidden})" if found.hidden else ""
        why = f"owners of {sockets} are not visible to uid {os.geteuid()}{reason}"
        hint = "mount it: mount -t proc proc /proc"
        if found.hidden in ("", descriptors.HIDEPID):
            hint = privilege.remedy("CAP_SYS_PTRACE") or ""
        return [Gap("owner", found.unknown, why, hint or None)]
    if system.sees_every_process():
        why = f"no process has a descriptor of {sockets}: held by the kernel, or in flight between processes"
        return [Gap("owner", found.unknown, why)]
    cause = "held by the kernel, in flight between processes, or of another pid namespace"
    why = f"no process of this pid namespace has a descriptor of {sockets}: {cause}"
    return [Gap("owner", found.unknown, why, "run on the host, outside of this container")]


def _without_pid(unowned: list[Socket]) -> Iterator[Gap]:
    """Sockets for which a source that reports pids gave none."""
    count = sum(s.inode is None and s.state not in UNOWNED for s in unowned)
    if count:
        why = f"the system reports no process for {counted(count, 'socket')}"
        yield Gap("owner", count, why, _more_privilege())


def _more_privilege() -> str | None:
    """Windows reports every pid that it knows to every user; elsewhere root sees more."""
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        return None
    return "run with sudo"


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
    ids = set(filter(None, map(attrgetter("cgroup_id"), unowned)))
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
