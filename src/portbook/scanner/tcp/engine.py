"""The TCP engine: probes in, one answer out for each that was asked, in the order in which they are decided.

    schedule (what to begin, what an end means) ── take ──▶ transport (poller, proactor) ── decided ──▶ schedule

The schedule is pure and the same everywhere; a transport connects. This file is the loop between the two. The clock of
all of them is perf_counter(): that of monotonic() has steps of 16 ms on Windows, and round trips are shorter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

from portbook.probe.descriptors import window_size
from portbook.probe.outcome import Answer
from portbook.probe.request import Limits, Listener, Probe, Tally
from portbook.scanner.tcp.attempt import Transport
from portbook.scanner.tcp.schedule import Schedule


def scan_tcp(
    probes: Iterable[Probe],
    limits: Limits = Limits(),  # noqa: B008  frozen
    *,
    tally: Tally | None = None,
    tell: Listener | None = None,
) -> Iterator[Answer]:
    """Ask every port; answers come as they are decided. Closing the iterator cancels, and leaves no socket.

    ``probes`` may be a stream of millions: no more of it is read than is needed, nor kept. A port that is skipped
    (its host's breaker gave up, or the time was up) has no answer; it is counted in ``tally.skipped``, and events say
    why. On Windows this runs an event loop of its own, so not in a thread in which another loop is running.

    :param tally: is updated while it runs
    :param tell: called with each Event, from within the iteration
    :param limits: its breaker is never applied to a host that has answered, nor while all probes so far were of one
    """
    schedule = Schedule(probes, limits, window_size(limits.concurrency), perf_counter(), tally=tally, tell=tell)
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


def turn(schedule: Schedule, transport: Transport, clock: Callable[[], float] = perf_counter) -> None:
    """Begin what may begin, take what is decided, then give up what was silent for too long.

    In this order, because the caller may have taken its time: an answer that has come meanwhile is no silence.
    """
    now = clock()
    if schedule.deadline is not None and now >= schedule.deadline:
        for attempt in schedule.flying():
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
