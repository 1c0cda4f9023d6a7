"""Who holds a port: the sockets on this side of it, their owners, and what else those owners serve."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from portbook import inventory, query
from portbook.enrich import owners, process
from portbook.query import LISTENING, Query, Term
from portbook.records import SCHEMA, Holder, Holding, Protocol, Socket
from portbook.system import namespaces

PASSED = frozenset(("TIME_WAIT",))  # nobody holds the port any more: RFC 9293 section 3.6.1


def who(port: int, protocol: Protocol | None = None, *, source: str | None = None) -> Holding:
    """Return who holds a local port; clients that are merely connected to it elsewhere do not count.

    Every network namespace that can be seen is looked at. What is found in others than the caller's is told apart: a
    port that a container holds in its own is free out here.

    :param port: 1 to 65535
    :param protocol: "tcp" or "udp"; None looks at both
    :raises UsageError: the port or the protocol makes no sense
    :raises SourceError: this machine could not be read
    """
    terms = [query.term("port", [str(port)])]
    if protocol is not None:
        terms.append(query.term("protocol", [protocol]))
    listing = inventory.look(Query(tuple(terms)), source=source, everywhere=True)
    own = namespaces.own()
    here, there = _parted(listing.sockets, own)
    held = any(s.state not in PASSED for s in here)
    holders = _holders(listing.sockets, listing.source, port)
    outside = tuple(replace(h, sockets=_parted(h.sockets, own)[1]) for h in holders)
    inside = tuple(replace(h, sockets=_parted(h.sockets, own)[0]) for h in holders)
    return Holding(
        SCHEMA, port, protocol, held, tuple(h for h in inside if h.sockets), here, listing.gaps,
        tuple(h for h in outside if h.sockets), there,
    )  # fmt: skip


def _parted(sockets: tuple[Socket, ...], own: int | None) -> tuple[tuple[Socket, ...], tuple[Socket, ...]]:
    """Those of our network namespace, and those of others."""
    return tuple(s for s in sockets if s.netns in (None, own)), tuple(s for s in sockets if s.netns not in (None, own))


def _holders(sockets: tuple[Socket, ...], source: str, port: int) -> tuple[Holder, ...]:
    """Describe each owner, those that wait on the port first: its connections are their consequence."""
    now = datetime.now(UTC)
    owned = list({o.pid: o for s in sockets for o in s.owners}.values())
    others = _waiting([owner.pid for owner in owned], source) if owned else {}
    holders = [
        Holder(
            owner=owner,
            age_s=max(0.0, (now - owner.started).total_seconds()) if owner.started else None,
            parents=process.parents(owner.pid),
            sockets=tuple(s for s in sockets if owner in s.owners),
            other_ports=tuple(dict.fromkeys(p for n, p in others[owner.pid] if n != port)),
        )
        for owner in owned
    ]
    return tuple(sorted(holders, key=lambda h: (all(s.state not in LISTENING for s in h.sockets), h.owner.pid)))


def _waiting(pids: list[int], source: str) -> dict[int, list[tuple[int, str]]]:
    """The ports that each of these processes waits on, as a number and as text."""
    found = inventory.held(Query((Term("state", ("LISTENING",)),)), source, tuple(pids))
    waiting: dict[int, list[tuple[int, str]]] = {}
    for pid in pids:
        mine, _ = owners.held_by(found.sockets, ((pid, pid),), found.has("holders"))
        waiting[pid] = [(s.local_port, f"{s.local_port}/{s.protocol}") for s in mine]
    return waiting
