"""What a policy says about this machine now: the one pipeline of ``policy check``, ``explain`` and ``diff --now``.

inventory ─▶ evidence ─▶ judge ─▶ PolicyReport
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from msgspec import Struct

from portbook import inventory
from portbook.events import Level
from portbook.numerals import counted
from portbook.query import Query, term
from portbook.records import SCHEMA, Gap, Listing, Socket
from portbook.watching.evidence import Collector
from portbook.watching.judge import KEYS, Judgement, judge, requirements
from portbook.watching.policy.matching import PolicyEvidence
from portbook.watching.policy.records import Policy, PolicyRule

JudgedResult = Literal["allowed", "violation", "undecided"]
RESULTS: dict[bool | None, JudgedResult] = {True: "allowed", False: "violation", None: "undecided"}


class JudgedSocket(Struct, frozen=True):
    """A socket, and what the policy says about it."""

    result: JudgedResult
    severity: Level
    why: str
    rule: str | None  # that decided; None: the default did
    comment: str | None  # of that rule
    rule_owner: str | None  # of that rule
    line: int | None  # of that rule
    socket: Socket


class CheckedRequirement(Struct, frozen=True):
    """What the policy requires, and whether it listens."""

    met: bool | None  # None: it could not be known
    severity: Level
    why: str
    ports: str  # "443/tcp"
    rule: str
    comment: str | None
    rule_owner: str | None
    line: int


class PolicyReport(Struct, frozen=True):
    """What a policy says about a machine at one moment."""

    schema: int
    host: str
    taken_at: datetime  # aware, UTC
    policy: str  # its file
    passed: bool  # nothing violates the policy, and no requirement is known to be lost
    complete: bool  # no gaps
    counts: dict[JudgedResult, int]
    sockets: tuple[JudgedSocket, ...]  # violations first
    requirements: tuple[CheckedRequirement, ...]
    gaps: tuple[Gap, ...]


class Assessed(Struct, frozen=True):
    """What was read, for more than one policy."""

    listing: Listing
    evidence: PolicyEvidence
    gaps: tuple[Gap, ...]


WAITING = Query((term("state", ["listening"]), term("netns", ["all"])))


def take_listing(source: str | None = None) -> Listing:
    """What waits on a port, in every network namespace that can be seen; raises as ``inventory.take``."""
    return inventory.take(WAITING, source=source)


def check(policy: Policy, *, source: str | None = None) -> PolicyReport:
    """Judge what waits on a port of this machine now.

    :raises SourceError: the machine cannot be read
    """
    listing = take_listing(source)
    collector = Collector(policy)
    evidence = collector.collect(listing.sockets)
    return report(policy, listing, evidence, collector.gaps)


def report(
    policy: Policy, listing: Listing, evidence: PolicyEvidence, gaps: Iterable[Gap] = (), is_whole: bool = True
) -> PolicyReport:
    """Judge a listing.

    :param is_whole: it has every listener; else requirements are left out
    """
    at = listing.taken_at
    judgements = [(socket, judge(policy, socket, at, evidence)) for socket in listing.sockets]
    judged = sorted((_judged(*each) for each in judgements), key=_order)
    required = tuple(
        CheckedRequirement(
            each.met,
            each.severity,
            each.why,
            each.entry,
            each.rule.label,
            each.rule.comment,
            each.rule.owner,
            each.rule.line,
        )
        for each in (requirements(policy, listing.sockets, at, evidence) if is_whole else ())
    )
    counts: dict[JudgedResult, int] = dict.fromkeys(RESULTS.values(), 0)
    for one in judged:
        counts[one.result] += 1
    every_gap = (*listing.gaps, *gaps, *_undecided([judgement for _, judgement in judgements], required))
    passed = not counts["violation"] and all(each.met is not False for each in required)
    return PolicyReport(
        SCHEMA,
        listing.host,
        at,
        policy.file,
        passed,
        not every_gap,
        counts,
        tuple(judged),
        required,
        every_gap,
    )


def _judged(socket: Socket, judgement: Judgement) -> JudgedSocket:
    rule: PolicyRule | None = judgement.rule
    return JudgedSocket(
        RESULTS[judgement.allowed],
        judgement.severity,
        judgement.why,
        rule.label if rule else None,
        rule.comment if rule else None,
        rule.owner if rule else None,
        rule.line if rule else None,
        socket,
    )


def _order(judged: JudgedSocket) -> tuple[int, int, str, str]:
    order = ("violation", "undecided", "allowed").index(judged.result)
    return order, judged.socket.local_port, judged.socket.protocol, judged.socket.local_address


def _undecided(judgements: list[Judgement], required: tuple[CheckedRequirement, ...]) -> Iterable[Gap]:
    """What could not be judged, by what would have had to be known."""
    unknown: dict[str, int] = {}
    for judgement in judgements:
        if judgement.unknown is not None:
            unknown[judgement.unknown] = unknown.get(judgement.unknown, 0) + 1
    for key, count in unknown.items():
        why = f"{counted(count, 'socket')} could not be judged, because {KEYS[key]} is not known"
        yield Gap("process", count, why, _remedy())
    count = sum(each.met is None for each in required)
    if count:
        why = f"{counted(count, 'requirement')} could not be checked"
        yield Gap("process", count, why, _remedy())


def _remedy() -> str | None:
    from portbook.sources import PLATFORM

    if PLATFORM != "linux":
        return None
    from portbook.system import privilege

    return privilege.remedy("CAP_SYS_PTRACE")
