"""Who has sockets on the port: the part of the evidence that every system has."""

from __future__ import annotations

from collections.abc import Iterable

from portbook.bind.evidence import Asked
from portbook.enrich import process
from portbook.errors import SourceError
from portbook.records import Gap, Owner, Socket

MOST_OWNERS = 8  # whose parents are looked up


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


def parents_of(sockets: Iterable[Socket]) -> dict[int, tuple[Owner, ...]]:
    """The chains above the first owners."""
    pids = dict.fromkeys(owner.pid for s in sockets for owner in s.owners)
    return {pid: process.parents(pid) for pid in list(pids)[:MOST_OWNERS]}
