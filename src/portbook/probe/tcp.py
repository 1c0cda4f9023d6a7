"""One TCP connect: started without waiting, finished when the system reports its end, with the evidence of it.

The scan engine has a thousand of these in flight; ``connect`` has one and waits for it. Either way the evidence is what
the kernel keeps: SO_ERROR, and on Linux the error queue of the socket with type, code and sender of an ICMP message.

Facts: RFC 9293 sections 3.5 and 3.10.7.3 (RST in SYN-SENT, simultaneous open); RFC 1122 section 4.2.3.9; RFC 792,
RFC 1812 section 5.2.7.1 and RFC 4443 section 3.1 (codes of unreachable); connect(2).
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from contextlib import suppress
from functools import cache
from time import perf_counter
from typing import NamedTuple

from portbook.addresses import SocketAddress, family_of, reach_of, socket_address
from portbook.probe import error_queue
from portbook.probe.error_queue import QueuedError, drain
from portbook.probe.outcome import SILENCE, Evidence, EvidenceKind, Outcome
from portbook.resilience import Fault, classify, of_errno

LINUX = sys.platform == "linux"


class ConnectResult(NamedTuple):
    """What one connect found out, and the evidence."""

    outcome: Outcome
    evidence: Evidence


OPEN = ConnectResult("open", Evidence("syn-ack"))
CLOSED = ConnectResult("closed", Evidence("rst", errno.ECONNREFUSED, "ECONNREFUSED"))
SILENT = ConnectResult("filtered", SILENCE)
# Both ends of a connection in one socket (RFC 9293 section 3.5, simultaneous open): the system chose as the source the
# very port that is probed. That it could shows that nothing listens there. It rarely happens twice.
SELF_CONNECTED = ConnectResult("closed", Evidence("self-connect", text="nothing holds the port"))
NOT_CONNECTED = ConnectResult(
    "error", Evidence("errno", errno.ENOTCONN, "ENOTCONN", text="neither connected nor refused")
)

# What an error means for the port after the SYN was sent. ECONNRESET and EPIPE come after the handshake: before it a
# RST is ECONNREFUSED (RFC 9293 section 3.10.7.3), so a listener accepted and closed at once. EACCES comes from the
# network too: Linux translates ICMPv6 "administratively prohibited" into it.
ERRORS_AFTER_SYN: dict[str, tuple[Outcome, EvidenceKind]] = {
    "ECONNREFUSED": ("closed", "rst"),
    "ECONNRESET": ("open", "syn-ack"),
    "EPIPE": ("open", "syn-ack"),
    "ETIMEDOUT": ("filtered", "silence"),
    "EHOSTUNREACH": ("unreachable", "errno"),
    "EHOSTDOWN": ("unreachable", "errno"),
    "ENETUNREACH": ("unreachable", "errno"),
    "ENETDOWN": ("unreachable", "errno"),
    "ENOPROTOOPT": ("filtered", "errno"),
    "EPROTO": ("filtered", "errno"),
    "EACCES": ("filtered", "errno"),
    "EPERM": ("filtered", "errno"),
}
# The same when connect() itself reports it. Loopback of the BSDs is refused at once; all else is decided by this
# machine, and what forbids it (a "prohibit" route, a security module) is not on the path.
ERRORS_OF_CONNECT = {
    name: ERRORS_AFTER_SYN[name]
    for name in ("ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "ETIMEDOUT")
}
NOT_SENT: tuple[Outcome, EvidenceKind] = ("error", "errno")

IN_PROGRESS = frozenset(
    (errno.EWOULDBLOCK, errno.EINPROGRESS, errno.EALREADY)
    if sys.platform == "win32"
    else (errno.EINPROGRESS, errno.EALREADY, errno.EINTR)  # connect(2): after EINTR it continues by itself
)

# Type 3 of ICMP and type 1 of ICMPv6, destination unreachable, by code. A TCP never sends "port unreachable" (it sends
# RST), nor "protocol unreachable": these come from firewalls, as does every "prohibited".
UNREACHABLE: dict[int, dict[int, tuple[Outcome, str]]] = {
    4: {
        0: ("unreachable", "network unreachable"),
        1: ("unreachable", "host unreachable"),
        2: ("filtered", "protocol unreachable"),
        3: ("filtered", "port unreachable"),
        5: ("unreachable", "source route failed"),
        6: ("unreachable", "network unknown"),
        7: ("unreachable", "host unknown"),
        8: ("unreachable", "source host isolated"),
        9: ("filtered", "network administratively prohibited"),
        10: ("filtered", "host administratively prohibited"),
        11: ("unreachable", "network unreachable for this type of service"),
        12: ("unreachable", "host unreachable for this type of service"),
        13: ("filtered", "communication administratively prohibited"),
        14: ("filtered", "host precedence violation"),
        15: ("filtered", "precedence cutoff in effect"),
    },
    6: {
        0: ("unreachable", "no route to destination"),
        1: ("filtered", "administratively prohibited"),
        2: ("unreachable", "beyond scope of source address"),
        3: ("unreachable", "address unreachable"),
        4: ("filtered", "port unreachable"),
        5: ("filtered", "source address failed policy"),
        6: ("filtered", "reject route to destination"),
    },
}
DESTINATION_UNREACHABLE = {4: 3, 6: 1}
OTHER_ICMP: tuple[Outcome, str] = ("unreachable", "")  # time exceeded: a loop of routes; parameter problem

# SO_LINGER with no time: close() sends RST and leaves no TIME_WAIT (RFC 9293 section 3.10.5, ABORT). Legitimate here:
# no data was sent or will be, and a thousand TIME_WAITs a second would use up the local ports. nmap does the same.
ABORT = struct.pack("=HH" if sys.platform == "win32" else "=ii", 1, 0)
SELF_TRIES = 4  # the chance that the system chooses one port so often by accident is 1 in 10**17


class Connection(NamedTuple):
    """A connect to one port that has ended. When the outcome is open, the caller has to close the socket."""

    result: ConnectResult
    elapsed_s: float
    socket: socket.socket | None


# --- the steps -----------------------------------------------------------------------------------------------------


def create_socket(address: str) -> socket.socket:
    """Create a non-blocking socket of the address's family that keeps ICMP errors; raise OSError."""
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if LINUX:
            error_queue.enable(sock)
        elif sys.platform == "win32" and reach_of(address) == "loopback":
            from portbook.probe.initial_rto import refuse_at_once

            refuse_at_once(sock)
    except OSError:
        sock.close()
        raise
    return sock


