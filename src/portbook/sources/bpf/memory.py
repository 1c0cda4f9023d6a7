"""Linux: the kernel's memory, a few words at a time: for a structure that can be looked up instead of read whole.

A BPF program of sixty instructions, which the kernel runs once for each call (BPF_PROG_TEST_RUN), copies eight words
from addresses that the kernel's own pointers gave. An address that is not valid any more makes the read fail, and
nothing else: bpf_probe_read_kernel in bpf-helpers(7). Nothing is ever written.

Facts: bpf(2); include/uapi/linux/bpf.h; bpf_prog_test_run_syscall() in net/bpf/test_run.c, Linux 5.14.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType

from portbook.errors import SourceError, SourceMissing
from portbook.sources.bpf import calls
from portbook.sources.bpf.assembler import R0, R1, R2, R3, R6, R7, R10, Code
from portbook.sources.bpf.btf import Place
from portbook.system import namespaces

GET_CURRENT_TASK, PROBE_READ_KERNEL = 35, 113  # numbers of helpers in include/uapi/linux/bpf.h
WORD = 8
SLOTS = 8  # words that one call reads
FAILED_AT, TASK_AT = SLOTS * WORD, (SLOTS + 1) * WORD
SIZE = TASK_AT + WORD  # of what the program is given: addresses, which it replaces by contents; error; current task
ADDRESS = struct.Struct("=Q")
ADDRESSES = struct.Struct(f"={SLOTS}Q")
FAILED_AND_TASK = struct.Struct("=QQ")


_pid_levels: dict[int, int | None] = {}  # by inode of the pid namespace


class ChangedMemory(Exception):
    """What was to be read is not there any more."""


def build() -> Code:
    """The program. It has no branches: that makes it quick to verify."""
    code = Code()
    code.move(R6, R1, "the context stays in r6")
    code.call(GET_CURRENT_TASK, "where the caller's task_struct is")
    code.store(R6, TASK_AT, WORD, R0, "for the caller")
    code.move(R7, 0, "no error yet")
    for at in range(0, SLOTS * WORD, WORD):
        code.move(R1, R10, "the stack")
        code.change(R1, "+", -WORD, "one word of it")
        code.move(R2, WORD, "a word")
        code.load(R3, R6, at, WORD, "an address")
        code.call(PROBE_READ_KERNEL, "its contents, or zeros and an error")
        code.change(R7, "|", R0, "keep the error")
        code.load(R1, R10, -WORD, WORD, "the contents")
        code.store(R6, at, WORD, R1, "in place of the address")
    code.store(R6, FAILED_AT, WORD, R7, "whether any read failed")
    code.move(R0, 0, "done")
    code.leave()
    return code


class KernelMemory:
    """Reads words of the kernel's memory; a context manager.

    :raises SourceDenied: this process may not load programs
    :raises SourceMissing: the kernel does not have this kind of program
    """

    def __init__(self) -> None:
        self._program = calls.load_callable(build().assemble())
        self._run = calls.runner(self._program, SIZE)
        self.task = 0
        try:
            # The first read fails, because there is no address yet, and shows the task.
            _, self.task = FAILED_AND_TASK.unpack_from(self._run(bytes(SIZE)), FAILED_AT)
        except SourceMissing:
            self.close()
            raise

    def __enter__(self) -> KernelMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the kernel free the program."""
        os.close(self._program)

    def read(self, *addresses: int) -> bytes:
        """The 8 bytes at each of up to SLOTS addresses, one after the other.

        :raises ChangedMemory: there is nothing at one of them
        """
        unused = [self.task] * (SLOTS - len(addresses))
        answer = self._run(ADDRESSES.pack(*addresses, *unused).ljust(SIZE, b"\0"))
        (failed,) = ADDRESS.unpack_from(answer, FAILED_AT)
        if failed:
            raise ChangedMemory(f"nothing at one of {_hexadecimal(addresses)}")
        return answer[: len(addresses) * WORD]


def pid_level(places: Mapping[str, Place | None]) -> int | None:
    """How deep the pid namespace of this process is nested, 0 for the outermost; None where that cannot be looked up.

    :param places: of the kernel's members ``task_struct.thread_pid`` and ``pid.level``
    """
    try:
        inode = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None
    if inode == namespaces.INITIAL_PID_NAMESPACE:
        return 0
    if inode not in _pid_levels:
        _pid_levels[inode] = _read_pid_level(places.get("task_struct.thread_pid"), places.get("pid.level"))
    return _pid_levels[inode]


def _read_pid_level(pid: Place | None, level: Place | None) -> int | None:
    if pid is None or level is None:
        return None
    try:
        with KernelMemory() as memory:
            (address,) = ADDRESS.unpack(memory.read(memory.task + pid.offset))
            return int.from_bytes(memory.read(address + level.offset)[: level.size], sys.byteorder)
    except (SourceError, ChangedMemory):
        return None


def _hexadecimal(addresses: Sequence[int]) -> str:
    return ", ".join(map(hex, addresses))
