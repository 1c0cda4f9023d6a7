"""Reasons why a bind fails or may fail: one record, with a code that scripts may rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from msgspec import Struct

from portbook.records import Confidence
from portbook.verdict.situation import Situation

# blocks: the bind fails because of it. shadows: another program receives what is sent to this port, or holds the port
# at another address. warns: it does not block now.
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
    "not-unicast",
    "address-tentative",
    "ipv6-disabled",
    "nat-rule",
    "tproxy",
    "ipvs",
    "sk-lookup",
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
    """One reason, with its evidence and what to do."""

    code: FindingCode
    severity: Severity
    text: str  # hostile: it contains names that processes chose
    remedy: str | None = None
    evidence: dict[str, Any] = {}
    endpoints: tuple[str, ...] = ()  # requested endpoints that it concerns: "0.0.0.0", "[::]"
    confidence: Confidence = "certain"  # likely: it depends on an option of the other socket, which no system shows
    perhaps: tuple[str, ...] = ()  # endpoints that it concerns if that option is set; the bind decides


Rule = Callable[[Situation], Iterator[Finding]]

CODES: dict[FindingCode, str] = {
    "listener": "a TCP socket listens on the port",
    "reuseport-group": "several sockets share the port with SO_REUSEPORT",
    "socket-activation": "a service manager holds the port for a service",
    "udp-socket": "a UDP socket is bound to the port",
    "bound-only": "a TCP socket is bound to the port and does not listen",
    "connection": "a connection has the port as its local port",
    "orphan": "a connection without an owner is not closed yet",
    "time-wait": "closed connections are in TIME_WAIT",
    "wildcard-shadow": "a bind to every address conflicts with a socket on one address, or the reverse",
    "dual-stack-shadow": "an IPv6 socket without IPV6_V6ONLY takes the IPv4 port too",
    "device-bound": "a socket bound to one interface (SO_BINDTODEVICE) blocks the bind",
    "vrf": "a socket is bound to the port in a VRF",
    "other-address": "the port is in use at an address that was not requested",
    "relay": "the holder forwards connections to another program",
    "privileged-port": "low ports need a capability",
    "address-not-local": "the address is not an address of this machine",
    "not-unicast": "the address is a multicast or broadcast address",
    "address-tentative": "IPv6 duplicate address detection has not finished",
    "ipv6-disabled": "this machine has no IPv6, or no IPv6 address",
    "nat-rule": "a NAT rule redirects packets to the port before a socket receives them",
    "tproxy": "a rule hands packets to the port to a transparent proxy",
    "ipvs": "IPVS, the kernel's load balancer, forwards packets to the port",
    "sk-lookup": "a BPF program chooses the socket that receives packets",
    "ephemeral-port": "the system may give the port to any outgoing connection",
    "reserved-port": "the administrator excluded the port from automatic choice",
    "excluded-range": "Windows has excluded the port",
    "http-sys": "http.sys holds the port for another process",
    "exclusive-holder": "the holder has set SO_EXCLUSIVEADDRUSE, or belongs to another user",
    "portproxy": "netsh portproxy forwards the port",
    "airplay": "AirPlay Receiver of macOS holds the port",
    "unexplained": "the bind and the findings do not agree",
}
