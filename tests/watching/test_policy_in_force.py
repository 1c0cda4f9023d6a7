"""What a policy makes of changes: violations, reminders, requirements, a new policy, a rule that ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from portbook.testing.watching import START, listener
from portbook.watching.description import describe
from portbook.watching.policy import parse
from tests.watching.conftest import kinds

SSH = """
version = 1
[[allow]]
port = 22
exe = "/usr/sbin/sshd"
"""
SSHD = {"name": "sshd", "exe": "/usr/sbin/sshd"}


def test_a_violation_follows_what_it_judges_once_and_recovers_when_it_is_gone(feed, watch):
    watched = watch(policy=parse(SSH))
    assert kinds(watched.started) == ["started", "policy_loaded"]
    socket = feed.open(listener(4444, name="nc"))
    opened, violation = watched.after()
    assert (opened.event, violation.event, violation.severity) == ("opened", "violation", "warning")
    assert (violation.rule, violation.cookie) == ("default", socket.cookie)
    again = feed.open(listener(4444, "127.0.0.9", reach="any", name="nc"))
    assert kinds(watched.after(10)) == ["opened"]
    feed.end(again)
    feed.end(socket)
    events = watched.after(10)
    assert kinds(events) == ["closed", "closed", "recovered"]
    assert (events[2].reason, events[2].since) == ("it ended", START)


def test_what_is_allowed_is_no_violation(feed, watch):
    watched = watch(policy=parse(SSH))
    feed.open(listener(22, **SSHD))
    assert kinds(watched.after(10)) == ["opened"]
    (each,) = watched.loop.listeners()
    assert each.judgement.allowed is True


def test_present_udp_and_bound_sockets_and_failed_binds_are_judged(feed, watch):
    feed.open(listener(4444), seen=False)
    watched = watch(policy=parse(SSH))
    assert kinds(watched.started) == ["started", "policy_loaded", "present", "violation"]
    feed.open(listener(5353, protocol="udp"))
    feed.open(listener(80, state="BOUND", reach="none"))
    feed.fail(listener(81))
    feed.fail(listener(81))
    assert kinds(watched.after(1)) == [
        *["opened", "violation"],
        *["bind_failed", "violation", "bind_failed"],
        *["opened", "violation"],
    ]


def test_a_restart_continues_a_violation(feed, watch):
    watched = watch(policy=parse(SSH))
    socket = feed.open(listener(4444))
    watched.after(10)
    feed.end(socket)
    watched.after(1)
    feed.open(listener(4444))
    assert kinds(watched.after(10)) == ["restarted"]
    assert watched.loop.status().violations == 1


def test_reminders_come_at_their_pace_and_count(feed, watch):
    watched = watch(policy=parse(SSH), remind_s=100)
    feed.open(listener(4444))
    feed.open(listener(4444))
    assert kinds(watched.after(99)) == ["opened", "violation", "opened"]
    (first,) = watched.after(2)
    assert (first.event, first.count, first.since, first.severity) == ("reminder", 2, START, "warning")
    (second,) = watched.after(100)
    assert (second.event, second.count) == ("reminder", 1)


def test_a_new_policy_judges_what_is_open(feed, watch):
    watched = watch(policy=parse(SSH))
    feed.open(listener(22, **SSHD))
    feed.open(listener(80))
    watched.after(1)
    events = watched.loop.replace_policy(parse("version = 1\n[[allow]]\nport = 80\n[[deny]]\nport = 22\n"))
    assert [(e.event, e.local_port) for e in events] == [
        ("policy_loaded", None),
        ("violation", 22),
        ("recovered", 80),
    ]
    assert events[1].rule.startswith("deny[1]")
    assert kinds(watched.loop.replace_policy(None)) == ["recovered"]
    assert kinds(watched.loop.refuse_policy("policy.toml:3: unknown key")) == ["policy_refused"]


def test_a_rule_that_ends_makes_a_violation_of_what_is_open(feed, watch):
    until = (START + timedelta(days=1)).date()
    watched = watch(policy=parse(f"version = 1\n[[allow]]\nport = 80\nuntil = {until}\n"), canary_s=600)
    feed.open(listener(80))
    assert "violation" not in kinds(watched.after(86_000))
    events = watched.after(2 * 86_400)
    assert kinds(events)[0] == "violation"
    assert "ended" in events[0].reason


def test_another_owner_is_judged_anew(feed, watch):
    watched = watch(policy=parse(SSH), canary_s=10)
    socket = feed.open(listener(22, **SSHD))
    watched.after()
    feed.sockets[socket.cookie] = replace(socket, owners=listener(22, pid=66, exe="/tmp/x").owners)
    assert kinds(watched.after(15)) == ["owner_changed", "violation"]
    feed.sockets[socket.cookie] = socket
    assert kinds(watched.after(15)) == ["owner_changed", "recovered"]


def test_a_violation_of_what_flaps_is_quiet_after_the_first(feed, watch):
    watched = watch(policy=parse(SSH))
    events = []
    for _ in range(12):
        socket = feed.open(listener(4444))
        events += watched.after(1)
        feed.end(socket)
        events += watched.after(6)
    loud = [e.event for e in events if e.severity != "quiet"]
    flapping = loud.index("flapping")
    assert loud[flapping + 1 :].count("violation") <= 1
    assert kinds(events).count("violation") == 12


REQUIRED = """
version = 1
[[require]]
port = 443
exe = "/usr/sbin/nginx"
severity = "critical"
comment = "the shop"
owner = "ops@example.org"
"""
NGINX = {"name": "nginx", "exe": "/usr/sbin/nginx"}


def test_a_requirement_that_is_not_met_at_the_start_is_lost_after_the_grace_time(feed, watch):
    watched = watch(policy=parse(REQUIRED))
    assert kinds(watched.started) == ["started", "policy_loaded"]
    assert watched.after(4) == []
    (lost,) = watched.after(2)
    assert (lost.event, lost.severity, lost.local_port, lost.comment, lost.rule_owner) == (
        "requirement_lost",
        "critical",
        443,
        "the shop",
        "ops@example.org",
    )
    assert watched.loop.status().lost_requirements == 1
    feed.open(listener(443, **NGINX))
    assert kinds(watched.after(2)) == ["opened", "requirement_restored"]
    assert watched.loop.status().lost_requirements == 0


def test_a_restart_loses_no_requirement(feed, watch):
    socket = feed.open(listener(443, **NGINX), seen=False)
    watched = watch(policy=parse(REQUIRED))
    feed.end(socket)
    watched.after(3)
    again = feed.open(listener(443, **NGINX))
    assert kinds(watched.after(20)) == ["restarted"]
    feed.end(again)
    assert kinds(watched.after(20)) == ["closed", "requirement_lost"]


def test_another_program_does_not_meet_a_requirement(feed, watch):
    watched = watch(policy=parse(REQUIRED))
    feed.open(listener(443, exe="/tmp/nginx"))
    assert "requirement_lost" in kinds(watched.after(10))


def test_a_lost_requirement_is_reminded_of_and_ends_with_the_policy(feed, watch):
    watched = watch(policy=parse(REQUIRED), remind_s=100)
    assert kinds(watched.after(210)) == ["requirement_lost", "reminder", "reminder"]
    assert kinds(watched.loop.replace_policy(parse(SSH))) == ["policy_loaded", "requirement_restored"]


def test_a_query_does_not_hide_the_requirements(feed, watch):
    import portbook

    watched = watch(policy=parse(REQUIRED), query=portbook.parse("port:1"))
    feed.open(listener(443, **NGINX))
    assert kinds(watched.after(10)) == []


@pytest.mark.parametrize("exe", [None, "/usr/sbin/sshd"])
def test_what_is_undecided_is_no_violation(feed, watch, exe):
    watched = watch(policy=parse(SSH))
    socket = replace(listener(22, exe=exe), owners=() if exe is None else listener(22, exe=exe).owners)
    feed.open(socket)
    assert kinds(watched.after(1)) == (["opened", "undecided"] if exe is None else ["opened"])
    (each,) = watched.loop.listeners()
    assert each.judgement.allowed is (None if exe is None else True)


def test_a_restart_as_the_rule_wants_it_recovers(feed, watch):
    watched = watch(policy=parse('version = 1\n[[allow]]\nport = 80\nuser = "www-data"\n'))
    first = feed.open(listener(80, uid=0, user="root"))
    assert kinds(watched.after(10)) == ["opened", "violation"]
    feed.end(first)
    feed.open(listener(80, uid=33, user="www-data"))
    assert kinds(watched.after(10)) == ["restarted", "owner_changed", "recovered"]


def test_a_port_that_was_bound_for_a_moment_violates_quietly(feed, watch):
    """A program that looks for a free port binds it so: nothing could arrive there."""
    watched = watch(policy=parse(SSH))
    feed.end(feed.open(listener(4444, state="BOUND", reach="none", name="nc")))
    events = watched.after(10)
    assert kinds(events) == ["opened", "violation", "short_lived", "recovered"]
    assert {event.severity for event in events} == {"quiet"}


def test_a_port_that_stays_bound_violates_aloud(feed, watch):
    watched = watch(policy=parse(SSH))
    feed.open(listener(4444, state="BOUND", reach="none", name="nc"))
    assert [(event.event, event.severity) for event in watched.after(1)] == [
        ("opened", "info"),
        ("violation", "warning"),
    ]


def test_a_brief_bind_before_it_does_not_hush_up_a_listener(feed, watch):
    watched = watch(policy=parse(SSH))
    feed.end(feed.open(listener(4444, state="BOUND", reach="none", name="nc")))
    watched.after(1)
    feed.open(listener(4444, name="nc"))
    loud = [event.event for event in watched.after(10) if event.severity != "quiet"]
    assert loud == ["opened", "violation"]


def test_the_violation_of_a_failed_bind_says_that_it_failed(feed, watch):
    watched = watch(policy=parse(SSH))
    feed.fail(listener(81, name="nc"))
    failed, violation = watched.after()
    assert (failed.event, failed.state, violation.event) == ("bind_failed", None, "violation")
    assert "nc" in describe(violation)
    assert "could not bind 0.0.0.0:81/tcp" in describe(violation)


def test_what_could_not_be_judged_is_said_once_and_is_no_violation(feed, watch):
    watched = watch(policy=parse(SSH))
    unknown = {"name": "sshd", "exe": None}
    feed.open(listener(22, **unknown))
    opened, undecided = watched.after()
    assert (opened.event, undecided.event, undecided.severity) == ("opened", "undecided", "info")
    assert undecided.rule == "allow[1] (policy.toml:3)"
    assert "needs the executable, which could not be read" in describe(undecided)
    feed.open(listener(22, "::", **unknown))
    assert "violation" not in kinds(watched.after(10))
    assert kinds(watched.after(10)) == []
