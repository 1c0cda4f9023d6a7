"""The interface of feeds.

A feed reports what happens to sockets as changes. ``open`` subscribes: what happens from then on is reported, while the
loop reads what is there already. A feed knows nothing of policies, identities or events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from msgspec import Struct

from portbook.records import Owner, Socket

# bound: a UDP socket, or a TCP socket that does not listen (yet), has a port.
# listening: a TCP socket listens. connected: a bound socket became a client, it waits for nobody.
# ended: the socket does not hold the port any longer. failed: a bind was attempted and did not succeed.
# owners: the processes that hold the socket are others than before. lost: changes were missed.
ChangeKind = Literal["bound", "listening", "connected", "ended", "failed", "owners", "lost"]
# What stays the same for one socket and is used by no other: the kernel's cookie, or what a platform has instead.
SocketKey = int | tuple[object, ...]


def key_of(socket: Socket) -> SocketKey:
    """What identifies a socket that a source read. Feeds that read sources and the loop compare these keys.

    It depends on nothing that enrichment adds. Without a cookie and an inode (Windows, macOS), a socket is what has the
    address, the port, the creator and the time of creation.
    """
    if socket.cookie:
        return socket.cookie
    if socket.inode:
        return ("inode", socket.inode, socket.netns)
    creator = socket.owners[0].pid if socket.owners else None
    place = (socket.protocol, socket.local_address, socket.zone, socket.local_port, socket.netns)
    return (*place, creator, socket.created)


class Change(Struct, frozen=True, gc=False):
    """One change that a feed saw."""

    kind: ChangeKind
    at_ns: int  # when, by time.monotonic_ns()
    key: SocketKey = 0
    socket: Socket | None = None  # bound, listening, failed, owners: with its owners, as far as they could be read
    parents: tuple[Owner, ...] = ()  # of the first owner, nearest first
    process_gone: bool = False  # the process had ended before it could be read
    exact: bool = True  # False: at_ns is when it was noticed, not when it happened
    count: int = 1  # lost: how many, at least
    reason: str = ""  # lost, failed: why


class Feed(Protocol):
    """A subscription. It is used by one thread."""

    def fileno(self) -> int:
        """A descriptor that is readable when there are changes; -1: there is none, call ``read`` in time."""
        ...

    def read(self, timeout_s: float) -> list[Change]:
        """Wait for changes, at most this long, and return them in the order in which they happened."""
        ...

    def close(self) -> None:
        """End the subscription. Nothing of it stays in the system."""
        ...


class FeedKind(Struct, frozen=True):
    """One way to be told of changes. ``portbook watch --explain`` and the documentation print this table."""

    name: str
    sees: tuple[str, ...]
    misses: tuple[str, ...]
    needs: str
    sees_udp: bool
    sees_failed: bool  # binds that did not succeed
    sees_other_namespaces: bool
    sees_processes: bool  # the process that did it, at that moment
    missing: Callable[[], str | None]  # why it does not work here, None if it does
    open: Callable[[FeedSettings], Feed]  # raises SourceError
    # What it misses between two readings, for so many seconds between them; None: it does not read at intervals.
    between_readings: Callable[[float], str] | None = None

    def all_missed(self, interval_s: float) -> tuple[str, ...]:
        """What it misses, with what it misses between two readings."""
        if self.between_readings is None:
            return self.misses
        return (self.between_readings(interval_s), *self.misses)


class FeedSettings(Struct, frozen=True):
    """What a feed is opened with."""

    interval_s: float = 1.0  # between two readings of a feed that polls
    source: str | None = None  # the data source of a feed that polls; None: the best that works
    ring_bytes: int = 8 << 20  # of the kernel's buffer of a feed that has one; a power of two
