"""Diversions in words, and the ports of this machine that rules take away, for who chooses a port."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from msgspec import Struct

from portbook.addresses import Endpoint, format_endpoint
from portbook.netconfig.facts import Diversion, NatTarget
from portbook.numerals import join_words
from portbook.records import Gap, Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from portbook.netconfig.linux.nat import Rules

PACKETS = {"output": "packets from this machine", "prerouting": "packets from other machines"}  # by hook


# --- in words ------------------------------------------------------------------------------------------------------


def describe(diversion: Diversion, port: int, note: str = "") -> str:
    """``NAT redirects packets from other machines for port 8080 to 10.88.0.5:80``.

    :param note: what is known of the target besides
    """
    packets = f"{format_packets(diversion)} for port {port}{format_limits(diversion)}"
    if diversion.kind == "tproxy":
        ports = sorted({target.port or port for target in diversion.targets})
        return f"TPROXY hands {packets} to the proxy on {join_words([f'port {number}' for number in ports], 'or')}"
    targets = join_words([_format_target(target, port) for target in diversion.targets], "or")
    return f"NAT redirects {packets} to {targets}{note}"


def _format_target(target: NatTarget, port: int) -> str:
    """``10.0.0.2:80``, ``port 82 of this machine``, ``one of the ports 6000 to 6010 of this machine``."""
    first = target.port or port
    if target.computed:
        return "an address that the rule computes"
    if target.last_port is not None:
        of = target.address or "this machine"
        return f"one of the ports {first} to {target.last_port} of {of}"
    if target.address is None:
        return f"port {first} of this machine"
    return format_endpoint(target.address, first)


def format_packets(diversion: Diversion) -> str:
    """From which machines the packets are; some, if it depends on what is not known of them."""
    hooks = {rule.hook for rule in diversion.rules}
    packets = "packets from this and other machines"
    if len(hooks) == 1:
        packets = PACKETS.get(hooks.pop(), packets)
    if not diversion.certain:
        return f"some {packets}"
    return packets


def format_limits(diversion: Diversion) -> str:
    """Which packets, if not those to every address and through every interface."""
    addresses = list(dict.fromkeys(rule.destination for rule in diversion.rules))
    interfaces = list(dict.fromkeys(rule.interface for rule in diversion.rules if rule.hook == "prerouting"))
    text = ""
    if None not in addresses:
        text += f" of {join_words([address for address in addresses if address])}"
    if interfaces and None not in interfaces:
        text += f" that come in through {join_words([name for name in interfaces if name])}"
    return text


# --- which ports ---------------------------------------------------------------------------------------------------


class DivertedPorts(Struct):
    """What diverts packets to ports of some addresses, asked port by port; the answers are kept by range."""

    rules: Rules | None = None
    limits: list[int] = []
    gaps: tuple[Gap, ...] = ()
    answers: dict[tuple[int, Protocol], tuple[Diversion, ...]] = {}

    def of(self, port: int, protocols: Sequence[Protocol]) -> tuple[Diversion, ...]:
        """What diverts packets to a port."""
        if self.rules is None:
            return ()
        diversions: list[Diversion] = []
        for protocol in protocols:
            key = bisect_right(self.limits, port), protocol
            if key not in self.answers:
                self.answers[key], gaps = self.rules.diversions(port, protocol)
                self.gaps += tuple(gap for gap in gaps if gap not in self.gaps)
            diversions += self.answers[key]
        return tuple(diversions)


def take_ports(places: Iterable[Endpoint]) -> DivertedPorts:
    """Read the rules of this machine, where it has any, about packets to these endpoints."""
    if sys.platform != "linux":
        return DivertedPorts()
    addresses: list[str] = []
    for place in places:
        addresses.append(place.address)
        if place.dual:
            addresses.append("0.0.0.0")  # noqa: S104  such a socket has the port of IPv4 too
    try:
        from portbook.netconfig.linux import nat, sysctl

        rules, gaps = nat.take_rules(addresses, may_read=sysctl.read_caller().may_read_nat is not False)
    except OSError as error:  # no descriptor is left, not even to import a module
        return DivertedPorts(gaps=(Gap("nat", None, f"whether NAT rules redirect packets is not known: {error}"),))
    limits = rules.ruleset.port_limits() if rules is not None else []
    return DivertedPorts(rules, limits, tuple(gaps), {})
