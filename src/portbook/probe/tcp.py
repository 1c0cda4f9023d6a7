"""One TCP connect: begun without waiting, finished when the system says so, judged by what was seen.

The scan engine holds a thousand of these at once; ``ask`` holds one and waits for it. Either way the evidence is what
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


class Finding(NamedTuple):
    """What one attempt found, and by what."""

    outcome: Outcome
    evidence: Evidence


OPEN = Finding("open", Evidence("syn-ack"))
CLOSED = Finding("closed", Evidence("rst", errno.ECONNREFUSED, "ECONNREFUSED"))
SILENT = Finding("filtered", SILENCE)  # from one attempt alone: "timeout"
# Two ends of one connection in one socket (RFC 9293 section 3.5, simultaneous open): the system chose the very port
# that is asked as the source. That it could shows that nobody listens there. Asked again, it rarely happens twice.
SELF = Finding("closed", Evidence("self-connect", text="nobody holds the port"))
UNHEARD = Finding("timeout", SILENCE)
NOT_CONNECTED = Finding("error", Evidence("errno", errno.ENOTCONN, "ENOTCONN", text="neither connected nor refused"))

# What an error says about the port when the question had been sent. ECONNRESET and EPIPE come after the handshake:
# before it a RST is ECONNREFUSED (RFC 9293 section 3.10.7.3), so somebody accepted and hung up at once. EACCES comes
# from the network too: Linux makes it of ICMPv6 "administratively prohibited".
SENT: dict[str, tuple[Outcome, EvidenceKind]] = {
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
# The same when connect() itself said so. Loopback of the BSDs is refused at once; all else is this machine's own
# opinion, and what forbids it (a "prohibit" route, a security module) is not on the way.
AT_ONCE = {
    name: SENT[name]
    for name in ("ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "ETIMEDOUT")
}
NOT_ASKED: tuple[Outcome, EvidenceKind] = ("error", "errno")

IN_PROGRESS = frozenset(
    (errno.EWOULDBLOCK, errno.EINPROGRESS, errno.EALREADY)
    if sys.platform == "win32"
    else (errno.EINPROGRESS, errno.EALREADY, errno.EINTR)  # connect(2): after EINTR it goes on by itself
)

# Type 3 of ICMP and type 1 of ICMPv6, destination unreachable, by code. A TCP never says "port unreachable" (it sends
# RST), nor "protocol unreachable": these are firewalls, as is every "prohibited".
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

# SO_LINGER on with no time: close() sends RST and keeps no TIME_WAIT (RFC 9293 section 3.10.4, ABORT). Legitimate here:
# no data was sent or will be, and a thousand TIME_WAITs a second would use up the local ports. nmap does the same.
ABORT = struct.pack("=HH" if sys.platform == "win32" else "=ii", 1, 0)
SELF_TRIES = 4  # the chance that the system chooses one port so often by accident is 1 in 10**17


class Asked(NamedTuple):
    """One port, asked once. The socket is connected, and the caller's to close, when the outcome is open."""

    finding: Finding
    elapsed_s: float
    socket: socket.socket | None


# --- the steps -----------------------------------------------------------------------------------------------------


def create(address: str) -> socket.socket:
    """A non-blocking socket of the address's family that keeps ICMP errors; OSError when there is none to be had."""
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


def begin(sock: socket.socket, where: SocketAddress) -> Finding | None:
    """Send the SYN; a finding when connect() knows the end of it at once, else None."""
    error = sock.connect_ex(where)
    if error in IN_PROGRESS:
        return None
    return established(sock) if error == 0 else judged(error, sent=False)


def finish(sock: socket.socket, port: int) -> Finding:
    """What became of a connect, once the socket is writable or in error."""
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error == 0 and (ends := _ends(sock)) is not None:
        return SELF if ends[0] == ends[1] else OPEN
    if (icmp := icmp_kept(sock, port)) is not None:
        return icmp
    error = error or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # a RST may have come in between
    return judged(error) if error else NOT_CONNECTED


