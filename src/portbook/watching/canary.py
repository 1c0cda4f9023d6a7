"""Canaries: sockets that the watch opens to prove that its feed sees what happens.

A feed can stop to report anything without an error: a kernel that changed, a limit of a container. Only what is known
to have happened shows that. The sockets of a canary are recognised by what the kernel numbers them with, and elsewhere
by their process too: no other process can use their ports to hide.
"""

from __future__ import annotations

import os
import socket as net
import sys
from contextlib import suppress
from typing import Literal

from portbook.records import Socket
from portbook.system import namespaces
from portbook.watching.feeds.base import Change, SocketKey, key_of

SO_COOKIE = 57  # include/uapi/asm-generic/socket.h
COOKIE_BYTES = 8
LOOPBACK = "127.0.0.1"
MOST_KEPT = 64  # keys of earlier canaries: their ends are reported later

CanaryKind = Literal["TCP listener", "UDP socket"]
_KINDS: dict[CanaryKind, tuple[int, str]] = {
    "TCP listener": (net.SOCK_STREAM, "listening"),
    "UDP socket": (net.SOCK_DGRAM, "bound"),
}


class Canaries:
    """The canaries of one watch. At most one of each kind is open at a time."""

    def __init__(self, with_udp: bool) -> None:
        self._kinds: list[CanaryKind] = ["TCP listener", "UDP socket"] if with_udp else ["TCP listener"]
        self._open: dict[CanaryKind, net.socket] = {}
        self._keys: dict[SocketKey, CanaryKind] = {}  # also of earlier ones
        self._ports: dict[tuple[str, int], CanaryKind] = {}  # of those that are open, where sockets have no number
        self.opened_ns: int | None = None  # when those that are open were opened
        self.unseen: list[CanaryKind] = []
        self.failures: list[str] = []  # why some could not be opened

    def open(self, now_ns: int) -> None:
        """Open one of each kind."""
        self.close()
        self.opened_ns = now_ns
        self.unseen = []
        self.failures = []
        for kind in self._kinds:
            try:
                self._open_one(kind)
            except OSError as error:
                self.failures.append(f"{kind}: {error.strerror or error}")
            else:
                self.unseen.append(kind)

    def _open_one(self, kind: CanaryKind) -> None:
        opened = net.socket(net.AF_INET, _KINDS[kind][0])
        self._open[kind] = opened
        number = _number(opened)
        for key in number:  # before it is bound: a feed of another thread may be fast
            self._keys[key] = kind
        opened.bind((LOOPBACK, 0))
        if not number:
            self._ports["tcp" if kind == "TCP listener" else "udp", opened.getsockname()[1]] = kind
        if kind == "TCP listener":
            opened.listen(1)
        _forget_oldest(self._keys)

    def close(self) -> None:
        """Close those that are open."""
        for opened in self._open.values():
            with suppress(OSError):
                opened.close()
        self._open = {}
        self._ports = {}  # from now on another process may have them
        self.opened_ns = None

    def take(self, change: Change) -> bool:
        """Whether a change is about a canary; it is taken as seen then."""
        kind = self._keys.get(change.key)
        if kind is None:
            if change.socket is None or not self.is_own(change.socket):
                return False
            kind = self._kind_of(change.socket)
            self._keys[change.key] = kind
        if change.kind == _KINDS[kind][1] and kind in self.unseen:
            self.unseen.remove(kind)
        return True

    def is_own(self, socket: Socket) -> bool:
        """Whether this is the socket of a canary."""
        if key_of(socket) in self._keys:
            return True
        if (socket.protocol, socket.local_port) not in self._ports or socket.local_address != LOOPBACK:
            return False
        return all(owner.pid == os.getpid() for owner in socket.owners)  # of some sockets Windows tells none

    def _kind_of(self, socket: Socket) -> CanaryKind:
        return "TCP listener" if socket.protocol == "tcp" else "UDP socket"


def _forget_oldest(keys: dict[SocketKey, CanaryKind]) -> None:
    while len(keys) > MOST_KEPT:
        del keys[next(iter(keys))]


def _number(opened: net.socket) -> list[SocketKey]:
    """The keys that feeds and sources have for a socket of this process; none where sockets have no numbers."""
    if sys.platform != "linux":
        return []
    keys: list[SocketKey] = [("inode", os.fstat(opened.fileno()).st_ino, netns) for netns in {None, namespaces.own()}]
    with suppress(OSError):  # before Linux 4.12: socket(7)
        keys.append(int.from_bytes(opened.getsockopt(net.SOL_SOCKET, SO_COOKIE, COOKIE_BYTES), sys.byteorder))
    return keys
