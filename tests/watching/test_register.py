"""Every rule of identity, grace, repeats and flapping, by a fake feed and a fake clock."""

from __future__ import annotations

import tracemalloc
from datetime import timedelta

import pytest
from msgspec.structs import replace

import portbook
from portbook.records import Owner
from portbook.testing.watching import START, FakeClock, listener
from portbook.watching import failures, flapping, register
from portbook.watching.failures import MOST_LOUD
from portbook.watching.feeds.base import Change
from portbook.watching.records import Settings
from portbook.watching.register import Register
from tests.watching.conftest import kinds

NGINX = {"name": "nginx", "exe": "/usr/sbin/nginx", "service": "nginx.service"}


def test_a_listener_is_reported_with_its_process_and_again_when_it_ends(feed, watch):
    watched = watch()
    nginx = feed.open(listener(80, pid=12, **NGINX))
    (opened,) = watched.after()
    assert (opened.event, opened.severity, opened.pid, opened.local_port) == ("opened", "info", 12, 80)
    assert opened.identity == "tcp/80 any /usr/sbin/nginx nginx.service"
    feed.clock.sleep(60)
    feed.end(nginx)
    assert watched.after(4.9) == []
    (closed,) = watched.after(0.2)
    assert (closed.event, closed.lasted_ms, closed.at) == ("closed", 60_000, START + timedelta(seconds=60))


def test_a_restart_within_the_grace_time_is_one_quiet_event(feed, watch):
    watched = watch()
    first = feed.open(listener(80, pid=12, **NGINX))
    watched.after(60)
    feed.end(first)
    watched.after(4)
    feed.open(listener(80, pid=13, **NGINX))
    (restarted,) = watched.after(20)
    assert (restarted.event, restarted.severity, restarted.lasted_ms, restarted.pid) == ("restarted", "quiet", 4000, 13)


def test_after_the_grace_time_it_has_closed_and_opened(feed, watch):
    watched = watch()
    first = feed.open(listener(80, **NGINX))
    watched.after(60)
    feed.end(first)
    feed.clock.sleep(5.1)
    feed.open(listener(80, **NGINX))
    assert kinds(watched.after()) == ["closed", "opened"]


@pytest.mark.parametrize("other", [{"exe": "/tmp/nginx"}, {"service": "other.service"}, {"container": "docker:web"}])
def test_another_program_or_unit_on_the_port_is_no_restart(feed, watch, other):
    watched = watch()
    first = feed.open(listener(80, **NGINX))
    watched.after(60)
    feed.end(first)
    feed.open(listener(80, **{**NGINX, **other}))
    assert kinds(watched.after(10)) == ["opened", "closed"]


def test_all_sockets_of_an_identity_count(feed, watch):
    watched = watch()
    first = feed.open(listener(80, **NGINX))
    second = feed.open(listener(80, "::", **NGINX))
    opened, further = watched.after(10)
    assert (opened.severity, opened.count) == ("info", 1)
    assert (further.event, further.severity, further.count) == ("opened", "quiet", 2)
    feed.end(first)
    (closed,) = watched.after(10)
    assert (closed.event, closed.severity) == ("closed", "quiet")
    feed.end(second)
    (last,) = watched.after(10)
    assert (last.event, last.severity) == ("closed", "info")


def test_a_server_that_lives_for_a_moment_is_short_lived(feed, watch):
    watched = watch()
    socket = feed.open(listener(4444))
    watched.after(0.2)
    feed.end(socket)
    (event,) = watched.after(10)
    assert (event.event, event.severity, event.lasted_ms) == ("short_lived", "info", 200)


def test_what_was_there_before_the_watch_is_never_short_lived(feed, watch):
    old = feed.open(listener(22), seen=False)
    watched = watch()
    assert kinds(watched.started) == ["started", "present"]
    feed.end(old)
    (closed,) = watched.after(10)
    assert (closed.event, closed.lasted_ms) == ("closed", None)


