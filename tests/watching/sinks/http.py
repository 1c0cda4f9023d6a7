"""A receiver of webhooks that answers as a test wants, each request in its own way."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.watching.sinks.events import LIMIT_S

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Request:
    """One request, as it came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.raw = head + body
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.header_lines = lines
        self.headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines}
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]

    @property
    def cookies(self) -> list[int]:
        return [one["cookie"] for one in self.json["events"]]


Behaviour = bytes | str | tuple[bytes] | Callable[[Request], bytes]


class HttpReceiver:
    """A server. ``behaviours`` has one answer for each request that comes; when it is empty, all are accepted.

    "close": the connection is closed without an answer. "hang": there is none. "reset": the connection is reset.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.behaviours: deque[Behaviour] = deque()
        self.otherwise: Behaviour = OK
        self.requests: list[Request] = []  # all
        self.accepted: list[Request] = []
        self.connections = 0
        self.ended = threading.Event()
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}/hook"

    @property
    def cookies(self) -> list[int]:
        return [cookie for request in self.accepted for cookie in request.cookies]

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                peer = self._server.accept()[0]
                self.connections += 1
                threading.Thread(target=self._talk, args=(peer,), daemon=True).start()

    def _talk(self, peer: socket.socket) -> None:
        with suppress(OSError, ValueError), peer:
            if self._context is not None:
                peer = self._context.wrap_socket(peer, server_side=True)
            with peer, peer.makefile("rb") as stream:
                while (request := self._read(stream)) and self._answer(peer, request):
                    pass

    @staticmethod
    def _read(stream: Any) -> Request | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            if not line:
                return None
            head += line
        length = next(int(line[16:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: "))
        body = stream.read(length)
        return Request(head, body) if len(body) == length else None  # the sender was killed

    def _answer(self, peer: socket.socket, request: Request) -> bool:
        behaviour = self.behaviours.popleft() if self.behaviours else self.otherwise
        self.requests.append(request)
        data = behaviour(request) if callable(behaviour) else behaviour
        if data == "close":
            return False
        if isinstance(data, tuple):  # the beginning of an answer, then the end of the connection
            peer.sendall(data[0])
            return False
        if data == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return False
        if data == "hang":
            self.ended.wait(LIMIT_S)
            return False
        if data == OK:
            self.accepted.append(request)
        peer.sendall(data)
        return True

    def close(self) -> None:
        self.ended.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@contextmanager
def receiver(context: ssl.SSLContext | None = None) -> Iterator[HttpReceiver]:
    running = HttpReceiver(context)
    try:
        yield running
    finally:
        running.close()
