"""Every rule of identity, grace, repeats and flapping, by a fake feed and a fake clock."""

from __future__ import annotations

from datetime import timedelta

import pytest

from portbook.testing.watching import START, listener
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
