"""Binds of the tests' own, independent of portbook; and a machine without IPv6."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterator

from tests.components import need

FAMILIES = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}


def opened(port: int, address: str = "0.0.0.0", kind: int = socket.SOCK_STREAM, *, reuse: bool = False):
    """A bound socket; the caller closes it."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def refusal(port: int, address: str = "0.0.0.0", kind: int = socket.SOCK_STREAM, *, reuse: bool = False) -> str | None:
    """Why a server could not have the port; None: it could."""
    try:
        with opened(port, address, kind, reuse=reuse) as sock:
            if kind == socket.SOCK_STREAM:
                sock.listen()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def descriptors() -> set[str]:
    """The open descriptors of this process."""
    with contextlib.suppress(FileNotFoundError):
        return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
    return set()


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """No descriptor more at the end than at the beginning."""
    before = descriptors()
    yield
    assert descriptors() <= before


@contextlib.contextmanager
def only_descriptors(spare: int) -> Iterator[None]:
    """This process can open so many more descriptors and no other: RLIMIT_NOFILE bounds their numbers."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers = [os.dup(0) for _ in range(spare + 1)]
    for number in numbers:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (numbers[-1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


SOCKET = {"x86_64": 41, "aarch64": 198}  # the number of socket(2), by machine
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K


def forget_ipv6() -> None:
    """For the rest of this process: socket(AF_INET6) says EAFNOSUPPORT, as on a kernel without it (seccomp(2)).

    Call it in a forked child.
    """
    need(sys.platform == "linux" and platform.machine() in SOCKET, "Linux on a machine whose system calls are known")
    steps = [
        (LOAD, 0, 0, 0),  # seccomp_data.nr
        (EQUAL, 0, 3, SOCKET[platform.machine()]),
        (LOAD, 0, 0, 16),  # the low half of the first argument
        (EQUAL, 0, 1, socket.AF_INET6),
        (RETURN, 0, 0, RET_ERRNO | errno.EAFNOSUPPORT),
        (RETURN, 0, 0, RET_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, one, none, none, none) == 0
    assert libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program, none, none) == 0
