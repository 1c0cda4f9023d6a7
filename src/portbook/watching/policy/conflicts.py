"""Rules that contradict or repeat each other, and rules that have no effect. Pure, and bounded in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from portbook.records import PortRange
from portbook.watching.policy.glob import Pattern
from portbook.watching.policy.keys import SELECTORS
from portbook.watching.policy.records import ANY, LOOPBACK, Default, Network, PolicyRule, Problem, Selector

MOST_COMPARED = 200_000  # pairs of rules


def find(rules: Sequence[PolicyRule], file: str) -> Iterator[Problem]:
    """Yield each duplicate, and each rule that another one denies wholly."""
    seen: dict[tuple[str, Selector], PolicyRule] = {}
    contradicted: set[int] = set()
    for rule in rules:
        first = seen.setdefault((rule.kind, rule.selector), rule)
        if first is not rule:
            what = f"{name(rule)} repeats {name(first)} on line {first.line}"
            yield Problem(file, rule.line, what, "remove one of them")
    for denying, other in _pairs(rules):
        if other.line in contradicted or not _lasts(denying, other) or not covers(denying.selector, other.selector):
            continue
        contradicted.add(other.line)
        verb = "requires what" if other.kind == "require" else "allows nothing:"
        what = f"{name(other)} {verb} {name(denying)} on line {denying.line} denies"
        if other.kind == "allow":
            what = f"{what} all of it"
        yield Problem(file, other.line, what, "a rule that denies always wins: narrow it, or remove one of them")


def _pairs(rules: Sequence[PolicyRule]) -> Iterator[tuple[PolicyRule, PolicyRule]]:
    """Each rule that denies with each other rule, as many as there is time for."""
    denying = [rule for rule in rules if rule.kind == "deny"]
    others = [rule for rule in rules if rule.kind != "deny"]
    most = MOST_COMPARED // max(len(denying), 1)
    for other in others[:most]:
        for rule in denying[:MOST_COMPARED]:
            yield rule, other


def _lasts(denying: PolicyRule, other: PolicyRule) -> bool:
    """Whether it denies as long as the other rule applies."""
    return denying.ends is None or (other.ends is not None and other.ends <= denying.ends)


def warn(rules: Sequence[PolicyRule], default: Default, file: str, now: datetime) -> Iterator[Problem]:
    """Yield what is valid and probably not meant."""
    for rule in rules:
        if not rule.applies(now):
            yield Problem(file, rule.line, f"{name(rule)} ended with {rule.until}", "renew it, or remove it")
        if default == "allow" and rule.kind == "allow":
            what = f"{name(rule)} has no effect, because the default is to allow"
            yield Problem(file, rule.line, what, 'write default = "deny"')
        if rule.kind == "allow" and _is_name_only(rule.selector):
            what = f"{name(rule)} trusts a name that every process may give itself"
            yield Problem(file, rule.line, what, "add exe, user or service")


def _is_name_only(selector: Selector) -> bool:
    keys = {key for key in SELECTORS if getattr(selector, key) is not None}
    return "name" in keys and not keys & {"exe", "user", "service", "container", "image"}


def name(rule: PolicyRule) -> str:
    """``allow[3]``."""
    return f"{rule.kind}[{rule.ordinal}]"


# --- what covers what ----------------------------------------------------------------------------------------------


def covers(denying: Selector, other: Selector) -> bool:
    """Whether it is certain that a rule that denies is about every socket that the other is about."""
    if not (_has_ports(denying.tcp, other.tcp) and _has_ports(denying.udp, other.udp)):
        return False
    return all(_covers_key(key, getattr(denying, key), getattr(other, key)) for key in SELECTORS)


def _has_ports(ranges: tuple[PortRange, ...], others: tuple[PortRange, ...]) -> bool:
    return all(any(first <= start and end <= last for first, last in ranges) for start, end in others)


def _covers_key(key: str, values: tuple[object, ...] | None, others: tuple[object, ...] | None) -> bool:
    if values is None:
        return True
    if others is None:
        return False
    if key == "reach":
        return _covers_reach(values, others)
    return all(any(_covers_value(value, other) for value in values) for other in others)


def _covers_value(value: object, other: object) -> bool:
    if isinstance(value, Pattern) and isinstance(other, Pattern):
        return value.covers(other)
    return value == other


def _covers_reach(values: tuple[object, ...], others: tuple[object, ...]) -> bool:
    """A rule that allows a reach allows loopback with it, so what denies it has to deny loopback too."""
    if values == others == (LOOPBACK,):
        return True
    if LOOPBACK not in values or ANY in others:
        return False
    networks = [value for value in values if isinstance(value, Network)]
    return all(other == LOOPBACK or any(_has_network(network, other) for network in networks) for other in others)


def _has_network(network: Network, other: object) -> bool:
    if not isinstance(other, Network) or network.version != other.version:
        return False
    return network.first <= other.first and other.last <= network.last
