"""``why``: whether a server can bind a port, and why not. Reads the situation, binds for real, judges."""

from __future__ import annotations

import _socket
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from msgspec.structs import replace

from portbook.addresses import Endpoint, zone_name
from portbook.bind import endpoints
from portbook.bind.attempt import Options, attempt
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
        verdict = judge(gather(request), attempts)
        if is_explained(verdict):
            break
    return verdict


def _gather_of_this_system() -> Gather:
    gather: Gather = import_module(f"portbook.verdict.{PLATFORM}").gather
    return gather
