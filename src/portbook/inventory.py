"""The one pipeline: choose a source, read it, keep what the query selects, complete the owners.

sources.read ─▶ parse ─▶ query (sockets) ─▶ enrich.owners ─▶ query (owners) ─▶ Listing
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from portbook import query, sources
from portbook.enrich import owners
from portbook.errors import SourceError
from portbook.query import Query
from portbook.records import FAMILIES, PROTOCOLS, SCHEMA, Gap, Listing, Socket
from portbook.sources.base import Capability, Elsewhere, Reading, Source, Wanted

if TYPE_CHECKING:
    from portbook.enrich.descriptors import Search


class Found(NamedTuple):
    """What a source showed of what was asked for."""

    source: str
    sockets: list[Socket]
    gaps: list[Gap]
    elsewhere: Elsewhere | None = None
    passed_over: tuple[str, ...] = ()  # why better sources could not be used, where that is nothing to complain of

    def has(self, capability: Capability) -> bool:
        """Whether the source that was read has this capability."""
        return capability in sources.load(self.source).capabilities


def take(wanted: Query | str = "", *, source: str | None = None) -> Listing:
    """Return the sockets of this machine that a query selects, with their owners.

    Of Linux these are the sockets of the caller's network namespace, unless the query says ``netns:``.

    :param wanted: a query or its text, such as ``"state:listening port:8000-8100"``; empty selects every socket
    :param source: the way to read, one of ``portbook.sources.SOURCES``; None takes the best one that works
    :raises UsageError: the query or the source's name makes no sense
    :raises SourceError: no source, or not the one asked for, could read this machine
    """
    asked = query.parse(wanted) if isinstance(wanted, str) else wanted
    return look(asked, source=source, everywhere=asked.everywhere())


def look(asked: Query, *, source: str | None = None, everywhere: bool = False) -> Listing:
    """``take``, in every network namespace that can be seen when that is told."""
    taken_at = datetime.now(UTC)
    with _Ahead(asked.is_broad()) as ahead:
        found = find(asked, source, everywhere, ahead)
        completed, more = owners.complete(found.sockets, asked.pids(), ahead.search, found.has("holders"))
    gaps = [*found.gaps, *more, *(_unseen_namespaces(found) if asked.everywhere() else ())]
    kept = _keep(completed, asked.owner_test())
    return Listing(
        SCHEMA, host(), sources.PLATFORM, taken_at, found.source, not gaps, tuple(kept), tuple(gaps),
        *(found.elsewhere or (None, None)),
    )  # fmt: skip


class _Ahead:
    """A search for holders that begins before the first source is read that cannot name them."""

    def __init__(self, broad: bool) -> None:
        self.broad = broad
        self.search: Search | None = None
        self._begun = ExitStack()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._begun.close()

    def begin(self, source: Source) -> None:
        if self.broad and self.search is None and "owner" not in source.capabilities:
            self.search = self._begun.enter_context(owners.search_ahead())


def _unseen_namespaces(found: Found) -> list[Gap]:
    if found.has("namespaces") or sources.PLATFORM != "linux":
        return []
    why = "; ".join(found.passed_over) or f"{found.source} sees no other"
    return [Gap("socket", None, f"only this network namespace was looked at: {why}")]


def listeners(*, source: str | None = None) -> Listing:
    """Return the sockets that wait on a port: listening and bound-only TCP, unconnected UDP. Raises as ``take``."""
    return take(Query((query.term("state", ["listening"]),)), source=source)


def select(asked: Query, source: str | None = None) -> tuple[str, list[Socket], list[Gap]]:
    """The sockets of this network namespace as a source shows them, without their owners: its name, they, the gaps."""
    return _find(asked, source, push_down(asked), owners_too=False)[:3]


def find(asked: Query, source: str | None, everywhere: bool, ahead: _Ahead | None = None) -> Found:
    """Read with ``source`` or the first that works; owners are no more than pids."""
    return _find(asked, source, push_down(asked)._replace(everywhere=everywhere), ahead)


def held(asked: Query, source: str, pids: tuple[int, ...]) -> Found:
    """What these processes hold, in every network namespace; who else holds it is not told."""
    return _find(asked, source, push_down(asked)._replace(everywhere=True, pids=pids))


def _find(
    asked: Query, source: str | None, wanted: Wanted, ahead: _Ahead | None = None, owners_too: bool = True
) -> Found:
    name, reading, failures, passed_over = (
        _read(wanted, ahead, owners_too) if source is None else (source, _reading(source, wanted, ahead), [], ())
    )
    sockets = reading.sockets if "holders" in sources.load(name).capabilities else _distinct(reading.sockets)
    kept = _keep(sockets, asked.socket_test())
    return Found(name, kept, [*failures, *reading.gaps], reading.elsewhere, passed_over)


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


def _read(wanted: Wanted, ahead: _Ahead | None, owners_too: bool) -> tuple[str, Reading, list[Gap], tuple[str, ...]]:
    """The first source that works, what it said, what failed, and what was passed over without a word.

    Those that are optional are quicker at owners only: where none are asked for they are not tried.
    """
    failures: list[Gap] = []
    passed_over: list[str] = []
    for name in sources.names():
        optional = sources.load(name).optional
        if optional and not owners_too:
            continue
        try:
            return name, _reading(name, wanted, ahead), failures, tuple(passed_over)
        except SourceError as error:
            if optional:
                passed_over.append(str(error))
            else:
                failures.append(Gap("source", None, f"{name} could not be used: {error}"))
    reasons = [*passed_over, *(g.why for g in failures)]
    raise SourceError("no way to read this machine works: " + "; ".join(reasons))


def _reading(name: str, wanted: Wanted, ahead: _Ahead | None) -> Reading:
    source = sources.load(name)
    if ahead is not None:
        ahead.begin(source)
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
