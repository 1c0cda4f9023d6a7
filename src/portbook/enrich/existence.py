"""Whether what a query names exists: a misspelt user, container or namespace is a mistake, and no empty answer.

Read only when a query has such a name: /proc and the list of users cost more than many listings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from portbook.enrich import cgroup
from portbook.errors import UsageError, nearest
from portbook.numerals import is_number, number_or_none
from portbook.query import FIELDS, Query
from portbook.records import Socket
from portbook.system import namespaces

MOST_SHOWN = 10  # names in a message
MOST_CHARACTERS = 80  # of a name
WILDCARDS = set("*?[")


def check(request: Query, sockets: Sequence[Socket]) -> None:
    """Raise UsageError if a term names a user, a container or a network namespace that there is none of.

    :param sockets: those that the query selects; what one of them has exists
    """
    for term in request.terms:
        names_of = NAMES.get(term.field)
        if names_of is None:
            continue
        if term.negated and term.field == "container":
            continue  # a machine may have none
        for value in map(str, term.values):
            if term.field != "user" and WILDCARDS & set(value):
                continue  # a pattern may match nothing
            is_met = FIELDS[term.field].test((value,))
            if not term.negated and any(map(is_met, sockets)):
                continue
            _check_name(term.field, value, names_of)


def _check_name(field: str, value: str, names_of: Callable[[str], Iterable[str] | None]) -> None:
    names = names_of(value)
    if names is None:
        return
    known = sorted(set(names))
    if _matches(field, value, known):
        return
    shown = value[:MOST_CHARACTERS]
    message = f"unknown {TITLES[field]} {shown!r}"
    likely = nearest(value, known)
    if likely is not None:
        raise UsageError(message, f"did you mean {likely}?")
    if not known:
        raise UsageError(message, f"there is no {TITLES[field]} that can be seen")
    if field == "user":
        raise UsageError(message, "a number may be given for a user without a name")
    more = f", and {len(known) - MOST_SHOWN} more" if len(known) > MOST_SHOWN else ""
    raise UsageError(message, f"valid values are {', '.join(known[:MOST_SHOWN])}{more}")


def _matches(field: str, value: str, known: Sequence[str]) -> bool:
    """As the test of the field: users are compared whole, others in part."""
    low = value.lower()
    if field == "user":
        return any(name.lower() == low for name in known)
    return any(low in name.lower() for name in known)


# --- names, or None where they cannot be known ---------------------------------------------------------------------


def _users(value: str) -> Iterable[str] | None:
    try:
        import pwd
    except ImportError:  # Windows: only the system's directory knows
        return None
    if is_number(value):
        return None  # sockets may have any number
    try:
        pwd.getpwnam(value)
    except (KeyError, ValueError):
        return [entry.pw_name for entry in pwd.getpwall()]
    return [value]


def _containers(_: str) -> Iterable[str] | None:
    """The labels of the containers that a process runs in."""
    paths = _cgroups()
    if not paths:
        return None
    from portbook.managers import container

    labels, gaps = container.labels(paths)
    if gaps:
        return None  # the names of some could not be read
    return labels.values()


def _namespaces(value: str) -> Iterable[str] | None:
    if value == "all" or not os.path.exists("/proc/self/ns/net"):
        return None
    names = list(namespaces.names().values())
    if not is_number(value):
        containers = _containers(value)
        return None if containers is None else [*names, *containers]
    if os.geteuid() != 0:
        return None  # the namespaces of other users' processes are not seen
    inhabited = namespaces.inhabited()
    if number_or_none(value) in inhabited:
        return [value]
    from portbook.sources import bpf

    in_use = bpf.namespaces_in_use()  # also those that have neither a process nor a name
    return None if in_use is None else [str(inode) for inode in in_use]


def _cgroups() -> set[str]:
    try:
        pids = [int(name) for name in os.listdir("/proc") if is_number(name)]
    except OSError:
        return set()
    return {path for path in map(cgroup.of_pid, pids) if path is not None}


TITLES = {"user": "user", "container": "container", "netns": "network namespace"}
NAMES: dict[str, Callable[[str], Iterable[str] | None]] = {
    "user": _users,
    "container": _containers,
    "netns": _namespaces,
}
