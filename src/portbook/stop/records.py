"""The plan to end the holders of a port, and its result: frozen records, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import Literal

from msgspec import Struct

from portbook.addresses import Endpoint
from portbook.managers.supervisor import Supervisor
from portbook.records import PROTOCOLS, Gap, Holder, Owner, Protocol

# What became of a port. free: nobody held it; would-stop: a dry run, nothing was refused.
# will-restart: the port is free now, and a supervisor is known to start what held it again.
StopResult = Literal[
    "free", "stopped", "would-stop", "refused", "declined", "still-held", "restarted", "will-restart", "taken"
]
DONE: frozenset[StopResult] = frozenset(("free", "stopped", "would-stop"))
Override = Literal["override", "via-manager"]  # options of the same name
# What became of a process. let-go: it closed the port and still runs; replaced: another process has its pid by now.
Fate = Literal["ended", "let-go", "gone", "replaced", "not-holding", "still-running", "untouched"]
# Why a process is not ended: docs/stop.md.
RefusalCode = Literal[
    "kernel",
    "self",
    "ancestor",
    "protected",
    "handed-over",
    "connected",
    "managed",
    "not-permitted",
    "not-visible",
    "not-found",
    "unknown",
]


class Refusal(Struct, frozen=True):
    """Why a process is not ended, and which options override that."""

    code: RefusalCode
    why: str
    hint: str | None = None
    overridden_by: tuple[Override, ...] = ()  # the options that override it; empty: none


def forbidden(refusals: Iterable[Refusal], overrides: Collection[Override]) -> tuple[Refusal, ...]:
    """The refusals that none of these options overrides."""
    return tuple(r for r in refusals if not set(r.overridden_by) & set(overrides))


class StopTarget(Struct, frozen=True):
    """A holder that has to end for the port to be free."""

    holder: Holder
    wave: int  # 0: ended first; a process that it forked has a higher number
    supervisor: Supervisor | None = None
    refusals: tuple[Refusal, ...] = ()


class StopPlan(Struct, frozen=True):
    """What would be done to free a port."""

    port: int
    protocol: Protocol
    held: bool
    endpoints: tuple[Endpoint, ...]  # where the holders have it bound; the port is free when these can be bound
    targets: tuple[StopTarget, ...]  # in the order in which they would be ended
    refusals: tuple[Refusal, ...] = ()  # that concern the port as a whole
    gaps: tuple[Gap, ...] = ()
    made_at: datetime | None = None  # aware, UTC: before the holders were read

    def forbidden(self, overrides: Collection[Override] = ()) -> tuple[Refusal, ...]:
        """The refusals of the port and of its targets that none of these options overrides."""
        return forbidden(self._refusals(), overrides)

    @property
    def twin(self) -> str | None:
        """The same number over the other protocol, "53/udp", if a target holds it too and would lose it."""
        for protocol in PROTOCOLS:
            text = f"{self.port}/{protocol}"
            if protocol != self.protocol and any(text in target.holder.other_ports for target in self.targets):
                return text
        return None

    def covers(self, gap: Gap) -> bool:
        """Whether a refusal already has the text of the gap."""
        return any(gap.why in refusal.why for refusal in self.refusals)

    def _refusals(self) -> Iterator[Refusal]:
        yield from self.refusals
        for target in self.targets:
            yield from target.refusals


class Ended(Struct, frozen=True):
    """What became of one process."""

    pid: int
    name: str | None
    fate: Fate
    by: tuple[str, ...] = ()  # the actions, in order: "SIGTERM", "SIGKILL", "systemctl stop nginx.service"


class StopReport(Struct, frozen=True):
    """What became of a port."""

    schema: int
    port: int
    protocol: Protocol
    result: StopResult
    targets: tuple[StopTarget, ...]
    refusals: tuple[Refusal, ...] = ()  # that no option overrode
    ended: tuple[Ended, ...] = ()
    held_by: tuple[Owner, ...] = ()  # the owners that hold it now
    restarted_by: Owner | None = None  # the process that started the present holder
    note: str | None = None  # further information, as a sentence
    gaps: tuple[Gap, ...] = ()
