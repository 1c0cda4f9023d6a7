"""Linux: requests to the kernel over netlink(7), and its answers, whole or an error.

An answer is taken from the kernel alone: the socket is connected to port id 0, so that the kernel refuses what other
processes send to it, and the sender of every datagram is checked nevertheless. An answer that is cut short, too long or
late is an error, never a shorter answer. A dump during which the table changed may lack entries (NLM_F_DUMP_INTR) and
is repeated.

Sources: netlink(7); include/uapi/linux/netlink.h; net/netlink/af_netlink.c.
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import SO_RCVBUF, SOCK_RAW, SOL_SOCKET, socket
from collections.abc import Iterator
from time import monotonic, sleep
from types import TracebackType

from msgspec import Struct

AF_NETLINK = 16
ROUTE, SOCK_DIAG, NETFILTER = 0, 4, 12
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x001, 0x300, 0x010
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4
MSG_TRUNC = 0x20
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
STATUS = struct.Struct("=i")
DONE_SIZE = HEADER.size + STATUS.size
ATTRIBUTE = struct.Struct("=HH")
TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
KERNEL = (0, 0)  # port id, multicast groups

BUFFER = 1 << 16  # the kernel sends datagrams of at most 32 KiB in a dump: netlink_recvmsg() in af_netlink.c
MOST_TRIES = 4
PAUSE_S = 0.001  # before the second try, four times as long before each further one: changes come in bursts
MOST_BYTES = 64 << 20  # about 500,000 addresses
TIMEOUT_S = 2.0

Message = tuple[int, bytes]  # type, body


class GarbledAnswer(OSError):
    """What was received is not a sequence of whole netlink messages."""


class InterruptedDump(OSError):
    """The table changed during every try to read it: entries may be missing."""


class Dump(Struct, frozen=True):
    """The datagrams of one dump, one after the other, up to and including NLMSG_DONE."""

    data: bytes
    interrupted: bool = False  # during each of MOST_TRIES: entries may be missing
    parts: int = 1  # datagrams with entries; the kernel keeps its place in the table between them

    def messages(self) -> list[Message]:
        """The messages but the last, NLMSG_DONE; raise InterruptedDump or GarbledAnswer."""
        if self.interrupted:
            raise InterruptedDump(f"it changed each of the {MOST_TRIES} times that it was read")
        return [message for message in messages(self.data) if message[0] != NLMSG_DONE]


def dump(protocol: int, kind: int, body: bytes) -> list[Message]:
    """Request a dump and return its messages.

    :raises OSError: with the errno that the kernel answered, or as ``Channel.dump``
    :raises InterruptedDump: the table did not stay the same for long enough
    """
    with Channel(protocol) as channel:
        return channel.dump(kind, body).messages()


def request(protocol: int, kind: int, body: bytes) -> list[Message]:
    """Send a request that is not a dump, and return the messages of the answer; raise as ``Channel.request``."""
    with Channel(protocol) as channel:
        return channel.request(kind, body)


# --- the channel ---------------------------------------------------------------------------------------------------


def connect(protocol: int) -> socket:
    """A netlink socket that the kernel alone can send to; raise OSError."""
    channel = socket(AF_NETLINK, SOCK_RAW, protocol)
    try:
        channel.connect(KERNEL)  # binds it too: netlink_connect()
    except OSError:
        channel.close()
        raise
    return channel


class Channel:
    """A netlink socket of the calling thread's network namespace; a context manager.

    :param time_limit_s: of one request with all its repetitions, in seconds
    :param size_limit: of one answer, in bytes
    """

    def __init__(self, protocol: int, time_limit_s: float = TIMEOUT_S, size_limit: int = MOST_BYTES) -> None:
        self._protocol = protocol
        self._time_limit_s = time_limit_s
        self._size_limit = size_limit
        self._buffer = BUFFER
        self._sequence = int.from_bytes(os.urandom(4), "big")
        self._socket = connect(protocol)

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> Dump:
        """Request a dump until one was not interrupted by changes (netlink(7)), MOST_TRIES times.

        :raises OSError: with the errno that the kernel answered; EFBIG: the answer exceeds the size limit;
            EMSGSIZE, ENOBUFS: larger buffers did not help
        :raises TimeoutError: there is no whole answer within the time limit
        :raises GarbledAnswer: a datagram is no message
        """
        deadline = monotonic() + self._time_limit_s
        answer = Dump(b"", interrupted=True)
        for attempt in range(MOST_TRIES):
            if attempt:
                sleep(PAUSE_S * 4 ** (attempt - 1))
            try:
                answer = self._dump_once(kind, body, deadline)
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EMSGSIZE) or attempt == MOST_TRIES - 1:
                    raise
                self._reopen_with_larger_buffer()
                continue
            if not answer.interrupted:
                break
        return answer

    def request(self, kind: int, body: bytes) -> list[Message]:
        """Send a request that is not a dump, and return the messages of the answer; an acknowledgement is none.

        :raises OSError: as ``dump``
        """
        deadline = monotonic() + self._time_limit_s
        sequence = self._send(kind, NLM_F_REQUEST, body)
        answers = list(messages(self._receive(sequence, deadline)))
        for answer_kind, answer in answers:
            if answer_kind == NLMSG_ERROR:
                raise_error(answer)
        return [message for message in answers if message[0] > NLMSG_OVERRUN]

    def _dump_once(self, kind: int, body: bytes, deadline: float) -> Dump:
        sequence = self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
        datagrams: list[bytes] = []
        size = 0
        interrupted = False
        while True:
            data = self._receive(sequence, deadline)
            _, first_kind, flags, _, _ = HEADER.unpack_from(data)
            if first_kind == NLMSG_ERROR:
                raise_error(data[HEADER.size :])
            if first_kind == NLMSG_OVERRUN:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            datagrams.append(data)
            size += len(data)
            # nl_dump_check_consistent() marks the first message that it fills after a change, or the closing one.
            interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
            end = _closing_message(data, sequence)
            if end is not None:
                raise_error(data[-STATUS.size :])
                parts = len(datagrams) - (first_kind == NLMSG_DONE)
                return Dump(b"".join(datagrams), interrupted or bool(end & NLM_F_DUMP_INTR), parts)
            if size > self._size_limit:
                raise OSError(errno.EFBIG, f"the answer is longer than {self._size_limit >> 20} MiB")

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        """Send a request and return its sequence number."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        return self._sequence

    def _receive(self, sequence: int, deadline: float) -> bytes:
        """The next datagram that the kernel sends in answer to the request with this sequence number."""
        while True:
            left_s = deadline - monotonic()
            if left_s <= 0:
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {self._time_limit_s:g} s")
            self._socket.settimeout(left_s)
            try:
                data, _, flags, sender = self._socket.recvmsg(self._buffer)
            except TimeoutError:
                continue
            if sender[0] != KERNEL[0]:
                continue
            if flags & MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            if len(data) < HEADER.size:
                raise GarbledAnswer(f"a datagram of {len(data)} bytes is no netlink message")
            if HEADER.unpack_from(data)[3] == sequence:
                return data
            # else the rest of an answer that was given up

    def _reopen_with_larger_buffer(self) -> None:
        """Begin anew: on the old socket the kernel refuses a dump with EBUSY while the last one is unfinished."""
        self._socket.close()
        self._buffer *= 4
        self._socket = connect(self._protocol)
        self._socket.setsockopt(SOL_SOCKET, SO_RCVBUF, 8 * self._buffer)