def test_restarts_again_and_again_are_flapping_and_then_settled(feed, watch):
    watched = watch()
    events = []
    for _ in range(8):
        socket = feed.open(listener(80, **NGINX))
        events += watched.after(2)
        feed.end(socket)
        events += watched.after(1)
    feed.open(listener(80, **NGINX))
    events += watched.after(30)
    assert kinds(events) == ["opened", *["restarted"] * 5, "flapping", *["restarted"] * 3]
    flapping = events[6]
    assert (flapping.severity, flapping.count) == ("warning", 5)
    (settled,) = watched.after(60)
    assert (settled.event, settled.reason, settled.local_port) == ("settled", "it is open", 80)


def test_a_server_that_comes_back_after_the_grace_time_flaps_too(feed, watch):
    watched = watch()
    events = []
    for _ in range(7):
        socket = feed.open(listener(80, **NGINX))
        events += watched.after(2)
        feed.end(socket)
        events += watched.after(6)
    assert kinds(events).count("flapping") == 1
    after = kinds(events).index("flapping") + 1
    assert {event.severity for event in events[after:]} == {"quiet"}


def test_restarts_far_apart_do_not_flap(feed, watch):
    watched = watch()
    events = []
    for _ in range(10):
        socket = feed.open(listener(80, **NGINX))
        events += watched.after(20)
        feed.end(socket)
        events += watched.after(2)
    assert "flapping" not in kinds(events)


# --- TCP sockets that are only bound ----------------------------------------------------------------------------------


def bound(port=80, **fields):
    return listener(port, state="BOUND", reach="none", **fields)


def test_a_listener_is_reported_when_it_listens(feed, watch):
    watched = watch()
    socket = feed.open(bound())
    feed.clock.sleep(0.05)
    feed.report("listening", listener(80, cookie=socket.cookie))
    (opened,) = watched.after(1)
    assert (opened.event, opened.state) == ("opened", "LISTEN")


def test_what_stays_bound_is_reported_with_the_moment_of_the_bind(feed, watch):
    watched = watch()
    socket = feed.open(bound())
    assert watched.after(0.09) == []
    (opened,) = watched.after(1)
    assert (opened.event, opened.state, opened.at) == ("opened", "BOUND", START)
    feed.report("listening", listener(80, cookie=socket.cookie))
    (listens,) = watched.after(1)
    assert (listens.event, listens.state, listens.count) == ("opened", "LISTEN", 1)
    feed.end(socket)
    assert kinds(watched.after(10)) == ["closed"]


@pytest.mark.parametrize("wait_s", [0.0, 1.0])
def test_a_client_is_no_event_unless_it_was_bound_for_long(feed, watch, wait_s):
    watched = watch()
    socket = feed.open(bound())
    before = watched.after(wait_s)
    feed.report("connected", socket)
    feed.report("ended", socket)
    events = before + watched.after(10)
    assert kinds(events) == ([] if not wait_s else ["opened", "closed"])


def test_a_port_that_is_bound_for_a_moment_is_reported_quietly(feed, watch):
    watched = watch()
    socket = feed.open(bound())
    feed.clock.sleep(0.01)
    feed.end(socket)
    events = watched.after(10)
    assert [(e.event, e.severity) for e in events] == [("opened", "quiet"), ("short_lived", "quiet")]
    assert events[0].at == START


# --- what changes while it is open ------------------------------------------------------------------------------------


def test_other_owners_are_found_by_comparison(feed, watch):
    watched = watch(canary_s=10)
    socket = feed.open(listener(80, pid=12, **NGINX))
    watched.after()
    workers = tuple(replace(socket.owners[0], pid=pid) for pid in (13, 14))
    feed.sockets[socket.cookie] = replace(socket, owners=workers)
    (changed,) = watched.after(15)
    assert (changed.event, changed.severity, changed.before, changed.pids) == (
        "owner_changed",
        "quiet",
        "nginx(12)",
        (13, 14),
    )


