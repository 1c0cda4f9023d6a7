"""A port that is really yours: not a number but the bound sockets, to be handed to whoever serves.

When may two sockets be bound to one port? On Linux, when both set SO_REUSEADDR and neither listens (socket(7);
``inet_bind_conflict`` in net/ipv4/inet_connection_sock.c): of two programs that bind so and then listen, the second
fails at listen(). So a port that we choose is bound *without* the option, which nobody can share and which no socket
that somebody else has bound gets past; then listened on at once; and only then given the option, which
does no harm to a listener and which its connections inherit: without it a connection in TIME_WAIT would keep the next
server from the port for a minute. A port that the caller names is bound as a server binds it, with the option, or those
connections would keep him out; of two who do that at once, listen() tells who has it. UDP sockets are never shared:
without the option the bind is exclusive. Windows: SO_EXCLUSIVEADDRUSE, always.

A socket that listens is what every taker expects: asyncio, uvicorn and http.server listen again, which only
changes the backlog (listen(2)), and sd_listen_fds(3) sockets listen already. Whoever connects before the server
accepts waits in the queue instead of being refused.
"""

from __future__ import annotations

import os
import socket as net
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

from portbook.addresses import EVERYWHERE, Endpoint
from portbook.bind import choice, endpoints, handover
from portbook.bind.attempt import NO_FAMILY, BindError, Options, bind
from portbook.bind.free import check
from portbook.errors import LeaseError, PortbookError, UsageError
from portbook.netconfig import ephemeral
from portbook.records import Protocol

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType

# How often the system chooses before we go through its range ourselves: as long as a number can be had on one family,
# it may choose that again and again (Linux prefers every other number), though somebody has it on the other family.
CHOICES = 16
# Errors that another number need not meet. EACCES: a privileged port; on Windows a range that is excluded.
TAKEN = frozenset(("EADDRINUSE", "EACCES"))


