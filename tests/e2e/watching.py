"""``portbook watch`` as a child that goes on, for tests that look at what it says and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tests.e2e.terminal import ENVIRONMENT
from tests.listeners import SOURCE

LIMIT_S = 30.0
COMMAND = (sys.executable, "-m", "portbook", "watch")


class Watch:
    """A running watch whose standard output is read all the time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[bytes] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        """The first event of this kind with these fields, once it is there."""

        def fits(line: bytes) -> bool:
            read = json.loads(line)
            return read["event"] == event and all(read.get(name) == value for name, value in fields.items())

        return json.loads(self.wait_for_line(fits))

    def wait_for_line(self, fits: Callable[[bytes], bool]) -> bytes:
        seen = 0
        end = time.monotonic() + LIMIT_S
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    if fits(line):
                        return line
                seen = len(self.lines)
                if not self._reader.is_alive() or time.monotonic() >= end:
                    raise AssertionError((self.process.poll(), self.lines[-20:], self._last_words()))
                self._changed.wait(min(0.5, end - time.monotonic()))

    def _last_words(self) -> str:
        return self.complaints() if self.process.poll() is not None else "it runs"

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code, when everything was read."""
        self.process.send_signal(number)
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code

    def complaints(self) -> str:
        return self.process.stderr.read().decode()


@contextmanager
def watch(
    *arguments: object, prefix: Sequence[str] = (), env: dict[str, str] | None = None, **streams: Any
) -> Iterator[Watch]:
    command = [*prefix, *COMMAND, *map(str, arguments)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    process = subprocess.Popen(command, env={**ENVIRONMENT, "PYTHONPATH": SOURCE, **(env or {})}, **streams)
    try:
        yield Watch(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(LIMIT_S)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def capabilities_of(pid: int) -> set[str]:
    """The effective capabilities of every thread of a process, as hexadecimal text."""
    found: set[str] = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        ended = suppress(FileNotFoundError, ProcessLookupError)
        with ended, open(f"/proc/{pid}/task/{task}/status", encoding="ascii", errors="replace") as file:
            found |= {line.split()[1] for line in file if line.startswith("CapEff:")}
    return found
