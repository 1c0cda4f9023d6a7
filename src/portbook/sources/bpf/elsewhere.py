"""Linux: work done in every other network namespace of the machine, while namespaces come and go.

A namespace is entered through a process or name that it has, else through a mount, a socket or a descriptor that keeps
it. When the process has ended meanwhile, another entrance is looked for. A namespace that is gone by then is no gap.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable
from time import monotonic
from typing import Any

from msgspec import Struct

from portbook.errors import SourceError
from portbook.sources.bpf.record import FORMAT, OWN_TABLE
from portbook.system import namespaces

MOST_TRIES = 2


class Elsewhere(Struct, frozen=True):
    """What was read in each other namespace, or why it could not be."""

    answers: dict[int, Any]  # a result, a SourceError or an OSError
    is_whole: bool  # whether no namespace is missing


class MachineNamespaces(Struct, frozen=True):
    """How to find the namespaces of this machine."""

    own: int
    census: Callable[[], frozenset[int] | None]  # every namespace in use; None where the kernel cannot list them
    records: Callable[[], bytes]  # of every socket that has a file


def read(
    machine: MachineNamespaces,
    work: Callable[[int], Any],
    seen: Collection[int] = (),
    only: Collection[int] | None = None,
) -> Elsewhere:
    """Call ``work`` in each other namespace.

    :param seen: namespaces of which sockets were seen, for kernels without a census
    :param only: these of them; None: all
    """
    answers: dict[int, Any] = {}
    last_at = monotonic() + namespaces.VISIT_LIMIT_S

    def visit(entrances: dict[int, namespaces.Entrance]) -> None:
        if entrances:
            answers.update(namespaces.visit(entrances, work, last_at - monotonic()))

    entrances = namespaces.inhabited()
    visit({n: entrance for n, entrance in entrances.items() if n != machine.own and (only is None or n in only)})
    used, missing = _look_again(machine, answers, seen, only)
    stuck: set[int] = set()
    for _ in range(MOST_TRIES):
        if not missing - stuck:
            break
        found = _entrances(missing)
        stuck = missing - found.keys()
        visit(found)
        used, missing = _look_again(machine, answers, seen, only)
    stuck &= missing
    if stuck:
        visit(_kept(machine, stuck))
    gone = [netns for netns, answer in answers.items() if has_vanished(answer)]
    for netns in gone:
        del answers[netns]
    if used is None:
        return Elsewhere(answers, is_whole=False)
    answers.update(_mounted_elsewhere(stuck - answers.keys()))
    failed = any(isinstance(answer, Exception) for answer in answers.values())
    return Elsewhere(answers, not failed and missing <= answers.keys())


def _look_again(
    machine: MachineNamespaces, answers: dict[int, Any], seen: Collection[int], only: Collection[int] | None
) -> tuple[frozenset[int] | None, set[int]]:
    """The namespaces that are in use now, and those of them that have not been read."""
    used = machine.census()
    if used is not None and only is not None:
        used = used.intersection(only)
    vanished = {netns for netns, answer in answers.items() if has_vanished(answer)}
    known = set(seen) | vanished if used is None else set(used)
    return used, (known - answers.keys() - {machine.own}) | (vanished & known)


def _mounted_elsewhere(stuck: Collection[int]) -> dict[int, OSError]:
    """Errors for those of the namespaces that a mount keeps which cannot be reached without following others' paths.

    Any further one is about to end: when the last process has gone, its sockets, and our own that looked inside, keep a
    namespace until the kernel frees them (deferred_put_nlk_sk() in net/netlink/af_netlink.c).
    """
    found, is_whole = namespaces.mounted_elsewhere(stuck)
    errors = {
        netns: OSError(f"only the mount namespace of process {pid} leads into it") for netns, pid in found.items()
    }
    if not is_whole:
        for netns in set(stuck) - found.keys():
            errors[netns] = OSError("other mount namespaces have more mounts than are searched for it")
    return errors


def has_vanished(answer: object) -> bool:
    """Whether what led into a namespace was gone: a process, a name, a descriptor."""
    return isinstance(answer, OSError) and answer.errno in (0, errno.ENOENT, errno.ESRCH, errno.EBADF)


def _entrances(missing: Collection[int]) -> dict[int, namespaces.Entrance]:
    """What costs little: the processes that are there now, and mounts."""
    entrances = {netns: path for netns, path in namespaces.inhabited().items() if netns in missing}
    rest = set(missing) - entrances.keys()
    if rest:
        entrances.update(namespaces.kept_by_mounts(rest))
    return entrances


def _kept(machine: MachineNamespaces, stuck: Collection[int]) -> dict[int, namespaces.Entrance]:
    """What costs a look at every file: sockets and descriptors."""
    entrances = _among_sockets(machine, stuck)
    rest = set(stuck) - entrances.keys()
    if rest:
        entrances.update(namespaces.kept_by_descriptors(rest))
    return entrances


def _among_sockets(machine: MachineNamespaces, wanted: Collection[int]) -> dict[int, namespaces.Entrance]:
    """Each socket that has a file leads into its namespace."""
    try:
        return dict(parse_entrances(machine.records(), wanted))
    except SourceError:
        return {}


def parse_entrances(records: bytes, wanted: Collection[int]) -> Iterable[tuple[int, namespaces.Entrance]]:
    """Which process has which descriptor of a socket in a wanted namespace. Pure."""
    for row in FORMAT.iter_unpack(records):
        pid, descriptor, netns, flags = row[5], row[6], row[7], row[-1]
        if netns in wanted and not flags & OWN_TABLE:
            yield netns, (pid, descriptor)
