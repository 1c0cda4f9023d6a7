"""Windows: read everything that the rules may look at, within limits; what cannot be read is a gap."""

from __future__ import annotations

from msgspec.structs import replace

from portbook.netconfig.facts import SYSTEM_PID, HttpQueue
from portbook.netconfig.windows.httpsys import queues_of
from portbook.netconfig.windows.reservations import Reservations, take
from portbook.records import FAMILIES, Family, Owner, Socket
from portbook.verdict import holders
from portbook.verdict.situation import BindRequest, Situation


def gather(request: BindRequest) -> Situation:
    """Read the situation."""
    situation = holders.read(request)
    reservations = read_reservations(request, situation.sockets)
    return replace(
        situation,
        excluded=reservations.excluded or (),
        dynamic=reservations.dynamic or (),
        proxies=reservations.proxies or (),
        queues=reservations.queues or (),
        queue_owners=_queue_owners(reservations.queues or (), request.port),
        gaps=(*situation.gaps, *reservations.gaps),
    )


def _queue_owners(queues: tuple[HttpQueue, ...], port: int) -> dict[int, Owner]:
    """The processes that serve the http.sys queues with the port, with names and services."""
    from portbook.enrich import process, service

    pids = {pid for queue in queues_of(port, queues) for pid in queue.pids}
    owners, _ = process.enrich([Owner(pid) for pid in sorted(pids)])
    owners, _ = service.enrich(owners)
    return {owner.pid: owner for owner in owners}


def read_reservations(request: BindRequest, sockets: tuple[Socket, ...]) -> Reservations:
    """Read the lists of the requested families; http.sys queues if pid 4, or an unknown process, has the port."""
    requested: set[Family] = set()
    for endpoint in request.endpoints:
        if endpoint.dual or ":" not in endpoint.address:
            requested.add("ipv4")
        if endpoint.dual or ":" in endpoint.address:
            requested.add("ipv6")
    families = [family for family in FAMILIES if family in requested]
    return take((request.protocol,), families, queues=any(map(_may_be_http_sys, sockets)))


def _may_be_http_sys(s: Socket) -> bool:
    return not s.owners or any(owner.pid == SYSTEM_PID for owner in s.owners)
