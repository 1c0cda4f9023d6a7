"""What becomes of events while the history cannot be written. Pure.

Events wait in memory up to a limit. Beyond it they are dropped and counted, but not those that the intervals need:
the end of one that is open, and the beginning of one that has not ended meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from portbook.events import Event
from portbook.store.intervals import Ledger, SocketId, socket_of

MOST_WAITING = 10_000  # events
MOST_KEPT = 10_000  # beginnings of intervals

_OPENINGS = frozenset(("opened", "present", "restarted"))
_ENDINGS = frozenset(("closed", "short_lived"))


class Backlog:
    """Counts what is dropped, and keeps what matters of it."""

    def __init__(self) -> None:
        self._count = 0
        self._since: datetime | None = None
        self._openings: dict[SocketId, Event] = {}
        self._endings: dict[int, Event] = {}  # by the interval that they end

    def is_full(self, waiting: Collection[object]) -> bool:
        """Whether events have to be dropped."""
        return len(waiting) >= MOST_WAITING or self._count > 0

    def drop(self, events: Iterable[Event], ledger: Ledger) -> None:
        """Count events, and keep what the intervals need."""
        for event in events:
            self._count += 1
            self._since = self._since or event.at
            if event.event in _OPENINGS and event.local_port is not None and len(self._openings) < MOST_KEPT:
                self._openings[socket_of(event)] = event
            elif event.event in _ENDINGS and self._openings.pop(socket_of(event), None) is None:
                interval = ledger.open_id(event)
                if interval is not None:
                    self._endings[interval] = event

    def take(self, now: datetime) -> list[Event]:
        """What is to be written after all: the kept events, then a gap that counts those that are lost."""
        if not self._count:
            return []
        kept = [*self._endings.values(), *self._openings.values()]
        lost = self._count - len(kept)
        gap = Event(
            at=now,
            event="gap",
            severity="warning",
            count=lost,
            since=self._since,
            reason="the history could not be written, and its events did not fit into memory",
            feed="store",
        )
        self._count, self._since = 0, None
        self._openings.clear()
        self._endings.clear()
        return [*kept, gap]
