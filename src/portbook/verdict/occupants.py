"""Who has sockets on the port: the part of the evidence that every system has."""

from __future__ import annotations

import os
from collections.abc import Iterable

from portbook.enrich import process
from portbook.errors import SourceError
from portbook.managers.supervisor import Supervisor
from portbook.records import Gap, Owner, Socket
from portbook.sources import PLATFORM
from portbook.verdict.evidence import Asked, Evidence

MOST_OWNERS = 8  # whose parents are looked up


def evidence(asked: Asked) -> Evidence:
    """The evidence so far; what only one system has is added by its ``gather``."""
    sockets, gaps = on_port(asked)
    parents = parents_of(sockets)
    return Evidence(
        PLATFORM,
        asked.port,
        asked.protocol,
        asked.endpoints,
        asked.options,
        sockets=sockets,
        parents=parents,
        supervisors=restarters_of(sockets, parents),
        gaps=tuple(gaps),
    )


def on_port(asked: Asked) -> tuple[tuple[Socket, ...], list[Gap]]:
    """The sockets on the port with their owners, listeners first; none, and a gap, when they cannot be read."""
    from portbook import inventory
    from portbook.query import Query, Term

    terms = (Term("port", ((asked.port, asked.port),)), Term("protocol", (asked.protocol,)))
    try:
        listing = inventory.take(Query(terms))
    except (SourceError, OSError) as error:  # OSError: no descriptor is left to open a table, or a module of ours
        return (), [Gap("socket", None, f"who holds the port is not known: {error}")]
    return tuple(sorted(listing.sockets, key=_order)), list(listing.gaps)


def _order(s: Socket) -> tuple[bool, str, str]:
    return s.state != "LISTEN", s.family, s.local_address


Parents = dict[int, tuple[Owner, ...]]


def parents_of(sockets: Iterable[Socket]) -> Parents:
    """The chains above the first owners."""
    pids = dict.fromkeys(owner.pid for s in sockets for owner in s.owners)
    return {pid: process.parents(pid) for pid in list(pids)[:MOST_OWNERS]}


def restarters_of(sockets: Iterable[Socket], parents: Parents) -> dict[int, Supervisor]:
    """Who would start those owners again, as far as their records say: nobody is asked."""
    owners = {owner.pid: owner for s in sockets for owner in s.owners if owner.pid in parents}
    if not owners:
        return {}
    from portbook.managers import supervisor

    uid = os.geteuid() if hasattr(os, "geteuid") else 0
    found = {pid: supervisor.find_supervisor(owner, parents[pid], PLATFORM, uid) for pid, owner in owners.items()}
    return {pid: one for pid, one in found.items() if one is not None}
