"""Which sockets are on the port, who owns them and what supervises the owners: what every system can read."""

from __future__ import annotations

import os
from collections.abc import Iterable

from portbook.enrich import process
from portbook.errors import SourceError
from portbook.managers.supervisor import Supervisor
from portbook.records import Gap, Owner, Protocol, Socket
from portbook.sources import PLATFORM
from portbook.verdict.situation import BindRequest, Situation

MOST_OWNERS = 8  # whose parents are read


def read(request: BindRequest) -> Situation:
    """Read the part of the situation that every system has; the platform's ``gather`` completes it."""
    sockets, gaps = sockets_on_port(request.port, request.protocol)
    parents = _parents_of(sockets)
    return Situation(
        PLATFORM,
        request.port,
        request.protocol,
        request.endpoints,
        request.options,
        sockets=sockets,
        parents=parents,
        supervisors=_supervisors_of(sockets, parents),
        gaps=tuple(gaps),
    )


def sockets_on_port(port: int, protocol: Protocol) -> tuple[tuple[Socket, ...], list[Gap]]:
    """The sockets on the port with their owners, listeners first; none and a gap when they cannot be read."""
    from portbook import inventory
    from portbook.query import Query, Term

    terms = (Term("port", ((port, port),)), Term("protocol", (protocol,)))
    try:
        listing = inventory.take(Query(terms))
    except (SourceError, OSError) as error:  # OSError: no descriptor is left to open a table, or to import a module
        return (), [Gap("socket", None, f"cannot read which sockets are on the port: {error}")]
    return tuple(sorted(listing.sockets, key=_order)), list(listing.gaps)


def _order(s: Socket) -> tuple[bool, str, str]:
    return s.state != "LISTEN", s.family, s.local_address


Parents = dict[int, tuple[Owner, ...]]


def _parents_of(sockets: Iterable[Socket]) -> Parents:
    """The parents of the first owners, by pid."""
    pids = dict.fromkeys(owner.pid for s in sockets for owner in s.owners)
    return {pid: process.parents(pid) for pid in list(pids)[:MOST_OWNERS]}


def _supervisors_of(sockets: Iterable[Socket], parents: Parents) -> dict[int, Supervisor]:
    """The supervisors of those owners, as far as the processes' own records show them."""
    owners: dict[int, Owner] = {}
    for s in sockets:
        for owner in s.owners:
            if owner.pid in parents:
                owners[owner.pid] = owner
    if not owners:
        return {}
    from portbook.managers import supervisor

    uid = os.geteuid() if hasattr(os, "geteuid") else 0
    supervisors: dict[int, Supervisor] = {}
    for pid, owner in owners.items():
        known = supervisor.find_supervisor(owner, parents[pid], PLATFORM, uid)
        if known is not None:
            supervisors[pid] = known
    return supervisors
