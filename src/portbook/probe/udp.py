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
from time import monotonic

from msgspec.structs import replace

from portbook.enrich.names import service_name
from portbook.probe import datagrams, payloads
from portbook.probe.datagrams import Wire
from portbook.probe.descriptors import window_size
from portbook.probe.outcome import SILENCE, Answer, Evidence, Outcome
from portbook.probe.pacing import Losses, RoundTrip, TokenBucket
from portbook.probe.payloads import Payload
from portbook.probe.refusals import CONTROL_EVERY, VOUCH_S, Refusals
from portbook.probe.request import Event, Limits, Listener, Probe, Tally
from portbook.resilience import classify

LEAST_IN_FLIGHT = 2  # a silent port and its control
MOST_SHELVED = 20_000  # ports waiting to be asked again before new ones are read; each takes about half a kilobyte
MOST_HOSTS = 4096  # whose round trip is remembered when nothing of them is under way
BURST = 32  # datagrams sent before looking at what has come
# A service thinks before it answers, a kernel that refuses does not: the least time for a reply, and for the last one.
PATIENCE_S, LAST_PATIENCE_S = 0.3, 1.0
# A host that does not exist in the neighbourhood shows only when the kernel gives up resolving its address, three
# requests a second apart (arp(7), mcast_solicit, retrans_time; RFC 4861 section 10).
NEIGHBOUR_S = 3.2
LONGEST_WAIT_S = 1.0  # so that an interrupt is noticed where waiting does not end by it
OUT_OF_DESCRIPTORS, NOT_NOW = {"EMFILE", "ENFILE"}, {"EAGAIN", "EWOULDBLOCK"}
SCARCE_S = 0.05  # until what this machine had too little of is tried again

PROVEN = "closed ports asked at the same moment were refused"
MUTE = "the target stopped refusing ports while it was asked: its limit may be the reason"
LIMITED = "the time was up; the target limits how many ports it refuses a second, which may be the reason"
TIME_UP = "the time was up"


def scan_udp(
    probes: Iterable[Probe], limits: Limits, *, tally: Tally | None = None, tell: Listener | None = None
) -> Iterator[Answer]:
    """Ask UDP ports; give out an answer for each as it is known, in no particular order.

    ``probes`` may be endless: they are read as they are asked. Closing the iterator closes every socket. With
    ``deadline_s`` what was silent until then is given out as such, and what was not asked is counted in
    ``tally.skipped``.
    """
    scan = _Scan(iter(probes), limits, datagrams.choose(), tally or Tally(), tell)
    try:
        yield from scan.run()
    finally:
        scan.close()


