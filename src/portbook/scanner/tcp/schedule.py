"""Which probe is begun when, and what its end means for the others: the engine without its sockets. Pure.

A probe is read from the stream when there is room in the window. It is held back when its host may not be asked now
(see hosts). One that ends in silence waits for a later pass. What is held back or waits is bounded by BUFFER: when it
is full the stream is not read, so that a stream may be millions of probes long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from portbook.probe.outcome import SILENCE, Answer, Outcome
from portbook.probe.pacing import TokenBucket
from portbook.probe.request import Event, EventKind, Limits, Listener, Probe, Tally
from portbook.probe.tcp import SELF, SELF_TRIES, SILENT, Finding
from portbook.resilience import SCARCE
from portbook.scanner.tcp.attempt import Attempt
from portbook.scanner.tcp.hosts import Host, Hosts
from portbook.scanner.tcp.patience import Patience
from portbook.scanner.tcp.repeats import Repeats
from portbook.scanner.tcp.window import Window

BUFFER = 1 << 16  # attempts held back or waiting for a later pass; about 15 MB
READ_AT_ONCE = 4096  # probes of the stream in one turn: all of a dead network may be skipped without an end
REMOTE_AT_ONCE = 128  # connects in one turn, before answers are looked at: they take 20 to 30 microseconds each
MOST_WAIT_S = 1.0
UNHEARD = frozenset(("unreachable", "error"))  # outcomes that say nothing of the host itself
RAN_OUT = SCARCE | {f"WSA{name}" for name in SCARCE}


class Schedule:
    """The state of one scan. Times are the caller's: any clock that does not run backwards."""

    def __init__(
        self,
        probes: Iterable[Probe],
        limits: Limits,
        window: int,
        now: float,
        *,
        tally: Tally | None = None,
        tell: Listener | None = None,
    ) -> None:
        self.tally = tally if tally is not None else Tally()
        self.answers: list[Answer] = []  # given out since the engine last took them
        self.deadline = None if limits.deadline_s is None else now + limits.deadline_s
        self._limits = limits
        self._tell = tell
        self._began = self._now = now
        self._stream = iter(probes)
        self._exhausted = False
        self._quota = 0  # probes that may still be read in this turn
        self._bucket = TokenBucket(limits.rate, now)
        self._window = Window(window, now)
        self._hosts = Hosts(limits.breaker, lambda address, text: self._say("breaker", address, text))
        self._in_flight = 0
        self._buffered = 0  # held back by hosts, or waiting for a later pass
        self._again: deque[Attempt] = deque()  # to be begun once more, the attempt not counted
        self._ready: deque[Host] = deque()  # which may have something to begin of what was held back
        self._repeats = Repeats(window, now)
        self._patience = Patience(limits.timeout_s)

    @property
    def finished(self) -> bool:
        """Nothing is in flight, held back or to be read."""
        return self._exhausted and not (self._in_flight or self._buffered or self._again or self.answers)

    def _say(self, kind: EventKind, address: str | None, text: str) -> None:
        if self._tell is not None:
            self._tell(Event(kind, address, text, self._now - self._began))

    # --- what to begin ---------------------------------------------------------------------------------------------

    def take(self, now: float) -> list[Attempt]:
        """What is to be begun now; it counts as in flight from here on."""
        self._now = now
        self._window.recover(now)
        room = min(self._window.size - self._in_flight, self._bucket.available(now))
        if room <= 0 or now < self._window.resume_at:
            return []
        for host in self._hosts.due_for_trial(now):
            self._queue(host)
        self._quota = READ_AT_ONCE
        batch = list(self._begun(room))
        self._in_flight += len(batch)
        self.tally.in_flight = self._in_flight
        self._bucket.take(len(batch))
        return batch

    def _begun(self, room: int) -> Iterator[Attempt]:
        remote = 0
        while room > 0 and remote < REMOTE_AT_ONCE and (attempt := self._next()) is not None:
            host = attempt.host
            if attempt.number:
                self.tally.repeated += 1
            elif not attempt.begun:
                self.tally.asked += 1
                self._repeats.first_asked(self._now)
            if not host.heard:
                attempt.trial = host.on_trial
            attempt.number += 1
            attempt.begun = self._now
            attempt.flying = True
            host.in_flight += 1
            room -= 1
            remote += not host.loopback
            yield attempt

    def _next(self) -> Attempt | None:
        if self._again:
            return self._again.popleft()
        if self._ready and (held := self._held()) is not None:
            return held
        return self._read() or self._repeat()

    def _held(self) -> Attempt | None:
        """What a host held back and now may begin."""
        while self._ready:
            host = self._ready[0]
            if host.waiting and self._hosts.allows(host, self._now):
                self._buffered -= 1
                return host.next_held()
            self._ready.popleft()
            host.queued = False
        return None

    def _read(self) -> Attempt | None:
        """The next probe of the stream that may begin; those before it are held back, or skipped."""
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
                self._hold(Attempt(probe, host), host)
        return None

    def _hold(self, attempt: Attempt, host: Host) -> None:
        host.waiting.append(attempt)
        self._buffered += 1

    def _repeat(self) -> Attempt | None:
        """A silent port whose later pass has come."""
        while (attempt := self._repeats.next(self._now)) is not None:
            host = attempt.host
            self._buffered -= 1
            if self._hosts.allows(host, self._now):
                return attempt
            if host.given_up:
                self._leave(attempt)
            else:
                self._hold(attempt, host)
                self._queue(host)
        return None

    def _queue(self, host: Host) -> None:
        if host.waiting and not host.queued:
            host.queued = True
            self._ready.append(host)

    # --- how long --------------------------------------------------------------------------------------------------

    def watch(self, attempts: Iterable[Attempt]) -> None:
        """Set a time limit for those of the begun attempts that are not decided."""
        self._patience.watch(attempts)

    def expired(self, now: float) -> list[Attempt]:
        """What has been in flight for too long; each is silent, and still to be settled."""
        return self._patience.expired(now)

    def flying(self) -> list[Attempt]:
        """What is in flight and not decided."""
        return self._patience.flying()

    def wait_s(self, now: float) -> float:
        """How long nothing can be done, if nothing is decided meanwhile."""
        if self.answers or self.finished:
            return 0.0
        return min(MOST_WAIT_S, max(0.0, min(self._next_times(), default=now + MOST_WAIT_S) - now))

    def _next_times(self) -> Iterator[float]:
        if (end_at := self._patience.next_at) is not None:
            yield end_at
        if self.deadline is not None:
            yield self.deadline
        if self._in_flight < self._window.size:
            token_at = self._now + self._bucket.wait_s(self._now)
            yield from (max(at, self._window.resume_at, token_at) for at in self._beginnings())

    def _beginnings(self) -> Iterator[float]:
        if self._again or self._ready or not (self._exhausted or self._buffered >= BUFFER):
            yield self._now
        if (repeat_at := self._repeats.next_at()) is not None:
            yield repeat_at
        if (trial_at := self._hosts.next_trial_at) is not None:
            yield trial_at

    # --- what became of it -----------------------------------------------------------------------------------------

    def settle(self, attempts: Iterable[Attempt], now: float) -> None:
        """Take what was decided: an answer is given out, or the port will be asked again."""
        self._now = now
        for attempt in attempts:
            host = attempt.host
            attempt.flying = False
            self._in_flight -= 1
            host.in_flight -= 1
            if host.unmeasured:
                host.unmeasured.discard(attempt)
            self._settle(attempt, host, attempt.finding or SILENT)
            if host.waiting:
                self._queue(host)
        self.tally.in_flight = self._in_flight

    def _settle(self, attempt: Attempt, host: Host, finding: Finding) -> None:
        outcome, evidence = finding
        if evidence.kind == "silence":
            self._silent(attempt, host)
        elif finding is SELF and attempt.self_connects < SELF_TRIES:
            attempt.self_connects += 1
            self._once_more(attempt)
        elif outcome == "error" and evidence.error in RAN_OUT:
            self._short(attempt, finding)
        else:
            if outcome in UNHEARD:
                self._failed(attempt, host)
            else:
                self._heard(attempt, host)
            self._window.fed()
            self._answer(attempt, finding)

    def _heard(self, attempt: Attempt, host: Host) -> None:
        host.answered(attempt)
        if host.unmeasured and host.trip.srtt_s is not None:
            self._patience.measured(host)

    def _silent(self, attempt: Attempt, host: Host) -> None:
        self._failed(attempt, host)
        limits = self._limits
        if attempt.number >= host.losses.attempts(limits.retries, limits.most_retries):
            self._unheard(attempt, "filtered")
        elif host.given_up:
            self._unheard(attempt, "timeout")
        else:
            attempt.finding = None
            self._repeats.put(attempt, self._now)
            self._buffered += 1

    def _failed(self, attempt: Attempt, host: Host) -> None:
        if self._hosts.failed(attempt, self._now):
            held, host.waiting = host.waiting, deque()
            self._buffered -= len(held)
            skipped = sum(self._leave(each) for each in held)
            text = f"given up: {skipped} ports that were held back, and those that come later, are not asked"
            self._say("breaker", host.address, text)

    def _leave(self, attempt: Attempt) -> bool:
        """Do not ask this again; True when it never was."""
        if attempt.number:
            self._unheard(attempt, "timeout")
            return False
        self.tally.skipped += 1
        attempt.host.outstanding -= 1
        return True

    def _unheard(self, attempt: Attempt, outcome: Outcome) -> None:
        self.tally.silent += 1
        attempt.rtt_s = None
        self._answer(attempt, Finding(outcome, SILENCE))

    def _answer(self, attempt: Attempt, finding: Finding) -> None:
        outcome, evidence = finding
        target, address, port, zone = attempt.probe
        rtt_ms = None if attempt.rtt_s is None else round(attempt.rtt_s * 1000, 3)
        self.answers.append(Answer(target, address, zone, port, "tcp", outcome, evidence, rtt_ms, attempt.number))
        attempt.host.outstanding -= 1
        self.tally.answered += 1
        self.tally.open += outcome == "open"

    # --- what is begun once more, and what is not begun at all -----------------------------------------------------

    def _once_more(self, attempt: Attempt) -> None:
        attempt.finding = None
        attempt.number -= 1
        self._again.append(attempt)

    def _short(self, attempt: Attempt, finding: Finding) -> None:
        """No descriptor or no memory: fewer at once; and if nothing of ours is in use, later."""
        if self._in_flight:
            if self._window.shrink(self._in_flight, self._now):
                text = f"{finding.evidence.error}: at most {self._window.size} probes at once for now"
                self._say("descriptors", None, text)
        elif not self._window.starve(self._now):
            self._failed(attempt, attempt.host)
            self._answer(attempt, finding)
            return
        self._once_more(attempt)

    def stop(self, now: float) -> None:
        """The time is up: what was asked has timed out, what was not is skipped, the stream is read no further."""
        self._now = now
        held = [attempt for host in self._hosts for attempt in host.waiting]
        left = [*self.flying(), *self._again, *self._repeats.drain(), *held]
        self._exhausted = True
        self._in_flight = self._buffered = self.tally.in_flight = 0
        for pending in (self._again, *(host.waiting for host in self._hosts)):
            pending.clear()
        skipped = sum(self._leave(attempt) for attempt in left)
        self._say(
            "deadline",
            None,
            f"the time was up: {skipped} ports that were next, and those that come later, were not asked",
        )
