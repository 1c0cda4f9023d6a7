"""Linux: questions to the kernel over netlink(7), one request and its answers, within bounds.

Sources: netlink(7); include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from socket import SOCK_RAW, socket

AF_NETLINK = 16
ROUTE, NETFILTER = 0, 12
NLM_F_REQUEST, NLM_F_DUMP = 0x001, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
ATTRIBUTE = struct.Struct("=HH")
TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
BUFFER = 1 << 16
MOST_BYTES = 8 << 20
TIMEOUT_S = 2.0

Message = tuple[int, bytes]  # type, body


def ask(protocol: int, kind: int, body: bytes, *, dump: bool = False) -> list[Message]:
    """Send a request and return the answers; raises OSError with the kernel's errno."""
    flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
    with socket(AF_NETLINK, SOCK_RAW, protocol) as channel:
        channel.settimeout(TIMEOUT_S)
        channel.send(HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body)
        found: list[Message] = []
        size = 0
        while size < MOST_BYTES:
            data = channel.recv(BUFFER)
            size += len(data)
            for kind_of, answer in messages(data):
                if kind_of == NLMSG_DONE:
                    return found
                if kind_of == NLMSG_ERROR:
                    raise_error(answer)
                found.append((kind_of, answer))
            if not dump:
                return found
    raise OSError(f"the answer is longer than {MOST_BYTES >> 20} MiB")


def raise_error(body: bytes) -> None:
    """Raise OSError for the error number that a message carries; 0 is an acknowledgement."""
    (number,) = struct.unpack_from("=i", body)
    if number:
        raise OSError(-number, os.strerror(-number))


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram: pure. What is cut short ends it."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            return
        yield kind, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type: pure. The last one of a type counts; what is cut short ends it."""
    found: dict[int, bytes] = {}
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size or at + length > len(data):
            break
        found[kind & TYPE_MASK] = data[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    padding = b"\0" * (-len(value) % 4)
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + padding


def text(value: bytes | None) -> str:
    """A name of the kernel's, which ends with a zero byte."""
    return (value or b"").split(b"\0", 1)[0].decode("utf-8", "replace")