def _closing_message(data: bytes, sequence: int) -> int | None:
    """The flags of the NLMSG_DONE at the end of a datagram: a header and a status; None when more will come.

    It stands alone or behind the last entries. Whether the messages before it are whole is seen when they are parsed.
    """
    if len(data) < DONE_SIZE:
        return None
    length, kind, flags, answered, _ = HEADER.unpack_from(data, len(data) - DONE_SIZE)
    if (length, kind, answered) == (DONE_SIZE, NLMSG_DONE, sequence):
        return int(flags)
    return None


# --- messages ------------------------------------------------------------------------------------------------------


def raise_error(body: bytes) -> None:
    """Raise OSError for the negative errno that NLMSG_ERROR or NLMSG_DONE carries; 0 is success."""
    if len(body) < STATUS.size:
        raise GarbledAnswer(f"an error message with {len(body)} bytes has no error number")
    (number,) = STATUS.unpack_from(body)
    if number < 0:
        raise OSError(-number, os.strerror(-number))


def messages(data: bytes) -> Iterator[Message]:
    """The messages of whole datagrams, in order; raise GarbledAnswer where one is cut short. Pure."""
    at = 0
    while at < len(data):
        if at + HEADER.size > len(data):
            raise GarbledAnswer(f"{len(data) - at} bytes at {at} are no netlink message")
        length, kind, _, _, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            raise GarbledAnswer(f"a message of {length} bytes at {at} of {len(data)}")
        if kind != NLMSG_NOOP:
            yield kind, data[at + HEADER.size : at + length]
        at += _aligned(length)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; the last one of a type counts. Raise GarbledAnswer where one is cut short. Pure."""
    values: dict[int, bytes] = {}
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size or at + length > len(data):
            raise GarbledAnswer(f"an attribute of {length} bytes at {at} of {len(data)}")
        values[kind & TYPE_MASK] = data[at + ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return values


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    padding = b"\0" * (-len(value) % 4)
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + padding


def text(value: bytes | None) -> str:
    """A name, which ends with a zero byte; bytes that are not UTF-8 are replaced."""
    return (value or b"").split(b"\0", 1)[0].decode("utf-8", "replace")


def _aligned(length: int) -> int:
    """NLMSG_ALIGN and NLA_ALIGN."""
    return (length + 3) & ~3
