"""The pipeline from the watch to its sinks: each has its own minimum severity, queue and thread.

Nothing here raises for a sink that fails, or waits for it longer than ``PATIENCE_S``: what is lost becomes an event of
the kind ``gap``, for the history and the other sinks, and a message for standard error.

    events = sinks.take_gaps() + loop.wait(1.0)
    sinks.write(store.append(events))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from time import monotonic, monotonic_ns

from msgspec import Struct

from portbook.events import Event
from portbook.numerals import counted
from portbook.watching.sinks import load
from portbook.watching.sinks.base import DeliveryError, EncodedEvent, Loss, Sink, SinkSettings
from portbook.watching.sinks.worker import MOST_BYTES, SinkStatus, SinkWorker, reason_prefix

PATIENCE_S = 1.0  # for sinks that work and are full: longer than that, and the kernel's buffer of the feed fills
CLOSE_S = 5.0
CHUNK = 500  # events that are put into the queues at once
REPORT_S = 60.0  # between two gaps of one sink: the first is reported at once


class SinkTest(Struct, frozen=True):
    """What became of a test event."""

    name: str  # of the sink
    delivered: bool
    reason: str | None = None  # why it was not; of one that was, what the sink cannot know


class Dispatch:
    """The sinks of a watch. All methods are for one thread, that of the watch."""

    def __init__(self, sinks: Iterable[tuple[Sink, SinkSettings]] = (), *, most_bytes: int = MOST_BYTES) -> None:
        """Use ``open_sinks``.

        :param most_bytes: of events, as JSON, that wait for one sink
        """
        self._workers = [SinkWorker(sink, settings.severity, most_bytes=most_bytes) for sink, settings in sinks]
        self._losses: dict[str, PendingLosses] = {}
        self._notes: list[str] = []

    def start(self) -> None:
        """Begin; raise StoreError. Threads start later, with the first event."""
        for worker in self._workers:
            worker.sink.start()

    def write(self, events: Sequence[Event]) -> None:
        """Put the events into the queue of each sink that wants them."""
        if not self._workers:
            return
        room_until = monotonic() + PATIENCE_S
        for at in range(0, len(events), CHUNK):
            encoded = [EncodedEvent(event) for event in events[at : at + CHUNK]]
            for worker in self._workers:
                wanted = [event for event in encoded if event.event.severity in worker.levels]
                if wanted:
                    worker.put(wanted, room_until)

    def reopen(self) -> None:
        """Have every sink open its files and connections again, as after SIGHUP."""
        for worker in self._workers:
            worker.reopen()

    def take_gaps(self) -> list[Event]:
        """An event for each sink that lost some since the last report. Messages: ``take_notes``."""
        gaps: list[Event] = []
        for worker in self._workers:
            losses, notes = worker.take_reports()
            name = worker.sink.name
            self._notes += [reason_prefix(name) + note for note in notes]
            if losses or name in self._losses:
                pending = self._losses.setdefault(name, PendingLosses())
                pending.add(losses)
                gaps += pending.due(name, monotonic())
        self._notes += [f"{gap.reason}; {counted(gap.count, 'event')} lost" for gap in gaps]
        return gaps

    def take_notes(self) -> list[str]:
        """Messages for standard error since the last call: safe, without secrets."""
        notes, self._notes = self._notes, []
        return notes

    def status(self) -> tuple[SinkStatus, ...]:
        """How each sink does."""
        return tuple(worker.status() for worker in self._workers)

    def flush(self, limit_s: float = CLOSE_S) -> bool:
        """Wait until every queue is empty; return whether all are."""
        end_at = monotonic() + limit_s
        return all(worker.flush(max(0.0, end_at - monotonic())) for worker in self._workers)

    def test(self) -> tuple[SinkTest, ...]:
        """Send one marked event to each sink, whatever its severity, say what became of it, and close the sinks.

        Instead of ``start``: it is sent past what waits.
        """
        event = EncodedEvent(
            Event(
                at=datetime.now(UTC),
                event="test",
                feed="test",
                monotonic_ns=monotonic_ns(),
            )
        )
        return tuple(_test(worker.sink, event) for worker in self._workers)

    def close(self, limit_s: float = CLOSE_S) -> list[Event]:
        """Deliver what waits, at most this long for all sinks; return the gaps of what is lost now."""
        end_at = monotonic() + limit_s
        for worker in self._workers:
            worker.begin_end(end_at)
        for worker in self._workers:
            worker.close(end_at)
        for pending in self._losses.values():
            pending.not_before = 0.0
        return self.take_gaps()


class PendingLosses:
    """The losses of one sink that were not reported yet."""

    def __init__(self) -> None:
        self._losses: list[Loss] = []
        self._since: datetime | None = None
        self.not_before = 0.0

    def add(self, losses: Sequence[Loss]) -> None:
        """Add some."""
        if losses and self._since is None:
            self._since = datetime.now(UTC)
        self._losses += losses

    def due(self, name: str, now: float) -> list[Event]:
        """A gap for each reason, if it is time."""
        if now < self.not_before or not self._losses:
            return []
        counts: dict[str, int] = {}
        for loss in self._losses:
            counts[loss.reason] = counts.get(loss.reason, 0) + loss.count
        since, self._losses, self._since = self._since, [], None
        self.not_before = now + REPORT_S
        return [
            Event(
                at=datetime.now(UTC),
                event="gap",
                severity="warning",
                count=count,
                reason=reason_prefix(name) + reason,
                since=since,
                monotonic_ns=monotonic_ns(),
            )
            for reason, count in counts.items()
        ]


def open_sinks(settings: Sequence[SinkSettings], *, most_bytes: int = MOST_BYTES) -> Dispatch:
    """Open every sink.

    :raises UsageError: one is configured in a way that cannot work
    :raises StoreError: a file of one cannot be opened
    """
    sinks: list[tuple[Sink, SinkSettings]] = []
    try:
        for one in settings:
            sink = load(one.kind, one.place).open(one)
            names = [other.name for other, _ in sinks]
            sink.name = _distinct(sink.name, names)
            sinks.append((sink, one))
    except BaseException:
        for sink, _ in sinks:
            sink.close(0.0)
        raise
    return Dispatch(sinks, most_bytes=most_bytes)


def _distinct(name: str, others: Sequence[str]) -> str:
    number = 2
    distinct = name
    while distinct in others:
        distinct = f"{name}#{number}"
        number += 1
    return distinct


def _test(sink: Sink, event: EncodedEvent) -> SinkTest:
    try:
        remark = sink.test(event)
    except DeliveryError as error:
        return SinkTest(sink.name, False, error.reason)
    except Exception as error:  # noqa: BLE001  the other sinks are tested all the same
        return SinkTest(sink.name, False, f"unexpected error: {error!r}")
    finally:
        sink.close(0.0)
    return SinkTest(sink.name, True, remark)
