"""Connects in flight on Windows: asyncio's Proactor loop, which waits on an I/O completion port.

select() of Windows Python holds 512 sockets, and there is no poll; a completion port has no such limit. The loop is
one of our own and runs only while the engine waits.

Facts: learn.microsoft.com: ConnectEx, "I/O Completion Ports"; asyncio's ProactorEventLoop.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from time import perf_counter

from portbook.addresses import socket_address
from portbook.probe import tcp
from portbook.resilience import classify
from portbook.scanner.tcp.attempt import Attempt


class Proactor:
    """One task for each attempt in flight."""

    def __init__(self) -> None:
        self._loop = _loop()
        self._tasks: dict[Attempt, asyncio.Task[None]] = {}
        self._decided: list[Attempt] = []

    def begin(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Begin to connect; return those that are decided at once."""
        for attempt in attempts:
            self._tasks[attempt] = self._loop.create_task(self._connect(attempt))
        return []

    def wait(self, timeout_s: float) -> list[Attempt]:
        """Wait until something is decided, at most so long; return what is."""
        if timeout_s > 0 and not self._decided:
            timer = self._loop.call_later(timeout_s, self._loop.stop)
            self._loop.run_forever()
            timer.cancel()
        for _ in range(2):  # one turn of the loop takes what the port has, the next wakes the tasks that waited for it
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()
        decided, self._decided = self._decided, []
        return decided

    def drop(self, attempt: Attempt) -> None:
        """Give up an undecided attempt."""
        task = self._tasks.pop(attempt, None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Give up everything; leave no socket."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        self._tasks.clear()
        try:
            self._loop.run_until_complete(_ended(self._loop))
        finally:
            self._loop.close()

    async def _connect(self, attempt: Attempt) -> None:
        _, address, port, zone = attempt.probe
        try:
            with tcp.create(address) as sock:
                attempt.begun = perf_counter()
                try:
                    await self._loop.sock_connect(sock, socket_address(address, port, zone))
                    attempt.rtt_s = perf_counter() - attempt.begun
                    attempt.finding = tcp.established(sock)
                finally:
                    tcp.abort(sock)
        except OSError as error:
            attempt.rtt_s = perf_counter() - attempt.begun
            # Windows says EACCES of its own firewall, which is not on the way: nothing was sent.
            attempt.finding = tcp.weighed(classify(error), _number(error), sent=not isinstance(error, PermissionError))
        self._tasks.pop(attempt, None)
        self._decided.append(attempt)
        self._loop.stop()


def _loop() -> asyncio.AbstractEventLoop:
    """The Proactor loop; elsewhere, in tests, the loop that asyncio has there, which connects as well."""
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop()
    return asyncio.new_event_loop()


async def _ended(loop: asyncio.AbstractEventLoop) -> None:
    """Until every cancelled task has ended: the kernel must let go of a socket before it can be closed."""
    current = asyncio.current_task()
    await asyncio.gather(*(task for task in asyncio.all_tasks(loop) if task is not current), return_exceptions=True)


def _number(error: OSError) -> int:
    winerror: int | None = getattr(error, "winerror", None)
    return (error.errno or 0) if winerror is None else winerror
