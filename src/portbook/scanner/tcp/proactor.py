"""TCP transport on asyncio's Proactor loop, which waits on an I/O completion port. For Windows.

select() of Windows Python takes at most 512 sockets, and there is no poll(); a completion port has no such limit. The
loop belongs to the engine and runs only while the engine waits.

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
from portbook.scanner.tcp.state import Attempt


class Proactor:
    """One task for each attempt in flight."""

    def __init__(self) -> None:
        self._loop = _loop()
        self._tasks: dict[Attempt, asyncio.Task[None]] = {}
        self._decided: list[Attempt] = []

    def begin(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Begin to connect; return the attempts that are decided at once."""
        for attempt in attempts:
            self._tasks[attempt] = self._loop.create_task(self._connect(attempt))
        return []

    def wait(self, timeout_s: float) -> list[Attempt]:
        """Wait at most ``timeout_s`` until something is decided; return the decided attempts."""
        if timeout_s > 0 and not self._decided:
            timer = self._loop.call_later(timeout_s, self._loop.stop)
            self._loop.run_forever()
            timer.cancel()
        for _ in range(
            2
        ):  # one turn of the loop reads the completion port, the next wakes the tasks that waited for it
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()
        decided, self._decided = self._decided, []
        return decided

    def drop(self, attempt: Attempt) -> None:
        """Cancel an undecided attempt."""
        task = self._tasks.pop(attempt, None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Cancel everything and close every socket."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        self._tasks.clear()
        try:
            self._loop.run_until_complete(_tasks_ended(self._loop))
        finally:
            self._loop.close()

    async def _connect(self, attempt: Attempt) -> None:
        _, address, port, zone = attempt.probe
        try:
            with tcp.create_socket(address) as sock:
                attempt.started_at = perf_counter()
                try:
                    await self._loop.sock_connect(sock, socket_address(address, port, zone))
                    attempt.rtt_s = perf_counter() - attempt.started_at
                    attempt.result = tcp.established_result(sock)
                finally:
                    tcp.abort(sock)
        except OSError as error:
            attempt.rtt_s = perf_counter() - attempt.started_at
            # Windows reports EACCES when its own firewall forbids the connect: nothing was sent.
            sent = not isinstance(error, PermissionError)
            attempt.result = tcp.fault_result(classify(error), _number(error), sent=sent)
        self._tasks.pop(attempt, None)
        self._decided.append(attempt)
        self._loop.stop()


def _loop() -> asyncio.AbstractEventLoop:
    """Create the Proactor loop; elsewhere, in tests, asyncio's default loop, which connects as well."""
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop()
    return asyncio.new_event_loop()


async def _tasks_ended(loop: asyncio.AbstractEventLoop) -> None:
    """Wait until every cancelled task has ended: the kernel must release a socket before it can be closed."""
    current = asyncio.current_task()
    await asyncio.gather(*(task for task in asyncio.all_tasks(loop) if task is not current), return_exceptions=True)


def _number(error: OSError) -> int:
    winerror: int | None = getattr(error, "winerror", None)
    if winerror is not None:
        return winerror
    return error.errno or 0
