"""What stands in the way of a bind, or will: one record, with a code that scripts may rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from msgspec import Struct

from portbook.records import Confidence
from portbook.verdict.evidence import Evidence

# blocks: the bind fails for it. shadows: somebody else gets what is meant for this port, or takes it by another
# address. warns: no obstacle now.
Severity = Literal["blocks", "shadows", "warns"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


FindingCode = Literal[
    "listener",
    "reuseport-group",
    "socket-activation",
    "udp-socket",
    "bound-only",
    "connection",
    "orphan",
    "time-wait",
    "wildcard-shadow",
    "dual-stack-shadow",
    "device-bound",
    "vrf",
    "other-address",
    "relay",
    "privileged-port",
    "address-not-local",
    "address-tentative",
    "ipv6-disabled",
    "nat-rule",
    "ephemeral-port",
    "reserved-port",
    "excluded-range",
    "http-sys",
    "exclusive-holder",
    "portproxy",
    "airplay",
    "unexplained",
]


class Finding(Struct, frozen=True):
    """One reason, with what it rests on and what to do."""

    code: FindingCode
    severity: Severity
    text: str  # names in it are what processes chose: hostile text
    remedy: str | None = None
    evidence: dict[str, Any] = {}
    endpoints: tuple[str, ...] = ()  # what was asked and is concerned: "0.0.0.0", "[::]"
    confidence: Confidence = "certain"  # likely: it depends on an option of the other socket, which nobody is told
    perhaps: tuple[str, ...] = ()  # concerned too, if that option is so; the bind settles it


Rule = Callable[[Evidence], Iterator[Finding]]

CODES: dict[FindingCode, str] = {
    "listener": "a socket listens there",
    "reuseport-group": "several sockets share the port with SO_REUSEPORT",
    "socket-activation": "a service manager holds the port for a service",
    "udp-socket": "a UDP socket is bound there",
    "bound-only": "a TCP socket is bound and does not listen",
    "connection": "a connection has this port as its own",
    "orphan": "a connection that its process has closed is not finished",
    "time-wait": "closed connections are kept in TIME_WAIT",
    "wildcard-shadow": "a wildcard address takes the port of single ones, or the other way round",
    "dual-stack-shadow": "an IPv6 socket takes the port of IPv4 as well",
    "device-bound": "the socket in the way takes packets of one interface only (SO_BINDTODEVICE)",
    "vrf": "a socket has the port in a VRF",
    "other-address": "the port is held on an address that was not asked for",
    "relay": "the holder passes connections on to somebody else",
    "privileged-port": "low ports need a capability",
    "address-not-local": "no interface of this machine has the address",
    "address-tentative": "IPv6 is still finding out whether the address is a neighbour's",
    "ipv6-disabled": "this machine does not speak IPv6, or has no IPv6 address",
    "nat-rule": "packets to the port are redirected before any socket sees them",
    "ephemeral-port": "any outgoing connection may get this port",
    "reserved-port": "the administrator keeps automatic choice away from this port",
    "excluded-range": "Windows has excluded the port",
    "http-sys": "http.sys holds the port for another process",
    "exclusive-holder": "the holder has SO_EXCLUSIVEADDRUSE, or is another user's",
    "portproxy": "netsh's portproxy listens there",
    "airplay": "AirPlay Receiver of macOS has the port",
    "unexplained": "the bind and what was found do not agree",
}
