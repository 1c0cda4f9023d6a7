"""The path of a packet through NAT chains: rules of nft and iptables in one form, and the walk through them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple, get_args

from portbook.addresses import unmapped
from portbook.netconfig.facts import LocalAddress, NatFamily, NatHook, NatRule, NatTool
from portbook.records import PortRange, Protocol

PREROUTING: NatHook = "prerouting"
NAT_HOOKS: tuple[NatHook, ...] = get_args(NatHook)
MOST_DEPTH = 16  # jumps within jumps, as the kernel limits them
MOST_VISITS = 50_000  # Kubernetes makes thousands of chains

Table = tuple[NatTool, NatFamily, str]  # tool, family, name


class Step(NamedTuple):
    """One rule: what a packet must be, and what then happens to it. A base chain is a step from its hook."""

    table: Table
    chain: str  # or hook_name()
    kind: str  # "jump", "dnat", "redirect"
    target: str | None = None  # a chain, or an address
    port: int | None = None  # the new destination port
    protocols: frozenset[str] | None = None  # None: any
    ports: tuple[PortRange, ...] | None = None  # of the destination; None: any
    destination: str | None = None
    conditions: tuple[str, ...] = ()


class _Path(NamedTuple):
    """What is known of a packet that passes through the chains."""

    hook: NatHook
    destination: str | None = None
    conditions: tuple[str, ...] = ()
    depth: int = 0

    def after(self, step: Step) -> _Path:
        """The path behind a rule that the packet matches."""
        destination = step.destination or self.destination
        return _Path(self.hook, destination, (*self.conditions, *step.conditions), self.depth + 1)


class NatWalk(NamedTuple):
    """The redirections that a packet can meet."""

    rules: tuple[NatRule, ...]
    complete: bool  # False: there are more than MOST_VISITS steps


def follow_packet(steps: Iterable[Step], port: int, protocol: Protocol) -> NatWalk:
    """Follow a packet to the port through every chain that it can reach."""
    by_chain: dict[tuple[Table, str], list[Step]] = {}
    for step in steps:
        if _matches(step, port, protocol):
            by_chain.setdefault((step.table, step.chain), []).append(step)

    pending: list[tuple[Step, _Path]] = []
    for (_, chain), base_steps in by_chain.items():
        for hook in NAT_HOOKS:
            if chain == hook_name(hook):
                pending += ((step, _Path(hook)) for step in base_steps)

    rules: dict[NatRule, None] = {}
    for _ in range(MOST_VISITS):
        if not pending:
            break
        step, path = pending.pop()
        path = path.after(step)
        if step.kind != "jump":
            rules[_nat_rule(step, path)] = None
        elif path.depth < MOST_DEPTH:
            pending += ((following, path) for following in by_chain.get((step.table, step.target or ""), ()))
    return NatWalk(tuple(rules), complete=not pending)


def hook_name(hook: str) -> str:
    """The name of a hook among chains, which a chain of the same name does not have."""
    return f"hook {hook}"


def _matches(step: Step, port: int, protocol: Protocol) -> bool:
    if step.protocols is not None and protocol not in step.protocols:
        return False
    return step.ports is None or any(low <= port <= high for low, high in step.ports)


def _nat_rule(step: Step, path: _Path) -> NatRule:
    tool, family, _ = step.table
    address = None
    if step.kind == "dnat":
        address = step.target
    if address:  # a table of both families contains rules of one
        family = "ipv6" if ":" in address else "ipv4"
    return NatRule(family, path.hook, address, step.port, path.destination, path.conditions, step.chain, tool)


# --- which of them matter ------------------------------------------------------------------------------------------


class _Destinations(NamedTuple):
    """Where the packets in question go."""

    families: frozenset[str]
    addresses: tuple[IPv4Address | IPv6Address, ...]
    only_loopback: bool

    def are_matched(self, rule: NatRule) -> bool:
        """Whether a rule applies to packets to one of them."""
        if rule.family not in self.families:
            return False
        if self.only_loopback and rule.hook == PREROUTING:
            return False  # no packet to a loopback address comes in from outside: RFC 1122 section 3.2.1.3
        if not rule.destination:
            return True
        try:
            network = ip_network(rule.destination, strict=False)
        except ValueError:
            return True  # the name of a set: it may contain them
        return any(address in network for address in self.addresses)


def select_rules(
    rules: Iterable[NatRule], requested: Sequence[str], local: Sequence[LocalAddress]
) -> tuple[NatRule, ...]:
    """The rules for packets to the requested addresses; a wildcard means the local addresses. Pure."""
    packed = [ip_address(unmapped(address)) for address in requested]
    addresses = [address for address in packed if not address.is_unspecified]
    if len(addresses) < len(packed):
        addresses += (ip_address(row.address) for row in local)
    destinations = _Destinations(
        families=frozenset({f"ipv{address.version}" for address in packed} | {"both"}),
        addresses=tuple(addresses),
        only_loopback=all(address.is_loopback for address in packed),
    )
    return tuple(rule for rule in rules if destinations.are_matched(rule))