class _Host:
    """What is known and under way of one address."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe  # the first, for the address and its zone
        self.round_trip = RoundTrip()
        self.refusals = Refusals()
        self.losses = Losses()
        self.heard = False  # anything
        self.gone: Evidence | None = None  # somebody says that the host cannot be reached, and the host says nothing
        self.first_sent_at: float | None = None
        self.waiting: set[_Port] = set()
        self.unsettled = 0  # of waiting: asked for the first time, refusal still possible
        self.again: deque[_Port] = deque()  # shelved
        self.group: _Group | None = None
        self.is_said_limited = False
        self.has_turn = False  # in _Scan._turns, or a timer will put it there
        self.next_turn_at = 0.0

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.again or self.group)


class _Port:
    """One port on its way to an answer."""

    __slots__ = (
        *("asked", "attempts", "counted", "group", "handle", "host", "is_control", "is_loose"),
        *("is_proven", "is_unsettled", "place", "probe", "sent_at", "timer", "was_silent"),
    )

    def __init__(self, probe: Probe, host: _Host, is_control: bool = False) -> None:
        self.probe = probe
        self.host = host
        self.is_control = is_control
        self.attempts = 0
        self.counted = 0  # silent attempts that count
        self.asked: tuple[Payload, ...] = ()
        self.handle: int | None = None
        self.is_loose = False
        self.sent_at = 0.0
        self.timer = -1  # the valid one
        self.is_unsettled = False  # its host's refusal is still possible
        self.is_proven = False  # in this attempt
        self.was_silent = False  # in an earlier attempt, without proof
        self.group: _Group | None = None
        self.place = 0  # in the group, from 1


class _Group:
    """Silent ports of a host that are asked again together, with controls among them."""

    def __init__(self, sent_at: float, refusals: int) -> None:
        self.sent_at = sent_at
        self.refusals_before = refusals
        self.size = 0  # without controls
        self.left = 0  # not settled
        self.refused = 0
        self.reach = 0
        self.unproven = 0


class _Scan:
    """The engine: one thread, no callbacks; whatever happens is done in ``run``."""

    def __init__(
        self, probes: Iterator[Probe], limits: Limits, wire: Wire, tally: Tally, tell: Listener | None
    ) -> None:
        self._probes = probes
        self._limits = limits
        self._wire = wire
        self._tally = tally
        self._tell = tell
        self._began = monotonic()
        self._deadline = self._began + limits.deadline_s if limits.deadline_s is not None else inf
        self._bucket = TokenBucket(limits.rate, self._began, burst=1.0)  # no bursts: hosts limit what they refuse
        self._most = max(window_size(limits.concurrency), LEAST_IN_FLIGHT)
        self._hosts: dict[str, _Host] = {}
        self._most_hosts = MOST_HOSTS
        self._ports: dict[int, _Port] = {}  # by handle
        self._kept: dict[_Port, None] = {}  # shelved with their socket, for a late reply; the oldest first
        self._turns: deque[_Host] = deque()  # with ports to be asked again, now
        self._timers: list[tuple[float, int, _Port | _Host]] = []
        self._numbers = count()
        self._answers: deque[Answer] = deque()
        self._shelved = 0
        self._unanswered = 0  # ports begun
        self._is_exhausted = False

    def run(self) -> Iterator[Answer]:
        """Give out answers until there is nothing left to ask."""
        while True:
            if monotonic() >= self._deadline:
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

    def _say(self, kind: str, address: str | None, text: str) -> None:
        if self._tell is not None:
            self._tell(Event(kind, address, text, monotonic() - self._began))

    # --- what to ask next ------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return self._tally.in_flight < self._most and self._bucket.available(monotonic()) > 0

    def _ask_fresh(self) -> None:
        for _ in range(BURST):
            if self._is_exhausted or self._shelved >= MOST_SHELVED or not self._has_room():
                return
            probe = next(self._probes, None)
            if probe is None:
                self._is_exhausted = True
                return
            self._unanswered += 1
            self._ask(_Port(probe, self._host(probe)))

    def _host(self, probe: Probe) -> _Host:
        key = f"{probe.address}%{probe.zone}"
        host = self._hosts.get(key)
        if host is None:
            if len(self._hosts) >= self._most_hosts:
                self._hosts = {k: h for k, h in self._hosts.items() if not h.is_idle}
                self._most_hosts = max(MOST_HOSTS, 2 * len(self._hosts))
            host = self._hosts[key] = _Host(probe)
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

    def _ask_some(self, host: _Host) -> None:
        """Silent ports of a host that refuses nothing: nothing to compare with, nothing to spare."""
        for _ in range(min(len(host.again), BURST)):
            if self._has_room():
                self._repeat(host)
        self._want_turn(host)

    def _ask_group(self, host: _Host) -> None:
        """A group of silent ports and controls, as near to one another as can be."""
        free = self._most - self._tally.in_flight
        room = free - 1 - free // (CONTROL_EVERY + 1)  # besides controls
        if room < 1:
            host.next_turn_at = monotonic() + SCARCE_S
            self._want_turn(host)
            return
        group = host.group = _Group(monotonic(), host.refusals.count)
        group.left = 1  # the group itself, until everything is sent
        for number in range(1, min(host.refusals.group, len(host.again), room) + 1):
            self._repeat(host, group)
            group.size = number
            if number % CONTROL_EVERY == 0:
                self._ask_control(host, group)
        self._ask_control(host, group)
        self._leave(group, host)

    def _ask_control(self, host: _Host, group: _Group) -> None:
        refused = host.refusals.control
        if refused is not None:
            control = _Port(host.probe._replace(port=refused[0]), host, is_control=True)
            self._join(control, group)
            self._ask(control)

    def _repeat(self, host: _Host, group: _Group | None = None) -> None:
        port = host.again.popleft()
        self._shelved -= 1
        self._kept.pop(port, None)
        if group is not None:
            self._join(port, group)
        self._ask(port)

    def _want_turn(self, host: _Host) -> None:
        """Have the silent ports of a host asked again, as soon as that is right."""
        if host.has_turn or host.group or not host.again:
            return
        if host.refusals.known and host.unsettled:
            return  # then they are what spends its refusals
        host.has_turn = True
        if host.next_turn_at > monotonic():
            heappush(self._timers, (host.next_turn_at, next(self._numbers), host))
        else:
            self._turns.append(host)

    # --- asking ----------------------------------------------------------------------------------------------------

    def _ask(self, port: _Port) -> None:
        """Send what the next attempt sends."""
        questions = payloads.for_port(port.probe.port, port.attempts + 1)
        try:
            handle = self._connect(port, questions)
            port.sent_at = monotonic()
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

    def _note_asked(self, port: _Port) -> None:
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

    def _connect(self, port: _Port, questions: tuple[Payload, ...]) -> int:
        """A socket of the kind that hears the answers to these questions."""
        loose = any(q.elsewhere for q in questions) and (port.attempts > 0 or not self._wire.deaf_when_loose)
        if port.handle is not None and port.is_loose != loose:
            self._disconnect(port)
        if port.handle is None:
            if len(self._ports) >= self._most and self._kept:
                self._disconnect(next(iter(self._kept)))
            port.handle = self._wire.open(port.probe, loose)
            port.is_loose = loose
            self._ports[port.handle] = port
        return port.handle

    def _disconnect(self, port: _Port) -> None:
        self._kept.pop(port, None)
        if port.handle is not None:
            del self._ports[port.handle]
            self._wire.close(port.handle)
            port.handle = None

    def _fail(self, port: _Port, error: OSError) -> None:
        """Give up what this machine could not ask; or postpone it, when it lacks what others will give back."""
        fault = classify(error)
        may_pass = bool(self._tally.in_flight or self._kept)
        if fault.posix in OUT_OF_DESCRIPTORS:
            self._have_fewer_sockets()
        if (fault.scarce or fault.posix in NOT_NOW) and may_pass and not port.is_control:
            port.host.next_turn_at = monotonic() + SCARCE_S
            self._shelve(port)
            self._settle(port)
            return
        evidence = datagrams.of_error(error)
        self._finish(port, datagrams.judge(evidence, port.probe.address) or "error", evidence)

    def _have_fewer_sockets(self) -> None:
        for kept in list(self._kept):
            self._disconnect(kept)
        if LEAST_IN_FLIGHT <= self._tally.in_flight < self._most:
            self._most = self._tally.in_flight
            self._say("descriptors", None, f"no descriptor is left; from here on {self._most} ports at once")

    # --- time ------------------------------------------------------------------------------------------------------

    def _set_timer(self, port: _Port) -> None:
        due = port.sent_at + self._patience_s(port)
        if port.host.refusals.known and not port.is_proven:
            due = min(due, port.sent_at + port.host.round_trip.timeout_s() + VOUCH_S)
        port.timer = next(self._numbers)
        heappush(self._timers, (due, port.timer, port))

    def _patience_s(self, port: _Port) -> float:
        """How long a reply may take."""
        if self._limits.timeout_s is not None:
            return self._limits.timeout_s
        host = port.host
        grown = host.round_trip.timeout_s(port.counted)
        if port.counted < self._retries(host):
            return max(grown, PATIENCE_S)
        neighbour_s = 0.0 if host.heard else (host.first_sent_at or 0.0) + NEIGHBOUR_S - port.sent_at
        return max(grown, LAST_PATIENCE_S, neighbour_s)

    def _retries(self, host: _Host) -> int:
        limits = self._limits
        return host.losses.attempts(limits.retries, limits.most_retries) - 1 + host.refusals.are_scarce

    def _wait_s(self) -> float:
        """How long there is nothing to do but to listen."""
        now = monotonic()
        until_due = self._timers[0][0] - now if self._timers else inf
        has_work = self._turns or not (self._is_exhausted or self._shelved >= MOST_SHELVED)
        until_work = self._bucket.wait_s(now) if has_work and self._tally.in_flight < self._most else inf
        return max(0.0, min(until_due, until_work, self._deadline - now, LONGEST_WAIT_S))

    def _expire(self) -> None:
        """Do what is due."""
        now = monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number, what = heappop(self._timers)
            if isinstance(what, _Host):
                self._turns.append(what)
            elif what.timer == number:
                self._expect_no_more(what, now)

    def _expect_no_more(self, port: _Port, now: float) -> None:
        """A port has been silent: long enough for a refusal, perhaps for a reply."""
        refusals = port.host.refusals
        if refusals.known and not port.is_proven:
            port.is_proven = refusals.prove(port.sent_at)
            if not port.is_proven:
                self._repeat_unproven(port)
                return
        self._settle(port)
        if now < port.sent_at + self._patience_s(port):
            self._set_timer(port)
            return
        self._count_silence(port)

    def _repeat_unproven(self, port: _Port) -> None:
        port.was_silent = True
        if port.is_control:
            self._drop(port)
        else:
            if port.group is not None:
                port.group.unproven += 1
            self._shelve(port)
        self._settle(port)

    def _count_silence(self, port: _Port) -> None:
        port.counted += 1
        if port.is_control:
            self._drop(port)
        elif port.counted <= self._retries(port.host):
            self._shelve(port)
        else:
            self._tally.silent += 1
            outcome: Outcome = "unreachable" if port.host.gone else "open|filtered"
            self._finish(port, outcome, self._silence_of(port))

    def _silence_of(self, port: _Port) -> Evidence:
        """What stands behind the silence of a port."""
        if port.host.gone:
            return replace(port.host.gone, text="said of other ports of this host, which answers nothing")
        if port.host.refusals.mute:
            return Evidence("silence", text=MUTE)
        return Evidence("silence", text=PROVEN) if port.is_proven else SILENCE

    def _give_up(self) -> None:
        """The deadline: silence so far is all that will be known."""
        self._is_exhausted = True
        self._say("deadline", None, "the time was up before everything was asked often enough")
        for host in self._hosts.values():
            shelved = list(host.again)
            host.again.clear()
            for port in (*host.waiting, *shelved):
                self._kept.pop(port, None)
                if not port.attempts:
                    self._tally.skipped += 1
                    self._unanswered -= 1
                elif not port.is_control:
                    limited = host.refusals.known and not port.is_proven
                    self._tally.silent += 1
                    self._finish(port, "open|filtered", Evidence("silence", text=LIMITED if limited else TIME_UP))

    # --- what is heard ---------------------------------------------------------------------------------------------

    def _hear(self, handle: int, signal: datagrams.Signal) -> None:
        port = self._ports.get(handle)
        if port is None:
            return
        now = monotonic()
        if isinstance(signal, bytes):
            self._hear_reply(port, signal, now)
        elif (outcome := datagrams.judge(signal, port.probe.address)) is not None:
            self._hear_refusal(port, outcome, signal, now)

    def _hear_reply(self, port: _Port, reply: bytes, now: float) -> None:
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

    def _hear_refusal(self, port: _Port, outcome: Outcome, evidence: Evidence, now: float) -> None:
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

    def _measure(self, port: _Port, now: float) -> None:
        """Learn from the round trip of a port that was asked once."""
        if port.attempts > 1:
            return
        host = port.host
        is_first = host.round_trip.srtt_s is None
        host.round_trip.measured(now - port.sent_at)
        if is_first:
            self._set_timers(host)

    def _note_refusal(self, port: _Port, evidence: Evidence) -> None:
        refusals = port.host.refusals
        was_known = refusals.known
        by_target = evidence.sender in (None, port.probe.address)
        was_silent = port.was_silent and port not in self._kept  # else only this refusal was late, not the next sooner
        refusals.heard(port.probe.port, evidence.sender, by_target, port.sent_at, was_silent)
        if port.group is not None:
            port.group.reach = max(port.group.reach, port.place)
            port.group.refused += 1
        if not was_known:
            self._set_timers(port.host)
        self._say_limited(port.host)

    def _say_limited(self, host: _Host) -> None:
        if host.refusals.limited and not host.is_said_limited:
            host.is_said_limited = True
            self._say("rate-limit", host.probe.address, self._limit_in_words(host))

    def _set_timers(self, host: _Host) -> None:
        """What is waiting was sent when less was known."""
        for port in host.waiting:
            if port.is_unsettled:
                self._set_timer(port)

    def _limit_in_words(self, host: _Host) -> str:
        return (
            "the target limits how many ports it refuses a second: "
            f"{len(host.again) + len(host.waiting)} silent ports are asked again, in groups that it can keep up with"
        )

    # --- the end of an attempt -------------------------------------------------------------------------------------

    def _shelve(self, port: _Port) -> None:
        """To be asked again; its socket stays open for a late reply while there are enough."""
        self._stop_waiting(port)
        if port.handle is not None:
            if len(self._ports) > self._most // 2:
                self._disconnect(port)
            else:
                self._kept[port] = None
        port.host.again.append(port)
        self._shelved += 1
        self._want_turn(port.host)

    def _finish(
        self, port: _Port, outcome: Outcome, evidence: Evidence, now: float | None = None, service: str | None = None
    ) -> None:
        """Give out the answer."""
        if port in self._kept:  # a late reply
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

    def _drop(self, port: _Port) -> None:
        self._stop_waiting(port)
        self._disconnect(port)

    def _stop_waiting(self, port: _Port) -> None:
        port.timer = -1
        if port in port.host.waiting:
            port.host.waiting.discard(port)
            self._tally.in_flight -= 1

    def _settle(self, port: _Port) -> None:
        """The port was refused in this attempt, or will not be."""
        host = port.host
        if port.is_unsettled:
            port.is_unsettled = False
            host.unsettled -= port.attempts == 1 and not port.is_control
        if port.group is not None:
            group, port.group = port.group, None
            self._leave(group, host)
        self._want_turn(host)

    def _join(self, port: _Port, group: _Group) -> None:
        group.left += 1
        port.group, port.place = group, group.size + 1

    def _leave(self, group: _Group, host: _Host) -> None:
        group.left -= 1
        if group.left == 0:
            any_refusal = host.refusals.count > group.refusals_before
            host.refusals.group_done(group.size, group.refused, group.reach, group.unproven, any_refusal)
            self._say_limited(host)
            host.next_turn_at = group.sent_at + host.refusals.pause_s
            host.group = None
            self._want_turn(host)