class Lease:
    """Bound sockets of one port. A context manager, for ``async with`` as well: the end closes what was not taken."""

    def __init__(self, sockets: Sequence[net.socket]) -> None:
        self.sockets = tuple(sockets)  # TCP before UDP, IPv4 before IPv6
        self.port: int = sockets[0].getsockname()[1]
        self._owned = True

    @property
    def socket(self) -> net.socket:
        """The first of the sockets, for those who take one."""
        return self.sockets[0]

    def take(self) -> tuple[net.socket, ...]:
        """Take the sockets over: from now on the caller closes them."""
        self._owned = False
        return self.sockets

    def close(self) -> None:
        """Close the sockets, unless they were taken. Copies that a child has inherited keep the port."""
        if self._owned:
            for sock in self.sockets:
                sock.close()

    def environment(self, pid: int | None = None) -> dict[str, str]:
        """What a program is told that has the sockets at descriptors 3, 4, … (Windows: as inherited handles).

        :param pid: of that program; None: this process's own, which it keeps when it is replaced by exec
        """
        return handover.environment(self.port, self.sockets, os.getpid() if pid is None else pid)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program that finds the sockets as sd_listen_fds(3) describes (Windows: as inherited handles).

        This process keeps its own copies: close the lease, and the port is free when the program ends.

        A program that cannot be run: on Windows an OSError here, elsewhere a child that says so and ends with 127.

        :param options: for ``subprocess.Popen``, but no shell; ``env`` is completed
        :raises OSError: it cannot be started
        """
        if options.get("shell"):
            raise UsageError(
                "a shell would have the sockets, not the program", "start(['sh', '-c', ...]) if that is meant"
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


class Plan(NamedTuple):
    """What is bound, in this order, all to one port."""

    places: tuple[Endpoint, ...]
    protocols: tuple[Protocol, ...]
    listens: bool

    def options(self, protocol: Protocol, chosen: bool) -> Options:
        """How a socket is bound: see above."""
        return Options(protocol, reuse_address=False if chosen or not self.listens else None, listens=self.listens)


def lease(
    port: int = 0,
    *,
    protocols: Sequence[Protocol] = ("tcp",),
    address: str | None = None,
    dual: bool = False,
    ports: Iterable[int] | None = None,
    listens: bool = True,
) -> Lease:
    """Bind a port for every protocol, on every endpoint, and hold it.

    :param port: 0 lets the system choose a number that every socket can have
    :param address: one address, or "localhost" for both loopbacks; None is 0.0.0.0 and ::, of which a family that this
        machine lacks is left out
    :param dual: one IPv6 socket that takes IPv4 as well
    :param ports: any of these, in a random order, instead of the system's choice
    :param listens: False: TCP sockets are bound and do not listen yet; nobody can connect, nobody else can bind
    :raises LeaseError: it cannot be had
    :raises UsageError: what was asked makes no sense
    :raises PortbookError: this process has no descriptor left
    """
    if not 0 <= port <= 65535 or (port and ports is not None):
        raise UsageError(f"port {port} makes no sense here", "a number to 65535, or ports to choose from, or neither")
    plan = Plan(endpoints.parse(address, dual=dual), check(protocols), listens)
    if port:
        return _named(port, plan)
    return _chosen(_any() if ports is None else choice.shuffled(choice.pool(ports).numbers), plan)


def _any() -> Iterator[int]:
    """What the system likes, then all that it could have liked, once each."""
    yield from repeat(0, CHOICES)
    system = ephemeral.take()
    yield from filter(system.has, choice.shuffled(range(system.low, system.high + 1)))


def _named(port: int, plan: Plan) -> Lease:
    try:
        return _bound(port, plan, chosen=False)
    except BindError as error:
        raise _failure(f"port {port}", error, f"{_why(port, error)} tells what is in the way") from error


def _chosen(numbers: Iterator[int], plan: Plan) -> Lease:
    count = 0
    last: BindError | None = None
    for count, number in enumerate(numbers, 1):  # noqa: B007  told when none will do
        try:
            return _bound(number, plan, chosen=True)
        except BindError as error:
            last = error
            if error.fault.posix not in TAKEN:
                break
    assert last is not None  # noqa: S101  there is at least one number
    raise _failure(f"any of {count} ports" if count > 1 else "a port", last, "choose among others") from last


def _bound(port: int, plan: Plan, *, chosen: bool) -> Lease:
    """Bind everything to one port; the first socket tells the others which, when the system chooses."""
    with ExitStack() as held:
        sockets: list[net.socket] = []
        missing: BindError | None = None
        for protocol, place in ((protocol, place) for protocol in plan.protocols for place in plan.places):
            try:
                sock = held.enter_context(bind(port, place, plan.options(protocol, chosen)))
            except BindError as error:
                if not _is_absent(error, place, plan):
                    raise
                missing = error
            else:
                sockets.append(_shareable_in_time(sock, plan, protocol, chosen))
                port = sock.getsockname()[1]
        if not sockets and missing is not None:
            raise missing
        held.pop_all()
        return Lease(sockets)


def _shareable_in_time(sock: net.socket, plan: Plan, protocol: Protocol, chosen: bool) -> net.socket:
    """Let connections of this listener not keep the next one out."""
    if chosen and plan.listens and protocol == "tcp" and sys.platform != "win32":
        sock.setsockopt(net.SOL_SOCKET, net.SO_REUSEADDR, 1)
    return sock


def _is_absent(error: BindError, place: Endpoint, plan: Plan) -> bool:
    """Whether the machine lacks the family of a wildcard or a loopback, which is one of several."""
    return error.fault.posix in NO_FAMILY and len(plan.places) > 1 and place.address in endpoints.BOTH


def _failure(what: str, error: BindError, hint: str) -> PortbookError:
    where = f"{error.protocol} on {error.endpoint}"
    told = f"cannot lease {what}: {error.step}() of {where} says {error.fault.name}, {(error.strerror or '').lower()}"
    if error.fault.scarce:
        return PortbookError(told, "raise the limit, or close something")
    return LeaseError(told, hint)


def _why(port: int, error: BindError) -> str:
    """The command that says more."""
    place = error.endpoint
    address = "" if place in EVERYWHERE else f" --address {str(place).strip('[]')}"
    udp = "/udp" if error.protocol == "udp" else ""
    return f"portbook why {port}{udp}{' --dual' if place.dual else address}"
