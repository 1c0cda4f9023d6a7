"""Windows: let a connect fail with the first RST.

Windows repeats a SYN that was answered by RST, so that a connect to a closed port of loopback takes two seconds to
fail; with a shorter timeout it would look like silence. SIO_TCP_INITIAL_RTO (Windows 8 and later) switches that off.
For loopback alone: elsewhere one lost SYN would look like silence. Where the system refuses it (Wine), connects work
without.

Facts: learn.microsoft.com: "SIO_TCP_INITIAL_RTO control code", TCP_INITIAL_RTO_PARAMETERS; mstcpip.h. Python's
socket.ioctl() takes three codes, and this is none of them.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Callable

SIO_TCP_INITIAL_RTO = 0x98000011
# TCP_INITIAL_RTO_PARAMETERS: Rtt in ms, UNSPECIFIED (0xFFFF) leaves it; MaxSynRetransmissions, 0xFE is none of them
# (TCP_INITIAL_RTO_NO_SYN_RETRANSMISSIONS, from Windows 10 1709 on). One byte of padding, as USHORT is aligned to two.
NO_SYN_RETRANSMISSIONS = struct.pack("=HBx", 0xFFFF, 0xFE)


def refuse_at_once(sock: socket.socket, ioctl: Callable[..., int] | None = None) -> bool:
    """Let the next connect of a socket fail with the first RST; False when the system refuses, which is no error."""
    if ioctl is None:
        if sys.platform != "win32":
            return False
        ioctl = _wsa_ioctl()
    done = ctypes.c_uint32()
    data = NO_SYN_RETRANSMISSIONS
    result = ioctl(sock.fileno(), SIO_TCP_INITIAL_RTO, data, len(data), None, 0, ctypes.byref(done), None, None)
    return result == 0


def _wsa_ioctl() -> Callable[..., int]:
    call = ctypes.WinDLL("ws2_32").WSAIoctl  # type: ignore[attr-defined,unused-ignore]  # on Windows alone
    pointer, dword = ctypes.c_void_p, ctypes.c_uint32
    call.argtypes = (ctypes.c_size_t, dword, ctypes.c_char_p, dword, pointer, dword, pointer, pointer, pointer)
    call.restype = ctypes.c_int
    function: Callable[..., int] = call
    return function