def established(sock: socket.socket) -> Finding:
    """Open, if the other end is another socket; the system has said that the handshake is complete."""
    ends = _ends(sock)  # None: the other side has hung up since
    return SELF if ends is not None and ends[0] == ends[1] else OPEN


def _ends(sock: socket.socket) -> tuple[SocketAddress, SocketAddress] | None:
    """Local and remote address of a connection; None when there is none."""
    try:
        return sock.getsockname(), sock.getpeername()
    except OSError:
        return None


def abort(sock: socket.socket) -> None:
    """Close with RST, so that neither side keeps anything."""
    with suppress(OSError):  # macOS: EINVAL when the other side has closed already; then there is nothing to cut short
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    sock.close()


# --- the evidence --------------------------------------------------------------------------------------------------


@cache
def judged(number: int, *, sent: bool = True) -> Finding:
    """What an error number says about a port."""
    return weighed(of_errno(number), number, sent=sent)


def weighed(fault: Fault, number: int, *, sent: bool = True) -> Finding:
    """What an error says about a port; ``sent`` when it came later than from connect() itself."""
    outcome, kind = (SENT if sent else AT_ONCE).get(fault.posix, NOT_ASKED)
    text = fault.reason if kind == "errno" else None
    return Finding(outcome, Evidence(kind, number, fault.name, text=text))


def icmp_finding(icmp: QueuedError) -> Finding:
    """What an ICMP message says about a port."""
    outcome, text = OTHER_ICMP
    if icmp.version is not None and icmp.type == DESTINATION_UNREACHABLE[icmp.version]:
        outcome, text = UNREACHABLE[icmp.version].get(icmp.code, OTHER_ICMP)
    name = errno.errorcode.get(icmp.errno)
    return Finding(outcome, Evidence("icmp", icmp.errno, name, icmp.type, icmp.code, icmp.sender, text or None))


def icmp_kept(sock: socket.socket, port: int) -> Finding | None:
    """What an ICMP message about a port says, when the system kept one for its socket."""
    if not LINUX:
        return None
    return next((icmp_finding(kept) for kept in drain(sock) if kept.version and kept.port == port), None)


# --- one at a time -------------------------------------------------------------------------------------------------


def ask(address: str, port: int, zone: str | None = None, timeout_s: float = 3.0) -> Asked:
    """Connect to one port and wait for the end of it, at most ``timeout_s``."""
    began = perf_counter()
    for _ in range(SELF_TRIES):
        asked = _ask_once(address, port, zone, began, began + timeout_s)
        if asked.finding is not SELF:
            break
    return asked


def _ask_once(address: str, port: int, zone: str | None, began: float, until: float) -> Asked:
    sock = None
    finding: Finding | None = None
    try:
        sock = create(address)
        finding = begin(sock, socket_address(address, port, zone))
        if finding is None and _ended(sock, max(0.0, until - perf_counter())):
            finding = finish(sock, port)
    except OSError as error:
        finding = weighed(classify(error), error.errno or 0, sent=False)
    elapsed_s = perf_counter() - began
    if sock is not None and (finding is None or finding.outcome != "open"):
        abort(sock)
        sock = None
    return Asked(finding or UNHEARD, elapsed_s, sock)


def _ended(sock: socket.socket, timeout_s: float) -> bool:
    """Wait for a connect to succeed or fail."""
    if sys.platform == "win32":  # there a failed connect is exceptional, not writable
        from select import select

        _, writable, failed = select([], [sock], [sock], timeout_s)
        return bool(writable or failed)
    from selectors import EVENT_WRITE, DefaultSelector

    with DefaultSelector() as selector:  # select() ends at descriptor 1023
        selector.register(sock, EVENT_WRITE)
        return bool(selector.select(timeout_s))
