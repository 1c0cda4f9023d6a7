"""Loopback on Linux: one socket connects to port after port, in two or more threads at once.

A connect to a closed port of loopback is over, SYN and RST, before connect() returns; the second call returns the
result and makes the socket reusable (connect(2) in Linux: after a failed attempt the socket may be connected again;
POSIX leaves it unspecified, so this is for Linux alone). That saves creating and closing 65,535 sockets, half of the
time; and as the kernel works while Python's lock is free, threads share the rest.

Each socket is bound to a port of its own, so it can connect to itself on that one port only, which another socket
probes. Sockets that are not bound connect to themselves about twice in a scan of all ports (RFC 9293 section 3.5,
simultaneous open): the kernel chooses as the source, among 28,000 others, the very port that is probed.

A port that does not answer at once keeps the socket, which is then watched with all others.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread
from time import perf_counter

from portbook.probe import error_queue, tcp
from portbook.scanner.tcp.state import Attempt

MOST_WORKERS = 4
WORTH_A_THREAD = 64  # attempts; passing them to a thread takes as long as ten
SOURCES = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}


class Connector:
    """One socket of a family, reused for port after port, and replaced when it cannot be."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self.family = family
        self.socket: socket.socket | None = None
        self.port = 0

    def connect(self, attempts: Sequence[Attempt]) -> None:
        """Decide attempts. One that is still connecting gets the socket. Without a descriptor the rest is left."""
        sock = self.socket or self._new_socket()
        if sock is None:
            return
        connect, own_port, now = sock.connect_ex, self.port, perf_counter
        for attempt in attempts:
            destination = attempt.probe[1:3]
            if destination[1] == own_port:
                if (sock := self._new_socket()) is None:
                    return
                connect, own_port = sock.connect_ex, self.port
            attempt.started_at = started_at = now()
            error = connect(destination)
            if error == errno.EINPROGRESS:
                error = connect(destination)
            if error == errno.ECONNREFUSED:
                attempt.rtt_s = now() - started_at
                attempt.result = tcp.CLOSED
                continue
            self._not_refused(attempt, sock, error)
            if (sock := self._new_socket()) is None:
                return
            connect, own_port = sock.connect_ex, self.port
        self._correct_refusals(sock, attempts)

    def close(self) -> None:
        """Close the socket."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _not_refused(self, attempt: Attempt, sock: socket.socket, error: int) -> None:
        """Decide an attempt that was not answered by RST; while it connects, the socket stays with it."""
        self.socket = None
        if error in tcp.IN_PROGRESS:
            attempt.socket = sock
            return
        attempt.rtt_s = perf_counter() - attempt.started_at
        attempt.result = tcp.established_result(sock) if error == 0 else tcp.errno_result(error)
        tcp.abort(sock)

    def _new_socket(self) -> socket.socket | None:
        """Create a socket, then close the old one, so that their ports differ; None without a free descriptor."""
        old, self.socket = self.socket, None
        try:
            sock = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                error_queue.enable(sock)
                sock.bind(SOURCES[self.family])
            except OSError:
                sock.close()
                return None
        except OSError:
            return None
        finally:
            if old is not None:
                old.close()
        self.socket, self.port = sock, sock.getsockname()[1]
        return sock

    def _correct_refusals(self, sock: socket.socket, attempts: Sequence[Attempt]) -> None:
        """Correct ports that a firewall refused with ICMP and not with RST, by the socket's error queue.

        Mostly the kernel keeps those waiting, because it holds the socket when the message comes. When the message
        comes late, connect() has already reported a refusal.
        """
        for kept in error_queue.drain(sock):
            for attempt in attempts:
                if kept.version and attempt.probe.port == kept.port and attempt.result is tcp.CLOSED:
                    attempt.result = tcp.icmp_result(kept)


class Worker:
    """A connector for each family; until it is started, it runs in the caller's thread."""

    def __init__(self) -> None:
        self.connectors = {family: Connector(family) for family in SOURCES}
        self.requests: SimpleQueue[Sequence[Attempt] | None] = SimpleQueue()
        self.failures: SimpleQueue[BaseException | None] = SimpleQueue()
        self.thread: Thread | None = None

    def connect(self, attempts: Sequence[Attempt]) -> None:
        """Decide attempts of both families."""
        for family, connector in self.connectors.items():
            is_ipv6 = family == socket.AF_INET6
            of_family = [attempt for attempt in attempts if (":" in attempt.probe[1]) is is_ipv6]
            if of_family:
                connector.connect(of_family)

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Decide attempts in a thread."""
        if self.thread is None:
            thread = Thread(target=self._serve, name="portbook-loopback", daemon=True)
            thread.start()
            self.thread = thread
        self.requests.put(attempts)

    def close(self) -> None:
        """End the thread and close the sockets."""
        if self.thread is not None:
            self.requests.put(None)
            self.thread.join()
        for connector in self.connectors.values():
            connector.close()

    def _serve(self) -> None:
        while (attempts := self.requests.get()) is not None:
            try:
                self.connect(attempts)
            except BaseException as error:  # noqa: BLE001  raised in the caller's thread
                self.failures.put(error)
            else:
                self.failures.put(None)


class Loopback:
    """Workers that share the ports of loopback."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = [Worker() for _ in range(workers or min(MOST_WORKERS, len(os.sched_getaffinity(0))))]

    def run(self, attempts: Sequence[Attempt]) -> None:
        """Connect to ports of loopback; see Connector.connect."""
        first, *others = self.workers[: max(1, len(attempts) // WORTH_A_THREAD)]
        step = len(others) + 1
        for place, worker in enumerate(others, 1):
            worker.start(attempts[place::step])
        try:
            first.connect(attempts[::step])
        finally:
            failures = [worker.failures.get() for worker in others]
        for failure in failures:
            if failure is not None:
                raise failure

    def close(self) -> None:
        """End the threads and close the sockets."""
        for worker in self.workers:
            worker.close()
