"""``scan_udp``: many UDP ports asked at once, and what is heard or not heard of each.

A port goes through these stages::

    fresh ──ask──▶ waiting ──reply──▶ open
                      │  ├──refusal──▶ closed, filtered, unreachable
                      │  └──silence──▶ shelved ──ask again──▶ waiting … ──▶ open|filtered
                      └──error of this machine──▶ error

Silence of a port counts as an attempt only if it is the port's own. When the host has refused other ports, it has to be
proven by a refusal of a port that was asked at the same moment (see ``Refusals``); silence without such proof is asked
again, as often as it takes. Every port is asked once at full speed, since replies are not limited as refusals are: what
is open is known early. Then silent ports are asked again in groups, each followed by a control, a port that
is known to be closed: either it is refused, and the silence before it is proven, or the host's limit is met, and the
next group comes later and is smaller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from math import inf
from time import perf_counter  # monotonic() has steps of 16 ms on Windows; round trips are shorter

from portbook.enrich.names import service_name
from portbook.probe.descriptors import window_size
from portbook.probe.outcome import Answer, Evidence, Outcome
from portbook.probe.pacing import TokenBucket
from portbook.probe.request import Event, EventCallback, EventKind, Limits, Probe, Tally
from portbook.resilience import classify
from portbook.scanner.udp import payloads, wire
from portbook.scanner.udp.refusals import CONTROL_EVERY, VOUCH_S
from portbook.scanner.udp.sockets import Sockets
from portbook.scanner.udp.state import Group, Host, Port
from portbook.scanner.udp.wire import Wire

MOST_SHELVED = 20_000  # ports waiting to be asked again before new ones are read; each takes about half a kilobyte
MOST_HOSTS = 4096  # whose round trip is remembered when nothing of them is under way
BURST = 32  # datagrams sent before looking at what has come
LONGEST_WAIT_S = 1.0  # so that an interrupt is noticed where waiting does not end by it
OUT_OF_DESCRIPTORS, NOT_NOW = {"EMFILE", "ENFILE"}, {"EAGAIN", "EWOULDBLOCK"}
SCARCE_S = 0.05  # until what this machine had too little of is tried again

LIMITED = "the time was up; the target limits how many ports it refuses a second, which may be the reason"
TIME_UP = "the time was up"


def scan_udp(
    probes: Iterable[Probe], limits: Limits, *, tally: Tally | None = None, on_event: EventCallback | None = None
) -> Iterator[Answer]:
    """Ask UDP ports; give out an answer for each as it is known, in no particular order.

    ``probes`` may be endless: they are read as they are asked. Closing the iterator closes every socket. With
    ``deadline_s`` what was silent until then is given out as such, and what was not asked is counted in
    ``tally.skipped``.
    """
    scan = _Scan(iter(probes), limits, wire.choose(), tally or Tally(), on_event)
    try:
        yield from scan.run()
    finally:
        scan.close()


class _Scan:
    """The engine: one thread, no callbacks; whatever happens is done in ``run``."""

    def __init__(
        self, probes: Iterator[Probe], limits: Limits, wire: Wire, tally: Tally, on_event: EventCallback | None
    ) -> None:
        self._probes = probes
        self._limits = limits
        self._wire = wire
        self._tally = tally
        self._on_event = on_event
        self._began = perf_counter()
        self._deadline = self._began + limits.deadline_s if limits.deadline_s is not None else inf
        self._bucket = TokenBucket(limits.rate, self._began, burst=1.0)  # no bursts: hosts limit what they refuse
        self._sockets = Sockets(wire, window_size(limits.concurrency))
        self._hosts: dict[str, Host] = {}
        self._most_hosts = MOST_HOSTS
        self._turns: deque[Host] = deque()  # with ports to be asked again, now
        self._timers: list[tuple[float, int, Port | Host]] = []
        self._numbers = count()
        self._answers: deque[Answer] = deque()
        self._shelved = 0
        self._unanswered = 0  # ports begun
        self._is_exhausted = False

    def run(self) -> Iterator[Answer]:
        """Give out answers until there is nothing left to ask."""
        while True:
            if perf_counter() >= self._deadline:
                self._give_up()
            else:
                self._ask_fresh()
                self._ask_again()
            yield from self._take_answers()
            if self._is_exhausted and not self._unanswered:
                return
            for heard in self._wire.hear(self._wait_s()):
                self._hear(heard.handle, heard.signal)
            self._expire()

    def close(self) -> None:
        """Close every socket."""
        self._wire.shut()
        self._tally.in_flight = 0

    def _take_answers(self) -> Iterator[Answer]:
        while self._answers:
            yield self._answers.popleft()

    def _say(self, kind: EventKind, address: str | None, text: str) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, address, text, perf_counter() - self._began))

    # --- what to ask next ------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return self._tally.in_flight < self._sockets.most and self._bucket.available(perf_counter()) > 0

    def _ask_fresh(self) -> None:
        for _ in range(BURST):
            if self._is_exhausted or self._shelved >= MOST_SHELVED or not self._has_room():
                return
            probe = next(self._probes, None)
            if probe is None:
                self._is_exhausted = True
                return
            self._unanswered += 1
            self._ask(Port(probe, self._host(probe)))

    def _host(self, probe: Probe) -> Host:
        key = f"{probe.address}%{probe.zone}"
        host = self._hosts.get(key)
        if host is None:
            if len(self._hosts) >= self._most_hosts:
                self._hosts = {k: h for k, h in self._hosts.items() if not h.is_idle}
                self._most_hosts = max(MOST_HOSTS, 2 * len(self._hosts))
            host = self._hosts[key] = Host(probe)
        return host

    def _ask_again(self) -> None:
        """Give each host that has silent ports a turn."""
        for _ in range(len(self._turns)):
            if not self._has_room():
                return
            host = self._turns.popleft()
            host.has_turn = False
            if not host.refusals.known:
                self._ask_some(host)
            elif not host.unsettled:
                self._ask_group(host)

    def _ask_some(self, host: Host) -> None:
        """Silent ports of a host that refuses nothing: nothing to compare with, nothing to spare."""
        for _ in range(min(len(host.again), BURST)):
            if self._has_room():
                self._repeat(host)
        self._want_turn(host)

    def _ask_group(self, host: Host) -> None:
        """A group of silent ports and controls, as near to one another as can be."""
        free = self._sockets.most - self._tally.in_flight
        room = free - 1 - free // (CONTROL_EVERY + 1)  # besides controls
        if room < 1:
            host.next_turn_at = perf_counter() + SCARCE_S
            self._want_turn(host)
            return
        group = host.group = Group(perf_counter(), host.refusals.count)
        group.left = 1  # the group itself, until everything is sent
        for number in range(1, min(host.refusals.group, len(host.again), room) + 1):
            self._repeat(host, group)
            group.size = number
            if number % CONTROL_EVERY == 0:
                self._ask_control(host, group)
        self._ask_control(host, group)
        self._leave(group, host)

    def _ask_control(self, host: Host, group: Group) -> None:
        refused = host.refusals.control
        if refused is not None:
            control = Port(host.probe._replace(port=refused[0]), host, is_control=True)
            self._join(control, group)
            self._ask(control)

    def _repeat(self, host: Host, group: Group | None = None) -> None:
        port = host.again.popleft()
        self._shelved -= 1
        self._sockets.resume(port)
        if group is not None:
            self._join(port, group)
        self._ask(port)

    def _want_turn(self, host: Host) -> None:
        """Have the silent ports of a host asked again, as soon as that is right."""
        if host.has_turn or host.group or not host.again:
            return
        if host.refusals.known and host.unsettled:
            return  # then they are what spends its refusals
        host.has_turn = True
        if host.next_turn_at > perf_counter():
            heappush(self._timers, (host.next_turn_at, next(self._numbers), host))
        else:
            self._turns.append(host)

    # --- asking ----------------------------------------------------------------------------------------------------

    def _ask(self, port: Port) -> None:
        """Send what the next attempt sends."""
        questions = payloads.for_port(port.probe.port, port.attempts + 1)
        try:
            handle = self._sockets.connect(port, questions)
            port.sent_at = perf_counter()
            self._bucket.take(len(questions))
            for payload in questions:
                self._wire.send(handle, payload.data)
        except OSError as error:
            self._fail(port, error)
            return
        port.asked = tuple(dict.fromkeys((*port.asked, *questions)))
        port.attempts += 1
        port.is_proven = False
        port.is_unsettled = True
        self._tally.in_flight += 1
        self._note_asked(port)
        self._set_timer(port)

    def _note_asked(self, port: Port) -> None:
        host = port.host
        host.waiting.add(port)
        if host.first_sent_at is None:
            host.first_sent_at = port.sent_at
        if port.is_control:
            return
        if port.attempts == 1:
            host.unsettled += 1
            self._tally.asked += 1
        else:
            self._tally.repeated += 1

    def _fail(self, port: Port, error: OSError) -> None:
        """Give up what this machine could not ask; or postpone it, when it lacks what others will give back."""
        fault = classify(error)
        may_pass = bool(self._tally.in_flight) or self._sockets.can_spare
        if fault.posix in OUT_OF_DESCRIPTORS and self._sockets.have_fewer(self._tally.in_flight):
            text = f"no descriptor is left; from here on {self._sockets.most} ports at once"
            self._say("descriptors", None, text)
        if (fault.scarce or fault.posix in NOT_NOW) and may_pass and not port.is_control:
            port.host.next_turn_at = perf_counter() + SCARCE_S
            self._shelve(port)
            self._settle(port)
            return
        evidence = wire.of_error(error)
        self._finish(port, wire.judge(evidence, port.probe.address) or "error", evidence)

    # --- time ------------------------------------------------------------------------------------------------------

    def _set_timer(self, port: Port) -> None:
        due = port.sent_at + port.patience_s(self._limits)
        if port.host.refusals.known and not port.is_proven:
            due = min(due, port.sent_at + port.host.round_trip.timeout_s() + VOUCH_S)
        port.timer = next(self._numbers)
        heappush(self._timers, (due, port.timer, port))

    def _wait_s(self) -> float:
        """How long there is nothing to do but to listen."""
        now = perf_counter()
        until_due = self._timers[0][0] - now if self._timers else inf
        has_work = self._turns or not (self._is_exhausted or self._shelved >= MOST_SHELVED)
        until_work = self._bucket.wait_s(now) if has_work and self._tally.in_flight < self._sockets.most else inf
        return max(0.0, min(until_due, until_work, self._deadline - now, LONGEST_WAIT_S))

    def _expire(self) -> None:
        """Do what is due."""
        now = perf_counter()
        while self._timers and self._timers[0][0] <= now:
            _, number, what = heappop(self._timers)
            if isinstance(what, Host):
                self._turns.append(what)
            elif what.timer == number:
                self._expect_no_more(what, now)

    def _expect_no_more(self, port: Port, now: float) -> None:
        """A port has been silent: long enough for a refusal, perhaps for a reply."""
        refusals = port.host.refusals
        if refusals.known and not port.is_proven:
            port.is_proven = refusals.prove(port.sent_at)
            if not port.is_proven:
                self._repeat_unproven(port)
                return
        self._settle(port)
        if now < port.sent_at + port.patience_s(self._limits):
            self._set_timer(port)
            return
        self._count_silence(port)

    def _repeat_unproven(self, port: Port) -> None:
        port.was_silent = True
        if port.is_control:
            self._drop(port)
        else:
            if port.group is not None:
                port.group.unproven += 1
            self._shelve(port)
        self._settle(port)

    def _count_silence(self, port: Port) -> None:
        port.counted += 1
        if port.is_control:
            self._drop(port)
        elif port.counted <= port.host.retries(self._limits):
            self._shelve(port)
        else:
            self._tally.silent += 1
            outcome: Outcome = "unreachable" if port.host.gone else "open|filtered"
            self._finish(port, outcome, port.silence())

    def _give_up(self) -> None:
        """The deadline: silence so far is all that will be known."""
        self._is_exhausted = True
        self._say("deadline", None, "the time was up before everything was asked often enough")
        for host in self._hosts.values():
            shelved = list(host.again)
            host.again.clear()
            for port in (*host.waiting, *shelved):
                self._sockets.resume(port)
                if not port.attempts:
                    self._tally.skipped += 1
                    self._unanswered -= 1
                elif not port.is_control:
                    limited = host.refusals.known and not port.is_proven
                    self._tally.silent += 1
                    self._finish(port, "open|filtered", Evidence("silence", text=LIMITED if limited else TIME_UP))

    # --- what is heard ---------------------------------------------------------------------------------------------

    def _hear(self, handle: int, signal: wire.Signal) -> None:
        port = self._sockets.port(handle)
        if port is None:
            return
        now = perf_counter()
        if isinstance(signal, bytes):
            self._hear_reply(port, signal, now)
        elif (outcome := wire.judge(signal, port.probe.address)) is not None:
            self._hear_refusal(port, outcome, signal, now)

    def _hear_reply(self, port: Port, reply: bytes, now: float) -> None:
        if port.is_control:
            return
        host = port.host
        host.heard, host.gone = True, None
        if len(port.asked) == 1 and not port.asked[0].elsewhere:  # else another question, not another attempt, did it
            host.losses.answered(port.counted)
        if not host.refusals.known:  # else those tell better: a service may have to think
            self._measure(port, now)
        recognised = payloads.recognise(reply, port.asked)
        text = recognised.text if recognised else payloads.described(reply)
        self._tally.open += 1
        self._finish(port, "open", Evidence("reply", text=text or None), now, recognised and recognised.service)

    def _hear_refusal(self, port: Port, outcome: Outcome, evidence: Evidence, now: float) -> None:
        host = port.host
        if outcome == "unreachable":
            host.gone = host.gone or (None if host.heard else evidence)
        host.heard = True
        if outcome in ("closed", "filtered"):
            host.gone = None
            host.losses.answered(port.counted)
            self._measure(port, now)
            self._note_refusal(port, evidence)
        self._finish(port, outcome, evidence, now)

    def _measure(self, port: Port, now: float) -> None:
        """Learn from the round trip of a port that was asked once."""
        if port.attempts > 1:
            return
        host = port.host
        is_first = host.round_trip.srtt_s is None
        host.round_trip.measured(now - port.sent_at)
        if is_first:
            self._set_timers(host)

    def _note_refusal(self, port: Port, evidence: Evidence) -> None:
        refusals = port.host.refusals
        was_known = refusals.known
        by_target = evidence.sender in (None, port.probe.address)
        was_silent = port.was_silent and not self._sockets.keeps(
            port
        )  # else only this refusal was late, not the next sooner
        refusals.heard(port.probe.port, evidence.sender, by_target, port.sent_at, was_silent)
        if port.group is not None:
            port.group.reach = max(port.group.reach, port.place)
            port.group.refused += 1
        if not was_known:
            self._set_timers(port.host)
        self._say_limited(port.host)

    def _say_limited(self, host: Host) -> None:
        if host.refusals.limited and not host.is_said_limited:
            host.is_said_limited = True
            self._say("rate-limit", host.probe.address, host.limit_in_words())

    def _set_timers(self, host: Host) -> None:
        """What is waiting was sent when less was known."""
        for port in host.waiting:
            if port.is_unsettled:
                self._set_timer(port)

    # --- the end of an attempt -------------------------------------------------------------------------------------

    def _shelve(self, port: Port) -> None:
        """To be asked again; its socket stays open for a late reply while there are enough."""
        self._stop_waiting(port)
        self._sockets.keep(port)
        port.host.again.append(port)
        self._shelved += 1
        self._want_turn(port.host)

    def _finish(
        self, port: Port, outcome: Outcome, evidence: Evidence, now: float | None = None, service: str | None = None
    ) -> None:
        """Give out the answer."""
        if self._sockets.keeps(port):  # a late reply
            port.host.again.remove(port)
            self._shelved -= 1
        self._drop(port)
        self._settle(port)
        if port.is_control:
            return
        self._unanswered -= 1
        self._tally.answered += 1
        probe = port.probe
        rtt_ms = None if now is None else round((now - port.sent_at) * 1000, 3)
        service = service or service_name(probe.port, "udp")
        attempts = max(port.attempts, 1)
        self._answers.append(
            Answer(
                probe.target, probe.address, probe.zone, probe.port, "udp", outcome, evidence, rtt_ms, attempts, service
            )
        )

    def _drop(self, port: Port) -> None:
        self._stop_waiting(port)
        self._sockets.disconnect(port)

    def _stop_waiting(self, port: Port) -> None:
        port.timer = -1
        if port in port.host.waiting:
            port.host.waiting.discard(port)
            self._tally.in_flight -= 1

    def _settle(self, port: Port) -> None:
        """The port was refused in this attempt, or will not be."""
        host = port.host
        if port.is_unsettled:
            port.is_unsettled = False
            host.unsettled -= port.attempts == 1 and not port.is_control
        if port.group is not None:
            group, port.group = port.group, None
            self._leave(group, host)
        self._want_turn(host)

    def _join(self, port: Port, group: Group) -> None:
        group.left += 1
        port.group, port.place = group, group.size + 1

    def _leave(self, group: Group, host: Host) -> None:
        group.left -= 1
        if group.left == 0:
            any_refusal = host.refusals.count > group.refusals_before
            host.refusals.group_done(group.size, group.refused, group.reach, group.unproven, any_refusal)
            self._say_limited(host)
            host.next_turn_at = group.sent_at + host.refusals.pause_s
            host.group = None
            self._want_turn(host)