def start_connect(sock: socket.socket, destination: SocketAddress) -> ConnectResult | None:
    """Send the SYN; return the result when connect() knows it at once, else None."""
    error = sock.connect_ex(destination)
    if error in IN_PROGRESS:
        return None
    return established_result(sock) if error == 0 else errno_result(error, sent=False)


def finish_connect(sock: socket.socket, port: int) -> ConnectResult:
    """Return the result of a connect whose socket has become writable or has an error."""
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error == 0 and (ends := _ends(sock)) is not None:
        return SELF_CONNECTED if ends[0] == ends[1] else OPEN
    if (icmp := queued_icmp_result(sock, port)) is not None:
        return icmp
    error = error or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # a RST may have come in between
    return errno_result(error) if error else NOT_CONNECTED


def established_result(sock: socket.socket) -> ConnectResult:
    """Open, if the other end is another socket; the system has reported that the handshake is complete."""
    ends = _ends(sock)  # None: the other side has closed since
    return SELF_CONNECTED if ends is not None and ends[0] == ends[1] else OPEN


def _ends(sock: socket.socket) -> tuple[SocketAddress, SocketAddress] | None:
    """Return local and remote address of a connection; None when there is none."""
    try:
        return sock.getsockname(), sock.getpeername()
    except OSError:
        return None


