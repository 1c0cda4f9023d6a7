"""Who holds a port: the sockets on this side of it, their owners, and what else those owners serve."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from portbook import inventory, query
from portbook.addresses import is_own
from portbook.enrich import is_relay, owners, process
from portbook.errors import UsageError
from portbook.ports import Ports, parse_one, with_protocol
from portbook.query import LISTENING, Query, Term
from portbook.records import SCHEMA, Holder, Holding, Owner, Protocol, Socket
from portbook.system import namespaces

if TYPE_CHECKING:
    from portbook.enrich.relays import Relays
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
    found = tuple(sorted(owners.with_origins(listing.sockets), key=_order))
    sockets, other_sockets = _split(found, own)
    holders: list[Holder] = []
    other_holders: list[Holder] = []
    for holder in _holders(found, listing.source, number, protocol):
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


def _order(s: Socket) -> tuple[bool, str, str, str]:
    """Listeners first, IPv4 before IPv6: sources differ in their order."""
    return s.state not in LISTENING, s.protocol, s.family, s.local_address


def _holders(sockets: _Sockets, source: str, port: int, protocol: Protocol | None) -> list[Holder]:
    """Describe each owner, those that wait on the port first: connections to it are their consequence."""
    now = datetime.now(UTC)
    by_pid = {owner.pid: owner for s in sockets for owner in s.owners}
    waiting = _waiting_ports(tuple(by_pid), source) if by_pid else {}
    parents = _Parents(by_pid)
    targets = _Targets()
    holders: list[Holder] = []
    for pid, owner in by_pid.items():
        asked = (f"{port}/{protocol}",) if protocol else (f"{port}/tcp", f"{port}/udp")
        others = dict.fromkeys(text for text in waiting[pid] if text not in asked)
        held = tuple(s for s in sockets if owner in s.owners)
        target = targets.of(owner, held)
        holders.append(Holder(owner, _age(owner, now), parents.of(pid), held, tuple(others), target))
    return sorted(holders, key=_by_importance)


class _Parents:
    """The parents of several processes, each read once: workers share theirs."""

    def __init__(self, known: dict[int, Owner]) -> None:
        self._known = dict(known)
        self._described = dict(known)

    def of(self, pid: int) -> tuple[Owner, ...]:
        chain: list[Owner] = []
        for parent in process.parents(pid, self._known):
            if parent.pid not in self._described:
                self._described[parent.pid] = process.add_script(parent)
            chain.append(self._described[parent.pid])
        return tuple(chain)


class _Targets:
    """What is behind the holders that are relays."""

    def __init__(self) -> None:
        self._relays: Relays | None = None

    def of(self, owner: Owner, sockets: _Sockets) -> str | None:
        waiting = [s for s in sockets if s.state in LISTENING]
        if not waiting or not is_relay(owner):
            return None
        if self._relays is None:
            from portbook.enrich.relays import Relays

            self._relays = Relays()
        return self._relays.target_of(owner, waiting[0].local_port, waiting[0].protocol)


def _by_importance(holder: Holder) -> tuple[bool, int]:
    waits = any(s.state in LISTENING for s in holder.sockets)
    return not waits, holder.owner.pid


def _age(owner: Owner, now: datetime) -> float | None:
    if owner.started is None:
        return None
    return max(0.0, (now - owner.started).total_seconds())


def _waiting_ports(pids: tuple[int, ...], source: str) -> dict[int, list[str]]:
    """The ports that each of these processes waits on: ``8443/tcp``."""
    selection = inventory.select_owned(Query((Term("state", ("LISTENING",)),)), source, pids)
    all_known = selection.has("holders")
    ports: dict[int, list[str]] = {}
    for pid in pids:
        sockets, _ = owners.owned_by(selection.sockets, ((pid, pid),), all_known)
        ports[pid] = [f"{s.local_port}/{s.protocol}" for s in sockets]
    return ports
