"""The loop: start and replay, canaries, a feed that fails, suspension, the end."""

from __future__ import annotations

import pytest

from portbook.errors import SourceError, UsageError
from portbook.records import Gap
from portbook.testing.watching import START, listener
from portbook.watching.comparison import SocketTables
from portbook.watching.loop import Loop, Settings
from tests.watching.conftest import kinds


def test_the_start_is_subscribe_snapshot_replay(feed):
    """Each of these opened or closed while the tables were read."""
    before, stays, ends = listener(1), listener(2), listener(3)

    def look():
        feed.end(before)  # was there when the watch subscribed, and is not in the tables
        feed.open(stays)
        feed.open(ends)
        tables = feed.look()
        feed.end(ends)
        late = feed.open(listener(4))
        feed.end(late)
        return tables

    loop = Loop(Settings(feed="fake", grace_s=1), feed.clock, look=look, canaries=feed.canaries)
    events = loop.start()
    for _ in range(5):
        events += loop.wait(1)
    loop.stop()
    reported = [(e.event, e.local_port) for e in events]
    assert reported == [
        ("started", None),
        ("present", 2),
        ("present", 3),
        ("opened", 4),
        ("closed", 3),
        ("short_lived", 4),
    ]


def test_the_end_reports_what_is_withheld_and_closes_the_feed(feed, watch):
    watched = watch()
    socket = feed.open(listener(80))
    watched.after(10)
    feed.end(socket)
    assert kinds(watched.loop.stop()) == ["closed", "stopped"]
    assert (feed.opened, feed.closed) == (1, 1)
    assert watched.loop.stop() == []


def test_a_start_that_fails_leaves_nothing_open(feed):
    def look():
        raise SourceError("no table can be read")

    loop = Loop(Settings(feed="fake"), feed.clock, look=look, canaries=feed.canaries)
    with pytest.raises(SourceError, match="no table"):
        loop.start()
    assert feed.closed == 1
    assert loop.stop() == []


def test_a_feed_that_there_is_not_and_one_that_does_not_work():
    with pytest.raises(UsageError, match="there is no feed 'nope'; valid names are"):
        Loop(Settings(feed="nope")).start()


def test_waiting_is_not_longer_than_wanted_and_not_longer_than_until_something_is_due(feed, watch):
    watched = watch()
    watched.loop.wait(7)
    assert (feed.clock.now().wall - START).total_seconds() == 7
    feed.end(feed.open(listener(80)))
    watched.loop.wait(0)
    watched.loop.wait(60)
    assert (feed.clock.now().wall - START).total_seconds() == 12


# --- canaries ---------------------------------------------------------------------------------------------------------


def test_canaries_that_are_seen_are_no_event(feed, watch):
    watched = watch(canary_s=10)
    assert watched.after(100) == []
    assert watched.loop.status().blind is False
    assert (feed.clock.now().wall - watched.loop.status().seen_at).total_seconds() <= 10


def test_a_feed_that_reports_nothing_any_longer_is_blind_until_it_does(feed, watch):
    watched = watch(canary_s=60)
    feed.sees_canaries = False
    blind, gap = watched.after(70)
    assert (blind.event, blind.severity, blind.since) == ("blind", "critical", START)
    assert blind.reason == "a TCP listener was opened and not reported; a UDP socket was opened and not reported"
    assert (gap.event, gap.since) == ("gap", START)
    assert watched.loop.status().blind is True
    assert watched.after(300) == [], "it is said once"
    feed.sees_canaries = True
    gap, seeing = watched.after(20)
    assert (gap.event, seeing.event, gap.since) == ("gap", "seeing", START)
    assert watched.loop.status().blind is False


def test_a_watch_that_never_saw_a_canary_is_blind_since_its_start(feed, watch):
    feed.sees_canaries = False
    watched = watch()
    blind, _ = watched.after(10)
    assert (blind.event, blind.since) == ("blind", START)


def test_what_was_missed_while_blind_is_found(feed, watch):
    watched = watch(canary_s=60)
    feed.sees_canaries = False
    watched.after(61)
    feed.open(listener(9999), seen=False)
    assert kinds(watched.after(20)) == ["blind", "gap", "present", "gap"]


def test_a_canary_among_changes_that_were_lost_is_opened_again(feed, watch):
    watched = watch(canary_s=60)
    feed.sees_canaries = False
    watched.after(61)
    feed.report("lost", count=5000, reason="the ring was full")
    feed.sees_canaries = True
    assert kinds(watched.after(60)) == ["gap"]