def abort(sock: socket.socket) -> None:
    """Close with RST, so that neither side keeps state of the connection."""
    with suppress(OSError):  # macOS: EINVAL when the other side has closed already; then there is nothing to abort
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    sock.close()


def hang_up(sock: socket.socket) -> None:
    """Close with FIN and not RST: one connection is not a scan, and must not be an error in the server's log.

    The peer may have closed first (ENOTCONN, WinError 10057), which is no failure.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        sock.close()


# --- the evidence --------------------------------------------------------------------------------------------------


@cache
def errno_result(number: int, *, sent: bool = True) -> ConnectResult:
    """The outcome of a port from an error number; ``sent`` as in ``fault_result``."""
    return fault_result(of_errno(number), number, sent=sent)


def fault_result(fault: Fault, number: int, *, sent: bool = True) -> ConnectResult:
    """The outcome of a port from an error.

    :param number: errno, or winerror on Windows
    :param sent: the SYN had been sent; False when connect() itself returned the error
    """
    errors = ERRORS_AFTER_SYN if sent else ERRORS_OF_CONNECT
    outcome, kind = errors.get(fault.posix, NOT_SENT)
    text = fault.reason if kind == "errno" else None
    return ConnectResult(outcome, Evidence(kind, number, fault.name, text=text))


def icmp_result(icmp: QueuedError) -> ConnectResult:
    """The outcome of a port from an ICMP message."""
    outcome, text = OTHER_ICMP
    if icmp.version is not None and icmp.type == DESTINATION_UNREACHABLE[icmp.version]:
        outcome, text = UNREACHABLE[icmp.version].get(icmp.code, OTHER_ICMP)
    name = errno.errorcode.get(icmp.errno)
    return ConnectResult(outcome, Evidence("icmp", icmp.errno, name, icmp.type, icmp.code, icmp.sender, text or None))


def queued_icmp_result(sock: socket.socket, port: int) -> ConnectResult | None:
    """The result from an ICMP message about a port, if the socket's error queue has one; only on Linux."""
    if not LINUX:
        return None
    for kept in drain(sock):
        if kept.version and kept.port == port:
            return icmp_result(kept)
    return None


# --- one at a time -------------------------------------------------------------------------------------------------


def connect(address: str, port: int, zone: str | None = None, timeout_s: float = 3.0) -> Connection:
    """Connect to one port; wait at most ``timeout_s`` seconds. Never raises OSError: an error is a result."""
    began = perf_counter()
    for _ in range(SELF_TRIES):
        connection = _connect_once(address, port, zone, began, began + timeout_s)
        if connection.result is not SELF_CONNECTED:
            break
    return connection


def _connect_once(address: str, port: int, zone: str | None, began: float, until: float) -> Connection:
    sock = None
    result: ConnectResult | None = None
    try:
        sock = create_socket(address)
        result = start_connect(sock, socket_address(address, port, zone))
        if result is None and _wait(sock, max(0.0, until - perf_counter())):
            result = finish_connect(sock, port)
    except OSError as error:
        result = fault_result(classify(error), error.errno or 0, sent=False)
    elapsed_s = perf_counter() - began
    if sock is not None and (result is None or result.outcome != "open"):
        abort(sock)
        sock = None
    return Connection(result or SILENT, elapsed_s, sock)


def _wait(sock: socket.socket, timeout_s: float) -> bool:
    """Wait for a connect to succeed or fail; False when it has not."""
    if sys.platform == "win32":  # select() reports a failed connect as exceptional, not as writable
        from select import select

        _, writable, failed = select([], [sock], [sock], timeout_s)
        return bool(writable or failed)
    from selectors import EVENT_WRITE, DefaultSelector

    with DefaultSelector() as selector:  # unlike select(), not limited to descriptor 1023
        selector.register(sock, EVENT_WRITE)
        return bool(selector.select(timeout_s))
