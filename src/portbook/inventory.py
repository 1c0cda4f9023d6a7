"""The one pipeline: choose a source, read it, keep what the query selects, complete the owners.

sources.read ─▶ parse ─▶ query (sockets) ─▶ enrich.owners ─▶ query (owners) ─▶ Listing
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import UTC, datetime

from portbook import query, sources
from portbook.enrich import owners
from portbook.errors import SourceError
from portbook.query import Query
from portbook.records import FAMILIES, PROTOCOLS, SCHEMA, Gap, Listing, Socket
from portbook.sources.base import Reading, Wanted


def take(wanted: Query | str = "", *, source: str | None = None) -> Listing:
    """Return the sockets of this machine that a query selects, with their owners.

    :param wanted: a query or its text, such as ``"state:listening port:8000-8100"``; empty selects every socket
    :param source: the way to read, one of ``portbook.sources.SOURCES``; None takes the best one that works
    :raises UsageError: the query or the source's name makes no sense
    :raises SourceError: no source, or not the one asked for, could read this machine
    """
    asked = query.parse(wanted) if isinstance(wanted, str) else wanted
    taken_at = datetime.now(UTC)
    with owners.search_ahead() if asked.is_broad() and not _names_owners(source) else nullcontext() as search:
        name, sockets, gaps = select(asked, source)
        completed, more = owners.complete(sockets, asked.pids(), search)
    gaps += more
    kept = _keep(completed, asked.owner_test())
    return Listing(SCHEMA, host(), sources.PLATFORM, taken_at, name, not gaps, tuple(kept), tuple(gaps))


def _names_owners(source: str | None) -> bool:
    """Whether the source that will be tried first says who owns a socket."""
    return "owner" in sources.load(source or sources.names()[0]).promises


def listeners(*, source: str | None = None) -> Listing:
    """Return the sockets that wait on a port: listening and bound-only TCP, unconnected UDP. Raises as ``take``."""
    return take(Query((query.term("state", ["listening"]),)), source=source)


def select(asked: Query, source: str | None = None) -> tuple[str, list[Socket], list[Gap]]:
    """Read with ``source`` or the first that works: its name, the sockets as it shows them, the gaps."""
    name, reading, failures = _read(push_down(asked), source)
    return name, _keep(_distinct(reading.sockets), asked.socket_test()), [*failures, *reading.gaps]


def push_down(asked: Query) -> Wanted:
    """The part of a query that a source can leave to the kernel."""
    protocols = asked.values("protocol") or PROTOCOLS
    families = asked.values("family") or FAMILIES
    return Wanted(
        tuple(p for p in PROTOCOLS if p in protocols),
        tuple(f for f in FAMILIES if f in families),
        asked.states(),
        asked.ports(),
    )


def host() -> str:
    """The machine's name, without asking the network."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    return os.environ.get("COMPUTERNAME", "")


def _read(wanted: Wanted, name: str | None) -> tuple[str, Reading, list[Gap]]:
    if name is not None:
        return name, _reading(name, wanted), []
    failures: list[Gap] = []
    for candidate in sources.names():
        try:
            return candidate, _reading(candidate, wanted), failures
        except SourceError as error:
            failures.append(Gap("source", None, f"{candidate} could not be used: {error}"))
    raise SourceError("no way to read this machine works: " + "; ".join(g.why for g in failures))


def _reading(name: str, wanted: Wanted) -> Reading:
    source = sources.load(name)
    return source.parse(source.read(wanted))


def _distinct(sockets: list[Socket]) -> list[Socket]:
    """Each socket once, as it was seen last.

    Linux remembers by position how far it has read its tables (inet_diag_dump_icsk, tcp_get_idx): a socket that
    moves meanwhile, from one state to the next, may come twice.
    """
    inodes = [s.inode for s in sockets if s.inode]
    if len(set(inodes)) == len(inodes):
        return sockets
    last = {s.inode: i for i, s in enumerate(sockets)}
    return [s for i, s in enumerate(sockets) if not s.inode or last[s.inode] == i]


def _keep(sockets: list[Socket], test: query.Test | None) -> list[Socket]:
    return sockets if test is None else [s for s in sockets if test(s)]
