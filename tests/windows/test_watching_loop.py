"""The watch on Windows: the loop with the polling feed, its canaries, and ``portbook.watch``."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from contextlib import aclosing

import portbook
from portbook.watching.clock import SYSTEM_CLOCK
from portbook.watching.loop import Loop, Settings
from tests.windows.test_iphlpapi import touch

LIMIT_S = 30.0
FAST = Settings(feed="poll", interval_s=0.05, grace_s=0.1)


def opened(kind=socket.SOCK_STREAM):
    each = socket.socket(socket.AF_INET, kind)
    each.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        each.listen()
    return touch(each)


def until(loop, events, port, *kinds):
    end = time.monotonic() + LIMIT_S
    while not any(event.event in kinds and event.local_port == port for event in events):
        assert time.monotonic() < end, events
        events += loop.wait(0.1)


def test_sockets_come_and_go():
    loop = Loop(FAST)
    with opened() as old:
        events = loop.start()
        try:
            assert [e.event for e in events if e.local_port == old.getsockname()[1]] == ["present"]
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                events = []
                with opened(kind) as each:
                    port = each.getsockname()[1]
                    until(loop, events, port, "opened")
                (event,) = [e for e in events if e.local_port == port]
                assert (event.pid, event.name, event.reach) == (os.getpid(), "python.exe", "loopback")
                until(loop, events, port, "closed", "short_lived")
        finally:
            loop.stop()


def test_canaries_are_seen_and_are_no_events():
    assert Loop(FAST).self_test().passed
    loop = Loop(Settings(feed="poll", interval_s=0.05, canary_s=0.2))
    events = loop.start()
    end = time.monotonic() + LIMIT_S
    while loop.status().seen_at is None and time.monotonic() < end:
        events += loop.wait(0.1)
    first = loop.status().seen_at
    while loop.status().seen_at == first and time.monotonic() < end:
        events += loop.wait(0.1)
    loop.stop()
    assert loop.status().blind is False
    assert not [e for e in events if e.pid == os.getpid() and e.event == "opened"]


def test_the_iterator_ends_its_thread():
    async def main():
        async with asyncio.timeout(LIMIT_S), aclosing(portbook.watch(feed="poll", interval_s=0.05)) as events:
            return (await anext(events)).event

    assert asyncio.run(main()) == "started"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("portbook")]


def test_the_clock_tells_how_long_the_machine_slept():
    first, second = SYSTEM_CLOCK.now(), SYSTEM_CLOCK.now()
    assert 0 <= second.asleep_ns - first.asleep_ns + 50_000_000 < 100_000_000  # GetTickCount64 goes in steps of 16 ms
