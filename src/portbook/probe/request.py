"""What a scan engine gets (``Probe``, ``Limits``), and what it reports while it runs (``ScanEvent``, ``Tally``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from msgspec import Struct

from portbook.resilience import BreakerSettings


class Probe(NamedTuple):
    """One port of one address to be tested. Streams of these may be millions long."""

    target: str  # as the user wrote it
    address: str  # canonical text without brackets or zone
    port: int
    zone: str | None = None  # interface name or index of a link-local IPv6 address


class Limits(Struct, frozen=True):
    """How hard an engine may try. None leaves the choice to the engine."""

    timeout_s: float | None = None  # of one attempt; None: adapted to the measured round trips (RFC 6298)
    retries: int = 1  # more attempts for a silent port
    most_retries: int = 7  # where answers to later attempts show that packets get lost; see probe/pacing.py
    rate: float | None = None  # probes started a second, at most
    concurrency: int | None = None  # probes in flight, at most; None: what the descriptor limit allows
    deadline_s: float | None = None  # for the whole scan
    breaker: BreakerSettings | None = BreakerSettings()  # when a TCP scan gives up a silent host; None: never


# breaker: probing of a silent host stops, or is tried again. descriptors: they ran short. rate-limit: a host limits its
# refusals. deadline: the time was up before everything was probed.
ScanEventKind = Literal["breaker", "descriptors", "rate-limit", "deadline"]


class ScanEvent(Struct, frozen=True):
    """Something to show or to log while an engine runs."""

    kind: ScanEventKind
    address: str | None  # of the host that it concerns
    text: str
    at_s: float  # since the engine began

    def __str__(self) -> str:
        """The text, behind the address of the host that it concerns."""
        if self.address is None:
            return self.text
        return f"{self.address}: {self.text}"


class Tally(Struct):
    """What an engine has done so far; it updates this while it runs."""

    probed: int = 0  # ports; repeated attempts are not counted again
    answered: int = 0  # ports with an answer
    open: int = 0
    silent: int = 0  # no answer after every attempt
    repeated: int = 0  # attempts beyond the first
    skipped: int = 0  # not probed: breaker open, deadline, cancelled
    in_flight: int = 0


EventCallback = Callable[[ScanEvent], None]
