"""Linux, every user: the kernel announces the end of every TCP and UDP socket; the beginnings are polled.

``sock_diag`` has a multicast group for each family and protocol, to which it sends the address and the cookie of a
socket when that is freed (sock_diag_broadcast_destroy() in net/core/sock_diag.c, Linux 4.3). The groups are open to
everybody: diag_net_init() there has NL_CFG_F_NONROOT_RECV, and sock_diag_bind() asks for nothing. Who had the socket is
not in the message; a socket that was seen by polling is recognized by its cookie.

A socket that was never seen has ended between two readings. It is reported too, without a process, where the message
proves that it held the port by itself: see ``_held``. The ends of connections are left out by a filter in the kernel.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from _socket import SO_RCVBUF, SOL_SOCKET, socket
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from portbook.addresses import reach_of
from portbook.errors import SourceError, SourceGarbled, SourceMissing
from portbook.netconfig import ephemeral
from portbook.records import Protocol, Socket
from portbook.sources import sockdiag
from portbook.sources.sockdiag import ROW, SockdiagDump, SockdiagTable
from portbook.system import namespaces, netlink
from portbook.watching.feeds import poll, rows
from portbook.watching.feeds.base import Change, Feed, FeedKind, FeedSettings

if TYPE_CHECKING:
    from portbook.watching.feeds.bpf.timer import Timer

# enum sknetlink_groups in include/uapi/linux/sock_diag.h
GROUPS: dict[int, Protocol] = {1: "tcp", 2: "udp", 3: "tcp", 4: "udp"}
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1  # include/uapi/linux/netlink.h
SO_RCVBUFFORCE, SO_ATTACH_FILTER = 33, 26  # include/uapi/asm-generic/socket.h
MSG_DONTWAIT = 0x40  # include/linux/socket.h
RECEIVE_BYTES = 4 << 20  # about 3,000 messages; without CAP_NET_ADMIN as much as net.core.rmem_max allows
BUFFER = 1 << 14
MOST_MESSAGES = 10_000  # of one call
MOST_REMEMBERED = 20_000  # cookies of sockets that have ended, and are not freed yet
LOSSES_TOGETHER_NS = 1_000_000_000
SHORTER = 4  # so many readings in the interval of a feed that only polls
ANY = bytes(16)

# Classic BPF, of Documentation/networking/filter.rst: keep messages with a local port and without a remote one. The
# ports stand behind the header and the first four bytes of struct inet_diag_msg.
INSTRUCTION = struct.Struct("=HBBI")
LOAD_HALF, JUMP_IF_EQUAL, RETURN = 0x28, 0x15, 0x06
LOCAL_PORT_AT, REMOTE_PORT_AT = netlink.HEADER.size + 4, netlink.HEADER.size + 6
FILTER = b"".join(
    INSTRUCTION.pack(*instruction)
    for instruction in (
        (LOAD_HALF, 0, 0, LOCAL_PORT_AT),
        (JUMP_IF_EQUAL, 3, 0, 0),  # to "drop"
        (LOAD_HALF, 0, 0, REMOTE_PORT_AT),
        (JUMP_IF_EQUAL, 0, 1, 0),  # to "keep", to "drop"
        (RETURN, 0, 0, 0xFFFFFFFF),
        (RETURN, 0, 0, 0),
    )
)


class AnnouncedEnd:
    """What one message says."""

    __slots__ = ("cookie", "message", "port", "protocol")

    def __init__(self, protocol: Protocol, port: int, cookie: int, message: bytes) -> None:
        self.protocol = protocol
        self.port = port  # in network byte order
        self.cookie = cookie
        self.message = message


class DestroyFeed:
    """A subscription to the ends, with polling for the beginnings; raises SourceError."""

    def __init__(self, interval_s: float) -> None:
        from portbook.watching.feeds.bpf.timer import Timer  # not on Windows, where this module is imported too

        self._losses = 0  # that were not said yet
        self._losses_said_ns = -LOSSES_TOGETHER_NS
        self._remembered: dict[int, None] = {}  # in the order in which they ended
        self._ephemeral = ephemeral.take()
        self._netns = namespaces.own()
        self._channel = join()
        self._timer: Timer | None = None
        try:
            self._reader = poll.RowReader()
            self._poll = poll.Poll(self._reader, interval_s, interval_s / SHORTER)
            self._timer = Timer()
            self._waiting = select.epoll()
        except BaseException:
            self._end()
            raise
        self._waiting.register(self._channel.fileno(), select.EPOLLIN)
        self._waiting.register(self._timer.descriptor, select.EPOLLIN)
        self._timer.set(self._poll.due_ns)

    def fileno(self) -> int:
        """A descriptor that is readable when a socket has ended, or the next reading is due."""
        return self._waiting.fileno()

    def read(self, timeout_s: float) -> list[Change]:
        """Wait for changes, at most this long, and return them."""
        until = monotonic() + timeout_s
        while True:
            changes = self._take()
            left_s = until - monotonic()
            if changes or left_s <= 0:
                return changes
            self._waiting.poll(left_s)

    def close(self) -> None:
        """Leave the groups."""
        self._waiting.close()
        self._end()

    def _end(self) -> None:
        self._channel.close()
        if self._timer is not None:
            self._timer.close()

    def _take(self) -> list[Change]:
        """What has ended, and, when it is time for that, what is new."""
        changes, has_lost = self._take_ends()
        if has_lost:
            self._poll.hasten()
        if monotonic_ns() >= self._poll.due_ns:
            changes += self._poll_now()
        if self._timer is not None:
            self._timer.set(self._poll.due_ns)
        return changes

    def _poll_now(self) -> list[Change]:
        changes = self._poll.read_now()
        for change in changes:
            if change.kind in ("ended", "connected") and isinstance(change.key, int):
                self._remember(change.key)
        return changes

    def _take_ends(self) -> tuple[list[Change], bool]:
        """The changes that the messages tell, and whether messages were lost."""
        changes: list[Change] = []
        has_lost = False
        for _ in range(MOST_MESSAGES):
            try:
                data, _, flags, sender = self._channel.recvmsg(BUFFER, 0, MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise SourceError(f"sock_diag: the announcements of ends: {error.strerror}") from error
                has_lost = True  # once for all that were lost; the kernel does not count them
                continue
            if sender[0] == netlink.KERNEL[0] and not flags & netlink.MSG_TRUNC:
                changes += self._changes_of(data, sender[1])
        return changes + self._report_losses(has_lost), has_lost

    def _report_losses(self, has_lost: bool) -> list[Change]:
        """One change for all losses of a while: there may be one in every call."""
        now_ns = monotonic_ns()
        self._losses += has_lost
        if not self._losses or now_ns < self._losses_said_ns + LOSSES_TOGETHER_NS:
            return []
        why = "the kernel announced more ends than fit into the buffer: those that were known are found by reading"
        change = Change("lost", now_ns, exact=False, count=self._losses, reason=why)
        self._losses, self._losses_said_ns = 0, now_ns
        return [change]

    def _changes_of(self, data: bytes, groups: int) -> list[Change]:
        now_ns = monotonic_ns()
        changes: list[Change] = []
        for end in parse(data, groups):
            if self._reader.forget(end.cookie, end.port):
                changes.append(Change("ended", now_ns, end.cookie))
            elif end.cookie in self._remembered:
                del self._remembered[end.cookie]
            else:
                found = self._unseen(end)
                if found is not None:
                    changes += [
                        # It began after the last reading, and was not there yet when that was made.
                        Change("bound", self._poll.read_at_ns, end.cookie, found, process_gone=True, exact=False),
                        Change("ended", now_ns, end.cookie),
                    ]
        return changes

    def _remember(self, cookie: int) -> None:
        """A socket is freed some time after it has left the tables: that is no other one."""
        self._remembered[cookie] = None
        if len(self._remembered) > MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def _unseen(self, end: AnnouncedEnd) -> Socket | None:
        """The record of a socket that no reading has shown; None where it may have been a client."""
        try:
            s = socket_of(end, self._netns)
        except SourceGarbled:
            return None
        return s if self._held(s, end.message) else None

    def _held(self, s: Socket, message: bytes) -> bool:
        """Whether it held its port by itself.

        A client whose connection was refused has no peer any more either, and keeps the number of the port that the
        kernel chose; an address that it has not chosen itself is reset: tcp_disconnect(), inet_reset_saddr().
        """
        if s.protocol == "udp":
            return True  # __udp_disconnect() forgets such a port
        (address,) = struct.unpack_from("=16s", message, sockdiag.LOCAL_AT)
        return address != ANY or not self._ephemeral.has(s.local_port)


def socket_of(end: AnnouncedEnd, netns: int | None) -> Socket:
    """The record of what a message describes: the kernel does not know its user any more; raises SourceGarbled."""
    padding = bytes(-len(end.message) % 4)
    dump = SockdiagDump((SockdiagTable(end.protocol, end.message + padding + rows.END),), netns)
    reading = sockdiag.parse(dump)
    if len(reading.sockets) != 1:
        raise SourceGarbled("sock_diag: an announcement of no socket")
    s = reading.sockets[0]
    return Socket(
        s.protocol,
        s.family,
        s.local_address,
        s.local_port,
        state="BOUND" if s.protocol == "tcp" else None,
        reach=reach_of(s.local_address),  # it may have listened
        zone=s.zone,
        interface=s.interface,
        cookie=s.cookie,
        netns=netns,
    )


def parse(data: bytes, groups: int) -> Iterator[AnnouncedEnd]:
    """What the messages of one datagram say; what is no announcement is left out. Pure.

    :param groups: to which it was sent, a bit for each
    """
    protocol = GROUPS.get(groups.bit_length())
    at = 0
    while protocol and at + netlink.HEADER.size + ROW.size <= len(data):
        length, kind = sockdiag.HEAD.unpack_from(data, at)
        if length < netlink.HEADER.size + ROW.size or at + length > len(data):
            break
        if kind == sockdiag.SOCK_DIAG_BY_FAMILY:
            message = data[at : at + length]
            family = message[netlink.HEADER.size]
            (port,) = sockdiag.PORT.unpack_from(message, sockdiag.PORT_AT)
            (cookie,) = struct.unpack_from("=Q", message, sockdiag.COOKIE_AT)
            if family in sockdiag.FAMILY:
                yield AnnouncedEnd(protocol, port, cookie, message)
        at += (length + 3) & ~3


def join() -> socket:
    """A socket that receives the announcements of this network namespace; raise SourceMissing."""
    channel = None
    try:
        channel = netlink.connect(netlink.SOCK_DIAG)
        _attach_filter(channel)
        for name in (SO_RCVBUFFORCE, SO_RCVBUF):
            with suppress(PermissionError):
                channel.setsockopt(SOL_SOCKET, name, RECEIVE_BYTES)
                break
        for group in GROUPS:
            channel.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError as error:
        if channel is not None:
            channel.close()
        why = f"sock_diag: the ends of sockets are not announced here ({error.strerror})"
        raise SourceMissing(why, "Linux 4.3 and later do") from error
    return channel


def _attach_filter(channel: socket) -> None:
    import ctypes

    code = ctypes.create_string_buffer(FILTER, len(FILTER))
    program = struct.pack("@HP", len(FILTER) // INSTRUCTION.size, ctypes.addressof(code))  # struct sock_fprog
    channel.setsockopt(SOL_SOCKET, SO_ATTACH_FILTER, program)


def missing() -> str | None:
    """Why this feed does not work here; None if it does."""
    if not hasattr(os, "uname") or os.uname().sysname != "Linux":
        return "only on Linux"
    try:
        join().close()
    except SourceError as error:
        return str(error)
    return sockdiag.missing()


def open_feed(settings: FeedSettings) -> Feed:
    """Join the groups and read once; raise SourceError."""
    return DestroyFeed(settings.interval_s)


FEED = FeedKind(
    name="destroy",
    sees=(
        "the end of every TCP listener, bound TCP socket and UDP socket of this network namespace, at once",
        "their beginnings by polling, four times in the interval while that takes less than 2 % of a processor",
        "address and port of a socket that began and ended between two readings",
        "as root, by polling alone, the sockets of other network namespaces",
    ),
    misses=(
        "of a socket that began and ended between two readings: who had it, and whether it listened",
        "such a TCP socket, if it had every address and an ephemeral port: a client that was refused looks the same",
        "binds that fail",
    ),
    needs="nothing (Linux 4.3, for every user); for the owners of other users' sockets, and other namespaces, root",
    sees_udp=True,
    sees_failed=False,
    sees_other_namespaces=True,
    sees_processes=False,
    missing=missing,
    open=open_feed,
    between_readings=lambda interval_s: f"in other network namespaces: {poll.blind_spot(interval_s / SHORTER)}",
)
