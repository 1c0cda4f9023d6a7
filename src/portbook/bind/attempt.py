"""The real bind: exactly what a server would do, and what the system answers.

A server on POSIX sets SO_REUSEADDR on a TCP socket, so that connections of an earlier server in TIME_WAIT do not block
it, and listens: two sockets may both be bound with the option, and only listen() decides between them. On Windows the
same option takes the port away from its holder; there a server that wants the port alone sets SO_EXCLUSIVEADDRUSE. UDP
servers set neither.

Sources: socket(7), ip(7), ipv6(7), tcp(7), bind(2), listen(2); "Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE" on
learn.microsoft.com; RFC 3493 section 5.3 (IPV6_V6ONLY).
"""

from __future__ import annotations

import _socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any, Literal, TypeVar

from msgspec import Struct

from portbook.addresses import Endpoint, is_mapped, socket_address
from portbook.records import Protocol
from portbook.resilience import Fault, classify

AnySocket = TypeVar("AnySocket", bound=_socket.socket)

BACKLOG = 128
TYPES: dict[Protocol, int] = {"tcp": _socket.SOCK_STREAM, "udp": _socket.SOCK_DGRAM}
# The errors of an address family that this machine does not have, or has disabled (net.ipv6.conf.all.disable_ipv6, and
# no ::1). For one of several addresses they do not matter: a server continues without it.
NO_FAMILY = frozenset(("EAFNOSUPPORT", "EADDRNOTAVAIL"))
EVERY_MACHINE_HAS = ("0.0.0.0", "::", "127.0.0.1", "::1")  # noqa: S104  compared; each with its family
BindStep = Literal["socket", "setsockopt", "bind", "listen"]  # the calls that a server makes, in this order


class Options(Struct, frozen=True):
    """How a socket is bound."""

    protocol: Protocol = "tcp"
    reuse_address: bool | None = None  # SO_REUSEADDR; None: as servers do, which set it on POSIX for TCP
    reuse_port: bool = False  # SO_REUSEPORT, where the system has it
    listens: bool = True  # listen() after the bind, for TCP


class BindAttempt(Struct, frozen=True):
    """The result of one bind."""

    endpoint: Endpoint
    port: int  # the requested port, or the one that the system chose
    error: int | None = None  # errno, or the Windows Sockets error number; None: the bind succeeded
    error_name: str | None = None  # "EADDRINUSE", "WSAEACCES"
    step: BindStep | None = None  # the call that failed

    @property
    def ok(self) -> bool:
        """Whether the bind succeeded."""
        return self.error is None

    @property
    def posix_error(self) -> str:
        """The POSIX name of the error; empty if there is none."""
        return (self.error_name or "").removeprefix("WSA")


class BindError(OSError):
    """A bind that failed, and the call that failed; ``__cause__`` is the system's error."""

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


def bind(port: int, endpoint: Endpoint, options: Options, socket_type: type[AnySocket]) -> AnySocket:
    """Bind a socket, and listen if a server would; the caller closes it.

    :param port: 0 lets the system choose
    :param socket_type: ``socket.socket``, or the class of the C module below it: ``why`` needs no more, and the module
        ``socket`` takes a fifth of a bare Python to import
    :raises BindError: the system refuses
    """
    step: BindStep = "socket"
    sock: AnySocket | None = None
    try:
        sock = socket_type(endpoint.family, TYPES[options.protocol])
        step = "setsockopt"
        _set_options(sock, endpoint, options)
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


def attempt(port: int, endpoints: Sequence[Endpoint], options: Options = Options()) -> tuple[BindAttempt, ...]:  # noqa: B008
    """Bind every endpoint, all at the same time, and release them.

    While this runs the port is in use, and who connects at that moment is refused. No other test is reliable.
    A wildcard or loopback address whose family this machine does not have is omitted, unless it is the only one.

    :returns: one result for each endpoint
    """
    with ExitStack() as open_sockets:
        attempts = tuple(_attempt_each(open_sockets, port, endpoints, options))
    present = tuple(result for result in attempts if result.ok or not _lacks_family(result))
    return present or attempts


def _attempt_each(
    open_sockets: ExitStack, port: int, endpoints: Iterable[Endpoint], options: Options
) -> Iterator[BindAttempt]:
    for endpoint in endpoints:
        try:
            sock = open_sockets.enter_context(closing(bind(port, endpoint, options, _socket.socket)))
        except BindError as error:
            yield BindAttempt(endpoint, port, error.number, error.fault.name, error.step)
        else:
            yield BindAttempt(endpoint, sock.getsockname()[1])


def _lacks_family(result: BindAttempt) -> bool:
    return result.endpoint.address in EVERY_MACHINE_HAS and result.posix_error in NO_FAMILY


def _set_options(sock: _socket.socket, endpoint: Endpoint, options: Options) -> None:
    if endpoint.family == _socket.AF_INET6:
        # With IPV6_V6ONLY, IPv4-mapped addresses cannot be bound: ipv6(7).
        takes_ipv4 = endpoint.dual or is_mapped(endpoint.address)
        sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, int(not takes_ipv4))
    reuse = options.reuse_address
    if sys.platform == "win32" and not reuse:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_EXCLUSIVEADDRUSE, 1)
    elif reuse or (reuse is None and options.protocol == "tcp"):
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    if options.reuse_port and hasattr(_socket, "SO_REUSEPORT"):
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
