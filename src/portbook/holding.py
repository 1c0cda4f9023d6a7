"""Who holds a port: the sockets on this side of it, their owners, and what else those owners serve."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from portbook import inventory, query
from portbook.enrich import owners, process
from portbook.query import LISTENING, Query, Term
from portbook.records import SCHEMA, Holder, Holding, Owner, Protocol, Socket

PASSED = frozenset(("TIME_WAIT",))  # nobody holds the port any more: RFC 9293 section 3.6.1


def who(port: int, protocol: Protocol | None = None, *, source: str | None = None) -> Holding:
    """Return who holds a local port; clients that are merely connected to it elsewhere do not count.

    :param port: 1 to 65535
    :param protocol: "tcp" or "udp"; None looks at both
    :raises UsageError: the port or the protocol makes no sense
    :raises SourceError: this machine could not be read
    """
    terms = [query.term("port", [str(port)])]
    if protocol is not None:
        terms.append(query.term("protocol", [protocol]))
    listing = inventory.take(Query(tuple(terms)), source=source)
    held = any(s.state not in PASSED for s in listing.sockets)
    distinct = {o.pid: o for s in listing.sockets for o in s.owners}
    holders = _holders(distinct.values(), listing.sockets, listing.source, port)
    return Holding(SCHEMA, port, protocol, held, holders, listing.sockets, listing.gaps)


def _holders(found: Iterable[Owner], sockets: tuple[Socket, ...], source: str, port: int) -> tuple[Holder, ...]:
    """Describe each owner, those that wait on the port first: its connections are their consequence."""
    now = datetime.now(UTC)
    holders = [
        Holder(
            owner=owner,
            age_s=max(0.0, (now - owner.started).total_seconds()) if owner.started else None,
            parents=process.parents(owner.pid),
            sockets=tuple(s for s in sockets if owner in s.owners),
            other_ports=_other_ports(owner.pid, source, port),
        )
        for owner in found
    ]
    return tuple(sorted(holders, key=lambda h: (all(s.state not in LISTENING for s in h.sockets), h.owner.pid)))


def _other_ports(pid: int, source: str, port: int) -> tuple[str, ...]:
    _, waiting, _ = inventory.select(Query((Term("state", ("LISTENING",)),)), source)
    mine, _ = owners.held_by(waiting, ((pid, pid),))
    return tuple(dict.fromkeys(f"{s.local_port}/{s.protocol}" for s in mine if s.local_port != port))
