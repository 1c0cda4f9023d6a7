"""What differs between two policies: their rules, and what each says about what listens now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from portbook.records import SCHEMA, Gap, Socket
from portbook.watching.assessment import JudgedResult
from portbook.watching.policy.records import Policy, PolicyRule, RuleKind, Selector
from portbook.watching.policy.summary import RuleSummary, summarize

ChangeOfRule = Literal["added", "removed", "changed"]
# What is said about a rule, and may change while it remains the same rule.
ABOUT = ("severity", "until", "owner", "comment")


class RuleChange(Struct, frozen=True):
    """A rule that only one of the policies has, or that says something else about the same sockets."""

    change: ChangeOfRule
    old: RuleSummary | None
    new: RuleSummary | None
    what: str  # of a changed rule: which keys


class SocketChange(Struct, frozen=True):
    """A socket that the policies judge differently."""

    socket: Socket
    old: JudgedResult
    new: JudgedResult
    old_why: str
    new_why: str


class PolicyDifference(Struct, frozen=True):
    """The answer of ``policy diff``."""

    schema: int
    old: str  # the files
    new: str
    same: bool
    settings: tuple[str, ...]  # "default: deny, now allow"
    rules: tuple[RuleChange, ...]
    sockets: tuple[SocketChange, ...] | None  # None: they were not compared
    gaps: tuple[Gap, ...] = ()


def compare(old: Policy, new: Policy) -> PolicyDifference:
    """Compare the rules; their order does not matter, because it does not matter to the judge. Pure."""
    settings = tuple(
        f"{key}: {getattr(old, key)}, now {getattr(new, key)}"
        for key in ("default", "severity")
        if getattr(old, key) != getattr(new, key)
    )
    rules = tuple(_rules(old, new))
    return PolicyDifference(SCHEMA, old.file, new.file, not settings and not rules, settings, rules, None)


def _rules(old: Policy, new: Policy) -> Iterator[RuleChange]:
    before, after = _by_selector(old), _by_selector(new)
    for key, rule in before.items():
        other = after.get(key)
        if other is None:
            yield RuleChange("removed", summarize(rule), None, "")
            continue
        changed = [name for name in ABOUT if getattr(rule, name) != getattr(other, name)]
        if changed:
            yield RuleChange("changed", summarize(rule), summarize(other), ", ".join(changed))
    for key, rule in after.items():
        if key not in before:
            yield RuleChange("added", None, summarize(rule), "")


def _by_selector(policy: Policy) -> dict[tuple[RuleKind, Selector], PolicyRule]:
    return {(rule.kind, rule.selector): rule for rule in policy.rules}


def compare_now(old: Policy, new: Policy, *, source: str | None = None) -> PolicyDifference:
    """Compare the rules, and what they say about what listens now; raises as ``inventory.take``."""
    from msgspec.structs import replace

    from portbook.watching import assessment
    from portbook.watching.evidence import Collector

    listing = assessment.take_listing(source)
    reports: list[assessment.PolicyReport] = []
    for policy in (old, new):
        collector = Collector(policy)
        reports.append(assessment.report(policy, listing, collector.collect(listing.sockets), collector.gaps))
    before = {each.socket: each for each in reports[0].sockets}
    sockets: list[SocketChange] = []
    for judged in reports[1].sockets:
        earlier = before[judged.socket]
        if earlier.result != judged.result:
            sockets.append(SocketChange(judged.socket, earlier.result, judged.result, earlier.why, judged.why))
    gaps = tuple(dict.fromkeys((*reports[0].gaps, *reports[1].gaps)))
    found = compare(old, new)
    return replace(found, same=found.same and not sockets, sockets=tuple(sockets), gaps=gaps)