def test_a_socket_that_another_program_holds_now_is_a_warning(feed, watch):
    watched = watch(canary_s=10)
    socket = feed.open(listener(80, pid=12, **NGINX))
    watched.after()
    feed.sockets[socket.cookie] = replace(socket, owners=listener(80, pid=66, name="sh", exe="/bin/sh").owners)
    (changed,) = watched.after(15)
    assert (changed.event, changed.severity, changed.exe) == ("owner_changed", "warning", "/bin/sh")
    feed.end(socket)
    (closed,) = watched.after(10)
    assert closed.identity == changed.identity


def test_a_process_of_which_less_is_known_than_before_is_the_same(feed, watch):
    watched = watch(canary_s=10)
    socket = feed.open(listener(80, pid=12, **NGINX))
    watched.after()
    feed.sockets[socket.cookie] = replace(socket, owners=(Owner(12),))
    assert watched.after(15) == []
    feed.sockets[socket.cookie] = replace(socket, owners=())
    assert watched.after(15) == []


def test_an_address_that_its_interface_lost_is_another_reach(feed, watch):
    watched = watch(canary_s=10)
    socket = feed.open(listener(80, "192.0.2.1", **NGINX))
    watched.after()
    feed.sockets[socket.cookie] = replace(socket, reach="none")
    (changed,) = watched.after(15)
    assert (changed.event, changed.before, changed.reach) == ("reach_changed", "address", "none")


def test_a_restart_with_another_reach_says_so(feed, watch):
    watched = watch()
    socket = feed.open(listener(80, "127.0.0.1", **NGINX))
    watched.after(10)
    feed.end(socket)
    watched.after(1)
    feed.open(listener(80, "0.0.0.0", **NGINX))
    events = watched.after(10)
    assert kinds(events) == ["closed", "opened", "reach_changed"]
    assert (events[2].before, events[2].severity) == ("loopback", "warning")


def test_two_unknown_programs_are_not_taken_for_one_with_another_reach(feed, watch):
    watched = watch()
    socket = feed.open(listener(80, "127.0.0.1", owners=()))
    watched.after(10)
    feed.end(socket)
    feed.open(listener(80, "0.0.0.0", owners=()))
    assert kinds(watched.after(10)) == ["opened", "closed"]


def test_a_restart_by_another_user_says_so(feed, watch):
    watched = watch()
    socket = feed.open(listener(80, uid=33, user="www-data", **NGINX))
    watched.after(10)
    feed.end(socket)
    feed.open(listener(80, uid=1000, **NGINX))
    events = watched.after(10)
    assert kinds(events) == ["restarted", "owner_changed"]
    assert events[1].before == "nginx(100) of user www-data"


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_what_the_feed_missed_is_found_and_counted(feed, watch):
    watched = watch(canary_s=10)
    missed = feed.open(listener(9999), seen=False)
    autobind = feed.open(listener(40001, protocol="udp"), seen=False)
    present, udp, gap = watched.after(15)
    assert (present.event, present.cookie) == ("present", missed.cookie)
    assert (udp.event, udp.cookie) == ("present", autobind.cookie)
    assert (gap.event, gap.count) == ("gap", 1)
    feed.end(missed, seen=False)
    gap, closed = watched.after(20)
    assert (gap.event, gap.count, closed.event) == ("gap", 1, "closed")


def test_what_opens_and_closes_while_the_tables_are_read_is_no_difference(feed, watch):
    watched = watch(canary_s=10)
    feed.open(listener(9999), seen=False)
    watched.after(10.5)  # the first look
    feed.sockets.clear()
    assert watched.after(5) == []


def test_a_socket_that_is_new_in_one_reading_and_gone_in_the_next_is_no_difference(feed, watch):
    """It opened before the feed was read, and ended before the feed was read again."""
    watched = watch(canary_s=10)
    socket = feed.open(listener(9999), seen=False)
    watched.after(10.5)
    feed.report("listening", socket)
    assert kinds(watched.after(1)) == ["opened"]
    feed.end(socket, seen=False)
    assert watched.after(1.5) == []
    feed.report("ended", socket)
    assert kinds(watched.after(10)) == ["closed"]


