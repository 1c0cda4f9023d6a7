"""Ports that are known to be open, closed or silent, on every system: what dials and scans are tried against."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "src"))
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from portbook.__main__ import main; raise SystemExit(main())"
COMMAND = (sys.executable, "-c", START, SOURCE)  # python -m portbook, where it is not installed, too

Place = tuple[str, int]
# Windows reports WSAENOTCONN, 10057 (winsock2.h), which Python does not turn into a ConnectionError either.
NOT_CONNECTED = {errno.ENOTCONN, getattr(errno, "WSAENOTCONN", errno.ENOTCONN)}


def portbook(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "encoding": "utf-8", "timeout": 60, **options}
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **options)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextlib.contextmanager
def peer_may_vanish() -> Iterator[None]:
    """Go on when the peer of a connection has gone: for threads that serve a test, which has seen what it wanted.

    The test asserts what the peer received. An exception in a thread would fail it even when that was right.
    """
    try:
        yield
    except ConnectionError:
        pass
    except OSError as error:
        if error.errno not in NOT_CONNECTED:
            raise


@contextlib.contextmanager
def listening(*addresses: str, each: int = 1, port: int = 0, backlog: int = 64) -> Iterator[list[Place]]:
    """Listeners, and where they are."""
    with contextlib.ExitStack() as stack:
        places = []
        for address in addresses:
            for _ in range(each):
                sock = stack.enter_context(socket.socket(family_of(address)))
                if sys.platform != "win32":  # where it would let others take the port
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, port))
                sock.listen(backlog)
                places.append(sock.getsockname()[:2])
        yield places


@contextlib.contextmanager
def refusing(address: str = "127.0.0.1") -> Iterator[Place]:
    """A port that refuses, and that no other process can get meanwhile: bound, not listening."""
    with socket.socket(family_of(address)) as holder:
        holder.bind((address, 0))
        yield holder.getsockname()[:2]


@contextlib.contextmanager
def deaf() -> Iterator[Place]:
    """A listener whose queue is full: Linux answers no further SYN (listen(2), tcp_abort_on_overflow 0)."""
    with socket.socket() as sock, contextlib.ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
        yield sock.getsockname()
