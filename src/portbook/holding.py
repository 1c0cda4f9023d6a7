"""Who holds a port: the sockets on this side of it, their owners, and what else those owners serve."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from portbook import inventory, query
from portbook.addresses import is_own
from portbook.enrich import owners, process
from portbook.errors import UsageError
from portbook.ports import Ports, parse_one, with_protocol
from portbook.query import LISTENING, Query, Term
from portbook.records import SCHEMA, Holder, Holding, Owner, Protocol, Socket
from portbook.system import namespaces

if TYPE_CHECKING:
    from portbook.ports import PortLike

_Sockets = tuple[Socket, ...]
PASSED = frozenset(("TIME_WAIT",))  # no process holds the port any longer: RFC 9293 section 3.6.1


def who(port: PortLike, protocol: Protocol | None = None, *, source: str | None = None) -> Holding:
    """Return who holds a local port. Clients whose connections go to that port of a server do not count.

    Every network namespace that can be seen is read. What is found in other namespaces than the caller's is in fields
    of its own: a port that a container holds in its own namespace is free outside.

    :param port: 1 to 65535, or text such as ``53/udp``; with an address, such as ``127.0.0.1:8080``, the sockets that
        have the port there, also by a wildcard
    :param protocol: "tcp" or "udp"; None looks at both, or at that of the port
    :param source: the source to read, as for ``take``
    :raises UsageError: the port, the protocol or the name of the source is not valid
    :raises SourceError: this machine could not be read
    """
    wanted = with_protocol(parse_one(port), protocol)
    number, protocol = wanted.port, wanted.protocol
    terms = [query.term("port", [str(Ports(number, number, None, wanted.host))])]
    if protocol is not None:
        terms.append(query.term("protocol", [protocol]))
    host = wanted.host
    if host is not None and host.is_address and not is_own(host.name, host.zone):
        raise UsageError(f"{host} is not an address of this machine", f"to reach it: portbook dial {wanted}")
    listing = inventory.read_listing(Query(tuple(terms)), source=source, all_namespaces=True)
    own = namespaces.own()
    sockets, other_sockets = _split(listing.sockets, own)
    holders: list[Holder] = []
    other_holders: list[Holder] = []
    for holder in _holders(listing.sockets, listing.source, number):
        here, there = _split(holder.sockets, own)
        if here:
            holders.append(replace(holder, sockets=here))
        if there:
            other_holders.append(replace(holder, sockets=there))
    return Holding(
        schema=SCHEMA,
        port=number,
        protocol=protocol,
        held=any(s.state not in PASSED for s in sockets),
        holders=tuple(holders),
        sockets=sockets,
        gaps=listing.gaps,
        holders_elsewhere=tuple(other_holders),
        sockets_elsewhere=other_sockets,
    )


def used_ports(ports: Ports, *, source: str | None = None) -> list[int]:
    """The ports of a range that any socket has, ascending: those for which ``who`` has an answer."""
    listing = inventory.read_listing(Query((Term("port", (ports,)),)), source=source, all_namespaces=True)
    return sorted({socket.local_port for socket in listing.sockets})


def _split(sockets: _Sockets, own: int | None) -> tuple[_Sockets, _Sockets]:
    """The sockets of our network namespace, and those of others. Without a namespace known they count as ours."""
    ours = (None, own)
    return tuple(s for s in sockets if s.netns in ours), tuple(s for s in sockets if s.netns not in ours)


def _holders(sockets: _Sockets, source: str, port: int) -> list[Holder]:
    """Describe each owner, those that wait on the port first: connections to it are their consequence."""
    now = datetime.now(UTC)
    by_pid = {owner.pid: owner for s in sockets for owner in s.owners}
    waiting = _waiting_ports(tuple(by_pid), source) if by_pid else {}
    holders = [
        Holder(
            owner=owner,
            age_s=_age(owner, now),
            parents=process.parents(pid),
            sockets=tuple(s for s in sockets if owner in s.owners),
            other_ports=tuple(dict.fromkeys(text for number, text in waiting[pid] if number != port)),
        )
        for pid, owner in by_pid.items()
    ]
    return sorted(holders, key=_by_importance)


def _by_importance(holder: Holder) -> tuple[bool, int]:
    waits = any(s.state in LISTENING for s in holder.sockets)
    return not waits, holder.owner.pid


def _age(owner: Owner, now: datetime) -> float | None:
    if owner.started is None:
        return None
    return max(0.0, (now - owner.started).total_seconds())


def _waiting_ports(pids: tuple[int, ...], source: str) -> dict[int, list[tuple[int, str]]]:
    """The ports that each of these processes waits on, as a number and as text."""
    selection = inventory.select_owned(Query((Term("state", ("LISTENING",)),)), source, pids)
    all_known = selection.has("holders")
    ports: dict[int, list[tuple[int, str]]] = {}
    for pid in pids:
        sockets, _ = owners.owned_by(selection.sockets, ((pid, pid),), all_known)
        ports[pid] = [(s.local_port, f"{s.local_port}/{s.protocol}") for s in sockets]
    return ports
