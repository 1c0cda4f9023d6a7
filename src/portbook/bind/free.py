"""Which ports are free: numbers that were really bound, a moment ago, on every requested endpoint.

Nothing reserves a number after this has returned; ``lease`` holds the sockets instead.

A number counts as free if any program could bind it: it is bound without SO_REUSEADDR, so a socket that is bound and
does not listen yet, and connections in TIME_WAIT, block it, though a server might bind in spite of them (socket(7)).
The sockets do not listen, so no client is accepted and then disconnected. Ports whose packets rules of this machine
send elsewhere are handed out only if there are no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from portbook.addresses import Endpoint
from portbook.bind import choice, endpoints
from portbook.bind.attempt import BindAttempt, Options, attempt
from portbook.errors import PortbookError, UsageError
from portbook.netconfig.diversion import take_ports
from portbook.ports import local_address, parse_set
from portbook.records import PROTOCOLS, SCHEMA, Gap, Protocol
from portbook.resilience import SCARCE

if TYPE_CHECKING:
    from portbook.ports import PortsLike

# Errors that every other number would meet as well: this machine does not have the address, family or interface.
HOPELESS = frozenset(("EADDRNOTAVAIL", "EAFNOSUPPORT", "EINVAL", "ENODEV", "ENXIO", "EPERM"))


class Free(Struct, frozen=True):
    """Ports that could be bound a moment ago. Nothing reserves them."""

    schema: int
    count: int  # how many were requested
    ports: tuple[int, ...]  # ascending, each once
    protocols: tuple[Protocol, ...]  # each port was bound for all of them
    addresses: tuple[str, ...]  # and at all of these; without a family that this machine lacks
    reserved: bool  # False: another program may have taken a port by now
    tried: int  # numbers that were bound or refused
    refused: dict[str, int]  # how many numbers met an error, by the system's name of the error
    passed_over: dict[str, int]  # how many numbers were skipped: registered, reserved, ephemeral, redirected
    gaps: tuple[Gap, ...] = ()
    redirected: tuple[int, ...] = ()  # of the ports: NAT rules send packets to them elsewhere; there were no others

    @property
    def enough(self) -> bool:
        """Whether as many ports were found as requested."""
        return len(self.ports) == self.count


def free(
    count: int = 1,
    *,
    protocols: Sequence[Protocol] | None = None,
    address: str | None = None,
    ports: PortsLike | None = None,
    avoid_ephemeral: bool = False,
) -> Free:
    """Find ports that can be bound now, for every protocol on every endpoint at the same time.

    :param protocols: None: that of ``ports``, else "tcp"
    :param address: one address, or "localhost" for both loopback addresses; None is that of ``ports``, else 0.0.0.0
        and ::
    :param ports: choose among these, reserved and well-known ones too: numbers, or text such as ``8000-8100``
    :param avoid_ephemeral: skip ports that an outgoing connection may get at any moment
    :returns: as many ports as were found, and what prevented more
    :raises UsageError: a number, a protocol or the address is not valid
    :raises PortbookError: binds cannot be tried, for example without a free descriptor
    """
    if not hasattr(count, "__index__") or count < 1:
        raise UsageError(f"cannot find {count!r:.20} ports", "give 1 or more")
    wanted = request(ports, protocols, address)
    pool = choice.pool(wanted.numbers, avoid_ephemeral=avoid_ephemeral)
    return _search(count, wanted.protocols, wanted.places, pool)


class PortRequest(Struct, frozen=True):
    """What is to be bound."""

    numbers: tuple[int, ...] | None  # None: any
    protocols: tuple[Protocol, ...]
    places: tuple[Endpoint, ...]


def request(
    ports: PortsLike | None, protocols: Sequence[Protocol] | None, address: str | None, *, dual: bool = False
) -> PortRequest:
    """Combine the ports, which may have a protocol and an address, with those given beside them; raise UsageError."""
    if ports is None:
        any_protocols = ("tcp",) if protocols is None else protocols
        return PortRequest(None, check_protocols(any_protocols), endpoints.parse(address, dual=dual))
    wanted = parse_set(ports)
    if wanted.protocol is not None and protocols is not None and check_protocols(protocols) != (wanted.protocol,):
        raise UsageError(f"the ports are of {wanted.protocol}", "name the protocol once")
    written = local_address(wanted)
    if written is not None and address is not None:
        raise UsageError(f"the ports are of {written}", "name the address once")
    default: tuple[Protocol, ...] = (wanted.protocol or "tcp",)
    places = endpoints.parse(written if address is None else address, dual=dual)
    return PortRequest(wanted.numbers, check_protocols(default if protocols is None else protocols), places)


def check_protocols(protocols: Iterable[Protocol]) -> tuple[Protocol, ...]:
    """Return every protocol once, in the order of PROTOCOLS; raise UsageError if one is unknown or there is none."""
    try:
        requested = {protocols} if isinstance(protocols, str) else set(protocols)
    except TypeError as error:
        raise UsageError(f"unknown protocol {protocols!r:.80}", f"valid values are {', '.join(PROTOCOLS)}") from error
    if not requested:
        raise UsageError("no protocol", f"valid values are {', '.join(PROTOCOLS)}")
    unknown = requested - set(PROTOCOLS)
    if unknown:
        raise UsageError(
            f"unknown protocol {', '.join(sorted(map(str, unknown)))}", f"valid values are {', '.join(PROTOCOLS)}"
        )
    return tuple(protocol for protocol in PROTOCOLS if protocol in requested)


def _search(count: int, protocols: tuple[Protocol, ...], places: tuple[Endpoint, ...], pool: choice.Pool) -> Free:
    tally = _Tally()
    diverted = take_ports(places)
    redirected: list[int] = []  # handed out if there are no others: a rule for every port leaves none
    for port, skip_reason in pool.shuffled():
        if skip_reason:
            tally.skipped[skip_reason] += 1
        elif diverted.of(port, protocols):
            redirected.append(port)
        elif not tally.add(port, _bind_all(port, places, protocols)) or len(tally.ports) == count:
            break
    handed_out: list[int] = []
    for port in redirected:
        if len(tally.ports) == count or not tally.add(port, _bind_all(port, places, protocols)):
            break
        if port in tally.ports:
            handed_out.append(port)
    if len(redirected) > len(handed_out):
        tally.skipped["redirected"] = len(redirected) - len(handed_out)
    return Free(
        SCHEMA,
        count,
        tuple(sorted(tally.ports)),
        protocols,
        tuple(tally.addresses) or tuple(place.address for place in places),
        reserved=False,
        tried=len(tally.ports) + tally.refused.total(),
        refused=dict(tally.refused),
        passed_over=dict(tally.skipped),
        gaps=(*pool.gaps, *diverted.gaps),
        redirected=tuple(sorted(handed_out)),
    )


class _Tally:
    """The numbers so far: free, refused, skipped."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.addresses: dict[str, None] = {}
        self.refused: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def add(self, port: int, attempts: Sequence[BindAttempt]) -> bool:
        """Count a number; whether another number may succeed."""
        failed = next((result for result in attempts if not result.ok), None)
        if failed is not None:
            self.refused[failed.error_name or ""] += 1
            return failed.posix_error not in HOPELESS
        self.ports.append(port)
        self.addresses.update(dict.fromkeys(result.endpoint.address for result in attempts))
        return True


def _bind_all(port: int, places: Sequence[Endpoint], protocols: Iterable[Protocol]) -> list[BindAttempt]:
    attempts: list[BindAttempt] = []
    for protocol in protocols:
        attempts += attempt(port, places, Options(protocol, reuse_address=False, listens=False))
    for result in attempts:
        if result.posix_error in SCARCE:
            call = f"{result.step}() for port {port} on {result.endpoint!s}"
            message = f"cannot try ports: {call} failed with {result.error_name}"
            raise PortbookError(message, "raise the limit on open files, or close some")
    return attempts
