"""What Linux keeps of the errors of a socket: each ICMP message with its type, code and sender.

A socket asks for it with IP_RECVERR or IPV6_RECVERR (ip(7), ipv6(7), include/uapi/linux/errqueue.h). That TCP sockets
have an error queue is not in ip(7), but tcp_recvmsg() serves it; IPv4 fills it without IP_RECVERR, IPv6 only with it
(both seen on Linux 6.18). Sockets that are not connected have it too.
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
OFFENDER = {socket.AF_INET: (4, 8), socket.AF_INET6: (8, 24)}  # where in the sockaddr after it the address lies
ROOM = socket.CMSG_SPACE(EXTENDED_ERROR.size + 28) if hasattr(socket, "CMSG_SPACE") else 0
MOST_QUEUED = 16  # read at once; what is left keeps the socket readable


class Kept(NamedTuple):
    """One error that the kernel kept for a socket."""

    version: int | None  # 4 or 6: of ICMP; None: no message came, this machine says so itself
    type: int
    code: int
    sender: str | None  # of the message
    port: int  # that had been asked
    errno: int


def wanted(sock: socket.socket) -> None:
    """Let the kernel keep what concerns a socket."""
    sock.setsockopt(*RECVERR[sock.family], 1)


def drain(sock: socket.socket) -> Iterator[Kept]:
    """What the queue of a socket holds. Linux only."""
    for _ in range(MOST_QUEUED):
        try:
            _, controls, _, where = sock.recvmsg(0, ROOM, MSG_ERRQUEUE)  # type: ignore[attr-defined,unused-ignore]
        except OSError:  # EAGAIN: the queue is empty
            return
        for level, kind, data in controls:
            if (level, kind) in RECVERR.values() and (kept := parse(data, where)) is not None:
                yield kept


def parse(data: bytes, where: SocketAddress) -> Kept | None:
    """One control message about what was sent to ``where``; None when it is cut short."""
    if len(data) < EXTENDED_ERROR.size:
        return None
    number, origin, kind, code, _, _, _ = EXTENDED_ERROR.unpack_from(data)
    version = VERSIONS.get(origin)
    sender = _address(data[EXTENDED_ERROR.size :]) if version else None
    return Kept(version, kind, code, sender, where[1], number)


def _address(sockaddr: bytes) -> str | None:
    """The address in a struct sockaddr_in or sockaddr_in6."""
    family = int.from_bytes(sockaddr[:2], sys.byteorder)
    first, last = OFFENDER.get(family, (0, 0))  # type: ignore[call-overload]  # an int that may be a family
    return socket.inet_ntop(family, sockaddr[first:last]) if first and len(sockaddr) >= last else None
