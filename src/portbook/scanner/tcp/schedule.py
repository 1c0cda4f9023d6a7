"""Which probe starts when, and what its result means for the others: the engine without its sockets. Pure.

A probe is read from the stream when there is room in the window. It is held back when its host may not be probed now
(see hosts). A silent one waits for a retry. What is held back or waits is bounded by BUFFER: when that is full, the
stream is not read, so that a stream may be millions of probes long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from portbook.probe.outcome import SILENCE, Answer, Outcome
from portbook.probe.pacing import TokenBucket
from portbook.probe.request import EventCallback, Limits, Probe, ScanEvent, ScanEventKind, Tally
from portbook.probe.tcp import SELF_CONNECTED, SELF_TRIES, SILENT, ConnectResult
from portbook.resilience import SCARCE
from portbook.scanner.tcp.hosts import Hosts
from portbook.scanner.tcp.limits import Retries, Timeouts, Window
from portbook.scanner.tcp.state import Attempt, Host

BUFFER = 1 << 16  # attempts held back or waiting for a retry; about 15 MB
READ_AT_ONCE = 4096  # probes of the stream in one turn: skipping a dead network must not block the loop
REMOTE_AT_ONCE = 128  # connects in one turn, before answers are read: they take 20 to 30 microseconds each
MOST_WAIT_S = 1.0
NOT_FROM_HOST = frozenset(("unreachable", "error"))  # outcomes that prove nothing about the host itself
OUT_OF_RESOURCES = SCARCE | {f"WSA{name}" for name in SCARCE}


class TcpSchedule:
    """The state of one scan. The caller gives all times: seconds of any clock that does not run backwards."""

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
        self.deadline = None if limits.deadline_s is None else now + limits.deadline_s
        self._limits = limits
        self._on_event = on_event
        self._began = self._now = now
        self._stream = iter(probes)
        self._exhausted = False
        self._quota = 0  # probes that may still be read in this turn
        self._bucket = TokenBucket(limits.rate, now)
        self._window = Window(window, now)
        self._hosts = Hosts(limits.breaker, lambda address, text: self._report("breaker", address, text))
        self._in_flight = 0
        self._buffered = 0  # held back by hosts, or waiting for a retry
        self._again: deque[Attempt] = deque()  # to be started again, the last attempt not counted
        self._ready: deque[Host] = deque()  # may have something to start of what was held back
        self._retries = Retries(window, now)
        self._timeouts = Timeouts(limits.timeout_s)

    @property
    def finished(self) -> bool:
        """Whether nothing is in flight, held back or to be read."""
        return self._exhausted and not (self._in_flight or self._buffered or self._again or self.answers)

    def _report(self, kind: ScanEventKind, address: str | None, text: str) -> None:
        if self._on_event is not None:
            self._on_event(ScanEvent(kind, address, text, self._now - self._began))

    # --- what to start ---------------------------------------------------------------------------------------------

    def take(self, now: float) -> list[Attempt]:
        """Return what is to be started now; it counts as in flight from here on."""
        self._now = now
        self._window.recover(now)
        room = min(self._window.size - self._in_flight, self._bucket.available(now))
        if room <= 0 or now < self._window.resume_at:
            return []
        for host in self._hosts.due_for_trial(now):
            self._queue(host)
        self._quota = READ_AT_ONCE
        batch = list(self._started(room))
        self._in_flight += len(batch)
        self.tally.in_flight = self._in_flight
        self._bucket.take(len(batch))
        return batch

    def _started(self, room: int) -> Iterator[Attempt]:
        remote = 0
        while room > 0 and remote < REMOTE_AT_ONCE and (attempt := self._next()) is not None:
            host = attempt.host
            if attempt.number:
                self.tally.repeated += 1
            elif not attempt.started_at:
                self.tally.probed += 1
                self._retries.count_first(self._now)
            if not host.has_answered:
                attempt.is_trial = host.on_trial
            attempt.number += 1
            attempt.started_at = self._now
            attempt.in_flight = True
            host.in_flight += 1
            room -= 1
            remote += not host.is_loopback
            yield attempt

    def _next(self) -> Attempt | None:
        if self._again:
            return self._again.popleft()
        if self._ready and (attempt := self._next_held_back()) is not None:
            return attempt
        return self._read() or self._next_retry()

    def _next_held_back(self) -> Attempt | None:
        """Return an attempt that was held back and may start now."""
        while self._ready:
            host = self._ready[0]
            if host.held_back and self._hosts.allows(host, self._now):
                self._buffered -= 1
                return host.take_held_back()
            self._ready.popleft()
            host.queued = False
        return None

    def _read(self) -> Attempt | None:
        """Return the next probe of the stream that may start; those before it are held back or skipped."""
        while self._quota > 0 and self._buffered < BUFFER and not self._exhausted:
            probe = next(self._stream, None)
            if probe is None:
                self._exhausted = True
                return None
            self._quota -= 1
            host = self._hosts.of(probe)
            if self._hosts.allows(host, self._now):
                host.outstanding += 1
                return Attempt(probe, host)
            if host.given_up:
                self.tally.skipped += 1
            else:
                host.outstanding += 1
                self._hold_back(Attempt(probe, host), host)
        return None

    def _hold_back(self, attempt: Attempt, host: Host) -> None:
        host.held_back.append(attempt)
        self._buffered += 1

    def _next_retry(self) -> Attempt | None:
        """Return an attempt at a silent port whose retry is due."""
        while (attempt := self._retries.next(self._now)) is not None:
            host = attempt.host
            self._buffered -= 1
            if self._hosts.allows(host, self._now):
                return attempt
            if host.given_up:
                self._abandon(attempt)
            else:
                self._hold_back(attempt, host)
                self._queue(host)
        return None

    def _queue(self, host: Host) -> None:
        if host.held_back and not host.queued:
            host.queued = True
            self._ready.append(host)

    # --- how long --------------------------------------------------------------------------------------------------

    def watch(self, attempts: Iterable[Attempt]) -> None:
        """Set a timeout for each started attempt that is undecided."""
        self._timeouts.watch(attempts)

    def expired(self, now: float) -> list[Attempt]:
        """Return what has been in flight for too long; each is silent, and still to be settled."""
        return self._timeouts.expired(now)

    def undecided(self) -> list[Attempt]:
        """Return every attempt in flight."""
        return self._timeouts.undecided()

    def wait_s(self, now: float) -> float:
        """How many seconds there is nothing to do, if nothing is decided meanwhile."""
        if self.answers or self.finished:
            return 0.0
        return min(MOST_WAIT_S, max(0.0, min(self._next_times(), default=now + MOST_WAIT_S) - now))

    def _next_times(self) -> Iterator[float]:
        if (end_at := self._timeouts.next_at) is not None:
            yield end_at
        if self.deadline is not None:
            yield self.deadline
        if self._in_flight < self._window.size:
            token_at = self._now + self._bucket.wait_s(self._now)
            yield from (max(at, self._window.resume_at, token_at) for at in self._start_times())

    def _start_times(self) -> Iterator[float]:
        if self._again or self._ready or not (self._exhausted or self._buffered >= BUFFER):
            yield self._now
        if (repeat_at := self._retries.next_at()) is not None:
            yield repeat_at
        if (trial_at := self._hosts.next_trial_at) is not None:
            yield trial_at

    # --- what a result means ---------------------------------------------------------------------------------------

    def settle(self, attempts: Iterable[Attempt], now: float) -> None:
        """Take decided attempts: each becomes an answer, or will be started again."""
        self._now = now
        for attempt in attempts:
            host = attempt.host
            attempt.in_flight = False
            self._in_flight -= 1
            host.in_flight -= 1
            if host.unmeasured:
                host.unmeasured.discard(attempt)
            self._settle(attempt, host, attempt.result or SILENT)
            if host.held_back:
                self._queue(host)
        self.tally.in_flight = self._in_flight

    def _settle(self, attempt: Attempt, host: Host, result: ConnectResult) -> None:
        outcome, evidence = result
        if evidence.kind == "silence":
            self._silent(attempt, host)
        elif result is SELF_CONNECTED and attempt.self_connects < SELF_TRIES:
            attempt.self_connects += 1
            self._start_again(attempt)
        elif outcome == "error" and evidence.error in OUT_OF_RESOURCES:
            self._out_of_resources(attempt, result)
        else:
            if outcome in NOT_FROM_HOST:
                self._failed(attempt, host)
            else:
                self._answered(attempt, host)
            self._window.reset_backoff()
            self._answer(attempt, result)

    def _answered(self, attempt: Attempt, host: Host) -> None:
        host.answered(attempt)
        if host.unmeasured and host.round_trip.srtt_s is not None:
            self._timeouts.measured(host)

    def _silent(self, attempt: Attempt, host: Host) -> None:
        self._failed(attempt, host)
        limits = self._limits
        if attempt.number >= host.losses.attempts(limits.retries, limits.most_retries):
            self._answer_silence(attempt, "filtered")
        elif host.given_up:
            self._answer_silence(attempt, "timeout")
        else:
            attempt.result = None
            self._retries.put(attempt, self._now)
            self._buffered += 1

    def _failed(self, attempt: Attempt, host: Host) -> None:
        if self._hosts.failed(attempt, self._now):
            held_back, host.held_back = host.held_back, deque()
            self._buffered -= len(held_back)
            skipped = sum(self._abandon(each) for each in held_back)
            text = f"given up: {skipped} waiting ports, and all later ones, are not probed"
            self._report("breaker", host.address, text)

    def _abandon(self, attempt: Attempt) -> bool:
        """Do not start an attempt again; True when it never was started, which skips its port."""
        if attempt.number:
            self._answer_silence(attempt, "timeout")
            return False
        self.tally.skipped += 1
        attempt.host.outstanding -= 1
        return True

    def _answer_silence(self, attempt: Attempt, outcome: Outcome) -> None:
        self.tally.silent += 1
        attempt.rtt_s = None
        self._answer(attempt, ConnectResult(outcome, SILENCE))

    def _answer(self, attempt: Attempt, result: ConnectResult) -> None:
        outcome, evidence = result
        target, address, port, zone = attempt.probe
        rtt_ms = None if attempt.rtt_s is None else round(attempt.rtt_s * 1000, 3)
        self.answers.append(Answer(target, address, zone, port, "tcp", outcome, evidence, rtt_ms, attempt.number))
        attempt.host.outstanding -= 1
        self.tally.answered += 1
        self.tally.open += outcome == "open"

    # --- what is started again, and what is not started at all -----------------------------------------------------

    def _start_again(self, attempt: Attempt) -> None:
        attempt.result = None
        attempt.number -= 1
        self._again.append(attempt)

    def _out_of_resources(self, attempt: Attempt, result: ConnectResult) -> None:
        """No descriptor or no memory: fewer at once; and if none of ours is in use, later."""
        if self._in_flight:
            if self._window.shrink(self._in_flight, self._now):
                text = f"{result.evidence.error}: at most {self._window.size} probes at once for now"
                self._report("descriptors", None, text)
        elif not self._window.out_of_descriptors(self._now):
            self._failed(attempt, attempt.host)
            self._answer(attempt, result)
            return
        self._start_again(attempt)

    def stop(self, now: float) -> None:
        """The time is up: what was probed has timed out, what was not is skipped, the stream is read no further."""
        self._now = now
        held_back: list[Attempt] = []
        for host in self._hosts:
            held_back += host.held_back
            host.held_back.clear()
        unfinished = [*self.undecided(), *self._again, *self._retries.drain(), *held_back]
        self._again.clear()
        self._exhausted = True
        self._in_flight = self._buffered = self.tally.in_flight = 0
        skipped = sum(self._abandon(attempt) for attempt in unfinished)
        self._report(
            "deadline",
            None,
            f"the time was up: {skipped} waiting ports, and all later ones, were not probed",
        )
