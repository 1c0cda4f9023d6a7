"""Violations that last, and when to remind of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from portbook.events import Level
from portbook.records import Socket

if TYPE_CHECKING:
    from portbook.watching.followed import Followed
    from portbook.watching.judge import Judgement
    from portbook.watching.judging import Judging


class Violation:
    """A rule that one identity violates."""

    __slots__ = ("count", "due_ns", "followed", "judgement", "reported", "rule", "since", "sockets")

    def __init__(self, rule: str, followed: Followed, judgement: Judgement, since: datetime, due_ns: int) -> None:
        self.rule = rule
        self.followed = followed
        self.judgement = judgement
        self.reported: Level = "quiet"
        self.since = since
        self.due_ns = due_ns  # of the next reminder
        self.sockets = 0  # open ones that violate it
        self.count = 0  # since the last reminder

    def take_count(self) -> int:
        """How many events a reminder stands for; counts anew."""
        count, self.count = self.count, 0
        return max(1, count)


class Violations:
    """The violations of all identities."""

    def __init__(self, judging: Judging | None, remind_ns: int) -> None:
        self.judging = judging
        self._remind_ns = remind_ns
        self._lasting: dict[int, Violation] = {}  # by identity of the object; the next reminder first

    def judge(self, socket: Socket, at: datetime) -> Judgement | None:
        """What the policy says; None: there is none."""
        return None if self.judging is None else self.judging.judge(socket, at)

    @property
    def count(self) -> int:
        """How many last."""
        return len(self._lasting)

    def add(self, rule: str, followed: Followed, judgement: Judgement, at_ns: int, at: datetime) -> Violation:
        """One begins."""
        violation = Violation(rule, followed, judgement, at, at_ns + self._remind_ns)
        self._lasting[id(violation)] = violation
        return violation

    def remove(self, violation: Violation) -> None:
        """One is over."""
        del self._lasting[id(violation)]

    def join(self, violation: Violation) -> None:
        """One more socket violates it."""
        violation.sockets += 1
        violation.count += 1

    def leave(self, violation: Violation) -> None:
        """One socket less."""
        violation.sockets -= 1

    def due(self, now_ns: int) -> Iterator[Violation]:
        """Those of which to remind now."""
        while self._lasting:
            key = next(iter(self._lasting))
            violation = self._lasting[key]
            if now_ns < violation.due_ns:
                return
            del self._lasting[key]
            violation.due_ns = now_ns + self._remind_ns
            self._lasting[key] = violation
            yield violation

    def next_ns(self) -> int | None:
        """When a reminder is due."""
        return next(iter(self._lasting.values())).due_ns if self._lasting else None
