"""What a policy requires: when it was lost, and restored. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from portbook.events import EventKind
from portbook.records import Socket
from portbook.watching.records import Moment

CHECK_NS = 1_000_000_000  # not more often: there may be thousands of changes a second


class Requirements:
    """Which requirements are met. A lost one is reported after the grace time."""

    def __init__(self, policy: Any, grace_ns: int, remind_ns: int) -> None:
        self._grace_ns = grace_ns
        self._remind_ns = remind_ns
        self._unmet: dict[str, tuple[int, datetime]] = {}  # since when
        self._lost: dict[str, int] = {}  # reported, and when to remind
        self._checked_ns: int | None = None
        self.replace(policy)

    def replace(self, policy: Any) -> None:
        """Require what another policy requires."""
        self._policy = policy if policy is not None and policy.of_kind("require") else None
        self.is_due = True
        self._checked_ns = None

    @property
    def lost_count(self) -> int:
        """How many are lost."""
        return len(self._lost)

    def next_ns(self) -> int | None:
        """When to check again."""
        if self._policy is None:
            return None
        due = [
            ns for rule, (since, _) in self._unmet.items() if rule not in self._lost for ns in [since + self._grace_ns]
        ]
        due += self._lost.values()
        if self.is_due:
            due.append((self._checked_ns or 0) + CHECK_NS)
        return min(due, default=None)

    def check(self, sockets: Iterable[Socket], now: Moment) -> list[tuple[EventKind, dict[str, Any]]]:
        """The events that follow: kind and fields."""
        return []
