"""TCP transport on selectors: non-blocking sockets, watched by epoll, kqueue or poll. For POSIX systems."""

from __future__ import annotations

from collections.abc import Sequence
from selectors import EVENT_WRITE, DefaultSelector
from socket import socket
from time import perf_counter

from portbook.addresses import socket_address
from portbook.probe import tcp
from portbook.scanner.tcp.loopback import Loopback
from portbook.scanner.tcp.state import Attempt


class Poller:
    """One socket for each attempt. On Linux, Loopback connects to ports of loopback; silent ones are watched here."""

    def __init__(self) -> None:
        self._selector = DefaultSelector()
        self._loopback = Loopback() if tcp.LINUX else None

    def begin(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Begin to connect; return the attempts that are decided at once."""
        for attempt in self._without_loopback(attempts):
            self._connect(attempt)
        return [attempt for attempt in attempts if attempt.result is not None]

    def wait(self, timeout_s: float) -> list[Attempt]:
        """Wait at most ``timeout_s`` until something is decided; return the decided attempts."""
        events = self._selector.select(timeout_s)
        now = perf_counter()
        decided: list[Attempt] = []
        for key, _ in events:
            attempt: Attempt = key.data
            sock: socket = key.fileobj  # type: ignore[assignment]  # nothing else is registered
            self._selector.unregister(sock)
            attempt.result = tcp.finish_connect(sock, attempt.probe.port)
            attempt.rtt_s = now - attempt.started_at
            attempt.socket = None
            tcp.abort(sock)
            decided.append(attempt)
        return decided

    def drop(self, attempt: Attempt) -> None:
        """Cancel an undecided attempt."""
        if isinstance(attempt.socket, socket):
            self._selector.unregister(attempt.socket)
            attempt.socket.close()
            attempt.socket = None

    def close(self) -> None:
        """Cancel everything and close every socket."""
        for key in list(self._selector.get_map().values()):
            self.drop(key.data)
        self._selector.close()
        if self._loopback is not None:
            self._loopback.close()

    def _without_loopback(self, attempts: Sequence[Attempt]) -> Sequence[Attempt]:
        """Let Loopback connect to its ports; return the attempts that are left to connect here."""
        if self._loopback is None:
            return attempts
        local = [attempt for attempt in attempts if attempt.host.is_loopback]
        if not local:
            return attempts
        try:
            self._loopback.run(local)
        finally:  # after Ctrl-C too, since close() closes what is registered
            for attempt in local:
                if attempt.socket is not None:
                    self._selector.register(attempt.socket, EVENT_WRITE, attempt)  # type: ignore[arg-type]  # a socket
        return [attempt for attempt in attempts if attempt.result is None and attempt.socket is None]

    def _connect(self, attempt: Attempt) -> None:
        _, address, port, zone = attempt.probe
        try:
            sock = tcp.create_socket(address)
        except OSError as error:
            attempt.result = tcp.errno_result(error.errno or 0, sent=False)
            return
        try:
            destination = socket_address(address, port, zone)
        except OSError as error:  # no such interface
            sock.close()
            attempt.result = tcp.errno_result(error.errno or 0, sent=False)
            return
        attempt.started_at = perf_counter()
        attempt.result = tcp.start_connect(sock, destination)
        if attempt.result is None:
            attempt.socket = sock
            self._selector.register(sock, EVENT_WRITE, attempt)
        else:
            attempt.rtt_s = perf_counter() - attempt.started_at
            tcp.abort(sock)
