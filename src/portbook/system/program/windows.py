"""A program in a job object, whose pipes are read by a thread each: a pipe cannot be waited for on Windows.

When the job is closed, every process in it ends: the program, its descendants, and with them the last writers of the
pipes, for which the threads wait. That also happens when this process itself is killed. Without a job (before
Windows 8, a process that is in a job already cannot make another one for its children), the program alone is killed.

Facts (learn.microsoft.com): Job Objects, Nested Jobs, JOBOBJECT_BASIC_LIMIT_INFORMATION, Process Creation Flags
(CREATE_NO_WINDOW).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import IO, TYPE_CHECKING, Any

from portbook.errors import SourceGarbled, SourceTimeout
from portbook.system import winapi
from portbook.system.program import CHUNK, DRAIN_S, KILL_WAIT_S, Output, RunLimits, input_file

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CHECK_S = 0.05  # between two looks at the size of the output
CREATE_NO_WINDOW = 0x08000000
JOB_OBJECT_EXTENDED_LIMIT_INFORMATION = 9
JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE = 0x2000
HANDLE, PVOID, DWORD, BOOL = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int

PROTOTYPES: winapi.Prototypes = (
    ("kernel32", "CreateJobObjectW", HANDLE, (PVOID, PVOID)),
    ("kernel32", "SetInformationJobObject", BOOL, (HANDLE, ctypes.c_int, PVOID, DWORD)),
    ("kernel32", "AssignProcessToJobObject", BOOL, (HANDLE, HANDLE)),
    ("kernel32", "TerminateJobObject", BOOL, (HANDLE, ctypes.c_uint)),
    ("kernel32", "CloseHandle", BOOL, (HANDLE,)),
)


class ExtendedLimitInformation(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION (winnt.h)."""

    _fields_ = (
        ("per_process_user_time_limit", ctypes.c_int64),
        ("per_job_user_time_limit", ctypes.c_int64),
        ("limit_flags", DWORD),
        ("minimum_working_set_size", ctypes.c_size_t),
        ("maximum_working_set_size", ctypes.c_size_t),
        ("active_process_limit", DWORD),
        ("affinity", ctypes.c_size_t),
        ("priority_class", DWORD),
        ("scheduling_class", DWORD),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory_limit", ctypes.c_size_t),
        ("job_memory_limit", ctypes.c_size_t),
        ("peak_process_memory_used", ctypes.c_size_t),
        ("peak_job_memory_used", ctypes.c_size_t),
    )


class Job:
    """A job object with one process and the descendants that it starts from now on."""

    def __init__(self, process_handle: int) -> None:
        self._call = winapi.Functions(PROTOTYPES)
        self._handle: int | None = self._call.CreateJobObjectW(None, None)
        limits = ExtendedLimitInformation(limit_flags=JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE)
        size = ctypes.sizeof(limits)
        complete = (
            self._handle
            and self._call.SetInformationJobObject(
                self._handle, JOB_OBJECT_EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), size
            )
            and self._call.AssignProcessToJobObject(self._handle, process_handle)
        )
        if not complete:
            self.end()

    def end(self) -> None:
        """End all processes of the job."""
        if self._handle:
            self._call.TerminateJobObject(self._handle, 1)
            self._call.CloseHandle(self._handle)
            self._handle = None


class OutputReader:
    """Reads one pipe in a thread, which ends at the end of the pipe or when there is more than ``most_bytes``."""

    def __init__(self, pipe: IO[bytes], limits: RunLimits) -> None:
        self.data = bytearray()
        self._pipe = pipe
        self._limits = limits
        self.thread = threading.Thread(target=self._read, name="portbook-program", daemon=True)
        self.thread.start()

    def _read(self) -> None:
        # The thread closes the pipe: closing it in another thread would wait for the read.
        with self._pipe, suppress(OSError):
            while len(self.data) <= self._limits.most_bytes:
                part = self._pipe.read(CHUNK)
                if not part:
                    break
                if self._limits.discards_excess:
                    part = part[: self._limits.most_bytes - len(self.data)]
                self.data += part


class RunningInJob:
    """A running program; see ``portbook.system.program``."""

    def __init__(
        self, command: Sequence[str], name: str, environment: Mapping[str, str] | None, limits: RunLimits, stdin: bytes
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
                cwd=os.path.dirname(command[0]),  # libraries are looked for in the current directory too
                bufsize=0,
                creationflags=CREATE_NO_WINDOW,
            )
        self.job = Job(_handle_of(self.process))
        pipes = (self.process.stdout, self.process.stderr)
        self.readers = [OutputReader(pipe, limits) for pipe in pipes if pipe is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from subprocess import TimeoutExpired

        self.kill()
        with suppress(TimeoutExpired):
            self.process.wait(KILL_WAIT_S)
        for reader in self.readers:
            reader.thread.join(KILL_WAIT_S)

    def kill(self) -> None:
        """End the program and its descendants."""
        self.job.end()
        if self.process.poll() is None:
            self.process.kill()

    def output(self) -> Output:
        """Wait for the end of the program, then for what is left in the pipes."""
        from subprocess import TimeoutExpired

        code: int | None = None
        while code is None:
            self._check_size()
            remaining = self.deadline - monotonic()
            if remaining <= 0:
                raise SourceTimeout(f"{self.name} did not finish within {self.limits.limit_s:g} s")
            with suppress(TimeoutExpired):
                code = self.process.wait(min(CHECK_S, remaining))
        drain_until = monotonic() + DRAIN_S
        for reader in self.readers:
            reader.thread.join(max(0.0, drain_until - monotonic()))
        self._check_size()
        stdout, stderr = (bytes(reader.data) for reader in self.readers)
        return Output(self.name, code, stdout, stderr)

    def _check_size(self) -> None:
        most_bytes = self.limits.most_bytes
        if sum(len(reader.data) for reader in self.readers) > most_bytes and not self.limits.discards_excess:
            raise SourceGarbled(f"{self.name} printed more than {most_bytes:,} bytes")


def _handle_of(process: Any) -> int:
    """The handle of the process, which subprocess keeps open until it was waited for."""
    if sys.platform != "win32":
        return 0
    return int(process._handle)
