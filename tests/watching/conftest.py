from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from portbook.events import Event
from portbook.testing.watching import FakeClock, FakeFeed, fake_feed
from portbook.watching.loop import Loop


class Watched:
    """A watch of a fake feed, and what it reported."""

    def __init__(self, feed: FakeFeed, **settings: object) -> None:
        self.feed = feed
        self.clock = feed.clock
        self.loop: Loop = feed.loop(**settings)
        self.started = self.loop.start()
        self.loop.wait(0)  # the canaries are seen

    def after(self, seconds: float = 0.0) -> list[Event]:
        """What is reported in the next seconds."""
        events = self.loop.wait(0)
        end_ns = self.clock.now().monotonic_ns + round(seconds * 1e9)
        while (left := (end_ns - self.clock.now().monotonic_ns) / 1e9) > 0:
            events += self.loop.wait(left)
        return events


def kinds(events: list[Event]) -> list[str]:
    return [event.event for event in events]


@pytest.fixture
def feed() -> Iterator[FakeFeed]:
    with fake_feed(FakeClock()) as feed:
        yield feed


@pytest.fixture
def watch(feed: FakeFeed) -> Iterator[Callable[..., Watched]]:
    watches: list[Watched] = []

    def begin(**settings: object) -> Watched:
        watches.append(Watched(feed, **settings))
        return watches[-1]

    yield begin
    for each in watches:
        each.loop.stop()
