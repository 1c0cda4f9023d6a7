"""Windows: everything the rules may look at, read within bounds; what cannot be read is a gap."""

from __future__ import annotations

from msgspec.structs import replace

from portbook.netconfig.facts import HttpQueue
from portbook.netconfig.windows.httpsys import SYSTEM_PID, queues_of
from portbook.netconfig.windows.reservations import Reservations, take
from portbook.records import FAMILIES, Owner, Socket
from portbook.verdict import occupants
from portbook.verdict.evidence import Asked, Evidence


def gather(asked: Asked) -> Evidence:
    """Fill the evidence."""
    found = occupants.evidence(asked)
    kept = read_reservations(asked, found.sockets)
    return replace(
        found,
        excluded=kept.excluded or (),
        dynamic=kept.dynamic or (),
        proxies=kept.proxies or (),
        queues=kept.queues or (),
        behind=_behind(kept.queues or (), asked.port),
        gaps=(*found.gaps, *kept.gaps),
    )


def _behind(queues: tuple[HttpQueue, ...], port: int) -> dict[int, Owner]:
    """Who answers what http.sys takes in, with names and services."""
    from portbook.enrich import process, service

    pids = {pid for queue in queues_of(port, queues) for pid in queue.pids}
    owners, _ = process.enrich([Owner(pid) for pid in sorted(pids)])
    owners, _ = service.enrich(owners)
    return {owner.pid: owner for owner in owners}


def read_reservations(asked: Asked, sockets: tuple[Socket, ...]) -> Reservations:
    """The lists of the families that are asked for; queues of http.sys when pid 4 has the port, or nobody known."""
    wanted = {"ipv6" if ":" in endpoint.address else "ipv4" for endpoint in asked.endpoints}
    if any(endpoint.dual for endpoint in asked.endpoints):
        wanted = set(FAMILIES)
    behind = any(not s.owners or any(o.pid == SYSTEM_PID for o in s.owners) for s in sockets)
    return take((asked.protocol,), [family for family in FAMILIES if family in wanted], queues=behind)
