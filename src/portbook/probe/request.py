"""What is asked of an engine: which port of which address, within which limits; and what it tells on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from msgspec import Struct

from portbook.resilience import BreakerSettings


class Probe(NamedTuple):
    """One question: one port of one address. Streams of these may be millions long."""

    target: str  # as the user wrote it
    address: str  # canonical text without brackets or zone
    port: int
    zone: str | None = None  # interface name or index of a link-local IPv6 address


class Limits(Struct, frozen=True):
    """How hard an engine may try. Times in seconds; None leaves the choice to the engine."""

    timeout_s: float | None = None  # of one attempt; None: adapted to the round trips measured (RFC 6298)
    retries: int = 1  # more attempts for a port that was silent
    most_retries: int = 7  # when the host's answers to further attempts show that packets get lost; see probe/pacing.py
    rate: float | None = None  # probes started a second, at most
    concurrency: int | None = None  # probes in flight, at most; None: what the descriptor limit allows
    deadline_s: float | None = None  # for everything
    breaker: BreakerSettings | None = BreakerSettings()  # when hosts that answer no TCP are left alone; None: never


# breaker: a silent host is left alone, or probed again. descriptors: they ran short. rate-limit: a host limits its
# refusals. deadline: the time was up before everything was probed.
EventKind = Literal["breaker", "descriptors", "rate-limit", "deadline"]


class Event(Struct, frozen=True):
    """Something a person or a log wants to know while an engine runs."""

    kind: EventKind
    address: str | None  # whom it concerns
    text: str
    at_s: float  # since the engine began


class Tally(Struct):
    """What an engine has done so far; it updates this while it runs."""

    asked: int = 0  # probes begun, repeated ones not counted again
    answered: int = 0  # answers given out
    open: int = 0
    silent: int = 0  # answered by nobody, after every attempt
    repeated: int = 0  # attempts beyond the first
    skipped: int = 0  # not asked: breaker open, deadline, cancelled
    in_flight: int = 0


Listener = Callable[[Event], None]
