"""Sockets that tests of feeds open, and what was reported of them."""

from __future__ import annotations

import socket
import sys

SO_COOKIE = 57  # include/uapi/asm-generic/socket.h


def cookie_of(sock):
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


def bound(kind=socket.SOCK_STREAM, address="127.0.0.1"):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.bind((address, 0))
    return sock


def listening(address="127.0.0.1"):
    sock = bound(address=address)
    sock.listen()
    return sock


def of_port(changes, port):
    return [change for change in changes if change.socket is not None and change.socket.local_port == port]


def kinds(changes, *sockets):
    """What was reported of these sockets."""
    cookies = {cookie_of(sock) for sock in sockets}
    return [change.kind for change in changes if change.key in cookies]
