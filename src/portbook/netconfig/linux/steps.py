"""The way of a packet through NAT chains: rules of nft and iptables in one form, and the walk through them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple, get_args

from portbook.addresses import unmapped
from portbook.netconfig.facts import LocalAddress, NatFamily, NatHook, NatRule, NatTool
from portbook.records import Protocol

PREROUTING: NatHook = "prerouting"
NAT_HOOKS: tuple[NatHook, ...] = get_args(NatHook)
MOST_DEPTH = 16  # jumps within jumps, as the kernel limits them
MOST_VISITS = 50_000  # Kubernetes makes thousands of chains

PortRanges = tuple[tuple[int, int], ...]
Table = tuple[NatTool, NatFamily, str]  # tool, family, name


class Step(NamedTuple):
    """One rule: what it asks of a packet, and what then happens. A base chain is a step from its hook."""

    table: Table
    chain: str  # or the hook
    kind: str  # "jump", "dnat", "redirect"
    target: str | None = None  # a chain, or an address
    port: int | None = None  # that the packet gets
    protocols: frozenset[str] | None = None  # None: any
    ports: PortRanges | None = None  # of the destination; None: any
    destination: str | None = None
    conditions: tuple[str, ...] = ()


class _Way(NamedTuple):
    """What is known of the packet by now."""

    hook: NatHook
    destination: str | None = None
    conditions: tuple[str, ...] = ()
    depth: int = 0


def walk(steps: Iterable[Step], port: int, protocol: Protocol) -> Iterator[NatRule]:
    """Every redirection that a packet to the port can meet."""
    by_chain: dict[tuple[Table, str], list[Step]] = {}
    for step in steps:
        if _fits(step, port, protocol):
            by_chain.setdefault((step.table, step.chain), []).append(step)
    visits = MOST_VISITS
    pending = [
        (step, _Way(hook))
        for (_, chain), found in by_chain.items()
        for hook in NAT_HOOKS
        if chain == hook_name(hook)
        for step in found
    ]
    while pending and visits:
        visits -= 1
        step, way = pending.pop()
        way = _Way(way.hook, step.destination or way.destination, (*way.conditions, *step.conditions), way.depth + 1)
        if step.kind != "jump":
            yield _rule(step, way)
        elif way.depth < MOST_DEPTH:
            pending += [(other, way) for other in by_chain.get((step.table, step.target or ""), ())]


def hook_name(hook: str) -> str:
    """How a hook is told from a chain of the same name."""
    return f"hook {hook}"


def _fits(step: Step, port: int, protocol: Protocol) -> bool:
    if step.protocols is not None and protocol not in step.protocols:
        return False
    return step.ports is None or any(low <= port <= high for low, high in step.ports)


def _rule(step: Step, way: _Way) -> NatRule:
    tool, family, _ = step.table
    address = step.target if step.kind == "dnat" else None
    if address:  # a table of both families holds rules of one
        family = "ipv6" if ":" in address else "ipv4"
    return NatRule(family, way.hook, address, step.port, way.destination, way.conditions, step.chain, tool)


# --- which of them matter ------------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """What was asked, and which addresses of this machine that means."""

    families: frozenset[str]
    addresses: tuple[IPv4Address | IPv6Address, ...]
    loopback: bool  # nothing else

    def means(self, rule: NatRule) -> bool:
        """Whether a rule is for packets to it."""
        if rule.family not in self.families or (self.loopback and rule.hook == PREROUTING):
            return False  # no packet to a loopback address comes in from outside: RFC 1122 section 3.2.1.3
        try:
            network = ip_network(rule.destination, strict=False) if rule.destination else None
        except ValueError:
            return True  # better told than lost
        return network is None or any(address in network for address in self.addresses)


def concerning(
    rules: Iterable[NatRule], asked: Sequence[str], addresses: Sequence[LocalAddress]
) -> tuple[NatRule, ...]:
    """Those for packets to what was asked: of its families, to addresses of this machine. Pure."""
    bare = [ip_address(unmapped(a)) for a in asked]
    mine = [a for a in bare if not a.is_unspecified]
    if any(a.is_unspecified for a in bare):
        mine += [ip_address(a.address) for a in addresses]
    families = frozenset({f"ipv{a.version}" for a in bare} | {"both"})
    meant = _Asked(families, tuple(mine), all(a.is_loopback for a in bare))
    return tuple(rule for rule in rules if meant.means(rule))