def test_no_canary_is_missed_while_there_is_a_queue(feed, watch):
    """The machine was so busy that changes are read long after they happened."""
    watched = watch(canary_s=60)
    feed.sees_canaries = False
    watched.after(60)
    events = []
    for port in range(1000, 1020):
        at_ns = feed.clock.now().monotonic_ns - 2_000_000_000
        feed.clock.sleep(1)
        feed.open(listener(port), at_ns=at_ns)
        events += watched.loop.wait(0)
        if "blind" in kinds(events):
            break
    assert port >= 1005


def test_a_process_on_the_port_of_a_canary_hides_nothing(feed, watch):
    watched = watch(canary_s=10)
    watched.after(25)
    impostor = feed.open(listener(40_000, "127.0.0.1"))
    (opened,) = watched.after()
    assert (opened.event, opened.cookie) == ("opened", impostor.cookie)


def test_a_self_test_says_what_was_seen(feed):
    good = feed.loop().self_test()
    assert (good.passed, good.feed) == (True, "fake")
    assert good.lines == ("TCP listener: reported", "UDP socket: reported")
    feed.sees_canaries = False
    bad = feed.loop().self_test()
    assert bad.passed is False
    assert bad.lines[0].startswith("TCP listener: not reported within 5")
    assert feed.opened == feed.closed == 2


# --- feeds that fail --------------------------------------------------------------------------------------------------


def test_a_feed_that_fails_is_opened_again_and_what_was_missed_is_found(feed, watch):
    watched = watch()
    feed.fails = SourceError("the kernel said no")
    (lost,) = watched.after(100)
    assert (lost.event, lost.reason) == ("gap", "the feed fake failed: the kernel said no")
    assert watched.loop.status().feed is None
    feed.open(listener(80), seen=False)
    feed.fails = None
    opened, present, missed = watched.after(70)
    assert (opened.event, opened.since) == ("gap", START)
    assert (present.event, present.local_port, missed.event) == ("present", 80, "gap")
    assert watched.loop.status().feed == "fake"


def test_changes_that_the_feed_lost_are_a_gap_and_the_tables_are_compared(feed, watch):
    watched = watch()
    feed.open(listener(80), seen=False)
    feed.report("lost", count=17, reason="the ring was full")
    gap, present, missed = watched.after(30)
    assert (gap.event, gap.count, gap.reason) == ("gap", 17, "the ring was full")
    assert (present.event, missed.count) == ("present", 1)
    assert watched.loop.status().gaps == 2


def test_tables_that_cannot_be_read_are_a_gap(feed, watch):
    watched = watch(canary_s=10)

    def look() -> SocketTables:
        raise SourceError("denied")

    watched.loop._reader._look = look
    assert [e.reason for e in watched.after(11)] == ["the socket tables could not be compared: denied"]


def test_a_machine_that_was_suspended_has_a_gap(feed, watch):
    watched = watch()
    socket = feed.open(listener(80))
    watched.after(10)
    feed.clock.suspend(7200)
    feed.end(socket)
    (gap,) = watched.after()
    assert (gap.event, gap.reason) == ("gap", "the machine was suspended for 7,200 s")
    assert (gap.at - gap.since).total_seconds() == 7200
    (closed,) = watched.after(10)
    assert closed.lasted_ms == 10_000


def test_counts_and_listeners(feed, watch):
    watched = watch()
    feed.open(listener(80))
    feed.open(listener(53, protocol="udp"))
    watched.after(1)
    status = watched.loop.status()
    assert (status.feed, status.listeners, status.gaps, status.counts["opened"]) == ("fake", 2, 0, 2)
    assert [(each.socket.local_port, each.since) for each in watched.loop.listeners()] == [(80, START), (53, START)]
    gap = watched.loop.gap("the disk is full", 3)
    assert (gap.event, gap.count, gap.severity) == ("gap", 3, "warning")
    assert watched.loop.status().gaps == 1


def test_the_start_says_what_could_not_be_known(feed):
    tables = SocketTables((), "fake", gaps=(Gap("owner", 3, "owners of 3 sockets are not visible", "run with sudo"),))
    loop = Loop(Settings(feed="fake"), feed.clock, look=lambda: tables, canaries=feed.canaries)
    started = loop.start()[0]
    loop.stop()
    assert started.reason == "owners of 3 sockets are not visible (run with sudo)"
