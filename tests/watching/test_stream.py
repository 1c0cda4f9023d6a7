"""``portbook.watch``: the asynchronous iterator, its end, and what it leaves behind."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import aclosing

import psutil
import pytest

import portbook
from portbook.errors import PortbookError, SourceError
from portbook.testing.watching import FakeClock, FakeFeed, fake_feed, listener
from portbook.watching import stream

LIMIT_S = 30.0


class SlowClock(FakeClock):
    """Time passes by itself too: the thread of the stream does not spin."""

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.005))
        super().sleep(seconds)


@pytest.fixture
def feed(monkeypatch):
    with fake_feed(SlowClock()) as feed:
        monkeypatch.setattr(stream, "Loop", lambda settings: feed.loop(**_given(settings)))
        yield feed


def _given(settings):
    return {name: getattr(settings, name) for name in ("policy", "query", "grace_s", "remind_s")}


def run(main):
    async def limited():
        async with asyncio.timeout(LIMIT_S):
            return await main()

    return asyncio.run(limited())


def watch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("portbook")]


@pytest.fixture(autouse=True)
def nothing_is_left():
    process = psutil.Process()
    count = process.num_handles if hasattr(process, "num_handles") else process.num_fds
    before = count()
    yield
    assert watch_threads() == []
    if not hasattr(process, "num_handles"):
        assert count() == before


def test_events_arrive_while_the_program_does_other_things(feed: FakeFeed):
    feed.open(listener(22), seen=False)

    async def main():
        seen = []
        async with aclosing(portbook.watch("port:22,80", feed="fake")) as events:
            async for event in events:
                seen.append((event.event, event.local_port))
                if event.event == "present":
                    feed.open(listener(81))
                    feed.open(listener(80))
                if event.event == "opened":
                    break
        assert feed.closed == 1, "everything is closed when the block ends"
        return seen

    assert run(main) == [("started", None), ("present", 22), ("opened", 80)]


def test_a_task_that_is_cancelled_ends_the_watch(feed: FakeFeed):
    async def main():
        started = asyncio.Event()

        async def follow():
            async for event in portbook.watch(feed="fake"):
                started.set()
                assert event

        task = asyncio.create_task(follow())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert feed.closed == 1


def test_an_iterator_that_is_never_used_opens_nothing(feed: FakeFeed):
    async def main():
        await portbook.watch(feed="fake").aclose()

    run(main)
    assert feed.opened == 0


def test_two_watches_at_once(feed: FakeFeed):
    async def main():
        async def first():
            async with aclosing(portbook.watch(feed="fake")) as events:
                return (await anext(events)).event

        return await asyncio.gather(first(), first())

    assert run(main) == ["started", "started"]


def test_a_slow_reader_gets_a_gap_that_counts_what_was_dropped(feed: FakeFeed):
    async def main():
        async with aclosing(portbook.watch(feed="fake", most_queued=10)) as events:
            await anext(events)
            for port in range(1000, 1100):
                feed.open(listener(port))
            await asyncio.to_thread(_until, lambda: feed.is_drained)
            seen = [await anext(events) for _ in range(11)]
        return [(event.event, event.count) for event in seen]

    seen = run(main)
    assert [kind for kind, _ in seen] == ["opened"] * 10 + ["gap"]
    assert seen[-1][1] == 90


def _until(is_reached):
    end = time.monotonic() + LIMIT_S
    while not is_reached():
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.1)  # what was read last is handed over


def test_a_policy_judges(feed: FakeFeed, tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text("version = 1\n[[allow]]\nport = 22\n", encoding="utf-8")
    feed.open(listener(4444), seen=False)

    async def main():
        async with aclosing(portbook.watch(feed="fake", policy=str(file))) as events:
            return [(await anext(events)).event for _ in range(4)]

    assert run(main) == ["started", "policy_loaded", "present", "violation"]


def test_a_watch_that_cannot_begin_raises_at_the_first_step(feed: FakeFeed):
    feed.fails = SourceError("nothing works")

    async def main():
        with pytest.raises(SourceError, match="nothing works"):
            await anext(portbook.watch(feed="fake"))

    run(main)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": "port:nonsense"}, "port"),
        ({"feed": "nope"}, "there is no feed 'nope'"),
        ({"interval_s": 0}, "interval_s cannot be 0"),
        ({"grace_s": float("nan")}, "grace_s cannot be nan"),
        ({"most_queued": 0}, "most_queued cannot be 0"),
        ({"policy": "/nonexistent/policy.toml"}, "/nonexistent/policy.toml"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(PortbookError, match=message):
        portbook.watch(**arguments)


def test_a_real_socket_is_reported_by_polling():
    async def main():
        opened = socket.socket()
        watching = portbook.watch("address:127.0.0.1 tcp", feed="poll", interval_s=0.05, grace_s=0.05)
        async with aclosing(watching) as events:
            await anext(events)
            opened.bind(("127.0.0.1", 0))
            opened.listen()
            port = opened.getsockname()[1]
            return [event async for event in _of_port(events, port, opened)]

    first, last = run(main)
    assert first.event == "opened"
    assert last.event in ("closed", "short_lived")


async def _of_port(events, port, opened):
    count = 0
    async for event in events:
        if event.local_port == port:
            opened.close()
            count += 1
            yield event
        if count == 2:
            return
