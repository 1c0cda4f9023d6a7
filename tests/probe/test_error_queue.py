"""The error queue: its control messages, and what this kernel puts into it for TCP and UDP."""

from __future__ import annotations

import errno
import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.addresses import family_of, socket_address
from portbook.probe import error_queue
from portbook.probe.error_queue import QueuedError, drain, parse

ROUTER, ROUTER6 = "10.0.0.1", "fd00::1"
WHERE = ("10.0.0.2", 53)


def extended(origin: int, kind: int, code: int, offender: bytes, number: int = errno.ECONNREFUSED) -> bytes:
    """struct sock_extended_err (linux/errqueue.h) and the address after it."""
    return struct.pack("=IBBBBII", number, origin, kind, code, 0, 0, 0) + offender


def test_type_code_and_sender() -> None:
    sockaddr_in = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_pton(socket.AF_INET, ROUTER))
    assert parse(extended(2, 3, 13, sockaddr_in), WHERE) == QueuedError(4, 3, 13, ROUTER, 53, errno.ECONNREFUSED)


def test_ipv6() -> None:
    sockaddr_in6 = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, ROUTER6), 0)
    assert parse(extended(3, 1, 4, sockaddr_in6), WHERE) == QueuedError(6, 1, 4, ROUTER6, 53, errno.ECONNREFUSED)


def test_an_error_of_this_machine_is_not_icmp() -> None:
    kept = parse(extended(1, 0, 0, bytes(16), errno.EMSGSIZE), WHERE)
    assert kept is not None
    assert (kept.version, kept.sender, kept.errno) == (None, None, errno.EMSGSIZE)


@pytest.mark.parametrize("length", range(45))
def test_what_is_cut_short_is_no_error(length: int) -> None:
    sockaddr_in6 = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, ROUTER6), 0)
    kept = parse(extended(3, 1, 4, sockaddr_in6)[:length], WHERE)
    assert kept is None if length < 16 else kept is not None
    assert kept is None or kept.sender == (ROUTER6 if length >= 40 else None)


@given(st.binary(max_size=64))
def test_anything_is_read(data: bytes) -> None:
    kept = parse(data, WHERE)
    assert (kept is None) == (len(data) < 16)


@pytest.mark.skipif(sys.platform != "linux", reason="the error queue is Linux's")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_this_kernel_keeps(address: str) -> None:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as holder:
        holder.bind((address, 0))
        port = holder.getsockname()[1]
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        error_queue.enable(sock)
        assert list(drain(sock)) == []
        sock.sendto(b"question", socket_address(address, port))
        (kept,) = drain(sock)
    unreachable = (4, 3, 3) if address == "127.0.0.1" else (6, 1, 4)
    assert kept == QueuedError(*unreachable, address, port, errno.ECONNREFUSED)


def test_endpoints() -> None:
    assert socket_address(ROUTER, 53) == (ROUTER, 53)
    assert socket_address("fe80::1", 53, "7") == ("fe80::1", 53, 0, 7)
    assert socket_address(ROUTER6, 53) == (ROUTER6, 53, 0, 0)
    with pytest.raises(OSError, match="nosuchinterface") as raised:
        socket_address("fe80::1", 53, "nosuchinterface")
    assert raised.value.errno == errno.ENODEV
