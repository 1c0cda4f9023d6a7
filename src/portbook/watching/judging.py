"""A policy in force: what it says about sockets, and when it says something else because time has passed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from portbook.records import Socket
from portbook.watching.judge import Judgement, Requirement, judge, requirements

if TYPE_CHECKING:
    from portbook.watching.policy.matching import PolicyEvidence
    from portbook.watching.policy.records import Policy

DEFAULT = "default"  # instead of a rule, where none decided
Collect = Callable[[Iterable[Socket]], "PolicyEvidence | None"]


class Judging:
    """Judges sockets by one policy.

    :param collect: reads what the rules need to know about sockets: checksums, images; None: nothing is read
    """

    def __init__(self, policy: Policy, collect: Collect | None = None) -> None:
        self.policy = policy
        self._collect = collect
        self._ends = sorted({rule.ends for rule in policy.rules if rule.ends is not None}, reverse=True)
        self.has_requirements = any(rule.kind == "require" for rule in policy.rules)

    def judge(self, socket: Socket, at: datetime) -> Judgement:
        """What the policy says about a socket."""
        if self._collect is None:
            return judge(self.policy, socket, at)
        return judge(self.policy, socket, at, self._collect((socket,)))

    def requirements(self, sockets: list[Socket], at: datetime) -> list[Requirement]:
        """What must listen, and whether it does."""
        if self._collect is None:
            return requirements(self.policy, sockets, at)
        return requirements(self.policy, sockets, at, self._collect(sockets))

    def has_changed(self, at: datetime) -> bool:
        """Whether a rule has ended since this was last called: everything has to be judged again."""
        has_ended = False
        while self._ends and self._ends[-1] <= at:
            self._ends.pop()
            has_ended = True
        return has_ended

    def next_end(self) -> datetime | None:
        """When the next rule ends."""
        return self._ends[-1] if self._ends else None


def label_of(judgement: Judgement) -> str:
    """The rule that decided, as events name it."""
    return judgement.rule.label if judgement.rule is not None else DEFAULT
