"""Which UDP port is probed when, and what a reply, a refusal or silence means: the engine without its sockets. Pure.

A port goes through these stages::

    new ──send──▶ in flight ──reply──▶ open
                      │  ├──refusal──▶ closed, filtered, unreachable
                      │  └──silence──▶ to retry ──send──▶ in flight … ──▶ open|filtered
                      └──error of this machine──▶ error

Silence counts as an attempt only if it is the port's own. Once the host has refused other ports, silence needs a proof:
the refusal of a port that was probed at the same moment (see ``Refusals``). Silence without proof is probed again, as
often as it takes. Every port is first probed at full speed, because replies are not limited as refusals are, so that
open ports are known early. Silent ports are then probed again in groups, each followed by a control, a port that is
known to be closed: either the control is refused, and the silence before it is proven; or the host's limit is reached,
and the next group comes later and is smaller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from math import inf

from portbook.probe.outcome import Answer, Evidence, Outcome
from portbook.probe.pacing import TokenBucket
from portbook.probe.request import EventCallback, Limits, Probe, ScanEvent, ScanEventKind, Tally
from portbook.resilience import classify
from portbook.scanner.udp import payloads
from portbook.scanner.udp.refusals import CONTROL_EVERY, PROOF_S, of_error, refusal_outcome
from portbook.scanner.udp.state import RetryGroup, UdpHost, UdpPort

BUFFER = 20_000  # ports that await a retry before new ones are read; each takes about half a kilobyte
MOST_HOSTS = 4096  # whose round trip is remembered while none of their ports is in progress
BURST = 32  # datagrams of one kind in one turn, before replies are read
MOST_WAIT_S = 1.0  # so that an interrupt is noticed where it does not end the wait
LEAST_WINDOW = 2  # a silent port and its control
SHORTAGE_PAUSE_S = 0.05  # before a port is tried again that this machine had no resources for
LONGEST_SHORTAGE_S = 10.0  # how long a shortage may last before it is an error
OUT_OF_DESCRIPTORS = frozenset(("EMFILE", "ENFILE"))
NOT_NOW = frozenset(("EAGAIN", "EWOULDBLOCK"))

LIMITED = "the time was up; the target limits how many ports it refuses per second, which may be the reason"
TIME_UP = "the time was up"


class UdpSchedule:
    """The state of one scan. The caller gives all times: seconds of any clock that does not run backwards.

    In a turn the engine reports what has arrived with ``replied`` and ``refused``, calls ``expire``, and sends what
    ``due`` yields; each of these it reports with ``sent`` or ``failed`` before it takes the next. After each step it
    closes or keeps the sockets of the ports in ``released``; after the turn it takes ``answers``.
    """

    def __init__(
        self,
        probes: Iterable[Probe],
        limits: Limits,
        window: int,
        now: float,
        *,
        tally: Tally | None = None,
        on_event: EventCallback | None = None,
    ) -> None:
        self.tally = tally if tally is not None else Tally()
        self.answers: list[Answer] = []  # new since the engine last took them
        self.released: list[UdpPort] = []  # their attempt has ended since the engine last took them
        self.window = max(window, LEAST_WINDOW)  # how many sockets may be open
        self.deadline = inf if limits.deadline_s is None else now + limits.deadline_s
        self._limits = limits
        self._on_event = on_event
        self._began = self._now = now
        self._stream = iter(probes)
        self._exhausted = False
        self._bucket = TokenBucket(limits.rate, now, burst=1.0)  # no bursts: hosts limit how many ports they refuse
        self._hosts: dict[tuple[str, str | None], UdpHost] = {}
        self._most_hosts = MOST_HOSTS
        self._turns: deque[UdpHost] = deque()  # with ports to retry now
        self._timers: list[tuple[float, int, UdpPort | UdpHost]] = []
        self._numbers = count()
        self._in_flight = 0
        self._to_retry = 0
        self._unanswered = 0  # ports that were read and have no answer
        self._short_since: float | None = None  # when the sends began to fail because of a shortage

    @property
    def finished(self) -> bool:
        """Whether every port that was read has its answer, and there are no more."""
        return self._exhausted and not (self._unanswered or self.answers)

    def _report(self, kind: ScanEventKind, address: str | None, text: str) -> None:
        if self._on_event is not None:
            self._on_event(ScanEvent(kind, address, text, self._now - self._began))

    # --- what to send next -----------------------------------------------------------------------------------------

    def due(self, now: float) -> Iterator[UdpPort]:
        """Yield the ports whose requests are to be sent now."""
        self._now = now
        yield from self._new_ports()
        for _ in range(len(self._turns)):
            if not self._has_room():
                return
            host = self._turns.popleft()
            host.has_turn = False
            if not host.refusals.are_expected:
                yield from self._retries(host)
            elif not host.unsettled_first:
                yield from self._retry_group(host)

    def _has_room(self) -> bool:
        return self._in_flight < self.window and self._bucket.available(self._now) > 0

    def _prepare(self, port: UdpPort) -> UdpPort:
        port.requests = payloads.for_port(port.probe.port, port.attempts + 1)
        self._bucket.take(len(port.requests))
        return port

    def _new_ports(self) -> Iterator[UdpPort]:
        for _ in range(BURST):
            if self._exhausted or self._to_retry >= BUFFER or not self._has_room():
                return
            probe = next(self._stream, None)
            if probe is None:
                self._exhausted = True
                return
            self._unanswered += 1
            yield self._prepare(UdpPort(probe, self._host(probe)))

    def _host(self, probe: Probe) -> UdpHost:
        key = probe.address, probe.zone
        host = self._hosts.get(key)
        if host is None:
            if len(self._hosts) >= self._most_hosts:
                self._hosts = {key: host for key, host in self._hosts.items() if not host.is_idle}
                self._most_hosts = max(MOST_HOSTS, 2 * len(self._hosts))
            host = self._hosts[key] = UdpHost(probe)
        return host

    def _retries(self, host: UdpHost) -> Iterator[UdpPort]:
        """Yield silent ports of a host that refuses none: no control is possible, and no limit to respect."""
        for _ in range(min(len(host.to_retry), BURST)):
            if self._has_room():
                yield self._next_retry(host)
        self._want_turn(host)

    def _retry_group(self, host: UdpHost) -> Iterator[UdpPort]:
        """Yield silent ports and controls, to be sent as close together as possible."""
        free = self.window - self._in_flight
        room = free - 1 - free // (CONTROL_EVERY + 1)  # besides controls
        if room < 1:
            host.next_turn_at = self._now + SHORTAGE_PAUSE_S
            self._want_turn(host)
            return
        group = host.group = RetryGroup(self._now, host.refusals.count)
        group.unsettled = 1  # the group itself, until everything is sent
        for number in range(1, min(host.refusals.group_size, len(host.to_retry), room) + 1):
            port = self._next_retry(host)
            self._join(port, group)
            yield port
            group.size = number
            if number % CONTROL_EVERY == 0:
                yield from self._controls(host, group)
        yield from self._controls(host, group)
        self._leave(group, host)

    def _controls(self, host: UdpHost, group: RetryGroup) -> Iterator[UdpPort]:
        if host.refusals.control is not None:
            closed_port, _ = host.refusals.control
            control = UdpPort(host.probe._replace(port=closed_port), host, is_control=True)
            self._join(control, group)
            yield self._prepare(control)

    def _next_retry(self, host: UdpHost) -> UdpPort:
        port = host.to_retry.popleft()
        port.awaits_retry = False
        self._to_retry -= 1
        return self._prepare(port)

    def _want_turn(self, host: UdpHost) -> None:
        """Have the silent ports of a host probed again as soon as that is right."""
        if host.has_turn or host.group or not host.to_retry:
            return
        if host.refusals.are_expected and host.unsettled_first:
            return  # its refusals are needed for the ports in flight
        host.has_turn = True
        if host.next_turn_at > self._now:
            heappush(self._timers, (host.next_turn_at, next(self._numbers), host))
        else:
            self._turns.append(host)

    # --- what was sent, and what was not ---------------------------------------------------------------------------

    def sent(self, port: UdpPort, now: float) -> None:
        """Record that the requests of a port were sent."""
        self._now = port.sent_at = now
        self._short_since = None
        port.sent_requests = tuple(dict.fromkeys((*port.sent_requests, *port.requests)))
        port.attempts += 1
        port.is_proven = False
        port.is_unsettled = True
        host = port.host
        host.in_flight.add(port)
        self._count_in_flight(1)
        if host.first_sent_at is None:
            host.first_sent_at = now
        if not port.is_control:
            self._count_attempt(port)
        self._set_timer(port)

    def _count_attempt(self, port: UdpPort) -> None:
        if port.attempts == 1:
            port.host.unsettled_first += 1
            self.tally.probed += 1
        else:
            self.tally.repeated += 1

    def failed(self, port: UdpPort, error: OSError, any_idle: bool, now: float) -> None:
        """Give up a port that this machine could not send to; or retry it, when it lacks what will be free again.

        ``any_idle``: whether some sockets were open only for late replies.
        """
        self._now = now
        fault = classify(error)
        if fault.posix in OUT_OF_DESCRIPTORS:
            self._shrink_window()
        is_shortage = fault.scarce or fault.posix in NOT_NOW
        if is_shortage and self._may_pass(any_idle) and not port.is_control:
            port.host.next_turn_at = now + SHORTAGE_PAUSE_S
            self._retry_later(port)
            self._settle(port)
            return
        evidence = of_error(error)
        self._finish(port, refusal_outcome(evidence, port.probe.address) or "error", evidence)

    def _may_pass(self, any_idle: bool) -> bool:
        """Return whether a shortage may end: some of our sockets will be closed, and it has not lasted too long."""
        if self._short_since is None:
            self._short_since = self._now
        lasts_too_long = self._now - self._short_since > LONGEST_SHORTAGE_S
        return (self._in_flight > 0 or any_idle) and not lasts_too_long

    def _shrink_window(self) -> None:
        if LEAST_WINDOW <= self._in_flight < self.window:
            self.window = self._in_flight
            self._report("descriptors", None, f"no descriptor is left; from now on at most {self.window} ports at once")

    # --- time ------------------------------------------------------------------------------------------------------

    def _set_timer(self, port: UdpPort) -> None:
        due_at = port.sent_at + port.timeout_s(self._limits)
        host = port.host
        if host.refusals.are_expected and not port.is_proven:
            due_at = min(due_at, port.sent_at + host.round_trip.timeout_s() + PROOF_S)
        port.timer = next(self._numbers)
        heappush(self._timers, (due_at, port.timer, port))

    def wait_s(self, now: float) -> float:
        """Return how long the engine may wait for arrivals before it has something else to do."""
        if self.answers or self.finished:
            return 0.0
        wait_s = min(MOST_WAIT_S, self.deadline - now)
        if self._timers:
            wait_s = min(wait_s, self._timers[0][0] - now)
        may_read = not self._exhausted and self._to_retry < BUFFER
        if (self._turns or may_read) and self._in_flight < self.window:
            wait_s = min(wait_s, self._bucket.wait_s(now))
        return max(0.0, wait_s)

    def expire(self, now: float) -> None:
        """Do what is due: end what was silent for too long, and give hosts their turn after a pause."""
        self._now = now
        while self._timers and self._timers[0][0] <= now:
            _, number, subject = heappop(self._timers)
            if isinstance(subject, UdpHost):
                self._turns.append(subject)
            elif subject.timer == number:
                self._timed_out(subject)

    def _timed_out(self, port: UdpPort) -> None:
        """A port was silent for long enough to expect a refusal, and perhaps a reply."""
        refusals = port.host.refusals
        if refusals.are_expected and not port.is_proven:
            port.is_proven = refusals.prove(port.sent_at)
            if not port.is_proven:
                self._retry_unproven(port)
                return
        self._settle(port)
        if self._now < port.sent_at + port.timeout_s(self._limits):
            self._set_timer(port)
        else:
            self._count_silence(port)

    def _retry_unproven(self, port: UdpPort) -> None:
        port.was_unproven = True
        if port.is_control:
            self._end_attempt(port)
        else:
            if port.group is not None:
                port.group.unproven += 1
            self._retry_later(port)
        self._settle(port)

    def _count_silence(self, port: UdpPort) -> None:
        port.counted += 1
        host = port.host
        if port.is_control:
            self._end_attempt(port)
        elif port.counted <= host.retries(self._limits):
            self._retry_later(port)
        else:
            self.tally.silent += 1
            self._finish(port, "unreachable" if host.unreachable else "open|filtered", port.silence())

    def stop(self, now: float) -> None:
        """The time is up: what was silent until now stays so, what was not sent is skipped, no more is read."""
        self._now = now
        self._exhausted = True
        self._report("deadline", None, "the time was up before every port was probed often enough")
        for host in self._hosts.values():
            for port in (*host.in_flight, *host.to_retry):
                if port.is_control:
                    self._end_attempt(port)
                elif port.attempts:
                    is_limited = host.refusals.are_expected and not port.is_proven
                    self.tally.silent += 1
                    self._finish(port, "open|filtered", Evidence("silence", text=LIMITED if is_limited else TIME_UP))
                else:
                    self.tally.skipped += 1
                    self._unanswered -= 1
                    self._end_attempt(port)
            host.to_retry.clear()

    # --- what arrives ----------------------------------------------------------------------------------------------

    def replied(self, port: UdpPort, reply: bytes, now: float) -> None:
        """Take the reply of a service."""
        self._now = now
        if port.is_control:
            return
        host = port.host
        host.has_answered, host.unreachable = True, None
        requests = port.sent_requests
        if len(requests) == 1 and not requests[0].from_other_port:
            host.losses.answered(port.counted)  # else another request was answered, not another attempt
        if not host.refusals.are_expected:  # else refusals measure better: a service may need time
            self._measure(port)
        recognised = payloads.recognise(reply, requests)
        text = recognised.text if recognised else payloads.describe_reply(reply)
        service = recognised.service if recognised else None
        self.tally.open += 1
        self._finish(port, "open", Evidence("reply", text=text or None), self._rtt_ms(port), service)

    def refused(self, port: UdpPort, evidence: Evidence, now: float) -> None:
        """Take a refusal: an ICMP message, or an error number that means one."""
        self._now = now
        outcome = refusal_outcome(evidence, port.probe.address)
        if outcome is None:
            return
        host = port.host
        if outcome == "unreachable" and not host.has_answered and host.unreachable is None:
            host.unreachable = evidence
        host.has_answered = True
        if outcome in ("closed", "filtered"):
            host.unreachable = None
            host.losses.answered(port.counted)
            self._measure(port)
            self._record_refusal(port, evidence)
        self._finish(port, outcome, evidence, self._rtt_ms(port))

    def _rtt_ms(self, port: UdpPort) -> float:
        return round((self._now - port.sent_at) * 1000, 3)

    def _measure(self, port: UdpPort) -> None:
        """Learn from the round trip of a port that was probed once (Karn's rule)."""
        if port.attempts > 1:
            return
        host = port.host
        is_first = host.round_trip.srtt_s is None
        host.round_trip.measured(self._now - port.sent_at)
        if is_first:
            self._reset_timers(host)

    def _record_refusal(self, port: UdpPort, evidence: Evidence) -> None:
        host = port.host
        were_expected = host.refusals.are_expected
        by_target = evidence.sender in (None, port.probe.address)
        # Before the retry is sent, only this refusal was late; the next ones need not be.
        was_silent = port.was_unproven and not port.awaits_retry
        host.refusals.record(port.probe.port, evidence.sender, by_target, port.sent_at, was_silent)
        if port.group is not None:
            port.group.last_refused = max(port.group.last_refused, port.position)
            port.group.refused += 1
        if not were_expected:
            self._reset_timers(host)
        self._report_limit(host)

    def _report_limit(self, host: UdpHost) -> None:
        if not host.refusals.are_limited or host.limit_reported:
            return
        host.limit_reported = True
        silent = len(host.to_retry) + len(host.in_flight)
        text = (
            "the target limits how many ports it refuses per second: "
            f"{silent} silent ports are probed again, in groups that it can keep up with"
        )
        self._report("rate-limit", host.probe.address, text)

    def _reset_timers(self, host: UdpHost) -> None:
        """Apply what was learned to the ports in flight."""
        for port in host.in_flight:
            if port.is_unsettled:
                self._set_timer(port)

    # --- the end of an attempt -------------------------------------------------------------------------------------

    def _retry_later(self, port: UdpPort) -> None:
        self._leave_flight(port)
        port.awaits_retry = True
        port.host.to_retry.append(port)
        self._to_retry += 1
        self.released.append(port)
        self._want_turn(port.host)

    def _finish(
        self,
        port: UdpPort,
        outcome: Outcome,
        evidence: Evidence,
        rtt_ms: float | None = None,
        service: str | None = None,
    ) -> None:
        """Give the answer."""
        self._end_attempt(port)
        self._settle(port)
        if port.is_control:
            return
        self._unanswered -= 1
        self.tally.answered += 1
        probe = port.probe
        self.answers.append(
            Answer(
                probe.target,
                probe.address,
                probe.zone,
                probe.port,
                "udp",
                outcome,
                evidence,
                rtt_ms,
                max(port.attempts, 1),
                service,
            )
        )

    def _end_attempt(self, port: UdpPort) -> None:
        """End the last attempt at a port."""
        if port.awaits_retry:  # the reply or refusal was late
            port.awaits_retry = False
            port.host.to_retry.remove(port)
            self._to_retry -= 1
        self._leave_flight(port)
        port.is_finished = True
        self.released.append(port)

    def _leave_flight(self, port: UdpPort) -> None:
        port.timer = -1
        if port in port.host.in_flight:
            port.host.in_flight.discard(port)
            self._count_in_flight(-1)

    def _count_in_flight(self, change: int) -> None:
        self._in_flight += change
        self.tally.in_flight = self._in_flight

    def _settle(self, port: UdpPort) -> None:
        """The port was refused in this attempt, or will not be."""
        host = port.host
        if port.is_unsettled:
            port.is_unsettled = False
            if port.attempts == 1 and not port.is_control:
                host.unsettled_first -= 1
        if port.group is not None:
            group, port.group = port.group, None
            self._leave(group, host)
        self._want_turn(host)

    def _join(self, port: UdpPort, group: RetryGroup) -> None:
        group.unsettled += 1
        port.group, port.position = group, group.size + 1

    def _leave(self, group: RetryGroup, host: UdpHost) -> None:
        group.unsettled -= 1
        if group.unsettled:
            return
        any_refusal = host.refusals.count > group.refusals_before
        host.refusals.adapt(group.size, group.refused, group.last_refused, group.unproven, any_refusal)
        self._report_limit(host)
        host.next_turn_at = group.sent_at + host.refusals.pause_s
        host.group = None
        self._want_turn(host)
