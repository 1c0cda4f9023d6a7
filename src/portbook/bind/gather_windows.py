"""Windows: everything the rules may look at, read within bounds; what cannot be read is a gap."""

from __future__ import annotations

from typing import NamedTuple

from portbook.bind import occupants
from portbook.bind.evidence import Asked, Caller, DynamicRange, Evidence, ExcludedRange, HttpQueue, PortProxy
from portbook.bind.rules.windows import port_of
from portbook.records import Gap, Owner, Socket


class Lists(NamedTuple):
    """What Windows keeps about ports besides sockets."""

    excluded: tuple[ExcludedRange, ...] = ()
    dynamic: tuple[DynamicRange, ...] = ()
    proxies: tuple[PortProxy, ...] = ()
    queues: tuple[HttpQueue, ...] = ()
    gaps: tuple[Gap, ...] = ()


def gather(asked: Asked) -> Evidence:
    """Fill the evidence."""
    sockets, gaps = occupants.on_port(asked)
    lists = read_lists(asked, sockets)
    return Evidence(
        platform="windows",
        port=asked.port,
        protocol=asked.protocol,
        endpoints=asked.endpoints,
        options=asked.options,
        caller=Caller(),
        sockets=sockets,
        parents=occupants.parents_of(sockets),
        excluded=lists.excluded,
        dynamic=lists.dynamic,
        proxies=lists.proxies,
        queues=lists.queues,
        behind=_behind(lists.queues, asked.port),
        gaps=(*gaps, *lists.gaps),
    )


def _behind(queues: tuple[HttpQueue, ...], port: int) -> dict[int, Owner]:
    """Who answers what http.sys takes in, with names and services."""
    from portbook.enrich import process, service

    pids = {pid for queue in queues if any(port_of(url) == port for url in queue.urls) for pid in queue.pids}
    owners, _ = process.enrich([Owner(pid) for pid in sorted(pids)])
    owners, _ = service.enrich(owners)
    return {owner.pid: owner for owner in owners}


def read_lists(asked: Asked, sockets: tuple[Socket, ...]) -> Lists:
    """The lists that concern what is asked; queues of http.sys only when pid 4 has the port."""
    why = "excluded port ranges, http.sys registrations and portproxy are not read"
    hint = "netsh int ipv4 show excludedportrange protocol=tcp; netsh http show servicestate"
    return Lists(gaps=(Gap("reservation", None, why, hint),))
