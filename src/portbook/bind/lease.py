"""A port that is really yours: not a number but the bound sockets, to be handed to a server.

When may two sockets be bound to one port? On Linux, when both set SO_REUSEADDR and neither listens (socket(7);
``inet_bind_conflict`` in net/ipv4/inet_connection_sock.c): of two programs that bind so and then listen, the second
fails at listen(). So a port that we choose is bound *without* the option, which excludes every other socket and
conflicts with every socket that is already bound; then it listens at once; and only then it gets the option. The option
does no harm to a listener, and its connections inherit it: without it a connection in TIME_WAIT would block the next
server for a minute. A port that the caller names is bound as a server binds it, with the option, or such connections
would block the lease; if two programs do that at the same time, listen() decides. UDP sockets are never shared: without
the option the bind is exclusive. Windows: SO_EXCLUSIVEADDRUSE, always.

Every server accepts a socket that listens: asyncio, uvicorn and http.server listen again, which only changes the
backlog (listen(2)), and sd_listen_fds(3) sockets listen already. Clients that connect before the server accepts wait in
the queue instead of being refused.
"""

from __future__ import annotations

import os
import socket as net
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

from portbook.addresses import EVERYWHERE, Endpoint
from portbook.bind import choice, endpoints, handover
from portbook.bind.attempt import NO_FAMILY, BindError, Options, bind
from portbook.bind.free import request
from portbook.errors import LeaseError, PortbookError, UsageError
from portbook.netconfig import ephemeral
from portbook.netconfig.diversion import DivertedPorts, take_ports
from portbook.netconfig.facts import Diversion
from portbook.ports import parse_one
from portbook.records import Gap, Protocol

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType

    from portbook.ports import PortLike, PortsLike

# How often the system chooses before we try its range ourselves: it may choose the same number again and again while
# that is free on one family (Linux prefers every other number) and taken on the other.
CHOICES = 16
MOST_DIVERTED = 16  # numbers whose packets rules send elsewhere, before such a number is taken: a rule may concern all
# Errors that another number need not meet. EACCES: a privileged port; on Windows an excluded range.
TAKEN = frozenset(("EADDRINUSE", "EACCES"))


