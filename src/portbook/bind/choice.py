"""Which numbers to try, and in which order, when any port will do.

Every order is random and even: two programs that choose at the same moment then seldom choose the same number, which
is what makes a number without its socket worth anything at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import SystemRandom
from typing import Literal, NamedTuple

from portbook.enrich import names
from portbook.errors import UsageError
from portbook.netconfig import ephemeral
from portbook.records import PROTOCOLS, Gap

# Below are the system ports of RFC 6335 section 6, which Unix keeps for root.
ANY = range(1024, 65536)
Reason = Literal["registered", "reserved", "ephemeral"]


class Pool(NamedTuple):
    """The numbers that may be chosen, and why some of them are passed over."""

    numbers: Sequence[int]
    reserved: ephemeral.Ephemeral | None = None  # its reserved ports are passed over
    ephemeral: ephemeral.Ephemeral | None = None  # what connections get is passed over
    registered: bool = False  # ports with a name are passed over

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What could not be known about the numbers."""
        return (self.ephemeral.gaps if self.ephemeral else ()) + (self.reserved.reserved_gaps if self.reserved else ())

    def shuffled(self) -> Iterator[tuple[int, Reason | None]]:
        """Every number once, in a random order, and why it is passed over, if it is."""
        return ((port, self.why_not(port)) for port in shuffled(self.numbers))

    def why_not(self, port: int) -> Reason | None:
        """Why a number is passed over; None: it is not."""
        if self.ephemeral and self.ephemeral.has(port):
            return "ephemeral"
        if self.reserved and self.reserved.keeps(port):
            return "reserved"
        if self.registered and any(names.service_name(port, protocol) for protocol in PROTOCOLS):
            return "registered"
        return None


def pool(ports: Iterable[int] | None = None, *, avoid_ephemeral: bool = False) -> Pool:
    """What may be chosen.

    Without ``ports``: what is commonly wanted is passed over, that is every port with a registered or well-known name
    (``enrich/names.py``), and what the administrator reserved. Who names the ports has decided that already: a range is
    often reserved so that no connection gets it and one's own servers do.

    :raises UsageError: a number is not a port, or there is none
    """
    system = ephemeral.take() if avoid_ephemeral or ports is None else None
    if ports is None:
        return Pool(ANY, system, system if avoid_ephemeral else None, registered=True)
    asked = sorted(set(ports))
    if not asked or asked[0] < 1 or asked[-1] > 65535:
        raise UsageError("no port to choose from" if not asked else "a port is out of range", "valid are 1 to 65535")
    return Pool(asked, None, system)


def shuffled(numbers: Sequence[int]) -> Iterator[int]:
    """Every number once, in a random order, without shuffling those that are never asked for.

    R. A. Fisher, F. Yates, "Statistical tables", 1938, example 12, on a list of which only the moved entries are kept.
    The system's random numbers: forked workers do not share a sequence.
    """
    randrange = SystemRandom().randrange
    moved: dict[int, int] = {}
    for at in range(len(numbers)):
        other = randrange(at, len(numbers))
        yield numbers[moved.get(other, other)]
        moved[other] = moved.get(at, at)
