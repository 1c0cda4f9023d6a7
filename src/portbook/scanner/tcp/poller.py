"""Connects in flight on non-blocking sockets, watched by epoll, kqueue or poll: the engine's hands on POSIX systems."""

from __future__ import annotations

from collections.abc import Sequence
from selectors import EVENT_WRITE, DefaultSelector
from socket import socket
from time import perf_counter

from portbook.addresses import socket_address
from portbook.probe import tcp
from portbook.scanner.tcp.attempt import Attempt
from portbook.scanner.tcp.loopback import Loopback


class Poller:
    """One socket for each attempt; loopback goes another way where there is one, and comes here when it is silent."""

    def __init__(self) -> None:
        self._selector = DefaultSelector()
        self._loopback = Loopback() if tcp.LINUX else None

    def begin(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Begin to connect; return those that are decided at once."""
        for attempt in self._past_loopback(attempts):
            self._connect(attempt)
        return [attempt for attempt in attempts if attempt.finding is not None]

    def wait(self, timeout_s: float) -> list[Attempt]:
        """Wait until something is decided, at most so long; return what is."""
        events = self._selector.select(timeout_s)
        now = perf_counter()
        decided: list[Attempt] = []
        for key, _ in events:
            attempt: Attempt = key.data
            sock: socket = key.fileobj  # type: ignore[assignment]  # nothing else is registered
            self._selector.unregister(sock)
            attempt.finding = tcp.finish(sock, attempt.probe.port)
            attempt.rtt_s = now - attempt.begun
            attempt.socket = None
            tcp.abort(sock)
            decided.append(attempt)
        return decided

    def drop(self, attempt: Attempt) -> None:
        """Give up an undecided attempt."""
        if isinstance(attempt.socket, socket):
            self._selector.unregister(attempt.socket)
            attempt.socket.close()
            attempt.socket = None

    def close(self) -> None:
        """Give up everything; leave no socket."""
        for key in list(self._selector.get_map().values()):
            self.drop(key.data)
        self._selector.close()
        if self._loopback is not None:
            self._loopback.close()

    def _past_loopback(self, attempts: Sequence[Attempt]) -> Sequence[Attempt]:
        """What is left to connect here: all but what the way over loopback has taken care of."""
        local = [attempt for attempt in attempts if attempt.host.loopback] if self._loopback is not None else []
        if not local or self._loopback is None:
            return attempts
        try:
            self._loopback.run(local)
        finally:  # after Ctrl-C too: what is registered is closed
            for attempt in local:
                if attempt.socket is not None:
                    self._selector.register(attempt.socket, EVENT_WRITE, attempt)  # type: ignore[arg-type]  # a socket
        return [attempt for attempt in attempts if attempt.finding is None and attempt.socket is None]

    def _connect(self, attempt: Attempt) -> None:
        _, address, port, zone = attempt.probe
        try:
            sock = tcp.create(address)
        except OSError as error:
            attempt.finding = tcp.judged(error.errno or 0, sent=False)
            return
        try:
            where = socket_address(address, port, zone)
        except OSError as error:  # no such interface
            sock.close()
            attempt.finding = tcp.judged(error.errno or 0, sent=False)
            return
        attempt.begun = perf_counter()
        attempt.finding = tcp.begin(sock, where)
        if attempt.finding is None:
            attempt.socket = sock
            self._selector.register(sock, EVENT_WRITE, attempt)
        else:
            attempt.rtt_s = perf_counter() - attempt.begun
            tcp.abort(sock)
