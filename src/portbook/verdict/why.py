"""Can I have this port, and if not, why not: gather, bind for real, judge."""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib import import_module

from msgspec.structs import replace

from portbook.addresses import Endpoint
from portbook.bind import endpoints
from portbook.bind.attempt import Options, attempt
from portbook.errors import UsageError
from portbook.query import PORTS
from portbook.records import PROTOCOLS, Protocol
from portbook.sources import PLATFORM
from portbook.verdict.evidence import Asked, Evidence
from portbook.verdict.judge import Verdict, agrees, judge

LOOKS = 3  # holders come and go between the look and the bind: until both agree


Gather = Callable[[Asked], Evidence]


def why(
    port: int,
    protocol: Protocol = "tcp",
    *,
    address: str | None = None,
    dual: bool = False,
    reuse_address: bool | None = None,
    reuse_port: bool = False,
) -> Verdict:
    """Say whether a server could have a port here and now, and what stands in its way.

    The port is bound for a moment, as a server would, and let go.

    :param port: 1 to 65535
    :param address: one address, IPv6 with V6ONLY; None asks for ``0.0.0.0`` and ``::``, each alone
    :param dual: ask for one ``::`` that takes the port of IPv4 as well
    :param reuse_address: SO_REUSEADDR; None does as servers do: for TCP, not on Windows
    :param reuse_port: SO_REUSEPORT, where the system has it
    :raises UsageError: what was asked makes no sense, or this system does not have it
    """
    low, high = PORTS
    if not low <= port <= high:
        raise UsageError(f"port {port} is out of range", f"valid are {low} to {high}")
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}", f"valid are {', '.join(PROTOCOLS)}")
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise UsageError("this system has no SO_REUSEPORT", "leave it away")
    options = Options(protocol, reuse_address, reuse_port)
    wanted = tuple(_with_named_zone(endpoint) for endpoint in endpoints.parse(address, dual=dual))
    asked = Asked(port, protocol, wanted, options)
    return examine(asked, _gatherer())


def _with_named_zone(endpoint: Endpoint) -> Endpoint:
    """As sockets are shown: on Linux ``fe80::1%2`` is ``fe80::1%eth0``."""
    if endpoint.zone is None or not endpoint.zone.isdecimal() or PLATFORM != "linux":
        return endpoint
    try:
        return replace(endpoint, zone=socket.if_indextoname(int(endpoint.zone)))
    except (OSError, OverflowError):
        return endpoint  # there is none: the bind will say so


def examine(asked: Asked, gather: Gather) -> Verdict:
    """Look and bind until both agree, a few times at most; what does not agree then is told as it is."""
    for _ in range(LOOKS):
        tried = attempt(asked.port, asked.endpoints, asked.options)
        verdict = judge(gather(asked), tried)
        if agrees(verdict):
            break
    return verdict


def _gatherer() -> Gather:
    gather: Gather = import_module(f"portbook.verdict.{PLATFORM}").gather
    return gather
