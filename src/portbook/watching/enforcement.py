"""The policy in force: what is open is judged, and events tell what begins and ends to violate it. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from portbook.events import LEVELS, Event, Level
from portbook.watching.event_maker import EventMaker
from portbook.watching.flapping import FlapCounter
from portbook.watching.followed import Followed, Held
from portbook.watching.judging import label_of
from portbook.watching.records import Moment
from portbook.watching.violations import Violation, Violations

if TYPE_CHECKING:
    from portbook.watching.judge import Judgement


class Enforcement:
    """Judges what the register follows, and knows which violations last."""

    def __init__(self, violations: Violations, flaps: FlapCounter, events: EventMaker) -> None:
        self._violations = violations
        self._flaps = flaps
        self._events = events

    def judge(self, held: Held, followed: Followed, at: datetime, at_ns: int, why_recovered: str) -> list[Event]:
        """Judge a socket, and report what that changes for its identity."""
        judgement = followed.judgement = self._violations.judge(followed.socket, at)
        rule = None
        if judgement is not None:
            if judgement.allowed is False:
                rule = label_of(judgement)
            elif judgement.allowed is None:  # undecided: what was a violation before remains one
                rule = followed.rule or next(iter(held.violations), None)
        events: list[Event] = []
        if rule is None and judgement is not None and judgement.allowed is None:
            events += self._report_undecided(held, followed, judgement, at, at_ns)
        if rule != followed.rule:
            events += self.release(held, followed, at, at_ns, why_recovered, rule)
            if rule is not None and judgement is not None:
                events += self._violate(held, followed, judgement, rule, at, at_ns)
        if held.violations:
            for violation in list(held.violations.values()):
                if not violation.sockets:
                    events += self.recover(held, violation, at, at_ns, why_recovered)
        return events

    def _report_undecided(
        self, held: Held, followed: Followed, judgement: Judgement, at: datetime, at_ns: int
    ) -> list[Event]:
        """Say once of an identity and a rule that it could not be judged."""
        label = label_of(judgement)
        if label in held.undecided:
            return []
        held.undecided.add(label)
        return self._events.of_socket(
            "undecided",
            at,
            at_ns,
            followed.socket,
            identity=held.identity.text,
            severity="quiet" if followed.is_brief else "info",
            origin=followed.origin,
            reason=judgement.why,
            judgement=judgement,
        )

    def _violate(
        self, held: Held, followed: Followed, judgement: Judgement, rule: str, at: datetime, at_ns: int
    ) -> list[Event]:
        """A socket violates a rule. Of an identity and rule that is reported once, unless it becomes more severe."""
        followed.rule = rule
        severity: Level = "quiet" if followed.is_brief else judgement.severity
        flaps = self._flaps.of(held.identity.text)
        if flaps is not None:
            if rule in flaps.rules:
                severity = "quiet"
            flaps.rules.add(rule)
        violation = held.violations.get(rule)
        is_new = violation is None
        if violation is None:
            violation = held.violations[rule] = self._violations.add(rule, followed, judgement, at_ns, at)
        self._violations.join(violation)
        if not is_new and LEVELS.index(severity) <= LEVELS.index(violation.reported):
            return []
        violation.reported = severity
        violation.followed = followed
        return self._events.of_socket(
            "violation",
            at,
            at_ns,
            followed.socket,
            identity=held.identity.text,
            severity=severity,
            origin=followed.origin,
            reason=judgement.why,
            judgement=judgement,
        )

    def release(
        self, held: Held, followed: Followed, at: datetime, at_ns: int, reason: str, next_rule: str | None = None
    ) -> list[Event]:
        """A socket does not violate its rule any longer; the last one of the identity recovers it."""
        rule, followed.rule = followed.rule, None
        if rule is None:
            return []
        violation = held.violations[rule]
        self._violations.leave(violation)
        if violation.sockets:
            return []
        if next_rule is not None:
            self._violations.remove(violation)  # the next one is reported instead
            del held.violations[rule]
            return []
        return self.recover(held, violation, at, at_ns, reason)

    def recover(self, held: Held, violation: Violation, at: datetime, at_ns: int, reason: str) -> list[Event]:
        """An identity does not violate a rule any longer."""
        self._violations.remove(violation)
        del held.violations[violation.rule]
        followed = violation.followed
        is_quiet = followed.is_brief or self._flaps.of(held.identity.text) is not None
        return self._events.of_socket(
            "recovered",
            at,
            at_ns,
            followed.socket,
            identity=held.identity.text,
            severity="quiet" if is_quiet else "info",
            reason=reason,
            judgement=violation.judgement,
            since=violation.since,
            count=violation.count,
        )

    def remind(self, now: Moment) -> list[Event]:
        """The reminders that are due."""
        events: list[Event] = []
        for violation in self._violations.due(now.monotonic_ns):
            followed = violation.followed
            events += self._events.of_socket(
                "reminder",
                now.wall,
                now.monotonic_ns,
                followed.socket,
                identity=followed.identity.text,
                severity=violation.judgement.severity,
                count=violation.take_count(),
                reason=violation.judgement.why,
                judgement=violation.judgement,
                since=violation.since,
            )
        return events
