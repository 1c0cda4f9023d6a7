"""What the register follows: open sockets, and the identities that they belong to. No I/O."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from portbook.events import EventKind
from portbook.records import Socket
from portbook.watching.feeds.base import Change, SocketKey
from portbook.watching.identity import PortIdentity

if TYPE_CHECKING:
    from portbook.watching.judge import Judgement
    from portbook.watching.violations import Violation

MOST_TEXT = 4_096  # characters of a command line that are kept


class Origin(Struct, frozen=True, gc=False):
    """What a feed reports of the process besides the socket."""

    parents: tuple[str, ...] = ()  # as events have them
    process_gone: bool = False


class Followed:
    """An open socket."""

    __slots__ = ("at", "began", "identity", "is_brief", "judgement", "key", "origin", "rule", "since_ns", "socket")

    def __init__(self, key: SocketKey, socket: Socket, change: Change, identity: PortIdentity, at: datetime) -> None:
        self.key = key
        self.socket = socket
        self.origin = origin_of(change)
        self.identity = identity
        self.at = at
        self.since_ns = change.at_ns
        self.began = True  # False: it was there before it was first seen
        self.is_brief = False  # a TCP port that was bound for a moment: nothing could arrive there
        self.judgement: Judgement | None = None
        self.rule: str | None = None  # that it violates


class Held:
    """An identity that is open, or whose end is withheld."""

    __slots__ = ("ended", "ended_at", "ended_ns", "identity", "sockets", "undecided", "violations")

    def __init__(self, identity: PortIdentity) -> None:
        self.identity = identity
        self.sockets: dict[SocketKey, Followed] = {}
        self.ended: Followed | None = None  # the last one, while the end is withheld
        self.ended_ns = 0
        self.ended_at: datetime | None = None
        self.violations: dict[str, Violation] = {}  # that last, by rule
        self.undecided: set[str] = set()  # rules for which something was not known, and which were reported


NO_ORIGIN = Origin()


def origin_of(change: Change) -> Origin:
    """What a change says of its process."""
    if not change.parents and not change.process_gone:
        return NO_ORIGIN
    return Origin(tuple(f"{parent.name}({parent.pid})" for parent in change.parents), change.process_gone)


def socket_of(change: Change) -> Socket:
    """The socket of a change that has one by its kind."""
    if change.socket is None:
        raise ValueError(f"a change of the kind {change.kind} has no socket")
    return change.socket


def bounded(socket: Socket) -> Socket:
    """The socket without the rest of a very long command line of its first owner: it is kept while it is open."""
    if not socket.owners:
        return socket
    owner = socket.owners[0]
    command_line = owner.command_line
    if command_line is None or sum(map(len, command_line)) <= MOST_TEXT:
        return socket
    kept: list[str] = []
    left = MOST_TEXT
    for word in command_line[:MOST_TEXT]:
        if left <= 0:
            break
        kept.append(word[:left])
        left -= len(word) + 1
    return replace(socket, owners=(replace(owner, command_line=(*kept, "…")), *socket.owners[1:]))


def duration_ms(followed: Followed, at_ns: int) -> float | None:
    """How long it was open; None: it was there before it was first seen."""
    if not followed.began:
        return None
    return max(0, at_ns - followed.since_ns) / 1e6


def is_brief_bind(followed: Followed, kind: EventKind) -> bool:
    """A TCP port that was bound for a moment, and at which nothing could arrive: programs look for free ones so."""
    return kind == "short_lived" and followed.socket.state == "BOUND"