def test_what_opens_while_the_tables_are_read_is_not_missing_in_them():
    register = Register(Settings())
    clock = FakeClock()
    began_ns = clock.now().monotonic_ns
    clock.sleep(0.5)
    register.apply(Change("listening", clock.now().monotonic_ns, 1, listener(80, cookie=1)), clock.now())
    assert register.compare([], clock.now(), began_ns=began_ns) == ([], 0)
    assert not register.has_suspects
    clock.sleep(5)
    assert register.compare([], clock.now(), began_ns=clock.now().monotonic_ns) == ([], 0)
    assert register.has_suspects


def test_a_comparison_with_less_than_every_namespace_ends_nothing_elsewhere(feed, watch, monkeypatch):
    watched = watch(canary_s=10)
    feed.open(listener(80, netns=4026532000))
    watched.after()
    feed.sockets.clear()
    look = feed.look
    watched.loop._reader._look = lambda: replace(look(), is_whole=False)
    assert watched.after(30) == []


# --- failed binds -----------------------------------------------------------------------------------------------------


def test_a_failed_bind_names_the_holder_and_repeats_are_quiet(feed, watch):
    watched = watch()
    feed.open(listener(80, pid=12, **NGINX))
    watched.after()
    attempts = []
    for _ in range(3):
        feed.fail(listener(80, "127.0.0.1", pid=77, name="apache2", exe="/usr/sbin/apache2"))
        attempts += watched.after(1)
    assert [(e.severity, e.count) for e in attempts] == [("info", 1), ("quiet", 2), ("quiet", 3)]
    assert (attempts[0].error, attempts[0].reason) == ("EADDRINUSE", "it is held by nginx (pid 12)")
    watched.after(3600)
    feed.fail(listener(80, "127.0.0.1", pid=77, name="apache2", exe="/usr/sbin/apache2"))
    assert [(e.severity, e.count) for e in watched.after()] == [("info", 1)]


@pytest.mark.parametrize(
    ("socket", "error"),
    [
        (listener(81, uid=1000), "EACCES"),
        (listener(8081, "192.0.2.7", reach="none"), "EADDRNOTAVAIL"),
        (listener(8081), None),
        (listener(80, "::1"), None),
        (listener(80, "::"), "EADDRINUSE"),
        (listener(80, "::", v6only=True), None),
        (listener(80, netns=5), None),
        (listener(80, protocol="udp"), None),
    ],
)
def test_why_a_bind_failed(feed, watch, socket, error):
    watched = watch()
    feed.open(listener(80))
    watched.after()
    feed.fail(socket)
    (failed,) = watched.after()
    assert failed.error == error


def test_a_program_that_tries_every_port_is_quiet_after_a_while(feed, watch):
    watched = watch()
    for port in range(2000, 2300):
        feed.fail(listener(port))
    feed.fail(listener(80, exe="/usr/bin/other"))
    events = watched.after()
    assert len(events) == 301
    assert sum(e.severity == "info" for e in events) == MOST_LOUD + 1
    assert events[-1].severity == "info"


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_wall_clock_that_is_set_changes_no_duration(feed, watch, hours):
    watched = watch()
    socket = feed.open(listener(80))
    watched.after(10)
    feed.clock.set_wall(feed.clock.now().wall + timedelta(hours=hours))
    feed.end(socket)
    (closed,) = watched.after(10)
    assert (closed.event, closed.lasted_ms) == ("closed", 10_000)
    assert closed.at == START + timedelta(hours=hours, seconds=10)


def test_a_change_that_is_read_late_has_the_moment_at_which_it_happened(feed, watch):
    watched = watch()
    at_ns = feed.clock.now().monotonic_ns
    feed.clock.sleep(3)
    feed.open(listener(80), at_ns=at_ns)
    (opened,) = watched.after()
    assert (opened.at, opened.monotonic_ns) == (START, at_ns)


