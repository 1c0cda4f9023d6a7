"""Windows: everything the rules may look at, read within bounds; what cannot be read is a gap."""

from __future__ import annotations

from typing import NamedTuple

from portbook.bind import occupants
from portbook.bind.evidence import Asked, Caller, DynamicRange, Evidence, ExcludedRange, HttpQueue, PortProxy
from portbook.records import Gap, Socket


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
        gaps=(*gaps, *lists.gaps),
    )


def read_lists(asked: Asked, sockets: tuple[Socket, ...]) -> Lists:
    """The lists that concern what is asked; queues of http.sys only when pid 4 has the port."""
    why = "excluded port ranges, http.sys registrations and portproxy are not read"
    hint = "netsh int ipv4 show excludedportrange protocol=tcp; netsh http show servicestate"
    return Lists(gaps=(Gap("port lists", None, why, hint),))
