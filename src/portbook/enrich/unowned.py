"""Linux: sockets that no process was seen to have: the kernel's own, and those that have gone meanwhile.

A process that ends between two looks takes its sockets along: what vanished is neither shown nor a gap.
"""

from __future__ import annotations

import os
from _socket import socket
from collections import defaultdict
from collections.abc import Collection, Mapping
from time import sleep

from msgspec import Struct

from portbook.enrich.descriptors import process_ids
from portbook.errors import SourceError
from portbook.netconfig.facts import KernelUser
from portbook.records import PROTOCOLS, Socket
from portbook.sources.base import Wanted
from portbook.system import namespaces

PAUSES_S = (0.003, 0.02, 0.1)
YOUNG = 100_000  # inodes ago: an older socket is more likely one that stays than one whose process has just ended
MOST_PORTS = 100  # which sock_diag compares in the kernel


class Look(Struct, frozen=True):
    """A second look into a network namespace."""

    users: tuple[KernelUser, ...]
    inodes: frozenset[int] | None  # of the sockets that are there now; None: not known


class SecondLook(Struct, frozen=True):
    """What the second look showed."""

    kernel: dict[int, str]  # by inode, what in the kernel has a socket
    gone: frozenset[int]  # inodes of sockets that are not there any more
    ending: frozenset[int]  # inodes of sockets in namespaces that no process is in, and no name leads into


def look_again(sockets: Collection[Socket]) -> SecondLook:
    """Look where these sockets are."""
    by_netns: dict[int | None, list[Socket]] = defaultdict(list)
    for s in sockets:
        by_netns[s.netns].append(s)
    looks = _looks(by_netns)
    kernel: dict[int, str] = {}
    gone: set[int] = set()
    ending: set[int] = set()
    for netns, its_sockets in by_netns.items():
        look = looks.get(netns)
        for s in its_sockets:
            inode = s.inode or 0
            if look is None:
                ending.add(inode)
            elif look.inodes is not None and inode not in look.inodes:
                gone.add(inode)
            else:
                kernel.update((inode, user.name) for user in look.users if _has(user, s))
    return SecondLook(kernel, frozenset(gone), frozenset(ending))


def wait_for_end(sockets: list[Socket]) -> frozenset[int]:
    """The inodes of those of the sockets that are gone a moment later.

    The kernel closes the sockets of a process that has ended after it has taken it out of /proc: exit_files() in
    kernel/exit.c, delayed_fput() in fs/file_table.c.
    """
    if os.geteuid() != 0:
        return frozenset()  # most are those of other users, and will stay
    gone: set[int] = set()
    newest = _newest_inode()
    waiting = [s for s in sockets if abs((s.inode or 0) - newest) < YOUNG]
    if not waiting:
        return frozenset()
    processes = set(process_ids())
    for turn, pause_s in enumerate(PAUSES_S):
        sleep(pause_s)
        look = look_again(waiting)
        gone |= look.gone | look.ending
        waiting = [s for s in waiting if s.inode not in gone]
        before, processes = processes, set(process_ids())
        if not waiting or (turn and processes == before):
            break  # where no process ends, none is about to; one that is ending may not run for a few milliseconds
    return frozenset(gone)


def _newest_inode() -> int:
    """The inode of a socket that is made now: they are counted up, in steps for each processor (get_next_ino())."""
    new = socket()
    try:
        return os.fstat(new.fileno()).st_ino
    finally:
        new.close()


def _has(user: KernelUser, s: Socket) -> bool:
    return (user.protocol, user.port) == (s.protocol, s.local_port) and s.remote_port is None


def _looks(by_netns: Mapping[int | None, list[Socket]]) -> dict[int | None, Look]:
    own = namespaces.own()
    looks: dict[int | None, Look] = {}
    for netns in {None, own} & by_netns.keys():
        looks[netns] = _look(by_netns[netns])
    others = {netns for netns in by_netns if netns not in (None, own) and netns is not None}
    if others:
        entrances = {netns: path for netns, path in namespaces.inhabited().items() if netns in others}
        entrances.update(namespaces.kept_by_mounts(others - entrances.keys()))
        answers = namespaces.visit(entrances, lambda netns: _look(by_netns[netns]))
        looks.update((netns, answer) for netns, answer in answers.items() if isinstance(answer, Look))
    return looks


def _look(sockets: Collection[Socket]) -> Look:
    users: tuple[KernelUser, ...] = ()
    if any(s.remote_port is None for s in sockets):  # connections are never those of a tunnel
        from portbook.netconfig.linux import kernel_users

        users = kernel_users.read()
    return Look(users, _inodes(sockets))


def _inodes(sockets: Collection[Socket]) -> frozenset[int] | None:
    """The inodes of the sockets on the ports of these; None where they cannot be read, or are too many."""
    from portbook.sources import sockdiag

    ports = {s.local_port for s in sockets}
    if len(ports) > MOST_PORTS and os.geteuid() != 0:
        return None  # those of other users, all of which would be read again
    protocols = {s.protocol for s in sockets}
    wanted = Wanted(
        tuple(protocol for protocol in PROTOCOLS if protocol in protocols),
        ports=tuple((port, port) for port in sorted(ports)),
    )
    try:
        reading = sockdiag.parse(sockdiag.read(wanted))
    except (SourceError, OSError):
        return None
    if any(s.state == "BOUND" for s in sockets) and not sockdiag.shows_bound():
        return None
    return frozenset(s.inode for s in reading.sockets if s.inode)