class Lease:
    """Bound sockets of one port. A context manager, also for ``async with``: at its end it closes what was not taken.

    ``port`` is the number, ``sockets`` are the sockets: TCP before UDP, IPv4 before IPv6. ``diversions`` are what sends
    packets to the port elsewhere (Linux: NAT rules), ``gaps`` say what of that could not be known.
    """

    def __init__(self, sockets: Sequence[net.socket]) -> None:
        self.sockets = tuple(sockets)
        self.diversions: tuple[Diversion, ...] = ()
        self.gaps: tuple[Gap, ...] = ()
        self.port: int = sockets[0].getsockname()[1]
        self._owned = True

    @property
    def socket(self) -> net.socket:
        """The first socket, for servers that take one."""
        return self.sockets[0]

    def take(self) -> tuple[net.socket, ...]:
        """Take over the sockets: from now on the caller closes them."""
        self._owned = False
        return self.sockets

    def close(self) -> None:
        """Close the sockets, unless they were taken. Copies that a child has inherited keep the port."""
        if self._owned:
            for sock in self.sockets:
                sock.close()

    def environment(self, pid: int | None = None) -> dict[str, str]:
        """The variables for a program that has the sockets at descriptors 3, 4, … (Windows: as inherited handles).

        :param pid: of that program; None: of this process, which it keeps when exec replaces it
        """
        return handover.environment(self.port, self.sockets, os.getpid() if pid is None else pid)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program that finds the sockets as sd_listen_fds(3) describes (Windows: as inherited handles).

        This process keeps its own copies: close the lease, and the port is free when the program ends.

        If the program cannot be run: on Windows an OSError here, elsewhere a child that reports it and exits with 127.

        :param options: for ``subprocess.Popen``, except ``shell``; ``env`` is completed
        :raises OSError: the child cannot be started
        """
        if options.get("shell"):
            raise UsageError(
                "a shell would have the sockets, not the program", "use start(['sh', '-c', ...]) if you want that"
            )
        env = {**(options.pop("env", None) or os.environ), **self.environment()}
        return handover.start(command, self.sockets, {**options, "env": env})

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a lease holds open sockets and cannot be pickled: hand them over with Lease.start, or pass the port"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(map(handover.name, self.sockets))
        return f"<portbook.Lease of port {self.port}: {names}{'' if self._owned else ', taken'}>"


class LeasePlan(NamedTuple):
    """What to bind, in this order, all to one port."""

    places: tuple[Endpoint, ...]
    protocols: tuple[Protocol, ...]
    listens: bool

    def options(self, protocol: Protocol, chosen: bool) -> Options:
        """How to bind a socket; ``chosen``: by us and not by the caller. See the docstring of the module."""
        reuse_address = False if chosen or not self.listens else None
        return Options(protocol, reuse_address=reuse_address, listens=self.listens)


def lease(
    port: PortLike = 0,
    *,
    protocols: Sequence[Protocol] | None = None,
    address: str | None = None,
    dual: bool = False,
    ports: PortsLike | None = None,
    listens: bool = True,
) -> Lease:
    """Bind a port for every protocol, on every endpoint, and hold it.

    :param port: a number, or text such as ``53/udp`` or ``127.0.0.1:8080``; 0 lets the system choose a number that is
        free for every socket
    :param protocols: None: that of the port, else "tcp"
    :param address: one address, or "localhost" for both loopback addresses; None is that of the port, else 0.0.0.0 and
        ::, without a family that this machine lacks
    :param dual: one IPv6 socket that takes IPv4 as well
    :param ports: any of these, in random order, instead of the system's choice: numbers, or text such as ``8000-8100``
    :param listens: False: TCP sockets are bound and do not listen yet; nobody can connect, no other socket can bind
    :returns: the lease; close it, or use it as a context manager
    :raises LeaseError: the port, or each of the ports, cannot be bound
    :raises UsageError: an argument is not valid
    :raises PortbookError: this process has no descriptor left
    """
    is_named = port not in (0, "0")
    if is_named and ports is not None:
        raise UsageError("a port and a range of ports exclude each other", "give one of them")
    wanted = request(parse_one(port) if is_named else ports, protocols, address, dual=dual)
    plan = LeasePlan(wanted.places, wanted.protocols, listens)
    if is_named and wanted.numbers is not None:
        return _lease_named(wanted.numbers[0], plan)
    numbers = _any_numbers() if wanted.numbers is None else choice.shuffled(choice.pool(wanted.numbers).numbers)
    return _lease_one_of(numbers, plan)


def _any_numbers() -> Iterator[int]:
    """Let the system choose (0) some times, then every number that it could have chosen, once each."""
    yield from repeat(0, CHOICES)
    system = ephemeral.take()
    yield from filter(system.has, choice.shuffled(range(system.low, system.high + 1)))


def _lease_named(port: int, plan: LeasePlan) -> Lease:
    try:
        leased = _bind_all(port, plan, chosen=False)
    except BindError as error:
        raise _failure(f"port {port}", error, f"run {_why_command(port, error)} for the reason") from error
    _look_at_rules(leased, take_ports(plan.places), plan)
    return leased


def _lease_one_of(numbers: Iterator[int], plan: LeasePlan) -> Lease:
    count = 0
    last: BindError | None = None
    diverted: DivertedPorts | None = None
    held: list[Lease] = []  # ports that rules take away: held, so that none of them is chosen again
    with ExitStack() as open_leases:
        for number in numbers:
            count += 1
            try:
                leased = _bind_all(number, plan, chosen=True)
            except BindError as error:
                last = error
                if error.fault.posix not in TAKEN:
                    break
                continue
            held.append(open_leases.enter_context(leased))
            diverted = diverted or take_ports(plan.places)
            _look_at_rules(leased, diverted, plan)
            if not leased.diversions or len(held) == MOST_DIVERTED:
                break
        if held:
            best = held[0] if held[-1].diversions else held[-1]
            open_leases.pop_all()
            for other in held:
                if other is not best:
                    other.close()
            return best
    assert last is not None  # noqa: S101  there is at least one number
    what = "a port"
    if count > 1:
        what = f"any of {count} ports"
    raise _failure(what, last, "choose among other ports") from last


def _look_at_rules(leased: Lease, diverted: DivertedPorts, plan: LeasePlan) -> None:
    """Note what sends packets to the port elsewhere."""
    leased.diversions = diverted.of(leased.port, plan.protocols)
    leased.gaps = diverted.gaps


def _bind_all(port: int, plan: LeasePlan, *, chosen: bool) -> Lease:
    """Bind every socket to one port: the first one's, if the system chooses."""
    with ExitStack() as open_sockets:
        sockets: list[net.socket] = []
        missing: BindError | None = None
        for protocol, place in product(plan.protocols, plan.places):
            try:
                sock = open_sockets.enter_context(bind(port, place, plan.options(protocol, chosen), net.socket))
            except BindError as error:
                if not _lacks_family(error, place, plan):
                    raise
                missing = error
                continue
            accepts = plan.listens and protocol == "tcp"
            if chosen and accepts and sys.platform != "win32":
                sock.setsockopt(net.SOL_SOCKET, net.SO_REUSEADDR, 1)  # its connections do not block the next server
            sockets.append(sock)
            port = sock.getsockname()[1]
        if not sockets and missing is not None:
            raise missing
        open_sockets.pop_all()
        return Lease(sockets)


def _lacks_family(error: BindError, place: Endpoint, plan: LeasePlan) -> bool:
    """Whether the machine lacks the family of a wildcard or a loopback address, which is one of several."""
    return error.fault.posix in NO_FAMILY and len(plan.places) > 1 and place.address in endpoints.BOTH


def _failure(what: str, error: BindError, hint: str) -> PortbookError:
    call = f"{error.step}() on {error.endpoint!s} ({error.protocol})"
    message = f"cannot lease {what}: {call} failed with {error.fault.name}, {(error.strerror or '').lower()}"
    if error.fault.scarce:
        return PortbookError(message, "raise the limit on open files, or close some")
    return LeaseError(message, hint)


def _why_command(port: int, error: BindError) -> str:
    """The ``portbook why`` command for what failed."""
    place = error.endpoint
    command = f"portbook why {port}"
    if error.protocol == "udp":
        command += "/udp"
    if place.dual:
        return f"{command} --dual"
    if place in EVERYWHERE:
        return command
    return f"{command} --address {str(place).strip('[]')}"
