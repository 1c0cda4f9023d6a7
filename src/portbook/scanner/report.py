"""The report of a scan: what it did, and how much it may have missed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

from portbook.probe.request import ScanEvent
from portbook.records import Protocol

SCHEMA = 1


class SelfCheck(Struct, frozen=True):
    """Ports of this machine that must have been found open, and how many were not.

    Canaries are listeners that the scan opened itself. Known ports are those that this machine's own tables list
    as listening both before and after. Even so one may refuse, behind a firewall or with a full queue.
    """

    addresses: int  # of this machine, among those that were scanned
    canaries: int
    canaries_missed: int
    known: int | None  # None: the tables could not be read, or the scan was over UDP, where open ports may be silent
    known_missed: int | None
    missed: tuple[str, ...] = ()  # the first of them: "127.0.0.1:8080", "canary 127.0.0.1:40123"


class Report(Struct, frozen=True):
    """Counts and events of a scan. Canaries are counted in ``self_check`` and nowhere else."""

    schema: int
    protocol: Protocol
    started_at: datetime | None  # aware, UTC; None: not started
    elapsed_s: float
    addresses: int  # to be scanned
    ports: int  # of each address
    asked: int  # ports with an answer
    outcomes: dict[str, int]  # how many answers had each outcome
    silent: int  # ports that sent no answer: filtered, or lost in the network; never called closed
    repeated: int  # attempts beyond the first
    skipped: int  # ports without an answer: the breaker was open, the time was up, the scan was cancelled
    rate: float | None  # answers a second
    partial: Literal["cancelled", "deadline"] | None  # why the scan ended early
    events: tuple[ScanEvent, ...] = ()
    events_dropped: int = 0  # events beyond those in ``events``
    self_check: SelfCheck | None = None  # None: no address of this machine was scanned
    hosts_answered: int = 0  # addresses of which at least one port was open or closed
    all_open: tuple[str, ...] = ()  # addresses of which every port was open, if there were many: the first of them
