"""Linux: read everything that the rules may look at, within limits; what cannot be read is a gap."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from portbook.addresses import Endpoint, reach_of, unmapped
from portbook.netconfig import ephemeral
from portbook.netconfig.facts import Caller, Diversion, IpvsService, Link, LocalAddress, Publication, SocketLookup
from portbook.netconfig.linux import sysctl
from portbook.records import Gap, Socket
from portbook.verdict import holders
from portbook.verdict.conflict import WAITING
from portbook.verdict.situation import BindRequest, Situation

WILDCARDS = frozenset(("0.0.0.0", "::"))  # noqa: S104  compared


def gather(request: BindRequest) -> Situation:
    """Read the situation. A free port costs one query for its sockets and a few small files."""
    situation = holders.read(request)
    sockets = situation.sockets
    gaps = list(situation.gaps)
    caller = sysctl.read_caller()
    settings = sysctl.parse(sysctl.read())
    automatic = ephemeral.take()
    specific = [endpoint for endpoint in request.endpoints if endpoint.address not in WILDCARDS]
    ipvs = _ipvs(request, gaps)
    addresses = _addresses(gaps) if sockets or specific or ipvs else None
    foreign: list[str] = []
    broadcast: list[str] = []
    for endpoint in specific:
        _sort_address(endpoint, addresses, foreign, broadcast, gaps)
    links = _links(request, sockets, gaps)
    nat, publications = _nat(request, caller, gaps)
    publications += _publications_of_proxies(sockets, gaps)
    return replace(
        situation,
        caller=caller,
        activated=_activated(sockets),
        privileged_below=settings.privileged_below,
        ephemeral=(automatic.low, automatic.high),
        reserved=automatic.reserved,
        nonlocal_bind=settings.nonlocal_bind,
        ipv6=settings.ipv6,
        vrf_accepts_all=settings.vrf_accepts_all,
        addresses=addresses,
        foreign=tuple(foreign),
        broadcast=tuple(broadcast),
        links=links,
        publications=publications,
        nat=nat,
        proxies_waiting=_proxies_waiting(request, nat),
        ipvs=ipvs,
        lookups=_lookups(request, caller, gaps),
        gaps=(*gaps, *automatic.gaps, *automatic.reserved_gaps),
    )


def _activated(sockets: Iterable[Socket]) -> dict[int, str]:
    """The units of sockets that systemd holds, by inode: it makes each in the unit's own cgroup (systemd.socket(5))."""
    cgroup_ids: dict[int, int] = {}
    for s in sockets:
        if s.inode and s.cgroup_id and any(owner.name == "systemd" for owner in s.owners):
            cgroup_ids[s.inode] = s.cgroup_id
    if not cgroup_ids:
        return {}
    from portbook.enrich import cgroup
    from portbook.managers.supervisor import is_unit_name
    from portbook.managers.systemd import exact_unit_of

    paths = cgroup.paths_by_id(set(cgroup_ids.values()))
    activated: dict[int, str] = {}
    for inode, cgroup_id in cgroup_ids.items():
        unit = exact_unit_of(paths.get(cgroup_id, "")) or ""  # escaped, as systemctl expects it
        if is_unit_name(unit):
            activated[inode] = unit
    return activated


# --- addresses -----------------------------------------------------------------------------------------------------


def _addresses(gaps: list[Gap]) -> tuple[LocalAddress, ...] | None:
    from portbook.netconfig.linux import interfaces

    try:
        return interfaces.read_addresses()
    except OSError as error:
        gaps.append(Gap("address", None, f"cannot read the addresses of this machine: {error}"))
        return None


