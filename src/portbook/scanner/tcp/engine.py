"""The TCP engine: probes in, one answer for each probed port out, in the order in which they are decided.

    schedule (what to start, what a result means) ── take ──▶ transport (poller, proactor) ── decided ──▶ schedule

The schedule is pure and the same everywhere; a transport connects. This file is the loop between the two. The clock of
all of them is perf_counter(): monotonic() has steps of 16 ms on Windows, and round trips are shorter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Protocol

from portbook.probe.descriptors import window_size
from portbook.probe.outcome import Answer
from portbook.probe.request import EventCallback, Limits, Probe, Tally
from portbook.scanner.tcp.schedule import TcpSchedule
from portbook.scanner.tcp.state import Attempt


class Transport(Protocol):
    """Keeps many connects in flight. A decided attempt has its ``result`` set, and ``rtt_s`` when it was answered."""

    def begin(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Begin to connect; return the attempts that are decided at once."""
        ...

    def wait(self, timeout_s: float) -> list[Attempt]:
        """Wait at most ``timeout_s`` until something is decided; return the decided attempts."""
        ...

    def drop(self, attempt: Attempt) -> None:
        """Cancel an undecided attempt."""
        ...

    def close(self) -> None:
        """Cancel everything and close every socket."""
        ...


def scan_tcp(
    probes: Iterable[Probe],
    limits: Limits = Limits(),  # noqa: B008  frozen
    *,
    tally: Tally | None = None,
    on_event: EventCallback | None = None,
) -> Iterator[Answer]:
    """Probe every port; answers come as they are decided. Closing the iterator cancels, and closes every socket.

    ``probes`` may be a stream of millions: no more of it is read than is needed, nor kept. A port that is skipped
    (its host was given up, or the time was up) has no answer; it is counted in ``tally.skipped``, and events say why.
    On Windows this runs an event loop of its own, so not in a thread in which another loop is running.

    :param limits: its breaker never applies to a host that has answered, nor while all probes so far were for one host
    :param tally: is updated while the scan runs
    :param on_event: called with each ScanEvent, from within the iteration
    """
    window = window_size(limits.concurrency)
    schedule = TcpSchedule(probes, limits, window, perf_counter(), tally=tally, on_event=on_event)
    transport = _transport()
    try:
        while not schedule.finished:
            turn(schedule, transport)
            answers, schedule.answers = schedule.answers, []
            yield from answers
    finally:
        transport.close()


def _transport() -> Transport:
    if sys.platform == "win32":
        from portbook.scanner.tcp.proactor import Proactor

        return Proactor()
    from portbook.scanner.tcp.poller import Poller

    return Poller()


def turn(schedule: TcpSchedule, transport: Transport, clock: Callable[[], float] = perf_counter) -> None:
    """Begin what may begin, settle what is decided, then drop what was silent for too long.

    In this order, because the caller may have spent time: an answer that has come meanwhile is no silence.
    """
    now = clock()
    if schedule.deadline is not None and now >= schedule.deadline:
        for attempt in schedule.undecided():
            transport.drop(attempt)
        schedule.stop(now)
        return
    batch = schedule.take(now)
    if batch:
        decided = transport.begin(batch)
        schedule.watch(batch)
        schedule.settle(decided, now)
    decided = transport.wait(0.0 if batch else schedule.wait_s(now))
    now = clock()
    schedule.settle(decided, now)
    silent = schedule.expired(now)
    for attempt in silent:
        transport.drop(attempt)
    schedule.settle(silent, now)
