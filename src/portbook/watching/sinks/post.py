"""One HTTP request with a time limit for all of it: connecting, TLS, sending, and the answer.

The connection is kept for the next request. Redirects are not followed, proxies are not used. Nothing that the receiver
sends becomes part of a message, because it has seen the secrets of the request.

Facts: RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1); RFC 6125 (the name in a certificate is checked by ssl).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ssl import SSLCertVerificationError, SSLContext, SSLError
from time import monotonic
from typing import Any, BinaryIO, NamedTuple

from portbook.addresses import NamedHost, format_endpoint
from portbook.resilience import classify

MOST_ANSWER = 1 << 16  # bytes of an answer that are read, so that the connection can be used again


class PostError(Exception):
    """No answer was received; the message is one line without a secret."""


class PostAnswer(NamedTuple):
    """What the receiver answered."""

    status: int
    retry_after: str | None

    @property
    def meaning(self) -> str:
        """The status with the phrase that is registered for it, not the one that was sent."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)


class _Lines:
    """The beginning of an answer, line by line, and whether the connection ended in it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.ended = False

    def readline(self, limit: int) -> bytes:
        line = self._stream.readline(limit)
        self.ended = self.ended or not line.endswith(b"\n")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class WholeResponse(HTTPResponse):
    """An answer whose headers are complete: HTTPResponse takes the end of the connection for the end of the headers."""

    def begin(self) -> None:
        """Read status and headers; raise HTTPException if they are cut (RFC 9112 section 8)."""
        stream: Any = self.fp
        lines: Any = _Lines(stream)
        self.fp = lines
        super().begin()
        if self.fp is lines:
            self.fp = stream
        if lines.ended:
            raise HTTPException("the headers are cut")


class Poster:
    """Requests to one receiver. Used by one thread; ``interrupt`` by others."""

    def __init__(self, host: NamedHost, port: int, target: str, limit_s: float, tls: SSLContext | None) -> None:
        """Nothing is connected yet.

        :param target: path and query
        :param limit_s: for one request
        :param tls: None: HTTP without TLS
        """
        self._host, self._port, self._target = host, port, target
        self._limit_s = limit_s
        self._tls = tls
        default_port = 443 if tls is not None else 80
        self._authority = format_endpoint(host.name, None if port == default_port else port)
        self._connection: HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._interrupted = False

    def post(self, body: bytes, headers: Mapping[str, str]) -> PostAnswer:
        """Send a request and read the answer; raise PostError."""
        self._interrupted = False
        timer = threading.Timer(self._limit_s, self.interrupt)
        timer.daemon = True
        timer.start()
        answered = False
        try:
            reused = self._connection is not None
            try:
                answer = self._exchange(body, headers)
            except (OSError, HTTPException):
                self.close()
                if not reused or self._interrupted:
                    raise
                # The receiver had closed a connection that was not used for a while.
                answer = self._exchange(body, headers)
            answered = True
            return answer
        except (OSError, HTTPException, ValueError) as error:
            raise PostError(self._reason(error)) from error
        finally:
            timer.cancel()
            if not answered:
                self.close()

    def _exchange(self, body: bytes, headers: Mapping[str, str]) -> PostAnswer:
        if self._connection is None:
            self._connect(monotonic() + self._limit_s)
        connection = self._connection
        if connection is None:
            raise OSError("not connected")
        connection.request("POST", self._target, body, {"Host": self._authority, **headers})
        response = connection.getresponse()
        answer = PostAnswer(response.status, response.getheader("Retry-After"))
        self._finish(response)
        return answer

    def _finish(self, response: HTTPResponse) -> None:
        """Read the rest of the answer; close the connection if that takes too much, or fails."""
        try:
            response.read(MOST_ANSWER)
            unfinished = not response.isclosed()
        except (OSError, HTTPException):
            unfinished = True
        if unfinished or response.will_close:
            self.close()

    def _connect(self, deadline: float) -> None:
        failure: OSError | None = None
        name = self._host.lookup_name
        if self._host.zone is not None:
            name += f"%{self._host.zone}"
        for family, kind, number, _, address in socket.getaddrinfo(name, self._port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, number)
            self._socket = sock
            try:
                sock.settimeout(max(0.01, deadline - monotonic()))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    sock = self._socket = self._tls.wrap_socket(sock, server_hostname=self._host.name)
            except OSError as error:
                sock.close()
                failure = error
                if isinstance(error, SSLError) or self._interrupted:
                    break
                continue
            self._connection = HTTPConnection(self._host.name, self._port)
            self._connection.response_class = WholeResponse
            self._connection.auto_open = 0  # it would connect without our limits
            self._connection.sock = sock
            return
        raise failure or OSError("the host has no address")

    def interrupt(self) -> None:
        """Have the request fail at once."""
        self._interrupted = True
        sock = self._socket
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not that of SSLSocket, which another thread is using

    def close(self) -> None:
        """Close the connection; the next request makes another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _reason(self, error: Exception) -> str:
        if self._interrupted or isinstance(error, TimeoutError):
            return f"no answer within {self._limit_s:g} s"
        if isinstance(error, SSLCertVerificationError):
            return f"its certificate is not trusted: {error.verify_message}"
        if isinstance(error, SSLError):
            return f"TLS failed: {error.reason or 'no reason was given'}"
        if isinstance(error, socket.gaierror):
            return f"its address could not be found: {error.strerror}"
        if isinstance(error, HTTPException) and not isinstance(error, OSError):
            return "the answer is not HTTP"
        if isinstance(error, OSError) and error.errno is not None:
            return classify(error).reason
        return "it closed the connection without an answer"
