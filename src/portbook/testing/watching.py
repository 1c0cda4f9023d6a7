"""A feed and a clock for tests of the watch, and of programs that use it.

clock = FakeClock()
with fake_feed(clock) as feed:
    loop = Loop(Settings(feed="fake"), clock, look=feed.look)
    loop.start()
    nginx = feed.open(listener(80, pid=12, exe="/usr/sbin/nginx"))
    assert [event.event for event in loop.wait(0)] == ["opened"]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from portbook.addresses import reach_of
from portbook.errors import SourceError
from portbook.records import Owner, Protocol, Socket
from portbook.watching import feeds
from portbook.watching.canary import Canaries, CanaryKind
from portbook.watching.comparison import SocketTables
from portbook.watching.feeds.base import Change, ChangeKind, FeedKind, FeedSettings, SocketKey, key_of
from portbook.watching.loop import Loop
from portbook.watching.records import Moment, Settings

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
_cookies = count(1)


class FakeClock:
    """A clock that goes forward when it is told to, or when somebody waits."""

    def __init__(self, wall: datetime = START) -> None:
        self._wall = wall
        self._monotonic_ns = 1_000_000_000_000
        self._asleep_ns = 0

    def now(self) -> Moment:
        """The time."""
        return Moment(self._wall, self._monotonic_ns, self._asleep_ns)

    def sleep(self, seconds: float) -> None:
        """Go forward."""
        self._wall += timedelta(seconds=seconds)
        self._monotonic_ns += round(seconds * 1e9)

    def set_wall(self, wall: datetime) -> None:
        """Set the clock, as date(1) does: the others go on."""
        self._wall = wall

    def suspend(self, seconds: float) -> None:
        """Suspend the machine: the monotonic clock stands still."""
        self._wall += timedelta(seconds=seconds)
        self._asleep_ns += round(seconds * 1e9)


class FakeFeed:
    """A feed that reports what the test says, and the socket tables that go with it.

    :param sees_canaries: the canary sockets that the loop really opens are reported
    """

    def __init__(self, clock: FakeClock, *, sees_canaries: bool = True) -> None:
        self.clock = clock
        self.sees_canaries = sees_canaries
        self.sockets: dict[SocketKey, Socket] = {}  # what the tables show
        self.opened = 0  # how often somebody subscribed
        self.closed = 0
        self.fails: SourceError | None = None  # what the next reading, or opening, raises
        self._changes: list[Change] = []

    # what happens

    def open(self, socket: Socket, *, seen: bool = True, **fields: Any) -> Socket:
        """A socket listens, or is bound. ``seen``: the feed reports it."""
        self.sockets[key_of(socket)] = socket
        if seen:
            self.report("listening" if socket.state == "LISTEN" else "bound", socket, **fields)
        return socket

    def end(self, socket: Socket, *, seen: bool = True, **fields: Any) -> None:
        """A socket ends."""
        self.sockets.pop(key_of(socket), None)
        if seen:
            self.report("ended", socket, **fields)

    def fail(self, socket: Socket, **fields: Any) -> None:
        """A bind does not succeed."""
        self.report("failed", socket, **fields)

    def report(self, kind: ChangeKind, socket: Socket | None = None, **fields: Any) -> None:
        """Report a change."""
        if socket is not None:
            fields.setdefault("key", key_of(socket))
        fields.setdefault("at_ns", self.clock.now().monotonic_ns)
        self._changes.append(Change(kind, socket=socket, **fields))

    def look(self) -> SocketTables:
        """The socket tables."""
        return SocketTables(tuple(self.sockets.values()), "fake")

    def canaries(self, with_udp: bool) -> Canaries:
        """Canaries without real sockets."""
        return _FakeCanaries(self, with_udp)

    def loop(self, name: str = "fake", **settings: Any) -> Loop:
        """A watch of what this feed reports."""
        return Loop(Settings(feed=name, **settings), self.clock, look=self.look, canaries=self.canaries)

    @property
    def is_drained(self) -> bool:
        """Whether everything that was reported has been read."""
        return not self._changes

    # Feed

    def fileno(self) -> int:
        """None."""
        return -1

    def read(self, timeout_s: float) -> list[Change]:
        """What was reported. Without anything the time passes."""
        if self.fails is not None:
            raise self.fails
        changes, self._changes = self._changes, []
        if not changes:
            self.clock.sleep(timeout_s)
        return changes

    def close(self) -> None:
        """End the subscription."""
        self.closed += 1

    def kind(self, name: str = "fake") -> FeedKind:
        """The row of the table of feeds."""
        return FeedKind(
            name=name,
            sees=("what the test says",),
            misses=("everything else",),
            needs="nothing",
            sees_udp=True,
            sees_failed=True,
            sees_other_namespaces=True,
            sees_processes=True,
            missing=lambda: None,
            open=self._subscribe,
        )

    def _subscribe(self, settings: FeedSettings) -> FakeFeed:
        if self.fails is not None:
            raise self.fails
        self.opened += 1
        return self


class _FakeCanaries(Canaries):
    def __init__(self, feed: FakeFeed, with_udp: bool) -> None:
        super().__init__(with_udp=with_udp)
        self._feed = feed

    def _open_one(self, kind: CanaryKind) -> None:
        protocol: Protocol = "tcp" if kind == "TCP listener" else "udp"
        canary = listener(40_000, "127.0.0.1", protocol=protocol)
        self._keys[key_of(canary)] = kind
        if self._feed.sees_canaries:
            self._feed.report("listening" if protocol == "tcp" else "bound", canary)


@contextmanager
def fake_feed(clock: FakeClock, name: str = "fake", *, sees_canaries: bool = True) -> Iterator[FakeFeed]:
    """A feed that can be chosen by its name until the block ends."""
    feed = FakeFeed(clock, sees_canaries=sees_canaries)
    module = f"portbook.watching.feeds.{name}"
    sys.modules[module] = SimpleNamespace(FEED=feed.kind(name))  # type: ignore[assignment]
    feeds.FEEDS[name] = name
    try:
        yield feed
    finally:
        del feeds.FEEDS[name]
        del sys.modules[module]


def listener(
    port: int,
    address: str = "0.0.0.0",  # noqa: S104  a record, nothing is bound
    *,
    pid: int = 100,
    name: str = "server",
    exe: str | None = "/usr/bin/server",
    protocol: Protocol = "tcp",
    service: str | None = None,
    container: str | None = None,
    **fields: Any,
) -> Socket:
    """The record of a socket that waits, with a new cookie."""
    owner = Owner(pid, name, exe, service=service, container=container)
    socket = Socket(
        protocol,
        "ipv6" if ":" in address else "ipv4",
        address,
        port,
        state="LISTEN" if protocol == "tcp" else None,
        reach=reach_of(address),
        owners=(owner,),
        cookie=next(_cookies),
    )
    return replace(socket, **fields) if fields else socket
