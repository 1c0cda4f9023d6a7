"""A rule as a flat record, for answers: what it selects in words. Pure."""

from __future__ import annotations

from msgspec import Struct

from portbook.events import Level
from portbook.watching.policy.keys import SELECTORS, port_text
from portbook.watching.policy.records import PolicyRule, RuleKind, Selector


class RuleSummary(Struct, frozen=True):
    """A rule of a policy."""

    rule: str  # "allow[3] (policy.toml:14)"
    kind: RuleKind
    selects: str  # "port 22/tcp, exe /usr/sbin/sshd"
    comment: str | None
    rule_owner: str | None
    severity: Level | None  # None: that of the policy
    until: str | None
    line: int

    def __str__(self) -> str:
        """``allow[1] (policy.toml:4): port 22, user root; until 2026-12-31``."""
        about = [f"until {self.until}" if self.until else "", f"severity {self.severity}" if self.severity else ""]
        return "; ".join([f"{self.rule}: {self.selects}", *filter(None, about)])


def summarize(rule: PolicyRule) -> RuleSummary:
    """Make the record of a rule."""
    selects = describe(rule.selector)
    about = (rule.comment, rule.owner, rule.severity, rule.until)
    return RuleSummary(rule.label, rule.kind, selects, *about, rule.line)


def describe(selector: Selector) -> str:
    """``port 22/tcp, reach any, exe /usr/sbin/sshd``."""
    parts = [f"port {port_text(selector.tcp, selector.udp)}"]
    for key in SELECTORS:
        values = getattr(selector, key)
        if values is not None:
            texts = [str(getattr(value, "text", value)) for value in values]
            parts.append(f"{key} {' or '.join(texts)}")
    return ", ".join(parts)
