"""The loop with each real feed and the real socket tables."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from portbook.watching import feeds
from portbook.watching.loop import Loop, Settings
from tests.watching.feeds.opened import cookie_of

LIMIT_S = 30.0
WORKING = [name for name in feeds.FEEDS if feeds.load(name).missing() is None]


def until(loop, events, is_reached):
    end = time.monotonic() + LIMIT_S
    while not is_reached(events):
        assert time.monotonic() < end, [(e.event, e.local_port, e.reason) for e in events]
        events += loop.wait(0.2)


@pytest.fixture(params=WORKING)
def loop(request):
    loop = Loop(Settings(feed=request.param, interval_s=0.05, grace_s=0.2, canary_s=1.0))
    yield loop
    loop.stop()


def has(kind, cookie):
    return lambda events: any(e.event == kind and e.cookie == cookie for e in events)


def test_what_happens_to_real_sockets(loop):
    old = socket.create_server(("127.0.0.1", 0))
    events = loop.start()
    assert has("present", cookie_of(old))(events)
    listener, datagrams = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    cookies = cookie_of(listener), cookie_of(datagrams)
    for each in (listener, datagrams):
        each.bind(("127.0.0.1", 0))
    listener.listen()
    for cookie in cookies:
        until(loop, events, has("opened", cookie))
    for event in [e for e in events if e.cookie in cookies]:
        assert (event.pid, event.reach, event.process_gone) == (os.getpid(), "loopback", False)
    again, port = listener.getsockname(), datagrams.getsockname()[1]
    for each in (old, listener):
        each.close()
    server = socket.create_server(again)
    until(loop, events, has("restarted", cookie_of(server)))
    datagrams.close()
    until(loop, events, lambda events: has("closed", cookies[1])(events) or has("short_lived", cookies[1])(events))
    server.close()
    until(loop, events, lambda events: loop.status().seen_at is not None)
    assert loop.status().blind is False
    ours = {e.local_port for e in events if e.pid == os.getpid() and e.event in ("opened", "restarted")}
    assert ours == {again[1], port}, "the canaries are no events"


INHERIT = "import sys; sys.stdin.read()"


def test_another_holder_of_a_socket_is_found(loop):
    events = loop.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cookie = cookie_of(listener)
        until(loop, events, has("opened", cookie))
        with subprocess.Popen(
            [sys.executable, "-S", "-c", INHERIT], pass_fds=[listener.fileno()], stdin=subprocess.PIPE
        ) as other:
            until(loop, events, has("owner_changed", cookie))
            (changed,) = [e for e in events if (e.event, e.cookie) == ("owner_changed", cookie)][:1]
            assert changed.pids == tuple(sorted((os.getpid(), other.pid)))
            assert changed.before.endswith(f"({os.getpid()})")


def test_an_automatic_udp_port_that_lasts_is_found(loop):
    events = loop.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", ("127.0.0.1", 9))
        cookie = cookie_of(sender)
        until(loop, events, lambda events: has("present", cookie)(events) or has("opened", cookie)(events))


def test_nothing_is_left(loop):
    before = set(os.listdir("/proc/self/fd"))
    loop.start()
    loop.stop()
    assert set(os.listdir("/proc/self/fd")) == before
