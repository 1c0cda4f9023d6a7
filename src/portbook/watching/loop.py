"""The loop of the watch: feed ─▶ register ─▶ events, with canaries and comparisons. It is used by one thread.

    loop = Loop(Settings())
    events = loop.start()
    while running:
        events += loop.wait(1.0)
    events += loop.stop()

The start is subscribe, snapshot, replay: what happens while the tables are read is in the feed already, and the
register knows each socket by its key, so that nothing is lost or reported twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from portbook.errors import SourceError, SourceMissing
from portbook.events import Event
from portbook.numerals import counted
from portbook.resilience import waits
from portbook.system import namespaces
from portbook.watching import comparison, feeds
from portbook.watching.canary import Canaries
from portbook.watching.clock import SYSTEM_CLOCK, Clock
from portbook.watching.comparison import ReadTables, SocketTables, TableReader, reason_of
from portbook.watching.feeds.base import Change, Feed, FeedKind, FeedSettings
from portbook.watching.judging import Judging
from portbook.watching.records import Listener, Moment, SelfTest, Settings, Status
from portbook.watching.register import SECOND_NS, Register

if TYPE_CHECKING:
    from portbook.watching.policy.records import Policy

__all__ = ["Listener", "Loop", "Moment", "SelfTest", "Settings", "Status"]

DEFAULTS = Settings()
BOOT_ID = "/proc/sys/kernel/random/boot_id"
CANARY_LIMIT_S = 2.0  # for a feed that is told at once, on a busy machine
RETRY_CANARY_S = 10.0  # while the watch is blind
LONGEST_RETRY_S = 60.0  # between attempts to open a feed that failed
LEAST_ASLEEP_NS = SECOND_NS
SECOND_LOOK_S = 2.0
DRAIN_NS = 10 * SECOND_NS  # at the end, for what the feed has reported already
READING_S = 0.05  # how often to look whether the tables have been read
LEAST_BETWEEN_S = 5.0  # two comparisons, when changes are lost again and again


class Loop:
    """A watch."""

    def __init__(
        self,
        settings: Settings = DEFAULTS,
        clock: Clock = SYSTEM_CLOCK,
        *,
        look: ReadTables | None = None,
        canaries: Callable[[bool], Canaries] = Canaries,
    ) -> None:
        """Nothing is opened yet.

        :param look: what reads the socket tables; None: ``inventory``. For tests
        :param canaries: what makes the canaries. For tests
        """
        self._settings = settings
        self._clock = clock
        self._look = look
        self._judging = self._judge_by(settings.policy)
        self._register = Register(settings, self._judging)
        self._kind: FeedKind | None = None
        self._feed: Feed | None = None
        self._skipped: tuple[str, ...] = ()
        self._counts: Counter[str] = Counter()
        self._started: Moment | None = None
        self._last: Moment | None = None
        self._stopped = False
        # canaries
        self._make_canaries = canaries
        self._canaries = canaries(False)
        self._canary_due_ns = 0
        self._read_until_ns = 0  # the feed has been read up to here: what happened before would have been reported
        self._lost_ns = 0  # when changes were last lost
        self._seen_at: datetime | None = None
        self._blind_since: datetime | None = None
        self._untested = ""  # why a canary could not be opened
        # comparisons
        self._reader: TableReader | None = None
        self._compare_due_ns = 0
        self._compared_at: datetime | None = None
        self._compared_ns = 0
        self._reading_began_ns = 0
        # a feed that failed
        self._failed_since: datetime | None = None
        self._open_due_ns = 0
        self._pauses: Iterator[float] = waits(0.5, LONGEST_RETRY_S)

    # --- start and stop --------------------------------------------------------------------------------------------

    def start(self) -> list[Event]:
        """Subscribe, read what is there, replay what happened meanwhile.

        :raises UsageError: there is no feed of this name
        :raises SourceError: no feed works here, or the socket tables cannot be read
        """
        now = self._clock.now()
        own_netns = namespaces.own()
        kind = self._open_feed()
        try:
            self._register = Register(
                self._settings, self._judging, feed=kind.name, boot_id=_boot_id(), own_netns=own_netns
            )
            self._started = self._last = now
            self._canaries = self._make_canaries(kind.sees_udp)
            self._canaries.open(now.monotonic_ns)
            look = self._look or partial(comparison.look, self._settings.source, kind.sees_other_namespaces)
            self._reader = _reader(look, is_inline=self._look is not None)
            tables = look()
            after = self._clock.now()
            sockets = [s for s in tables.sockets if not self._canaries.is_own(s)]
            limits = [gap.why if gap.hint is None else f"{gap.why} ({gap.hint})" for gap in tables.gaps]
            reason = "; ".join([*self._skipped, *limits]) or None
            events = [self._register.make("started", now, count=len(sockets), reason=reason, netns=own_netns)]
            if self._judging is not None:
                events.append(self._policy_loaded(self._judging.policy, now))
            events += self._register.snapshot(sockets, after)
            self._compared_at = now.wall
            self._schedule(after)
            events += self._read(0.0)
        except BaseException:
            self._started = None
            self._close()
            raise
        return self._count(events)

    def stop(self) -> list[Event]:
        """End the watch, with the ends that were withheld. Nothing is left open; a second call does nothing."""
        if self._started is None or self._stopped:
            self._close()
            return []
        self._stopped = True
        events = self._drain()
        now = self._clock.now()
        self._close()
        events += self._register.finish(now)
        events.append(self._register.make("stopped", now))
        return self._count(events)

    def _drain(self) -> list[Event]:
        """Apply what happened until now and is in the feed: a busy watch may be behind."""
        began = self._clock.now()
        events: list[Event] = []
        while self._feed is not None:
            self._read_until_ns = 0
            events += self._read(0.0)
            now = self._clock.now()
            if self._read_until_ns >= began.monotonic_ns:
                break
            if now.monotonic_ns - began.monotonic_ns > DRAIN_NS:
                events.append(self._gap(now, "the watch ended before it had read all that its feed had reported"))
                break
        return events

    def _close(self) -> None:
        self._canaries.close()
        if self._reader is not None:
            self._reader.close()
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _open_feed(self) -> FeedKind:
        settings = self._settings
        name = feeds.for_source(settings.feed, settings.source)
        if name is None:
            kind, self._skipped = feeds.best()
        else:
            kind = feeds.load(name)
            why = kind.missing()
            if why is not None:
                raise SourceMissing(f"the feed {kind.name} does not work here: {why}")
        self._feed = kind.open(FeedSettings(settings.interval_s, settings.source, settings.ring_bytes))
        self._kind = kind
        return kind

    # --- the loop --------------------------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> list[Event]:
        """Wait for events, at most this long, and return them; also those of canaries, comparisons and time."""
        now = self._clock.now()
        events = self._read(self._shorten(timeout_s, now))
        now = self._clock.now()
        events += self._notice_sleep(now)
        events += self._register.tick(now)
        events += self._reopen(now)
        events += self._tend_canaries(now)
        events += self._compare(now)
        self._last = now
        return self._count(events)

    def _shorten(self, timeout_s: float, now: Moment) -> float:
        """Not longer than until something is due."""
        due = [self._register.next_ns()]
        if self._feed is None:
            due.append(self._open_due_ns)
        elif self._canaries.opened_ns is not None:
            due.append(self._canaries.opened_ns + self._canary_limit_ns())
        else:
            due.append(self._canary_due_ns)
        if self._reader is not None and self._reader.is_reading:
            timeout_s = min(timeout_s, READING_S)
        else:
            due.append(self._compare_due_ns)
        waits_s = [(ns - now.monotonic_ns) / SECOND_NS for ns in due if ns is not None]
        return max(0.0, min(timeout_s, *waits_s))

    def _read(self, timeout_s: float) -> list[Event]:
        """Apply the changes that the feed has."""
        feed = self._feed
        if feed is None:
            self._clock.sleep(timeout_s)
            return []
        try:
            changes = feed.read(timeout_s)
        except (SourceError, OSError) as error:
            return self._lose_feed(error, self._clock.now())
        return self._apply(changes)

    def _apply(self, changes: list[Change]) -> list[Event]:
        now = self._clock.now()
        if not changes:
            self._read_until_ns = now.monotonic_ns
            return []
        self._read_until_ns = max(self._read_until_ns, changes[-1].at_ns)
        events: list[Event] = []
        take, apply = self._canaries.take, self._register.apply
        for change in changes:
            if not take(change):
                events += apply(change, now)
                if change.kind == "lost":
                    self._lost_ns = now.monotonic_ns
                    self._compare_soon(now)
        return events

    def _count(self, events: list[Event]) -> list[Event]:
        for event in events:
            self._counts[event.event] += 1
        return events

    def _schedule(self, now: Moment) -> None:
        period_ns = int(self._settings.canary_s * SECOND_NS)
        self._canary_due_ns = self._compare_due_ns = now.monotonic_ns + period_ns

    def _compare_soon(self, now: Moment) -> None:
        """Something may have been missed. On a machine where that goes on, the tables are not read all the time."""
        earliest_ns = self._compared_ns + int(LEAST_BETWEEN_S * SECOND_NS)
        self._compare_due_ns = min(self._compare_due_ns, max(now.monotonic_ns, earliest_ns))

    def _notice_sleep(self, now: Moment) -> list[Event]:
        last = self._last
        if last is None or now.asleep_ns - last.asleep_ns < LEAST_ASLEEP_NS:
            return []
        seconds = (now.asleep_ns - last.asleep_ns) // SECOND_NS
        self._canary_due_ns = now.monotonic_ns
        self._compare_soon(now)
        reason = f"the machine was suspended for {seconds:,} s"
        return [self._gap(now, reason, since=last.wall)]

    def _gap(self, now: Moment, reason: str, **fields: Any) -> Event:
        return self._register.make("gap", now, severity="warning", reason=reason, **fields)

    # --- a feed that fails -----------------------------------------------------------------------------------------

    def _lose_feed(self, error: Exception, now: Moment) -> list[Event]:
        """Close a feed that failed; it is opened again after a pause."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        self._failed_since = now.wall
        self._pauses = waits(0.5, LONGEST_RETRY_S)
        self._open_due_ns = now.monotonic_ns + int(next(self._pauses) * SECOND_NS)
        self._canaries.close()
        return [self._gap(now, f"the feed {self._name()} failed: {error}")]

    def _reopen(self, now: Moment) -> list[Event]:
        if self._feed is not None or now.monotonic_ns < self._open_due_ns:
            return []
        try:
            kind = self._open_feed()
        except SourceError:
            self._open_due_ns = now.monotonic_ns + int(next(self._pauses) * SECOND_NS)
            return []
        self._register.feed = kind.name
        self._canary_due_ns = now.monotonic_ns
        self._compare_soon(now)
        since, self._failed_since = self._failed_since, None
        return [self._gap(now, f"no feed was open; {kind.name} is open now", since=since)]

    def _name(self) -> str:
        return self._kind.name if self._kind is not None else "none"

    # --- canaries --------------------------------------------------------------------------------------------------

    def _canary_limit_ns(self) -> int:
        return int((CANARY_LIMIT_S + 3 * self._settings.interval_s) * SECOND_NS)

    def _tend_canaries(self, now: Moment) -> list[Event]:
        """Open canaries in time, and notice whether they are seen."""
        canaries = self._canaries
        if self._feed is None:
            return []
        if canaries.opened_ns is None:
            if now.monotonic_ns >= self._canary_due_ns:
                canaries.open(now.monotonic_ns)
            return []
        if not canaries.unseen:
            failures = "; ".join(canaries.failures)
            canaries.close()
            self._canary_due_ns = now.monotonic_ns + int(self._settings.canary_s * SECOND_NS)
            return self._fail_to_test(now, failures) if failures else self._see(now)
        if self._read_until_ns - canaries.opened_ns < self._canary_limit_ns():
            return []  # not yet: on a busy machine the canary may still be in the queue
        if self._lost_ns > canaries.opened_ns:
            canaries.open(now.monotonic_ns)  # it may be among what was lost, which is a gap already
            return []
        reason = "; ".join(f"a {kind} was opened and not reported" for kind in canaries.unseen)
        canaries.close()
        pause_s = min(RETRY_CANARY_S, self._settings.canary_s)
        self._canary_due_ns = now.monotonic_ns + int(pause_s * SECOND_NS)
        return self._go_blind(now, reason)

    def _fail_to_test(self, now: Moment, failures: str) -> list[Event]:
        """A canary could not be opened: that is no proof that the feed is blind. Each reason is reported once."""
        if failures == self._untested:
            return []
        self._untested = failures
        return [self._gap(now, f"whether the feed {self._name()} sees what happens could not be tested: {failures}")]

    def _see(self, now: Moment) -> list[Event]:
        since, self._blind_since = self._blind_since, None
        self._seen_at = now.wall
        self._untested = ""
        if since is None:
            return []
        self._compare_soon(now)
        gap = self._gap(now, "what happened while the watch was blind may be missing", since=since)
        return [gap, self._register.make("seeing", now, since=since)]

    def _go_blind(self, now: Moment, reason: str) -> list[Event]:
        if self._blind_since is not None:
            return []
        started = self._started or now
        self._blind_since = self._seen_at or started.wall
        self._compare_soon(now)
        blind = self._register.make("blind", now, severity="critical", reason=reason, since=self._blind_since)
        gap = self._gap(now, "the last canary that was seen is older than this", since=self._blind_since)
        return [blind, gap]

    # --- comparisons -----------------------------------------------------------------------------------------------

    def _compare(self, now: Moment) -> list[Event]:
        reader = self._reader
        if reader is None:
            return []
        if not reader.is_reading:
            if now.monotonic_ns < self._compare_due_ns:
                return []
            self._reading_began_ns = now.monotonic_ns
            reader.begin()
        answer = reader.take()
        if answer is None:
            return []
        self._compare_due_ns = now.monotonic_ns + int(self._settings.canary_s * SECOND_NS)
        if isinstance(answer, Exception):
            return [self._gap(now, f"the socket tables could not be compared: {reason_of(answer)}")]
        return self._compare_with(answer, now)

    def _compare_with(self, tables: SocketTables, now: Moment) -> list[Event]:
        sockets = [s for s in tables.sockets if not self._canaries.is_own(s)]
        events = self._read(0.0)
        differences, missed = self._register.compare(
            sockets, self._clock.now(), is_whole=tables.is_whole, began_ns=self._reading_began_ns
        )
        events += differences
        if self._register.has_suspects:
            pause_s = max(SECOND_LOOK_S, 2 * self._settings.interval_s)
            self._compare_due_ns = min(self._compare_due_ns, now.monotonic_ns + int(pause_s * SECOND_NS))
        if missed:
            reason = f"the feed {self._name()} missed {counted(missed, 'change')} of listeners; a comparison found them"
            events.append(self._gap(now, reason, count=missed, since=self._compared_at))
        self._compared_at, self._compared_ns = now.wall, now.monotonic_ns
        return events

    # --- policy and state ------------------------------------------------------------------------------------------

    def _judge_by(self, policy: Policy | None) -> Judging | None:
        if policy is None:
            return None
        if self._look is not None:
            return Judging(policy)  # of tables that are not this machine's
        from portbook.watching.evidence import Collector

        return Judging(policy, Collector(policy).collect)

    def replace_policy(self, policy: Policy | None) -> list[Event]:
        """Judge by another policy from now on; None: by none."""
        now = self._clock.now()
        self._judging = self._judge_by(policy)
        events = [] if policy is None else [self._policy_loaded(policy, now)]
        return self._count(events + self._register.replace_policy(self._judging, now))

    def refuse_policy(self, reason: str) -> list[Event]:
        """A new policy was not valid: the old one remains."""
        now = self._clock.now()
        return self._count([self._register.make("policy_refused", now, severity="warning", reason=reason)])

    def gap(self, reason: str, count: int = 1) -> Event:
        """An event for something that was lost behind the watch: by a sink, the history, a reader."""
        return self._count([self._gap(self._clock.now(), reason, count=count)])[0]

    def _policy_loaded(self, policy: Policy, now: Moment) -> Event:
        count = len(policy.rules)
        return self._register.make(
            "policy_loaded", now, count=count, reason=f"{counted(count, 'rule')} of {policy.file}"
        )

    def listeners(self) -> tuple[Listener, ...]:
        """What is open, as far as the query selects it."""
        return self._register.listeners()

    def status(self) -> Status:
        """How the watch is."""
        sockets, violations, lost = self._register.counts()
        since = self._started or self._clock.now()
        return Status(
            feed=None if self._feed is None else self._name(),
            skipped=self._skipped,
            since=since.wall,
            blind=self._blind_since is not None,
            seen_at=self._seen_at,
            listeners=sockets,
            violations=violations,
            lost_requirements=lost,
            gaps=self._counts["gap"],
            counts=dict(self._counts),
        )

    def self_test(self) -> SelfTest:
        """Open canaries once, and look whether the feed reports them. Nothing is left open. Raises as ``start``."""
        kind = self._open_feed()
        try:
            self._canaries = self._make_canaries(kind.sees_udp)
            begin_ns = self._clock.now().monotonic_ns
            self._canaries.open(begin_ns)
            tried = list(self._canaries.unseen)
            limit_ns = begin_ns + self._canary_limit_ns()
            while self._canaries.unseen and self._clock.now().monotonic_ns < limit_ns:
                self._apply(self._feed.read(0.1) if self._feed is not None else [])
            seconds = (self._clock.now().monotonic_ns - begin_ns) / SECOND_NS
            lines = [
                f"{each}: not reported within {seconds:.1f} s" if each in self._canaries.unseen else f"{each}: reported"
                for each in tried
            ]
            lines += [f"{failure}" for failure in self._canaries.failures]
            passed = not self._canaries.unseen and not self._canaries.failures
        finally:
            self._close()
        return SelfTest(passed, kind.name, tuple(lines))


def _reader(look: ReadTables, is_inline: bool) -> TableReader:
    return comparison.InlineTableReader(look) if is_inline else TableReader(look)


def _judging(policy: Policy | None) -> Judging | None:
    """The policy in force, which reads checksums and images as its rules need them."""
    if policy is None:
        return None
    from portbook.watching.evidence import Collector

    return Judging(policy, Collector(policy).collect)


def _boot_id() -> str | None:
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return None
