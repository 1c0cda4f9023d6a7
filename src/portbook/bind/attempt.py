"""The real bind: exactly what a server would do, and what the system says to it.

A server on POSIX sets SO_REUSEADDR on a TCP socket, so that connections of its predecessor in TIME_WAIT do not stop it,
and listens: two sockets may both be bound with it, and only listen() tells them apart. On Windows the same option takes
the port away from its holder; there a server that wants to be alone sets SO_EXCLUSIVEADDRUSE. UDP servers set neither.

Sources: socket(7), ip(7), ipv6(7), tcp(7), bind(2), listen(2); "Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE" on
learn.microsoft.com; RFC 3493 section 5.3 (IPV6_V6ONLY).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from msgspec import Struct

from portbook.addresses import Endpoint, is_mapped, socket_address
from portbook.records import Protocol
from portbook.resilience import Fault, classify

WINDOWS = sys.platform == "win32"
BACKLOG = 128
TYPES: dict[Protocol, socket.SocketKind] = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
# What an address family answers that this machine does not have, or has switched off (net.ipv6.conf.all.disable_ipv6
# and no ::1). For one of several addresses that is no obstacle: a server goes without it.
NO_FAMILY = frozenset(("EAFNOSUPPORT", "EADDRNOTAVAIL"))
BindStep = Literal["socket", "setsockopt", "bind", "listen"]  # the calls that a server makes, in this order


class Options(Struct, frozen=True):
    """How a socket is bound."""

    protocol: Protocol = "tcp"
    reuse_address: bool | None = None  # SO_REUSEADDR; None: as servers do, on POSIX for TCP
    reuse_port: bool = False  # SO_REUSEPORT, where the system has it
    listens: bool = True  # listen() after the bind, for TCP


class Tried(Struct, frozen=True):
    """What became of one bind."""

    endpoint: Endpoint
    port: int  # that was asked, or that the system chose
    error: int | None = None  # errno, or the number of Windows Sockets; None: it could be had
    error_name: str | None = None  # "EADDRINUSE", "WSAEACCES"
    step: BindStep | None = None  # the call that failed

    @property
    def ok(self) -> bool:
        """Whether the port could be had there."""
        return self.error is None


class BindError(OSError):
    """A bind that failed, and at which call; ``__cause__`` is the system's error."""

    def __init__(self, step: BindStep, error: OSError, endpoint: Endpoint, protocol: Protocol = "tcp") -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.step = step
        self.endpoint = endpoint
        self.protocol = protocol
        self.fault: Fault = classify(error)
        self.number: int = getattr(error, "winerror", None) or error.errno or 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle everything but the cause. OSError would call ``__init__`` with an errno and a text."""
        system_error = OSError(self.errno, self.strerror)
        return type(self), (self.step, system_error, self.endpoint, self.protocol), self.__dict__

    @property
    def no_family(self) -> bool:
        """Whether the machine does not have this address family, when the address is a wildcard."""
        return self.fault.posix in NO_FAMILY


def bind(port: int, endpoint: Endpoint, options: Options = Options()) -> socket.socket:  # noqa: B008  frozen
    """Bind a socket, and listen if a server would; the caller closes it.

    :param port: 0 lets the system choose
    :raises BindError: it cannot be had
    """
    step: BindStep = "socket"
    sock: socket.socket | None = None
    try:
        sock = socket.socket(endpoint.family, TYPES[options.protocol])
        step = "setsockopt"
        _set(sock, endpoint, options)
        step = "bind"
        sock.bind(socket_address(endpoint.address, port, endpoint.zone))
        step = "listen"
        if options.listens and options.protocol == "tcp":
            sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise BindError(step, error, endpoint, options.protocol) from error
    return sock


def attempt(port: int, endpoints: Sequence[Endpoint], options: Options = Options()) -> tuple[Tried, ...]:  # noqa: B008
    """Bind every endpoint, all held at once, and let go.

    For the moment that takes the port is taken: who connects just then is refused. Nothing else can tell for sure.
    A wildcard or loopback whose family this machine does not have is left out, unless it is the only one.
    """
    with ExitStack() as held:
        tried = tuple(_tried(held, port, endpoints, options))
    present = tuple(one for one in tried if one.ok or not _absent(one))
    return present or tried


def _tried(held: ExitStack, port: int, endpoints: Iterable[Endpoint], options: Options) -> Iterator[Tried]:
    for endpoint in endpoints:
        try:
            sock = held.enter_context(bind(port, endpoint, options))
        except BindError as error:
            yield Tried(endpoint, port, error.number, error.fault.name, error.step)
        else:
            yield Tried(endpoint, sock.getsockname()[1])


def _absent(tried: Tried) -> bool:
    special = tried.endpoint.address in ("0.0.0.0", "::", "127.0.0.1", "::1")  # noqa: S104  compared
    return special and (tried.error_name or "").removeprefix("WSA") in NO_FAMILY


def _set(sock: socket.socket, endpoint: Endpoint, options: Options) -> None:
    if endpoint.family == socket.AF_INET6:
        # With IPV6_V6ONLY an IPv4-mapped address cannot be bound: ipv6(7).
        v6only = not endpoint.dual and not is_mapped(endpoint.address)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    reuse = options.reuse_address
    if sys.platform == "win32" and not reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    elif reuse or (reuse is None and options.protocol == "tcp"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.reuse_port and hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
