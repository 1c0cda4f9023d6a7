"""The interface of sinks, and what they are given.

A sink delivers events to one place. It is used by one thread, which calls ``deliver`` with some events at a time and
calls it again with the rest after a failure (``worker``). So a sink has no queue, no pauses and no threads of its own,
unless it keeps what is not delivered on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

from portbook.escaping import Encoder, safe
from portbook.events import Event, Level, compact
from portbook.watching.description import describe
from portbook.watching.sinks.fields import texts_of

MOST_REASON = 300  # characters of a failure that are kept: a receiver may answer with a page
ENCODER = Encoder()


class EncodedEvent:
    """An event with its forms. Each is made once, when the first sink needs it, and shared by all of them."""

    __slots__ = ("_compact", "_fields", "_sentence", "event", "json")

    def __init__(self, event: Event) -> None:
        self.event = event
        self._compact = compact(event)
        self.json = ENCODER.encode(self._compact)  # one line without a line end; its length is what a queue counts
        self._sentence: str | None = None
        self._fields: dict[str, str] | None = None

    @property
    def sentence(self) -> str:
        """One line for people, safe."""
        if self._sentence is None:
            self._sentence = describe(self.event)
        return self._sentence

    @property
    def fields(self) -> dict[str, str]:
        """The text of each field that says something, by its name; see ``fields``."""
        if self._fields is None:
            self._fields = texts_of(self._compact)
        return self._fields


class DeliveryError(Exception):
    """Some events could not be delivered.

    :param reason: one safe line, without a secret
    :param delivered: how many, counted from the first, were delivered before
    :param refused: whether the next event can never be delivered: it is lost, and the others follow
    :param pause_s: how long the receiver wants to be left alone; None: it did not say
    """

    def __init__(self, reason: str, delivered: int = 0, *, refused: bool = False, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = safe(reason)[:MOST_REASON]
        self.delivered = delivered
        self.refused = refused
        self.pause_s = pause_s


class Loss(Struct, frozen=True):
    """Events that a sink did not deliver and never will."""

    count: int
    reason: str


class Sink(Protocol):
    """One place where events go."""

    name: str  # for messages and people: "syslog:udp://127.0.0.1:514"; without secrets
    at_once: int  # how many events it is given at once; those are not dropped any more when the queue is full

    def start(self) -> None:
        """Take what only one process may have; called once before the first ``deliver``; raise StoreError."""
        ...

    def deliver(self, events: Sequence[EncodedEvent]) -> None:
        """Deliver them in their order, within a time limit; raise DeliveryError."""
        ...

    def test(self, event: EncodedEvent) -> str | None:
        """Deliver one event past everything that waits; raise DeliveryError.

        :returns: what it cannot know about the delivery; None: nothing
        """
        ...

    def reopen(self) -> None:
        """Open again what is open, as after SIGHUP; raise DeliveryError."""
        ...

    def interrupt(self) -> None:
        """End what ``deliver`` does at the moment; called by another thread when the time is up."""
        ...

    def waiting(self) -> int:
        """How many events the sink itself keeps that are not delivered yet."""
        ...

    def reports(self) -> tuple[list[Loss], list[str]]:
        """What was lost since the last call, and messages for people, of sinks that keep events."""
        ...

    def close(self, limit_s: float) -> None:
        """Deliver what can be delivered in this time, and let go of everything."""
        ...


class PlainSink:
    """What most sinks have in common: they keep nothing."""

    at_once = 500

    def start(self) -> None:
        """Several processes may deliver to the same place."""

    def reopen(self) -> None:
        """Nothing is open that would have to be opened again."""

    def interrupt(self) -> None:
        """It ends by itself."""

    def waiting(self) -> int:
        """Nothing is kept."""
        return 0

    def reports(self) -> tuple[list[Loss], list[str]]:
        """Nothing is kept, so nothing is lost here."""
        return [], []


OptionType = Literal["number", "text", "flag", "texts"]


class SinkOption(Struct, frozen=True):
    """One key of a ``[[sink]]`` table. Documentation and validation read these."""

    type: OptionType
    default: int | str | bool | tuple[str, ...] | None
    meaning: str
    least: int = 0
    most: int = 2**53
    words: tuple[str, ...] = ()  # the valid texts; empty: any


class SinkSettings(Struct, frozen=True):
    """One sink as it was configured, validated (see ``configuration``)."""

    kind: str
    target: str
    severity: Level  # events below it are left out
    place: str  # where that is written: "--sink", "watch.toml:12"
    options: dict[str, Any]  # every option of the kind, of the type that its SinkOption names
    given: frozenset[str] = frozenset()  # those that were written

    def text(self, option: str) -> str | None:
        """The value of an option of the type "text"."""
        value: str | None = self.options[option]
        return value


class SinkKind(Struct, frozen=True):
    """One kind of sink. ``portbook watch --help`` and the documentation print this table."""

    name: str
    targets: tuple[str, ...]  # examples of what may follow "KIND:"
    meaning: str
    severity: Level  # unless configured otherwise
    options: dict[str, SinkOption]
    open: Callable[[SinkSettings], Sink]  # raises UsageError, StoreError
