"""``portbook.watch``: the events of this machine as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from threading import Event as Flag
from threading import Lock, Thread
from typing import TYPE_CHECKING

from portbook import query as queries
from portbook.errors import UsageError
from portbook.events import Event
from portbook.query import Query
from portbook.watching.loop import Loop
from portbook.watching.records import Settings

if TYPE_CHECKING:
    from portbook.watching.policy.records import Policy

MOST_QUEUED = 100_000  # events of a reader that is slow: about 60 MB
SLICE_S = 0.2  # how long the thread may take to notice that it shall end


def watch(
    query: str | Query = "",
    *,
    policy: Policy | str | None = None,
    feed: str | None = None,
    interval_s: float = 1.0,
    source: str | None = None,
    grace_s: float = 5.0,
    remind_s: float = 3600.0,
    most_queued: int = MOST_QUEUED,
) -> AsyncIterator[Event]:
    """Report what happens to the ports of this machine, from now on, until the iteration ends.

    >>> async def main():
    ...     async for event in portbook.watch("port:8080"):              # doctest: +SKIP
    ...         print(event.at, event.event, event.name)

    The first event is ``started``; then comes a ``present`` for each socket that waits already. Leave the loop, cancel
    the task, or call ``aclose()`` of the iterator: the thread behind it ends then, and nothing is left open.
    ``contextlib.aclosing`` does that at the end of a block.

    :param query: only events of sockets that it selects, in the grammar of ``portbook.parse``
    :param policy: what is allowed: the path of a TOML file, or what ``portbook.watching.policy.parse`` returns
    :param feed: one of ``portbook.watching.feeds.FEEDS``; None: the best that works here
    :param interval_s: seconds between two readings of a feed that polls
    :param source: the data source that the feed ``poll`` reads, as for ``take``; None: the best that works
    :param grace_s: a server that comes back within so many seconds was restarted
    :param remind_s: seconds between reminders of a violation that lasts
    :param most_queued: events that wait for a reader that is slow; further ones are dropped, and a ``gap`` counts them
    :raises UsageError: at once, the query, the policy, the feed or a number is not valid
    :raises StoreError: at once, the file of the policy cannot be read
    :raises SourceError: at the first step of the iteration, no feed works here; later, it cannot go on
    """
    for name, value in (("interval_s", interval_s), ("grace_s", grace_s), ("remind_s", remind_s)):
        if not 0 < value <= 366 * 86_400:
            raise UsageError(f"{name} cannot be {value!r}", "give a positive number of seconds")
    if most_queued < 1:
        raise UsageError(f"most_queued cannot be {most_queued!r}", "give a positive number of events")
    if feed is not None or source is not None:
        from portbook.watching import feeds

        feeds.load(feeds.for_source(feed, source) or feeds.POLLING)
    settings = Settings(
        feed=feed,
        policy=_policy_of(policy),
        query=queries.parse(query) if isinstance(query, str) else query,
        interval_s=interval_s,
        source=source,
        grace_s=grace_s,
        remind_s=remind_s,
    )
    return _events(Loop(settings), most_queued)


def _policy_of(policy: Policy | str | None) -> Policy | None:
    if not isinstance(policy, str):
        return policy
    from portbook.watching.policy import read

    return read(policy)


async def _events(loop: Loop, most_queued: int) -> AsyncIterator[Event]:
    worker = _Worker(loop, asyncio.get_running_loop(), most_queued)
    worker.start()
    try:
        while True:
            for event in await worker.take():
                yield event
    finally:
        await worker.end()


class _Worker:
    """Runs a watch in a thread, and hands over its events."""

    def __init__(self, watch: Loop, reader: asyncio.AbstractEventLoop, most_queued: int) -> None:
        self._watch = watch
        self._reader = reader
        self._most_queued = most_queued
        self._lock = Lock()
        self._queue: deque[Event] = deque()
        self._dropped = 0
        self._error: BaseException | None = None
        self._ready = asyncio.Event()  # of the reader's event loop
        self._ended = asyncio.Event()
        self._end = Flag()
        self._thread = Thread(target=self._run, name="portbook-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._put(self._watch.start())
            while not self._end.is_set():
                self._put(self._watch.wait(SLICE_S))
        except BaseException as error:  # noqa: BLE001  raised again by the iterator
            self._error = error
        finally:
            self._watch.stop()
            self._call(self._ended.set)
            self._call(self._ready.set)

    def _put(self, events: list[Event]) -> None:
        if not events:
            return
        with self._lock:
            room = self._most_queued - len(self._queue)
            self._queue.extend(events[:room])
            self._dropped += max(0, len(events) - room)
        self._call(self._ready.set)

    def _call(self, function: Callable[[], object]) -> None:
        """Call something in the reader's event loop."""
        try:
            self._reader.call_soon_threadsafe(function)
        except RuntimeError:  # the reader's event loop has been closed
            self._end.set()

    async def take(self) -> list[Event]:
        """Wait for events; raise what ended the watch."""
        await self._ready.wait()
        self._ready.clear()
        with self._lock:
            events = list(self._queue)
            self._queue.clear()
            dropped, self._dropped = self._dropped, 0
        if dropped:
            events.append(self._watch.gap(f"the reader of the events was slow: {dropped:,} were dropped", dropped))
        if not events and self._error is not None:
            raise self._error
        if self._error is not None:
            self._ready.set()
        return events

    async def end(self) -> None:
        """End the thread; returns when nothing of the watch is left."""
        self._end.set()
        await self._ended.wait()
        self._thread.join()
