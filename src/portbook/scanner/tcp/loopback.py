"""Loopback on Linux: one socket asks port after port, and two or more threads do so at once.

A connect to a closed port of loopback is over, SYN and RST, before connect() returns; the second call tells the result
and makes the socket as good as new (connect(2) in Linux: after a failed attempt the socket may be connected again;
POSIX leaves it unspecified, so this is for Linux alone). That saves the making and closing of 65,535 sockets, half of
the time; and as the kernel works while Python's lock is free, threads share the rest.

Each socket is bound to a port of its own, so it can connect to itself on that one port only, which another socket asks.
Sockets that are not bound connect to themselves about twice in a scan of all ports (RFC 9293 section 3.5, simultaneous
open): the kernel chooses as the source, among 28,000 others, the very port that is asked.

A port that does not answer at once keeps the socket, which then is watched with all others.
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
from portbook.scanner.tcp.attempt import Attempt

MOST_WORKERS = 4
WORTH_A_THREAD = 64  # attempts; handing over takes as long as ten
SOURCES = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}


class Walker:
    """One socket of a family, and what it takes to go on with the next when it is used up."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self.family = family
        self.socket: socket.socket | None = None
        self.port = 0

    def walk(self, attempts: Sequence[Attempt]) -> None:
        """Decide attempts, or leave in them the socket that is waiting, or, when no socket is to be had, nothing."""
        sock = self.socket or self._renewed()
        if sock is None:
            return
        connect, own, now = sock.connect_ex, self.port, perf_counter
        for attempt in attempts:
            where = attempt.probe[1:3]
            if where[1] == own:
                if (sock := self._renewed()) is None:
                    return
                connect, own = sock.connect_ex, self.port
            attempt.begun = begun = now()
            error = connect(where)
            if error == errno.EINPROGRESS:
                error = connect(where)
            if error == errno.ECONNREFUSED:
                attempt.rtt_s = now() - begun
                attempt.finding = tcp.CLOSED
                continue
            self._other(attempt, sock, error)
            if (sock := self._renewed()) is None:
                return
            connect, own = sock.connect_ex, self.port
        self._correct(sock, attempts)

    def close(self) -> None:
        """Let the socket go."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _other(self, attempt: Attempt, sock: socket.socket, error: int) -> None:
        """What is not a RST: the socket is used up, or stays with the attempt."""
        self.socket = None
        if error in tcp.IN_PROGRESS:
            attempt.socket = sock
            return
        attempt.rtt_s = perf_counter() - attempt.begun
        attempt.finding = tcp.established(sock) if error == 0 else tcp.judged(error)
        tcp.abort(sock)

    def _renewed(self) -> socket.socket | None:
        """A new socket; the old one is closed after, so that their ports differ."""
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

    def _correct(self, sock: socket.socket, attempts: Sequence[Attempt]) -> None:
        """Ports that a firewall refused with ICMP and not with RST, by what the socket's queue kept of them.

        The kernel mostly leaves those waiting, as it holds the socket when the message comes; not when it comes late.
        """
        for kept in error_queue.drain(sock):
            for attempt in attempts:
                if kept.version and attempt.probe.port == kept.port and attempt.finding is tcp.CLOSED:
                    attempt.finding = tcp.icmp_finding(kept)


class Worker:
    """A thread with a walker for each family; without a thread it walks for its caller."""

    def __init__(self) -> None:
        self.walkers = {family: Walker(family) for family in SOURCES}
        self.todo: SimpleQueue[Sequence[Attempt] | None] = SimpleQueue()
        self.done: SimpleQueue[BaseException | None] = SimpleQueue()
        self.thread: Thread | None = None

    def walk(self, attempts: Sequence[Attempt]) -> None:
        """Walk through attempts of both families."""
        for family, walker in self.walkers.items():
            colon = family == socket.AF_INET6
            mine = [attempt for attempt in attempts if (":" in attempt.probe[1]) is colon]
            if mine:
                walker.walk(mine)

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Walk in the thread."""
        if self.thread is None:
            self.thread = Thread(target=self._serve, name="portbook-loopback", daemon=True)
            self.thread.start()
        self.todo.put(attempts)

    def close(self) -> None:
        """End the thread and let the sockets go."""
        if self.thread is not None:
            self.todo.put(None)
            self.thread.join()
        for walker in self.walkers.values():
            walker.close()

    def _serve(self) -> None:
        while (attempts := self.todo.get()) is not None:
            try:
                self.walk(attempts)
            except BaseException as error:  # noqa: BLE001  raised where it is waited for
                self.done.put(error)
            else:
                self.done.put(None)


class Loopback:
    """Workers that share what there is to ask of loopback."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = [Worker() for _ in range(workers or min(MOST_WORKERS, len(os.sched_getaffinity(0))))]

    def run(self, attempts: Sequence[Attempt]) -> None:
        """Ask ports of loopback; see Walker.walk for what becomes of each."""
        first, *others = self.workers[: max(1, len(attempts) // WORTH_A_THREAD)]
        step = len(others) + 1
        for place, worker in enumerate(others, 1):
            worker.start(attempts[place::step])
        try:
            first.walk(attempts[::step])
        finally:
            failures = [worker.done.get() for worker in others]
        for failure in failures:
            if failure is not None:
                raise failure

    def close(self) -> None:
        """End the threads and let the sockets go."""
        for worker in self.workers:
            worker.close()
