"""The error queue of a Linux socket: each ICMP message that concerned it, with its type, code and sender.

A socket enables it with IP_RECVERR or IPV6_RECVERR (ip(7), ipv6(7), include/uapi/linux/errqueue.h). ip(7) does not
document that TCP sockets have an error queue, but tcp_recvmsg() serves it; IPv4 fills it without IP_RECVERR, IPv6
only with it (both seen on Linux 6.18). Unconnected sockets have it too.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from portbook.addresses import SocketAddress

PRESENT = sys.platform == "linux"

# include/uapi/linux/in.h, in6.h, errqueue.h; Python has names for none of them
IP_RECVERR, IPV6_RECVERR = 11, 25
RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, IP_RECVERR), socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_RECVERR)}
MSG_ERRQUEUE = 0x2000
EXTENDED_ERROR = struct.Struct("=IBBBBII")  # sock_extended_err: errno, origin, type, code, pad, info, data
VERSIONS = {2: 4, 3: 6}  # of SO_EE_ORIGIN_ICMP and SO_EE_ORIGIN_ICMP6
OFFENDER = {socket.AF_INET: (4, 8), socket.AF_INET6: (8, 24)}  # where the address lies in the sockaddr that follows
LARGEST_SOCKADDR = 28  # struct sockaddr_in6
CONTROL_SIZE = socket.CMSG_SPACE(EXTENDED_ERROR.size + LARGEST_SOCKADDR) if hasattr(socket, "CMSG_SPACE") else 0
MOST_QUEUED = 16  # read at once; the rest keeps the socket readable


class QueuedError(NamedTuple):
    """One entry of the error queue of a socket."""

    version: int | None  # of ICMP, 4 or 6; None: an error of this machine, without a message
    type: int
    code: int
    sender: str | None  # of the message
    port: int  # that the datagram or segment was sent to
    errno: int


def enable(sock: socket.socket) -> None:
    """Have the kernel queue the errors of a socket. Linux only."""
    sock.setsockopt(*RECVERR[sock.family], 1)


def drain(sock: socket.socket) -> Iterator[QueuedError]:
    """Remove and yield the entries of the queue of a socket. Linux only."""
    for _ in range(MOST_QUEUED):
        try:
            _, controls, _, destination = sock.recvmsg(0, CONTROL_SIZE, MSG_ERRQUEUE)  # type: ignore[attr-defined,unused-ignore]
        except OSError:  # EAGAIN: the queue is empty
            return
        for level, kind, data in controls:
            if (level, kind) not in RECVERR.values():
                continue
            queued = parse(data, destination)
            if queued is not None:
                yield queued


def parse(data: bytes, destination: SocketAddress) -> QueuedError | None:
    """Parse one control message about what was sent to ``destination``; None if it is cut short."""
    if len(data) < EXTENDED_ERROR.size:
        return None
    number, origin, icmp_type, icmp_code, _, _, _ = EXTENDED_ERROR.unpack_from(data)
    version = VERSIONS.get(origin)
    sender = _address(data[EXTENDED_ERROR.size :]) if version else None
    return QueuedError(version, icmp_type, icmp_code, sender, destination[1], number)


def _address(sockaddr: bytes) -> str | None:
    """Return the address in a struct sockaddr_in or sockaddr_in6; None if it has neither."""
    family = int.from_bytes(sockaddr[:2], sys.byteorder)
    first, last = OFFENDER.get(family, (0, 0))  # type: ignore[call-overload]  # an int that may be a family
    if not first or len(sockaddr) < last:
        return None
    return socket.inet_ntop(family, sockaddr[first:last])
