"""Rules by port: between two ends of ranges the same rules apply, so each such segment has one list of candidates."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from msgspec import Struct

from portbook.records import PROTOCOLS, Protocol
from portbook.watching.policy.glob import Pattern
from portbook.watching.policy.matching import Check, compile_checks
from portbook.watching.policy.records import EVERY_PORT, PolicyRule, RuleKind, Selector

MOST_KEPT = 1_000_000  # references to rules in the lists that are kept


class Candidate(Struct, frozen=True):
    """A rule with the tests of its keys."""

    rule: PolicyRule
    checks: tuple[Check, ...]
    is_general: bool  # it is about every port


class Required(Struct, frozen=True):
    """One entry of a requirement, with the tests of its keys."""

    rule: PolicyRule
    selector: Selector
    checks: tuple[Check, ...]


class Needs(Struct, frozen=True):
    """What rules need to know beyond the sockets and their owners."""

    programs: bool  # whether processes run the files of their paths
    images: bool
    paths: frozenset[str]  # of executables, but for patterns: they may lead through links
    hashed: tuple[Pattern, ...]  # the executables whose SHA-256 counts


# Those that deny, and those that allow: a requirement allows what it requires.
Candidates = tuple[tuple[Candidate, ...], tuple[Candidate, ...]]


class Index:
    """The rules that may apply to a port, in the order of the file. Lists are made when they are first needed."""

    def __init__(self, rules: Sequence[PolicyRule]) -> None:
        self._rules = [_candidate(rule) for rule in rules]
        self.required = [
            Required(rule, entry, compile_checks(entry, "require")) for rule in rules for entry in rule.entries
        ]
        self._starts = {protocol: _starts(rules, protocol) for protocol in PROTOCOLS}
        self._candidates: dict[tuple[str, int], Candidates] = {}
        self._needs: dict[tuple[str, int], Needs] = {}
        self._kept = 0

    def candidates(self, protocol: Protocol, port: int) -> Candidates:
        """The rules about a port."""
        key = protocol, bisect_right(self._starts[protocol], port)
        known = self._candidates.get(key)
        if known is None:
            known = self._add(key, protocol, port)
        return known

    def needs(self, protocol: Protocol, port: int) -> Needs:
        """What the rules about a port need to know."""
        key = protocol, bisect_right(self._starts[protocol], port)
        known = self._needs.get(key)
        if known is None:
            denying, allowing = self.candidates(protocol, port)
            known = self._needs[key] = _needs([each.rule.selector for each in (*denying, *allowing)])
            self._kept += len(known.paths) + len(known.hashed)
        return known

    def is_required(self, protocol: Protocol, port: int) -> bool:
        """Whether a requirement is about a port."""
        return any(has_port(each.selector, protocol, port) for each in self.required)

    def _add(self, key: tuple[str, int], protocol: Protocol, port: int) -> Candidates:
        about = [each for each in self._rules if has_port(each.rule.selector, protocol, port)]
        denying = tuple(each for each in about if each.rule.kind == "deny")
        made = denying, tuple(each for each in about if each.rule.kind != "deny")
        if self._kept + len(about) > MOST_KEPT:
            self._candidates.clear()
            self._needs.clear()
            self._kept = 0
        self._candidates[key] = made
        self._kept += len(about)
        return made


def _starts(rules: Sequence[PolicyRule], protocol: Protocol) -> list[int]:
    """The ports at which the list of candidates may change."""
    starts = {start for rule in rules for first, last in rule.selector.ports(protocol) for start in (first, last + 1)}
    return sorted(starts)


def _candidate(rule: PolicyRule) -> Candidate:
    kind: RuleKind = "deny" if rule.kind == "deny" else "allow"
    is_general = EVERY_PORT == rule.selector.tcp == rule.selector.udp
    return Candidate(rule, compile_checks(rule.selector, kind), is_general)


def _needs(selectors: Sequence[Selector]) -> Needs:
    named = [selector.exe for selector in selectors if selector.exe is not None]
    hashed = [selector.exe for selector in selectors if selector.sha256 is not None and selector.exe is not None]
    return Needs(
        bool(named),
        any(selector.image is not None for selector in selectors),
        frozenset(path.text for paths in named for path in paths if path.parts is None),
        tuple(path for paths in hashed for path in paths),
    )


def has_port(selector: Selector, protocol: Protocol, port: int) -> bool:
    """Whether a selector is about a port."""
    return any(first <= port <= last for first, last in selector.ports(protocol))
