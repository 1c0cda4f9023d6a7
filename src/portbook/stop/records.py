"""What a look at a port says about ending its holders, and what became of it: frozen, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Literal

from msgspec import Struct

from portbook.addresses import Endpoint
from portbook.managers.supervisor import Supervisor
from portbook.records import Gap, Holder, Owner, Protocol

# What became of a port. FREE: nobody held it; WOULD_STOP: a dry run, nothing stands in the way.
StopResult = Literal["free", "stopped", "would-stop", "refused", "declined", "still-held", "restarted", "taken"]
DONE: frozenset[StopResult] = frozenset(("free", "stopped", "would-stop"))
# What became of a process. LET_GO: it runs on, without the port; REPLACED: another process has its pid by now.
Override = Literal["override", "via-manager"]  # options of the same name
Fate = Literal["ended", "let-go", "gone", "replaced", "not-holding", "still-running", "untouched"]


RefusalCode = Literal[
    "kernel",
    "self",
    "ancestor",
    "protected",
    "connected",
    "managed",
    "not-permitted",
    "not-visible",
    "not-found",
    "unknown",
]


class Refusal(Struct, frozen=True):
    """Why a process is not ended, and which options would have it ended nevertheless."""

    code: RefusalCode  # see docs/stop.md
    why: str
    hint: str | None = None
    overridden_by: tuple[Override, ...] = ()  # what has it done nevertheless; empty: nothing


def forbidden(refusals: Iterable[Refusal], overrides: Collection[Override]) -> tuple[Refusal, ...]:
    """Those that none of these options lifts."""
    return tuple(r for r in refusals if not set(r.overridden_by) & set(overrides))


class StopTarget(Struct, frozen=True):
    """A process that has to end for the port to be free."""

    holder: Holder
    wave: int  # 0: ended first; those it forked come after it
    supervisor: Supervisor | None = None
    refusals: tuple[Refusal, ...] = ()


class StopPlan(Struct, frozen=True):
    """What would be done about a port."""

    port: int
    protocol: Protocol
    held: bool
    endpoints: tuple[Endpoint, ...]  # where the holders had it: there it must be possible to bind
    targets: tuple[StopTarget, ...]  # in the order in which they are ended
    refusals: tuple[Refusal, ...] = ()  # of the port as a whole
    gaps: tuple[Gap, ...] = ()

    def forbidden(self, overrides: Collection[Override] = ()) -> tuple[Refusal, ...]:
        """The refusals that stand although these options were given."""
        return forbidden(self._refusals(), overrides)

    def tells(self, gap: Gap) -> bool:
        """Whether a refusal says already what could not be known."""
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
    by: tuple[str, ...] = ()  # what was done, in order: "SIGTERM", "SIGKILL", "systemctl stop nginx.service"


class StopReport(Struct, frozen=True):
    """What became of a port."""

    schema: int
    port: int
    protocol: Protocol
    result: StopResult
    targets: tuple[StopTarget, ...]
    refusals: tuple[Refusal, ...] = ()  # those that stood
    ended: tuple[Ended, ...] = ()
    held_by: tuple[Owner, ...] = ()  # who has it now
    restarted_by: Owner | None = None  # the process that started those
    note: str | None = None  # what else there is to know, in a sentence
    gaps: tuple[Gap, ...] = ()
