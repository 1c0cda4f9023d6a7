"""The one pipeline: choose a source, read it, keep what the query selects, complete the owners.

sources.read ─▶ parse ─▶ query (sockets) ─▶ enrich.owners ─▶ query (owners) ─▶ Listing
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from portbook import query, sources
from portbook.enrich import owners, reach
from portbook.errors import SourceError
from portbook.ports import parse_several
from portbook.query import Query
from portbook.records import FAMILIES, PROTOCOLS, SCHEMA, Gap, Listing, Socket
from portbook.sources.base import Capability, OtherNamespaces, Reading, Source, Wanted

NAMED = frozenset(("user", "container", "netns"))  # fields whose values are names that exist or do not

if TYPE_CHECKING:
    from portbook.enrich.descriptors import Search
    from portbook.ports import PortsLike


class Selection(Struct, frozen=True):
    """The sockets of one source that a query selects, before owners are completed."""

    source: str
    sockets: list[Socket]
    gaps: list[Gap]
    other_namespaces: OtherNamespaces | None = None
    skipped: tuple[str, ...] = ()  # why better sources could not be used, where that is no gap

    def has(self, capability: Capability) -> bool:
        """Whether the source that was read has this capability."""
        return capability in sources.load(self.source).capabilities


def take(wanted: Query | PortsLike = "", *, source: str | None = None) -> Listing:
    """Return the sockets of this machine that a query selects, with their owners.

    On Linux these are the sockets of the caller's network namespace, unless the query has a ``netns:`` term.

    :param wanted: a query or its text, such as ``"state:listening port:8000-8100"``, or ports; empty selects every
        socket
    :param source: the source to read, one of ``portbook.sources.SOURCES``; None reads the best one that works
    :raises UsageError: the query or the name of the source is not valid, or there is no user, container or network
        namespace of a name in it
    :raises SourceError: the source, or every source, failed to read this machine
    """
    request = _as_query(wanted)
    listing = read_listing(request, source=source, all_namespaces=request.all_namespaces())
    if any(term.field in NAMED for term in request.terms):
        from portbook.enrich import existence

        existence.check(request, listing.sockets)
    return listing


def _as_query(wanted: Query | PortsLike) -> Query:
    if isinstance(wanted, Query):
        return wanted
    if isinstance(wanted, str):
        return query.parse(wanted)
    return Query((query.term("port", map(str, parse_several(wanted))),))


def listeners(*, source: str | None = None) -> Listing:
    """Return the sockets that wait on a port: listening and bound-only TCP, unconnected UDP. Raises as ``take``."""
    return take(Query((query.term("state", ["listening"]),)), source=source)


def read_listing(request: Query, *, source: str | None = None, all_namespaces: bool = False) -> Listing:
    """Do what ``take`` does, on request in every network namespace that can be seen."""
    taken_at = datetime.now(UTC)
    with _AheadSearch(request.is_broad()) as ahead:
        wanted = replace(push_down(request), all_namespaces=all_namespaces)
        selection = _select(request, wanted, source, ahead)
        all_known = selection.has("holders")
        completed, owner_gaps = owners.complete(selection.sockets, request.pids(), ahead.search, all_known)
    gaps = selection.gaps + owner_gaps
    if request.all_namespaces():
        gaps += _unseen_namespaces(selection)
    others = selection.other_namespaces
    return Listing(
        schema=SCHEMA,
        host=host(),
        platform=sources.PLATFORM,
        taken_at=taken_at,
        source=selection.source,
        complete=not gaps,
        sockets=tuple(_keep(completed, request.owner_test())),
        gaps=tuple(gaps),
        listeners_elsewhere=None if others is None else others.listeners,
        namespaces_elsewhere=None if others is None else others.namespaces,
    )


def _unseen_namespaces(selection: Selection) -> list[Gap]:
    """A gap where the query is about other network namespaces and the source does not see them."""
    if selection.has("namespaces") or sources.PLATFORM != "linux":
        return []
    why = "; ".join(selection.skipped) or f"the source {selection.source} does not see others"
    return [Gap("socket", None, f"only this network namespace was read: {why}")]


class _AheadSearch:
    """A search for owners that begins before the first source is read that does not report them."""

    def __init__(self, is_broad: bool) -> None:
        self.is_broad = is_broad
        self.search: Search | None = None
        self._exit = ExitStack()

    def __enter__(self) -> _AheadSearch:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def begin(self, source: Source) -> None:
        if self.is_broad and self.search is None and "owner" not in source.capabilities:
            self.search = self._exit.enter_context(owners.search_ahead())


# --- sources -------------------------------------------------------------------------------------------------------


def select(
    request: Query, source: str | None = None, *, all_namespaces: bool = False
) -> tuple[str, list[Socket], list[Gap]]:
    """The sockets without their owners: name of the source, sockets, gaps.

    :param all_namespaces: other network namespaces too, where the source sees them
    """
    wanted = replace(push_down(request), all_namespaces=all_namespaces)
    selection = _select(request, wanted, source, with_owners=False)
    return selection.source, selection.sockets, selection.gaps


def select_owned(request: Query, source: str, pids: tuple[int, ...]) -> Selection:
    """The sockets that these processes have, in every network namespace. Their other owners are not looked for."""
    return _select(request, replace(push_down(request), all_namespaces=True, pids=pids), source)


def _select(
    request: Query, wanted: Wanted, source: str | None, ahead: _AheadSearch | None = None, with_owners: bool = True
) -> Selection:
    """Read a source, or the first that works; of owners no more than their pids are known."""
    selection = _read(source, wanted, ahead) if source else _read_best(wanted, ahead, with_owners)
    sockets = selection.sockets
    if not selection.has("holders"):
        sockets = _distinct(sockets)
    sockets = reach.complete(sockets)
    return replace(selection, sockets=_keep(sockets, request.socket_test()))


def _read_best(wanted: Wanted, ahead: _AheadSearch | None, with_owners: bool) -> Selection:
    """Read the first source that works; where others failed before, the gaps or ``skipped`` report it.

    Optional sources are better at owners only: they are not tried where owners are not wanted.
    """
    failures: list[Gap] = []
    skipped: list[str] = []
    for name in sources.names():
        optional = sources.load(name).optional
        if optional and not with_owners:
            continue
        try:
            selection = _read(name, wanted, ahead)
        except SourceError as error:
            if optional:
                skipped.append(str(error))
            else:
                failures.append(Gap("source", None, f"{name} could not be used: {error}"))
        else:
            return replace(selection, gaps=failures + selection.gaps, skipped=tuple(skipped))
    reasons = [*skipped, *(gap.why for gap in failures)]
    raise SourceError("no source can read this machine: " + "; ".join(reasons))


def _read(name: str, wanted: Wanted, ahead: _AheadSearch | None) -> Selection:
    source = sources.load(name)
    if ahead is not None:
        ahead.begin(source)
    reading: Reading = source.parse(source.read(wanted))
    return Selection(name, reading.sockets, reading.gaps, reading.other_namespaces)


def push_down(request: Query) -> Wanted:
    """The part of a query that a source can leave to the kernel."""
    protocols = request.values("protocol") or PROTOCOLS
    families = request.values("family") or FAMILIES
    return Wanted(
        tuple(p for p in PROTOCOLS if p in protocols),
        tuple(f for f in FAMILIES if f in families),
        request.states(),
        request.ports(),
    )


def host() -> str:
    """The machine's name, without asking the network."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    return os.environ.get("COMPUTERNAME", "")


def _distinct(sockets: list[Socket]) -> list[Socket]:
    """Each socket once, as it was seen last.

    Linux remembers by position how far it has read its tables (inet_diag_dump_icsk, tcp_get_idx): a socket that
    moves from one state to the next while they are read may come twice.
    """
    inodes = [s.inode for s in sockets if s.inode]
    if len(set(inodes)) == len(inodes):
        return sockets
    last = {s.inode: i for i, s in enumerate(sockets)}
    return [s for i, s in enumerate(sockets) if not s.inode or last[s.inode] == i]


def _keep(sockets: list[Socket], test: query.Test | None) -> list[Socket]:
    if test is None:
        return sockets
    return [s for s in sockets if test(s)]
