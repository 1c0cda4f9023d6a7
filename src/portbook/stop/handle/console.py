"""Windows, run as a program of its own: press Ctrl+C in the console of one process.

    python -I -S console.py PID

Only if no other process is in that console: the event goes to every one in it. It is never sent to a single pid,
because GenerateConsoleCtrlEvent takes the id of a process group, which most pids are not. Ctrl+Break follows if the
process still runs a second later: Ctrl+C is disabled in processes that were started as a new process group.

Facts (learn.microsoft.com): AttachConsole, GetConsoleProcessList, GenerateConsoleCtrlEvent, SetConsoleCtrlHandler.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

CTRL_C, CTRL_BREAK = 0, 1
EVERYBODY = 0  # the group: all in this console
SYNCHRONIZE, WAIT_OBJECT_0 = 0x100000, 0
PATIENCE_MS = 1000
MOST = 64
ASKED_C, ASKED_BREAK, NOT_ASKED = 10, 11, 12  # exit codes


def main(pid: int) -> int:
    """Press the keys; return one of the exit codes above."""
    if sys.platform != "win32":
        return NOT_ASKED
    kernel = ctypes.WinDLL("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    ignore = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint32)(lambda _: 1)
    process = kernel.OpenProcess(SYNCHRONIZE, 0, pid)
    kernel.FreeConsole()  # a process has one console at most, and AttachConsole fails while it has another
    if not process or not kernel.AttachConsole(pid) or not _alone(kernel, pid):
        return NOT_ASKED
    kernel.SetConsoleCtrlHandler(ignore, 1)  # we are in that console too
    return _press(kernel, process)


def _press(kernel: Any, process: int) -> int:
    if not kernel.GenerateConsoleCtrlEvent(CTRL_C, EVERYBODY):
        return NOT_ASKED
    if kernel.WaitForSingleObject(process, PATIENCE_MS) == WAIT_OBJECT_0:
        return ASKED_C
    return ASKED_BREAK if kernel.GenerateConsoleCtrlEvent(CTRL_BREAK, EVERYBODY) else ASKED_C


def _alone(kernel: Any, pid: int) -> bool:
    pids = (ctypes.c_uint32 * MOST)()
    count = kernel.GetConsoleProcessList(pids, MOST)
    return 0 < count <= MOST and set(pids[:count]) <= {pid, os.getpid()}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
