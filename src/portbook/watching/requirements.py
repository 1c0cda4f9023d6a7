"""What a policy requires: when it was lost, and restored. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from portbook.events import EventKind
from portbook.numerals import number_or_none
from portbook.records import PROTOCOLS, Socket
from portbook.watching.records import Moment

if TYPE_CHECKING:
    from portbook.watching.judge import Requirement
    from portbook.watching.judging import Judging

CHECK_NS = 1_000_000_000  # there may be thousands of changes a second: not after each of them


class UnmetRequirement(Struct):
    """A requirement that nothing meets."""

    since_ns: int
    since: datetime
    lost: bool = False  # it was reported
    remind_ns: int = 0


class RequirementEvent(Struct, frozen=True):
    """What is to be reported about a requirement."""

    kind: EventKind
    fields: dict[str, Any]


class Requirements:
    """Which requirements are met. A lost one is reported after the grace time, at the start too."""

    def __init__(self, judging: Judging | None, grace_ns: int, remind_ns: int) -> None:
        self._grace_ns = grace_ns
        self._remind_ns = remind_ns
        self._unmet: dict[tuple[str, str], UnmetRequirement] = {}  # by rule and entry
        self._checked_ns: int | None = None
        self._judging: Judging | None = None
        self.is_due = False  # something may have changed
        self.replace(judging)

    def replace(self, judging: Judging | None) -> None:
        """Require what another policy requires. What is lost by both remains lost."""
        self._judging = judging if judging is not None and judging.has_requirements else None
        self.is_due = self._judging is not None or bool(self._unmet)
        self._checked_ns = None

    @property
    def lost_count(self) -> int:
        """How many are lost."""
        return sum(unmet.lost for unmet in self._unmet.values())

    def next_ns(self) -> int | None:
        """When to check again; None: not before something changes."""
        due = [unmet.remind_ns if unmet.lost else unmet.since_ns + self._grace_ns for unmet in self._unmet.values()]
        if self.is_due and (self._judging is not None or self._unmet):
            due.append(0 if self._checked_ns is None else self._checked_ns + CHECK_NS)
        return min(due, default=None)

    def check(self, sockets: Callable[[], list[Socket]], now: Moment) -> list[RequirementEvent]:
        """What is to be reported now.

        :param sockets: gives all that wait
        """
        next_ns = self.next_ns()
        if next_ns is None or now.monotonic_ns < next_ns:
            return []
        self.is_due = False
        self._checked_ns = now.monotonic_ns
        stated = [] if self._judging is None else self._judging.requirements(sockets(), now.wall)
        events: list[RequirementEvent] = []
        by_key = {(each.rule.label, each.entry): each for each in stated}
        for key in [key for key in self._unmet if key not in by_key or by_key[key].met is not False]:
            unmet = self._unmet.pop(key)
            if unmet.lost:
                requirement = by_key.get(key)
                why = requirement.why if requirement is not None else "the policy does not require it any longer"
                events.append(_event("requirement_restored", key, requirement, why, unmet.since))
        for key, requirement in by_key.items():
            if requirement.met is False:
                events += self._lose(key, requirement, now)
        return events

    def _lose(self, key: tuple[str, str], requirement: Requirement, now: Moment) -> list[RequirementEvent]:
        unmet = self._unmet.setdefault(key, UnmetRequirement(now.monotonic_ns, now.wall))
        if not unmet.lost and now.monotonic_ns >= unmet.since_ns + self._grace_ns:
            unmet.lost = True
            unmet.remind_ns = now.monotonic_ns + self._remind_ns
            return [_event("requirement_lost", key, requirement, requirement.why, unmet.since)]
        if unmet.lost and now.monotonic_ns >= unmet.remind_ns:
            unmet.remind_ns = now.monotonic_ns + self._remind_ns
            return [_event("reminder", key, requirement, requirement.why, unmet.since)]
        return []


def _event(
    kind: EventKind, key: tuple[str, str], requirement: Requirement | None, why: str, since: datetime
) -> RequirementEvent:
    label, entry = key
    port, _, protocol = entry.partition("/")
    fields: dict[str, Any] = {"rule": label, "reason": why, "since": since}
    fields["local_port"] = number_or_none(port, 0xFFFF)
    fields["protocol"] = protocol if protocol in PROTOCOLS else None
    if requirement is not None:
        fields["comment"] = requirement.rule.comment
        fields["rule_owner"] = requirement.rule.owner
        fields["severity"] = "info" if kind == "requirement_restored" else requirement.severity
    return RequirementEvent(kind, fields)
