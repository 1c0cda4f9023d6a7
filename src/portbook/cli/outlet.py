"""Standard output of a command that must not wait for its reader: a thread writes, and the queue is bounded.

A reader that is slow, a terminal that was stopped with Ctrl-S, or a full pipe holds up the thread and not the command.
What finds no room in the queue is refused, so that the command can say how much is missing.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from threading import Condition, Thread

MOST_QUEUED = 16 << 20  # bytes: about 20,000 events
MOST_WRITTEN = 1 << 16  # bytes at once: what a pipe holds (pipe(7))


class Outlet:
    """Writes to standard output in the order of ``put``; used by one thread."""

    def __init__(self, most_queued: int = MOST_QUEUED) -> None:
        self._most = most_queued
        self._parts: deque[bytes] = deque()
        self._queued = 0  # bytes, with what is being written
        self._changed = Condition()
        self._ends = False
        self.failure: OSError | ValueError | None = None  # why nothing is written any more
        sys.stdout.flush()
        # Without the buffer and its lock: while the thread waits, the end of the process must not.
        self._raw = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
        self.encoding = sys.stdout.encoding or "utf-8"
        self._thread = Thread(target=self._write_all, name="portbook-output", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether everything is written."""
        return self._queued == 0

    @property
    def has_room(self) -> bool:
        """Whether there is room for much more than one line."""
        return self._queued <= self._most // 2

    @property
    def reader_is_gone(self) -> bool:
        """Whether the other end of a pipe was closed, also if nothing was written since then (poll(2), POLLERR)."""
        if isinstance(self.failure, BrokenPipeError):
            return True
        if sys.platform == "win32":
            return False
        import select

        watcher = select.poll()
        try:
            watcher.register(sys.stdout.fileno(), 0)
            return any(events & select.POLLERR for _, events in watcher.poll(0))
        except (OSError, ValueError):
            return False

    def encode(self, text: str) -> bytes:
        """The text in the encoding of the output, with the line ends of the system."""
        return text.replace("\n", os.linesep).encode(self.encoding, "backslashreplace")

    def put(self, data: bytes) -> bool:
        """Have something written; False: there is no room for it, or nothing can be written any more."""
        if self.failure is not None:
            return False
        with self._changed:
            if self._queued and self._queued + len(data) > self._most:
                return False
            self._parts.append(data)
            self._queued += len(data)
            self._changed.notify_all()
        return True

    def drain(self, limit_s: float) -> bool:
        """Wait until everything is written, but not longer than this; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._queued == 0, limit_s)

    def close(self, limit_s: float) -> bool:
        """End the thread when everything is written; return whether it is, after waiting no longer than this."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        return self.drain(limit_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parts or self._ends)
                if not self._parts:
                    return
                parts = [*self._parts]
                self._parts.clear()
            data = b"".join(parts)
            try:
                self._write(data)
            except (OSError, ValueError) as error:
                self.failure = error
            with self._changed:
                self._queued -= len(data)
                if self.failure is not None:
                    self._parts.clear()
                    self._queued = 0
                self._changed.notify_all()
            if self.failure is not None:
                return

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = self._raw.write(rest[:MOST_WRITTEN])
            if written is None:  # a descriptor that somebody made non-blocking: io.RawIOBase.write
                import select

                select.select([], [self._raw], [], 1.0)
                continue
            rest = rest[written:]
