"""The records of the watch besides its events: settings, moments, listeners, status."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from portbook.records import Socket

if TYPE_CHECKING:
    from portbook.query import Query
    from portbook.watching.judge import Judgement
    from portbook.watching.policy.records import Policy


class Moment(Struct, frozen=True, gc=False):
    """Now, by three clocks."""

    wall: datetime  # aware, UTC: may be set, forward and back
    monotonic_ns: int  # time.monotonic_ns(): the clock of feeds
    asleep_ns: int = 0  # how long the machine has been suspended since it started, where the system tells


class Settings(Struct, frozen=True):
    """What is watched, and how."""

    feed: str | None = None  # a key of FEEDS; None: the best that works here
    policy: Policy | None = None
    query: Query | None = None  # only events of sockets that it selects; requirements of the policy are always checked
    interval_s: float = 1.0  # between two readings of a feed that polls
    source: str | None = None  # the data source; None: the best that works
    grace_s: float = 5.0  # a server that comes back within it was restarted
    short_lived_s: float = 1.0
    remind_s: float = 3600.0  # pace of reminders; repeats of a failed bind within it are quiet
    canary_s: float = 300.0  # between two canaries, and between two comparisons with the socket tables
    flaps: int = 5  # restarts within flap_window_s: the identity is flapping
    flap_window_s: float = 60.0
    bound_s: float = 0.1  # a TCP socket that is bound this long and neither listens nor connects is an event
    ring_bytes: int = 8 << 20  # of the kernel's buffer of a feed that has one


class Listener(Struct, frozen=True):
    """A socket that the watch knows to be open."""

    socket: Socket
    identity: str
    since: datetime  # aware, UTC: when it opened, or was first seen
    judgement: Judgement | None = None  # None: there is no policy


class Status(Struct, frozen=True):
    """How the watch is."""

    feed: str | None  # None: it could not be opened again
    skipped: tuple[str, ...]  # why better feeds are not used
    since: datetime  # when the watch began
    blind: bool
    seen_at: datetime | None  # when a canary was last seen
    listeners: int
    violations: int  # that last
    lost_requirements: int
    gaps: int
    counts: dict[str, int]  # events by kind


class SelfTest(Struct, frozen=True):
    """Whether the watch sees what happens: the answer of ``portbook watch --self-test``."""

    passed: bool
    feed: str
    lines: tuple[str, ...]  # one for each canary: what was done, and whether it was seen