# --- the query --------------------------------------------------------------------------------------------------------


def test_a_query_limits_what_is_reported(feed, watch):
    old = feed.open(listener(22), seen=False)
    watched = watch(query=portbook.parse("port:80"))
    assert kinds(watched.started) == ["started"]
    feed.end(old)
    other, wanted = feed.open(listener(443)), feed.open(listener(80))
    assert [e.local_port for e in watched.after(1)] == [80]
    feed.end(other)
    feed.end(wanted)
    feed.fail(listener(22))
    feed.fail(listener(80))
    assert {e.local_port for e in watched.after(10)} == {80}
    assert [each.socket.local_port for each in watched.loop.listeners()] == []


# --- what is kept is bounded ------------------------------------------------------------------------------------------


def test_sockets_beyond_the_bound_are_reported_and_their_ends_are_counted(feed, watch, monkeypatch):
    monkeypatch.setattr(register, "MOST_SOCKETS", 10)
    watched = watch()
    sockets = [feed.open(listener(port)) for port in range(1000, 1015)]
    events = watched.after(1)
    assert kinds(events) == ["opened"] * 15 + ["gap"]
    assert events[-1].count == 5
    for socket in sockets:
        feed.end(socket)
    assert kinds(watched.after(10)) == ["closed"] * 10
    assert watched.loop._register._held == {}


def test_ends_beyond_the_bound_are_reported_before_the_grace_time(feed, watch, monkeypatch):
    monkeypatch.setattr(register, "MOST_WITHHELD", 10)
    watched = watch()
    for port in range(1000, 1100):
        feed.end(feed.open(listener(port)))
    assert kinds(watched.after()).count("short_lived") == 90
    assert kinds(watched.after(10)) == ["short_lived"] * 10


def test_a_very_long_command_line_is_cut(feed, watch):
    watched = watch()
    long = listener(80)
    owner = replace(long.owners[0], command_line=("x" * 100_000, "y"))
    feed.open(replace(long, owners=(owner,)))
    (opened,) = watched.after()
    assert sum(map(len, opened.command_line)) <= register.MOST_TEXT + 1


def test_what_a_hostile_process_leaves_behind_does_not_grow(monkeypatch):
    """Each change is at another port or address, with another name. benchmarks/watch.py does an hour of it."""
    monkeypatch.setattr(flapping, "MOST_REMEMBERED", 100)
    monkeypatch.setattr(failures, "MOST_FAILURES", 100)
    kept = Register(Settings(), feed="fake")
    clock = FakeClock()
    before = 0
    tracemalloc.start()
    try:
        for i in range(2_000):
            address = f"127.{i % 200}.{i // 200 % 250}.1"
            socket = listener(1024 + i, address, name=f"n{i}", exe=None, pid=i)
            now = clock.now()
            kept.apply(Change("listening", now.monotonic_ns, i + 1, socket), now)
            kept.apply(Change("failed", now.monotonic_ns, 0, socket), now)
            kept.apply(Change("ended", now.monotonic_ns, i + 1), now)
            clock.sleep(0.05)
            kept.tick(now)
            if i == 1_000:
                before = tracemalloc.get_traced_memory()[0]
        assert tracemalloc.get_traced_memory()[0] < before * 1.1
    finally:
        tracemalloc.stop()


def test_an_event_has_what_the_feed_knows_of_the_process(feed, watch):
    watched = watch()
    parents = (Owner(9, "bash", command_line=("x" * 100_000,)), Owner(1, "systemd"))
    feed.open(listener(80), parents=parents, process_gone=True)
    (opened,) = watched.after()
    assert (opened.parents, opened.process_gone) == (("bash(9)", "systemd(1)"), True)
    assert (opened.feed, len(opened.boot_id or "0" * 36)) == ("fake", 36)
