"""Sockets that messages are sent over: datagrams, and a stream that says how many messages the peer has.

A connection is made with the first message, and again after every failure. Everything has a time limit.

Facts: unix(7), udp(7), tcp(7); connect(2), send(2).
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from time import monotonic, sleep

from portbook.addresses import NamedHost, parse_host, split_host_port
from portbook.errors import UsageError
from portbook.numerals import UINT16, number_or_none
from portbook.resilience import classify
from portbook.watching.sinks.base import DeliveryError

LIMIT_S = 5.0  # for one connection, and for one message
POLL_S = 0.001  # between two looks whether the peer has acknowledged everything


class Datagrams:
    """A connected datagram socket: every message is one datagram."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._socket: socket.socket | None = None

    def send(self, messages: Sequence[bytes]) -> None:
        """Send each message; raise DeliveryError."""
        sock = self._connected()
        send = sender_of(sock)
        sent = 0
        try:
            for message in messages:
                send(message)
                sent += 1
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise DeliveryError(os.strerror(errno.EMSGSIZE), sent, refused=True) from error
            self.close()
            raise DeliveryError(_reason(error), sent) from error
        # An ICMP error that came for one of them. Which one is not said, so all are sent again.
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.close()
            raise DeliveryError(_reason(OSError(number, os.strerror(number))))

    def _connected(self) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = self._connect()
            except OSError as error:
                raise DeliveryError(_reason(error)) from error
        return self._socket

    def close(self) -> None:
        """Close the socket; the next message opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def sender_of(sock: socket.socket) -> Callable[[bytes], object]:
    """A function that sends a datagram, within the time limit of the socket; it raises OSError.

    Every method of a socket gives up the interpreter lock, and then waits for it, behind threads that compute, for up
    to 5 ms (sys.setswitchinterval()): that would be 200 messages a second. A call that does not block may keep it.
    """
    if sys.platform != "linux":
        return sock.send
    import ctypes

    call = ctypes.PyDLL(None, use_errno=True).send
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
    call.restype = ctypes.c_ssize_t
    descriptor = sock.fileno()

    def send(message: bytes) -> None:
        if call(descriptor, message, len(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) >= 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number))
        sock.send(message)

    return send


class StreamConnection:
    """A connected stream socket: messages with frames around them, one after the other."""

    def __init__(self, connect: Callable[[], socket.socket], frame: Callable[[bytes], bytes]) -> None:
        self._connect = connect
        self._frame = frame
        self._socket: socket.socket | None = None

    def send(self, messages: Sequence[bytes]) -> None:
        """Send the messages, and wait until the system of the peer has them; raise DeliveryError."""
        frames = [self._frame(message) for message in messages]
        data = b"".join(frames)
        done = 0
        try:
            sock = self._connected()
            sock.settimeout(LIMIT_S)
            while done < len(data):
                done += sock.send(data[done : done + (1 << 16)])
            done -= _unacknowledged(sock)
            if not _is_open(sock):
                self.close()
        except OSError as error:
            self.close()
            # It is not known what arrived before the connection broke: rather twice than never.
            raise DeliveryError(_reason(error)) from error
        if done < len(data):
            self.close()
            raise DeliveryError("the peer did not acknowledge everything", _whole(frames, done))

    def _connected(self) -> socket.socket:
        """The connection; another one if the peer has closed it meanwhile."""
        if self._socket is not None:
            try:
                is_open = _is_open(self._socket)
            except OSError:
                is_open = False
            if not is_open:
                self.close()
        if self._socket is None:
            self._socket = self._connect()
        return self._socket

    def close(self) -> None:
        """Close the connection; the next message opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _is_open(sock: socket.socket) -> bool:
    """Whether the peer has not closed the connection; raise OSError if it was reset. What it sends is ignored."""
    sock.setblocking(False)
    try:
        return bool(sock.recv(1 << 16))
    except BlockingIOError:
        return True


def _whole(frames: Sequence[bytes], size: int) -> int:
    """How many frames are in so many bytes."""
    for count, frame in enumerate(frames):
        size -= len(frame)
        if size < 0:
            return count
    return len(frames)


def _unacknowledged(sock: socket.socket) -> int:
    """How many bytes the system of the peer does not have, once the time limit is over (Linux: SIOCOUTQ of tcp(7))."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0
    from fcntl import ioctl
    from termios import TIOCOUTQ  # the same number as SIOCOUTQ

    deadline = monotonic() + LIMIT_S
    while True:
        left = int.from_bytes(ioctl(sock, TIOCOUTQ, bytes(4)), sys.byteorder)
        if not left or monotonic() >= deadline:
            return left
        sleep(POLL_S)


def _reason(error: OSError) -> str:
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or classify(error).reason
    return error.strerror or os.strerror(error.errno)


# --- connecting ----------------------------------------------------------------------------------------------------


def connect_unix(path: str, kind: socket.SocketKind) -> socket.socket:
    """Connect to a socket in the file system; raise OSError."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.settimeout(LIMIT_S)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_internet(host: NamedHost, port: int, kind: socket.SocketKind) -> socket.socket:
    """Connect to the first address of a host that works; raise OSError."""
    failure: OSError | None = None
    for family, _, number, _, address in socket.getaddrinfo(_lookup_name(host), port, type=kind):
        sock = socket.socket(family, kind, number)
        try:
            sock.settimeout(LIMIT_S)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure or OSError(errno.EADDRNOTAVAIL, "the host has no address")


def _lookup_name(host: NamedHost) -> str:
    if host.zone is not None:
        return f"{host.name}%{host.zone}"
    return host.lookup_name


def parse_receiver(text: str, default_port: int, place: str) -> tuple[NamedHost, int]:
    """Host and port of ``host``, ``host:port``, ``[::1]:port``; raise UsageError."""
    if "@" in text:
        raise UsageError(f"{place}: a user or a password in an address is not used", "omit what is in front of the @")
    host, port = text, str(default_port)
    if not (text.startswith("[") and text.endswith("]")) and ":" in text:
        try:
            host, port = split_host_port(text)
        except ValueError as error:
            raise UsageError(f"{place}: {error}", "write 127.0.0.1:514 or [::1]:514") from error
    number = number_or_none(port, UINT16, 1)
    if number is None:
        raise UsageError(f"{place}: {port[:20]!r} is not a port", "write a number from 1 to 65535")
    try:
        return parse_host(host), number
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
