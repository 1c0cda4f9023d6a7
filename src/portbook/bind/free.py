"""Which ports are free: numbers that were really bound on every asked endpoint, a moment ago.

Nothing keeps a number free once this has answered; ``lease`` holds the sockets instead.

A number counts as free when anybody could have it: it is bound without SO_REUSEADDR, so a socket that is bound and does
not listen yet, or connections in TIME_WAIT, are in the way, though a server might get past them (socket(7)). It is not
listened on: nobody who connects at that moment is accepted and then cut off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from portbook.addresses import Endpoint
from portbook.bind import choice, endpoints
from portbook.bind.attempt import Options, Tried, attempt
from portbook.errors import PortbookError, UsageError
from portbook.records import PROTOCOLS, SCHEMA, Gap, Protocol
from portbook.resilience import SCARCE

# Errors that every other number would meet as well: the address is not here, the family or the interface is not.
HOPELESS = frozenset(("EADDRNOTAVAIL", "EAFNOSUPPORT", "EINVAL", "ENODEV", "ENXIO", "EPERM"))


class Free(Struct, frozen=True):
    """Ports that were bindable. A moment ago: nothing reserves them."""

    schema: int
    count: int  # how many were asked for
    ports: tuple[int, ...]  # ascending, each once
    protocols: tuple[Protocol, ...]  # each port was bound for all of them
    addresses: tuple[str, ...]  # and at all of these; a family that this machine lacks is not among them
    reserved: bool  # False: somebody else may have taken a port by now
    tried: int  # numbers that were bound, or refused
    refused: dict[str, int]  # why numbers were not to be had: the system's name of the error, and how many
    passed_over: dict[str, int]  # numbers that were not tried: registered, reserved, ephemeral
    gaps: tuple[Gap, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether as many were found as were asked for."""
        return len(self.ports) == self.count


def free(
    count: int = 1,
    *,
    protocols: Sequence[Protocol] = ("tcp",),
    address: str | None = None,
    ports: Iterable[int] | None = None,
    avoid_ephemeral: bool = False,
) -> Free:
    """Find ports that can be bound now, for every protocol on every endpoint at once.

    :param address: one address, or "localhost" for both loopbacks; None is 0.0.0.0 and ::
    :param ports: choose among these, reserved and well-known ones too
    :param avoid_ephemeral: pass over what an outgoing connection may take at any moment
    :raises UsageError: a number, a protocol or the address makes no sense
    :raises PortbookError: it could not be found out, such as without a descriptor
    """
    if count < 1:
        raise UsageError(f"{count} ports make no sense", "ask for one or more")
    return _search(
        count, check(protocols), endpoints.parse(address), choice.pool(ports, avoid_ephemeral=avoid_ephemeral)
    )


def check(protocols: Iterable[Protocol]) -> tuple[Protocol, ...]:
    """Every protocol once, in the order of PROTOCOLS; raise UsageError when one is unknown or there is none."""
    asked = {protocols} if isinstance(protocols, str) else set(protocols)
    if not asked or not asked <= set(PROTOCOLS):
        raise UsageError(f"protocols {sorted(asked)} make no sense", f"valid are {', '.join(PROTOCOLS)}")
    return tuple(protocol for protocol in PROTOCOLS if protocol in asked)


def _search(count: int, protocols: tuple[Protocol, ...], places: tuple[Endpoint, ...], pool: choice.Pool) -> Free:
    tally = _Tally()
    for port, reason in pool.shuffled():
        if reason:
            tally.passed_over[reason] += 1
        elif not tally.add(port, _tried(port, places, protocols)) or len(tally.found) == count:
            break
    return Free(
        SCHEMA,
        count,
        tuple(sorted(tally.found)),
        protocols,
        tuple(tally.addresses) or tuple(place.address for place in places),
        reserved=False,
        tried=len(tally.found) + tally.refused.total(),
        refused=dict(tally.refused),
        passed_over=dict(tally.passed_over),
        gaps=pool.gaps,
    )


class _Tally:
    """What became of the numbers so far."""

    def __init__(self) -> None:
        self.found: list[int] = []
        self.addresses: dict[str, None] = {}
        self.refused: Counter[str] = Counter()
        self.passed_over: Counter[str] = Counter()

    def add(self, port: int, tried: Sequence[Tried]) -> bool:
        """Count a number; whether another one may do better."""
        error = next((one.error_name for one in tried if one.error_name), None)
        if error is not None:
            self.refused[error] += 1
            return _posix(error) not in HOPELESS
        self.found.append(port)
        self.addresses.update(dict.fromkeys(one.endpoint.address for one in tried))
        return True


def _tried(port: int, places: Sequence[Endpoint], protocols: Iterable[Protocol]) -> list[Tried]:
    tried = [one for protocol in protocols for one in attempt(port, places, _options(protocol))]
    scarce = next((one for one in tried if _posix(one.error_name) in SCARCE), None)
    if scarce is not None:
        where = f"{scarce.step}() of port {port} on {scarce.endpoint}"
        raise PortbookError(
            f"cannot try ports: {where} says {scarce.error_name}", "raise the limit, or close something"
        )
    return tried


def _options(protocol: Protocol) -> Options:
    return Options(protocol, reuse_address=False, listens=False)


def _posix(error_name: str | None) -> str:
    return (error_name or "").removeprefix("WSA")
