"""Which rule decides about a socket, and what each other rule about its port says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from msgspec import Struct

from portbook import inventory
from portbook.numerals import UINT16
from portbook.ports import Ports
from portbook.query import Query, term
from portbook.records import PROTOCOLS, SCHEMA, Gap, Owner, PortRange, Protocol, Socket
from portbook.watching.assessment import JudgedSocket, report
from portbook.watching.evidence import Collector
from portbook.watching.judge import KEYS, difference
from portbook.watching.policy.index import has_port
from portbook.watching.policy.keys import port_text
from portbook.watching.policy.matching import PolicyEvidence, judged_owners, match
from portbook.watching.policy.records import Default, Policy, PolicyRule
from portbook.watching.policy.summary import RuleSummary, summarize

RuleResult = Literal["matches", "differs", "unknown", "ended"]
MOST_RULES = 50  # about one socket, or about ports on which nothing waits


class RuleOpinion(Struct, frozen=True):
    """What one rule says about one socket, as one process holds it."""

    rule: str
    result: RuleResult
    why: str
    pid: int | None = None


class ExplainedSocket(Struct, frozen=True):
    """A socket, the judgement, and every rule about its port."""

    judged: JudgedSocket
    rules: tuple[RuleOpinion, ...]


class PolicyExplanation(Struct, frozen=True):
    """The answer of ``policy explain``."""

    schema: int
    taken_at: datetime  # aware, UTC
    policy: str
    default: Default
    query: str
    sockets: tuple[ExplainedSocket, ...]
    ports: str | None  # of the query, if nothing waits on them
    candidates: tuple[RuleSummary, ...]  # the rules about them
    gaps: tuple[Gap, ...]


def explain(policy: Policy, query: Query, *, source: str | None = None) -> PolicyExplanation:
    """Explain what the policy says about the sockets that wait and that the query selects.

    :raises UsageError: the query is not valid
    :raises SourceError: the machine cannot be read
    """
    wanted = query.with_default_state()
    if not query.values("netns"):
        wanted &= Query((term("netns", ["all"]),))
    listing = inventory.take(wanted, source=source)
    collector = Collector(policy)
    evidence = collector.collect(listing.sockets)
    judged = report(policy, listing, evidence, collector.gaps, is_whole=False)
    at = listing.taken_at
    sockets = tuple(
        ExplainedSocket(each, tuple(_opinions(policy, each.socket, at, evidence))) for each in judged.sockets
    )
    ranges = _ranges(query) if not sockets else None
    return PolicyExplanation(
        SCHEMA,
        at,
        policy.file,
        policy.default,
        str(query),
        sockets,
        None if ranges is None else port_text(*ranges),
        () if ranges is None else tuple(map(summarize, _about(policy, ranges)))[:MOST_RULES],
        judged.gaps,
    )


def _opinions(policy: Policy, socket: Socket, at: datetime, evidence: PolicyEvidence) -> Iterator[RuleOpinion]:
    denying, allowing = policy.index.candidates(socket.protocol, socket.local_port)
    for candidate in (*denying, *allowing)[:MOST_RULES]:
        said: set[tuple[RuleResult, str]] = set()
        for owner in judged_owners(socket):
            result, key = match(candidate.checks, socket, owner, evidence)
            opinion = _opinion(candidate.rule, result, key, owner, at, evidence)
            if (opinion.result, opinion.why) not in said:
                said.add((opinion.result, opinion.why))
                yield opinion


def _opinion(
    rule: PolicyRule, result: bool | None, key: str, owner: Owner | None, at: datetime, evidence: PolicyEvidence
) -> RuleOpinion:
    pid = owner.pid if owner else None
    if not rule.applies(at):
        return RuleOpinion(rule.label, "ended", f"it ended with {rule.until}", pid)
    if result is None:
        return RuleOpinion(rule.label, "unknown", f"it needs {KEYS[key]}, which could not be read", pid)
    if result:
        return RuleOpinion(rule.label, "matches", "it is about this socket", pid)
    return RuleOpinion(rule.label, "differs", f"it differs in {difference(key, owner, evidence)}", pid)


# --- where nothing waits -------------------------------------------------------------------------------------------

Ranges = tuple[tuple[PortRange, ...], tuple[PortRange, ...]]  # of TCP and of UDP


def _ranges(query: Query) -> Ranges | None:
    """The ports that the query is about; None: every port."""
    by_protocol: dict[Protocol, list[PortRange]] = {protocol: [] for protocol in PROTOCOLS}
    values = query.values("port")
    if not values:
        return None
    only = query.values("protocol") or PROTOCOLS
    for value in values:
        for protocol in PROTOCOLS:
            if protocol not in only:
                continue
            if isinstance(value, Ports) and value.protocol in (None, protocol):
                by_protocol[protocol].append((value.first, value.last))
            elif isinstance(value, tuple):
                by_protocol[protocol].append(value)
    return tuple(by_protocol["tcp"]), tuple(by_protocol["udp"])


def _about(policy: Policy, ranges: Ranges) -> Iterator[PolicyRule]:
    """The rules about some of these ports."""
    for rule in policy.rules:
        for protocol, wanted in zip(PROTOCOLS, ranges, strict=True):
            if any(_overlaps(rule, protocol, one) for one in wanted):
                yield rule
                break


def _overlaps(rule: PolicyRule, protocol: Protocol, wanted: PortRange) -> bool:
    first, last = wanted
    ports = rule.selector.ports(protocol)
    return has_port(rule.selector, protocol, first) or any(first <= start <= min(last, UINT16) for start, _ in ports)
