"""The way of a packet through NAT chains: rules of nft and iptables in one form, and the walk through them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from portbook.bind.evidence import NatRule
from portbook.records import Protocol

NAT_HOOKS = ("prerouting", "output")
MOST_DEPTH = 16  # jumps within jumps, as the kernel limits them
MOST_VISITS = 50_000  # Kubernetes makes thousands of chains

PortRanges = tuple[tuple[int, int], ...]
Table = tuple[str, str, str]  # tool, family, name


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

    hook: str
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
