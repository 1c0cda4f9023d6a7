"""What the parts of the TCP engine hand to each other: an attempt at one port, and a way to connect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from portbook.probe.request import Probe
from portbook.probe.tcp import Finding

if TYPE_CHECKING:
    from portbook.scanner.tcp.hosts import Host


class Attempt:
    """One port, asked now; when it is silent, the same object is asked again."""

    __slots__ = (
        "begun",
        "due",
        "finding",
        "flying",
        "host",
        "number",
        "probe",
        "rtt_s",
        "self_connects",
        "socket",
        "trial",
    )

    def __init__(self, probe: Probe, host: Host) -> None:
        self.probe = probe
        self.host = host
        self.number = 0  # how often it was asked, this time included
        self.begun = 0.0  # when, the last time; 0: never
        self.due = 0.0  # when waiting to be asked again: not before
        self.flying = False  # begun, and not settled
        self.trial = False  # its end decides whether the breaker of its host closes
        self.self_connects = 0
        self.socket: object = None  # the transport's
        self.finding: Finding | None = None  # None: not decided yet
        self.rtt_s: float | None = None


class Transport(Protocol):
    """A way to have many connects in flight. What is decided has ``finding`` set, and ``rtt_s`` when answered."""

    def begin(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Begin to connect; return those that are decided at once."""
        ...

    def wait(self, timeout_s: float) -> list[Attempt]:
        """Wait until something is decided, at most so long; return what is."""
        ...

    def drop(self, attempt: Attempt) -> None:
        """Give up an undecided attempt."""
        ...

    def close(self) -> None:
        """Give up everything; leave no socket."""
        ...
