"""The UDP engine: probes in, one answer for each probed port out, in the order in which they are decided.

    schedule (what to send, what a result means) ── due ──▶ sockets ── wire (datagrams, refusals) ──▶ schedule

The schedule is pure and the same everywhere; the wire is the platform's. This file is the loop between the two. The
clock is perf_counter(): monotonic() has steps of 16 ms on Windows, and round trips are shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

from portbook.probe.descriptors import window_size
from portbook.probe.outcome import Answer
from portbook.probe.request import EventCallback, Limits, Probe, Tally
from portbook.resilience import classify
from portbook.scanner.udp import wire
from portbook.scanner.udp.schedule import OUT_OF_DESCRIPTORS, UdpSchedule
from portbook.scanner.udp.sockets import Sockets
from portbook.scanner.udp.state import UdpPort

LATE_S = 0.2  # after the deadline, for replies that have already arrived


def scan_udp(
    probes: Iterable[Probe], limits: Limits, *, tally: Tally | None = None, on_event: EventCallback | None = None
) -> Iterator[Answer]:
    """Probe UDP ports; answers come as they are decided. Closing the iterator cancels, and closes every socket.

    ``probes`` may be endless: no more of it is read than is needed. With ``limits.deadline_s``, ports that were silent
    until then are answered as such, and ports that were not probed have no answer; they are counted in
    ``tally.skipped``.

    :param tally: is updated while the scan runs
    :param on_event: called with each ScanEvent, from within the iteration
    """
    window = window_size(limits.concurrency)
    schedule = UdpSchedule(probes, limits, window, perf_counter(), tally=tally, on_event=on_event)
    sockets = Sockets(wire.choose())
    try:
        while not schedule.finished:
            turn(schedule, sockets)
            answers, schedule.answers = schedule.answers, []
            yield from answers
    finally:
        sockets.shut()
        schedule.tally.in_flight = 0


def turn(schedule: UdpSchedule, sockets: Sockets, clock: Callable[[], float] = perf_counter) -> None:
    """Take what has arrived, end what was silent for too long, then send what is due.

    In this order, because the caller may have spent time since the last turn: a reply that has come meanwhile is no
    silence. What is sent last is in flight while the caller looks at the answers. Replies of others take time too: the
    deadline ends the reading of them.
    """
    last_at = max(schedule.deadline, clock()) + LATE_S
    for port, signal in sockets.receive(schedule.wait_s(clock())):
        if clock() > last_at:
            break
        if isinstance(signal, bytes):
            schedule.replied(port, signal, clock())
        else:
            schedule.refused(port, signal, clock())
        _release(schedule, sockets)
    schedule.expire(clock())
    _release(schedule, sockets)
    now = clock()
    if now >= schedule.deadline:
        schedule.stop(now)
        _release(schedule, sockets)
        return
    for port in schedule.due(now):
        _send(port, schedule, sockets, clock)


def _send(port: UdpPort, schedule: UdpSchedule, sockets: Sockets, clock: Callable[[], float]) -> None:
    try:
        handle = sockets.connect(port, schedule.window)
        sent_at = clock()
        for payload in port.requests:
            sockets.send(handle, payload.data)
    except OSError as error:
        any_idle = sockets.any_idle
        if classify(error).posix in OUT_OF_DESCRIPTORS:
            sockets.close_idle()
        schedule.failed(port, error, any_idle, clock())
        _release(schedule, sockets)
    else:
        schedule.sent(port, sent_at)


def _release(schedule: UdpSchedule, sockets: Sockets) -> None:
    for port in schedule.released:
        sockets.release(port, schedule.window)
    schedule.released.clear()
