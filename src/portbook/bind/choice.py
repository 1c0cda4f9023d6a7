"""Which port numbers to try, and in which order, when any port will do.

Every order is random and uniform: two programs that choose at the same moment seldom choose the same number. Only this
makes a number without its socket useful at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import SystemRandom
from typing import Literal, NamedTuple

from portbook import names
from portbook.errors import UsageError
from portbook.netconfig import ephemeral
from portbook.records import PROTOCOLS, Gap

# Below are the system ports of RFC 6335 section 6, which Unix keeps for root.
ANY = range(1024, 65536)
# What development servers and other common programs use, whatever is registered there: the defaults in their
# documentation, and the registry's ports whose names mislead (unused_services.txt).
CUSTOMARY = frozenset((
    2003, 2430, 2433, 3000, 3001, 3074, 3128, 3388, 3410, 3880, 4000, 4094, 4200, 4443, 4786, 5000, 5001, 5002,
    5004, 5005, 5010, 5044, 5050, 5051, 5080, 5093, 5173, 5223, 5270, 5433, 5500, 5555, 5556, 5566, 5601, 5693,
    5750, 6111, 6123, 6222, 6389, 6481, 6600, 6679, 6969, 7001, 7002, 7003, 7004, 7005, 7006, 7007, 7008, 7009,
    7070, 7443, 7677, 7777, 7778, 7779, 8000, 8001, 8002, 8003, 8005, 8006, 8008, 8020, 8021, 8025, 8026, 8042,
    8081, 8082, 8083, 8084, 8086, 8087, 8088, 8090, 8091, 8123, 8181, 8182, 8192, 8200, 8243, 8280, 8300, 8301,
    8400, 8443, 8444, 8500, 8501, 8600, 8610, 8686, 8765, 8766, 8880, 8888, 8889, 8890, 8891, 8990, 8991, 8997,
    8998, 8999, 9000, 9001, 9002, 9009, 9050, 9051, 9060, 9080, 9081, 9083, 9084, 9085, 9086, 9087, 9088, 9089,
    9090, 9091, 9093, 9100, 9105, 9160, 9191, 9201, 9202, 9203, 9300, 9443, 9500, 9694, 9762, 9875, 9898, 9966,
    9990, 9992, 9993, 9995, 9996, 9997, 9998, 9999, 10001, 11111, 12345, 14000, 18186, 19000, 22222, 24242,
    33331, 36865, 40000, 41794, 41795, 48000, 49150,
))  # fmt: skip
SkipReason = Literal["registered", "reserved", "ephemeral", "redirected"]


class Pool(NamedTuple):
    """The numbers that may be chosen, and why some of them are skipped."""

    numbers: Sequence[int]
    reserved: ephemeral.Ephemeral | None = None  # skip its reserved ports
    ephemeral: ephemeral.Ephemeral | None = None  # skip the ports that connections get
    registered: bool = False  # skip ports with a service name

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The settings that could not be read."""
        gaps: tuple[Gap, ...] = ()
        if self.ephemeral:
            gaps += self.ephemeral.gaps
        if self.reserved:
            gaps += self.reserved.reserved_gaps
        return gaps

    def shuffled(self) -> Iterator[tuple[int, SkipReason | None]]:
        """Every number once, in random order, with the reason why it is skipped, if it is."""
        return ((port, self.skip_reason(port)) for port in shuffled(self.numbers))

    def skip_reason(self, port: int) -> SkipReason | None:
        """Why a number is skipped; None: it is not."""
        if self.ephemeral and self.ephemeral.has(port):
            return "ephemeral"
        if self.reserved and self.reserved.reserves(port):
            return "reserved"
        if self.registered and port in CUSTOMARY:
            return "registered"
        if self.registered and any(names.is_registered(port, protocol) for protocol in PROTOCOLS):
            return "registered"
        return None


def pool(ports: Iterable[int] | None = None, *, avoid_ephemeral: bool = False) -> Pool:
    """Return the numbers that may be chosen.

    Without ``ports``, those that other programs are likely to want are skipped: ports with a registered or well-known
    name (``names.py``), and ports that the administrator reserved. With ``ports``, the caller has decided
    already: a range is often reserved so that servers get it and connections do not.

    :raises UsageError: a number is not a port, or there is none
    """
    system = ephemeral.take() if avoid_ephemeral or ports is None else None
    if ports is None:
        return Pool(ANY, system, system if avoid_ephemeral else None, registered=True)
    numbers = sorted(set(ports))
    if not numbers:
        raise UsageError("no port to choose from", "valid values are 1 to 65535")
    if numbers[0] < 1 or numbers[-1] > 65535:
        raise UsageError("a port is out of range", "valid values are 1 to 65535")
    return Pool(numbers, None, system)


def shuffled(numbers: Sequence[int]) -> Iterator[int]:
    """Every number once, in random order, without shuffling those that are never taken.

    R. A. Fisher, F. Yates, "Statistical tables", 1938, example 12, on a list of which only the moved entries are kept.
    It uses the system's random numbers, so forked workers do not share a sequence.
    """
    randrange = SystemRandom().randrange
    moved: dict[int, int] = {}
    for at in range(len(numbers)):
        other = randrange(at, len(numbers))
        yield numbers[moved.get(other, other)]
        moved[other] = moved.get(at, at)
