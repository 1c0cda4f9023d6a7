"""What the tests of binds share: sockets as servers make them, and verdicts as another user."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.conftest import NOBODY
from tests.netlab import call


def bound(
    address: str = "0.0.0.0",
    port: int = 8080,
    *,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    reuse: bool = False,
    reuseport: bool = False,
    v6only: bool = True,
    device: bytes | None = None,
    listens: bool = False,
) -> socket.socket:
    """A socket with these options, and no others."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, kind)
    try:
        _prepare(one, reuse, reuseport, v6only, device)
        one.bind((address, port))
        if listens:
            one.listen()
    except OSError:
        one.close()
        raise
    return one


def _prepare(one: socket.socket, reuse: bool, reuseport: bool, v6only: bool, device: bytes | None) -> None:
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    for option, on in ((socket.SO_REUSEADDR, reuse), (socket.SO_REUSEPORT, reuseport)):
        one.setsockopt(socket.SOL_SOCKET, option, int(on))
    if device is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)


@contextmanager
def connected(listener: socket.socket, *, keep: bool = False) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and what was accepted; the listener is closed unless it is to be kept."""
    with socket.create_connection(listener.getsockname()[:2]) as client:
        accepted, _ = listener.accept()
        if not keep:
            listener.close()
        with accepted:
            yield client, accepted


def as_user(function: Any, *arguments: Any, uid: int = NOBODY) -> Any:
    """Call a function in a forked child as another user, without groups or capabilities."""

    def other() -> Any:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        return function(*arguments)

    return call(other)


def bindable(*places: tuple[str, int], kind: socket.SocketKind = socket.SOCK_STREAM, reuse: bool = True) -> bool:
    """Whether all can be bound at the same time, as a server would; without portbook."""
    held = []
    try:
        for address, port in places:
            tcp = kind == socket.SOCK_STREAM
            held.append(bound(address, port, kind=kind, reuse=reuse and tcp, listens=tcp))
    except OSError:
        return False
    finally:
        for one in held:
            one.close()
    return True


def everywhere(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether a server could have the port on every address of both families."""
    return bindable(("0.0.0.0", port), ("::", port), kind=kind)