def _sort_address(
    endpoint: Endpoint,
    addresses: tuple[LocalAddress, ...] | None,
    foreign: list[str],
    broadcast: list[str],
    gaps: list[Gap],
) -> None:
    """Note an address that cannot be bound: IPv6 needs one of an interface; for IPv4 the routing table decides."""
    from portbook.netconfig.linux import interfaces

    v4 = unmapped(endpoint.address)
    if ":" in v4:
        if addresses is None or reach_of(v4) == "multicast":
            return
        if not any(a.address == endpoint.address and endpoint.zone in (None, a.interface) for a in addresses):
            foreign.append(endpoint.address)
        return
    try:
        kind = interfaces.route_type(v4)
    except OSError as error:
        gaps.append(Gap("address", None, f"cannot read whether {v4} is an address of this machine: {error}"))
        return
    if kind == interfaces.BROADCAST:
        broadcast.append(endpoint.address)
    elif kind not in interfaces.BINDABLE and reach_of(v4) == "address":
        foreign.append(endpoint.address)


def _links(request: BindRequest, sockets: Iterable[Socket], gaps: list[Gap]) -> tuple[Link, ...]:
    devices = {s.interface or s.zone for s in sockets} | {endpoint.zone for endpoint in request.endpoints}
    names = {device for device in devices if device}
    if not names:
        return ()
    from portbook.netconfig.linux import interfaces

    try:
        return interfaces.read_links(names)
    except OSError as error:
        gaps.append(Gap("interface", None, f"cannot read the interfaces of this machine: {error}"))
        return ()


# --- containers ----------------------------------------------------------------------------------------------------


def _nat(
    request: BindRequest, caller: Caller, gaps: list[Gap]
) -> tuple[tuple[Diversion, ...], tuple[Publication, ...]]:
    """What diverts packets to the port, and the containers' ports if that leads to another address."""
    from portbook.netconfig.linux import nat

    requested = [endpoint.address for endpoint in request.endpoints]
    if any(endpoint.dual for endpoint in request.endpoints):
        requested.append("0.0.0.0")  # noqa: S104  such a socket has the port of IPv4 too
    may_read = caller.may_read_nat is not False
    diversions, nat_gaps = nat.take(request.port, request.protocol, requested, may_read=may_read)
    gaps += nat_gaps
    if any(target.address for diversion in diversions for target in diversion.targets):
        return diversions, _publications(gaps)
    return diversions, ()


def _proxies_waiting(request: BindRequest, nat: Iterable[Diversion]) -> frozenset[int]:
    """The ports of transparent proxies on which a socket waits: without one the packets go on, or are dropped."""
    ports = {
        target.port or request.port for diversion in nat if diversion.kind == "tproxy" for target in diversion.targets
    }
    waiting: set[int] = set()
    for port in ports:
        sockets, _ = holders.sockets_on_port(port, request.protocol)
        if any(s.state in WAITING for s in sockets):
            waiting.add(port)
    return frozenset(waiting)


def _ipvs(request: BindRequest, gaps: list[Gap]) -> tuple[IpvsService, ...]:
    from portbook.netconfig.linux import ipvs

    try:
        services = ipvs.parse(ipvs.read())
    except OSError as error:
        gaps.append(Gap("nat", None, f"whether IPVS takes packets is not known: {error}"))
        return ()
    return tuple(s for s in services if s.port == request.port and s.protocol == request.protocol)


def _lookups(request: BindRequest, caller: Caller, gaps: list[Gap]) -> tuple[SocketLookup, ...]:
    """BPF programs that choose sockets. The kernel lists them to CAP_NET_ADMIN only."""
    if caller.may_read_nat is False:
        return ()
    from portbook.netconfig.linux import socket_lookup

    try:
        return socket_lookup.take(request.port, request.protocol, request.endpoints)
    except OSError as error:
        gaps.append(Gap("nat", None, f"whether BPF programs (sk_lookup) choose sockets is not known: {error}"))
        return ()


def _publications_of_proxies(sockets: Iterable[Socket], gaps: list[Gap]) -> tuple[Publication, ...]:
    """Read only if the relay of a container has the port."""
    from portbook.managers import relay

    if any(relay.has_unnamed_container(owner) for s in sockets for owner in s.owners):
        return _publications(gaps)
    return ()


def _publications(gaps: list[Gap]) -> tuple[Publication, ...]:
    from portbook.managers import publications

    published, publication_gaps = publications.take()
    gaps += publication_gaps
    return published
