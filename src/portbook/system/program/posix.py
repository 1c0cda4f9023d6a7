"""A program in a process group of its own (setsid(2)), whose pipes are read with a selector."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from portbook.errors import SourceGarbled, SourceTimeout
from portbook.system.program import CHUNK, DRAIN_S, KILL_WAIT_S, Output, RunLimits, input_file

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CHECK_S = 0.05  # between two looks whether the program has ended while a pipe is open and silent


class RunningInGroup:
    """A running program; see ``portbook.system.program``."""

    def __init__(
        self, command: Sequence[str], name: str, environment: Mapping[str, str], limits: RunLimits, stdin: bytes
    ) -> None:
        import subprocess

        self.name = name
        self.limits = limits
        self.deadline = monotonic() + limits.limit_s
        with input_file(stdin) as file:
            self.process = subprocess.Popen(
                command,
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                bufsize=0,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def output(self) -> Output:
        """Read everything, then wait for the end of the program."""
        from subprocess import TimeoutExpired

        stdout, stderr = self._read()
        try:
            code = self.process.wait(max(0.0, self.deadline - monotonic()))
        except TimeoutExpired as error:  # it closed its output and goes on
            raise self._timeout() from error
        return Output(self.name, code, stdout, stderr)

    def _read(self) -> tuple[bytes, bytes]:
        """Read both pipes to their end, or until ``DRAIN_S`` after the end of the program."""
        from selectors import EVENT_READ, DefaultSelector

        stdout, stderr = bytearray(), bytearray()
        drain_until: float | None = None
        with DefaultSelector() as selector:
            for pipe, data in ((self.process.stdout, stdout), (self.process.stderr, stderr)):
                if pipe is not None:
                    selector.register(pipe, EVENT_READ, data)
            while selector.get_map():
                now = monotonic()
                if drain_until is None and self.process.poll() is not None:
                    drain_until = now + DRAIN_S
                if drain_until is None and now >= self.deadline:
                    raise self._timeout()
                if drain_until is not None and now >= drain_until:
                    break  # a descendant keeps a pipe open
                remaining = (drain_until or self.deadline) - now
                for key, _ in selector.select(min(CHECK_S, remaining)):
                    part = os.read(key.fd, CHUNK)
                    if not part:
                        selector.unregister(key.fileobj)
                    room = self.limits.most_bytes - len(stdout) - len(stderr)
                    if len(part) > room and not self.limits.discards_excess:
                        raise SourceGarbled(f"{self.name} printed more than {self.limits.most_bytes:,} bytes")
                    key.data.extend(part[: max(0, room)])
        return bytes(stdout), bytes(stderr)

    def _timeout(self) -> SourceTimeout:
        return SourceTimeout(f"{self.name} did not finish within {self.limits.limit_s:g} s")

    def kill(self) -> None:
        """Kill the group. The program was not waited for, so its process id is still its own and its group's."""
        from subprocess import TimeoutExpired

        if sys.platform == "win32" or self.process.returncode is not None:
            return
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: a set-user-ID program; macOS: a zombie
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(TimeoutExpired):
            self.process.wait(KILL_WAIT_S)
