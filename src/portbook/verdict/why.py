"""``why``: whether a server can bind a port, and why not. Reads the situation, binds for real, judges."""

from __future__ import annotations

import _socket
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from msgspec.structs import replace

from portbook.addresses import EVERYWHERE, Endpoint, unmapped, zone_name
from portbook.bind import endpoints
from portbook.bind.attempt import BindAttempt, Options, attempt
from portbook.errors import UsageError
from portbook.numerals import UINT32, number_or_none
from portbook.ports import local_address, parse_one, with_protocol
from portbook.records import Protocol
from portbook.sources import PLATFORM
from portbook.verdict.judge import Verdict, is_explained, judge
from portbook.verdict.situation import BindRequest, Situation

if TYPE_CHECKING:
    from portbook.ports import PortLike

MOST_ROUNDS = 3  # holders come and go between the bind and the reading: repeat until both agree

# By whether they are IPv6: groups within a site that are not assigned (RFC 2365 section 6.2, RFC 4291 section 2.7).
SILENT_GROUPS = {False: Endpoint("239.255.77.77"), True: Endpoint("ff15::4d4d")}
WILDCARDS = {False: EVERYWHERE[0], True: EVERYWHERE[1]}

Gather = Callable[[BindRequest], Situation]


def why(
    port: PortLike,
    protocol: Protocol | None = None,
    *,
    address: str | None = None,
    dual: bool = False,
    reuse_address: bool | None = None,
    reuse_port: bool = False,
) -> Verdict:
    """Say whether a server can bind a port here and now, and what blocks the bind.

    The port is bound for a moment, as a server would bind it, and released.

    :param port: 1 to 65535, or text such as ``53/udp`` or ``127.0.0.1:8080``
    :param protocol: None: that of the port, else "tcp"
    :param address: one address, IPv6 with IPV6_V6ONLY; None is that of the port, else ``0.0.0.0`` and ``::``, one
        socket each
    :param dual: one ``::`` socket that takes the IPv4 port as well
    :param reuse_address: SO_REUSEADDR; None does as servers do: set it for TCP, except on Windows
    :param reuse_port: SO_REUSEPORT, where the system has it
    :returns: the verdict; ``can_have`` is None when this process lacked descriptors or memory
    :raises UsageError: an argument is not valid, or this system does not have the option
    """
    wanted = with_protocol(parse_one(port), protocol)
    written = local_address(wanted)
    if written is not None and address is not None:
        raise UsageError(f"{wanted} has an address", "name the address once")
    if reuse_port and not hasattr(_socket, "SO_REUSEPORT"):
        raise UsageError("this system has no SO_REUSEPORT", "omit the option")
    transport: Protocol = wanted.protocol or "tcp"
    options = Options(transport, reuse_address, reuse_port)
    places = endpoints.parse(written if address is None else address, dual=dual)
    requested = tuple(_with_named_zone(endpoint) for endpoint in places)
    return examine(BindRequest(wanted.port, transport, requested, options), _gather_of_this_system())


def _with_named_zone(endpoint: Endpoint) -> Endpoint:
    """Write the zone as sockets are listed: on Linux ``fe80::1%2`` becomes ``fe80::1%eth0``."""
    number = number_or_none(endpoint.zone or "", UINT32)
    if number is None or PLATFORM != "linux":
        return endpoint
    return replace(endpoint, zone=zone_name(number))  # of no interface: the bind reports it


def examine(request: BindRequest, gather: Gather) -> Verdict:
    """Bind and read until both agree, three times at most; what does not agree then is reported as it is."""
    for _ in range(MOST_ROUNDS):
        attempts = attempt(request.port, request.endpoints, request.options)
        situation = gather(request)
        if _may_share(request, attempts):
            situation = replace(situation, sharing=_sharing(situation, attempts))
        verdict = judge(situation, attempts)
        if is_explained(verdict):
            break
    return verdict


def _may_share(request: BindRequest, attempts: Sequence[BindAttempt]) -> bool:
    """Whether the holders may allow sharing. Not on Windows, where SO_REUSEADDR takes the port from its holder."""
    options = request.options
    if options.protocol != "udp" or options.reuse_address or options.reuse_port or PLATFORM == "windows":
        return False
    return any(result.posix_error == "EADDRINUSE" for result in attempts)


def _sharing(situation: Situation, attempts: Sequence[BindAttempt]) -> tuple[str, ...]:
    """The endpoints of UDP that are in use and whose holders allow sharing: a bind with SO_REUSEADDR succeeds.

    Of several sockets the last one gets the datagrams, so this one is bound where none is sent: for a holder of every
    address, at a group that nobody uses; for a holder of one address, at every address, where the holder's own counts
    more (compute_score() in net/ipv4/udp.c).
    """
    from portbook.verdict.overlap import ANY, claim_of_socket, overlap

    options = replace(situation.options, reuse_address=True)
    shared: list[str] = []
    for result in attempts:
        if result.posix_error != "EADDRINUSE":
            continue
        holders = [s for s in situation.sockets if overlap(s, result.endpoint)]
        places = SILENT_GROUPS if any(ANY in claim_of_socket(s) for s in holders) else WILDCARDS
        place = places[":" in unmapped(result.endpoint.address)]
        if holders and all(each.ok for each in attempt(situation.port, [place], options)):
            shared.append(str(result.endpoint))
    return tuple(shared)


def _gather_of_this_system() -> Gather:
    gather: Gather = import_module(f"portbook.verdict.{PLATFORM}").gather
    return gather
