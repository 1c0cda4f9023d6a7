"""Windows: an open process handle. As long as it is open, the pid is not reused.

Windows has no SIGTERM. A program with windows can be asked to end (WM_CLOSE, as a click on the close button sends it),
and a program that has a console for itself (Ctrl+C, then Ctrl+Break). A program that shares its console, for example
with the shell that started it, cannot be asked without asking all of them; a service is asked by the service control
manager. Everything else can only be ended with TerminateProcess, which gives the program no chance to clean up.

Facts (learn.microsoft.com): Process Security and Access Rights; Process Handles and Identifiers; Closing a window
(WM_CLOSE); GenerateConsoleCtrlEvent, AttachConsole, GetConsoleProcessList.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import byref
from datetime import datetime
from typing import Any

from portbook.errors import SourceError
from portbook.stop.handle import Handle
from portbook.system import program
from portbook.system.winapi import ERROR_ACCESS_DENIED, Functions, Prototypes, filetime_to_datetime, last_error

HANDLE, DWORD, BOOL = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int
TERMINATE, QUERY, SYNCHRONIZE = 0x1, 0x1000, 0x100000
WAIT_OBJECT_0 = 0
WM_CLOSE = 0x10
ENDED_BY_US = 1  # exit code of a process that was terminated
CONSOLE_LIMIT_S = 10
MOST_CLASS = 256
# The window of a console belongs to another program; closing it ends every program in the console.
CONSOLES = ("ConsoleWindowClass", "PseudoConsoleWindow")
ASKED_BY_CODE = {10: "Ctrl+C", 11: "Ctrl+Break"}  # exit codes of console.py

# (library, function, type of the result, types of the arguments)
PROTOTYPES: Prototypes = (
    ("kernel32", "OpenProcess", HANDLE, (DWORD, BOOL, DWORD)),
    ("kernel32", "CloseHandle", BOOL, (HANDLE,)),
    ("kernel32", "TerminateProcess", BOOL, (HANDLE, ctypes.c_uint)),
    ("kernel32", "WaitForSingleObject", DWORD, (HANDLE, DWORD)),
    ("kernel32", "GetProcessTimes", BOOL, (HANDLE, HANDLE, HANDLE, HANDLE, HANDLE)),
    ("user32", "EnumWindows", BOOL, (HANDLE, ctypes.c_ssize_t)),
    ("user32", "GetWindowThreadProcessId", DWORD, (HANDLE, HANDLE)),
    ("user32", "IsWindowVisible", BOOL, (HANDLE,)),
    ("user32", "GetClassNameW", ctypes.c_int, (HANDLE, HANDLE, ctypes.c_int)),
    ("user32", "PostMessageW", BOOL, (HANDLE, ctypes.c_uint, ctypes.c_size_t, ctypes.c_ssize_t)),
)


def open_handle(pid: int) -> Handle:
    """Open the process with the right to end it."""
    call = Functions(PROTOTYPES)
    process = call.OpenProcess(TERMINATE | QUERY | SYNCHRONIZE, 0, pid)
    if not process:
        _fail(pid)
    return ProcessHandle(pid, process, call)


def _fail(pid: int) -> None:
    number = last_error()
    if number == ERROR_ACCESS_DENIED:
        raise PermissionError(f"access to process {pid} is denied")
    raise ProcessLookupError(f"there is no process {pid} (error {number})")


class ProcessHandle:
    """A process by its open handle."""

    def __init__(self, pid: int, process: int, call: Any) -> None:
        self.pid = pid
        self.process = process
        self.call = call

    def started(self) -> datetime | None:
        """Read through the handle."""
        times = [ctypes.c_int64(0) for _ in range(4)]
        if self.ended() or not self.call.GetProcessTimes(self.process, *map(byref, times)):
            return None
        return filetime_to_datetime(times[0].value)

    def request_end(self) -> str | None:
        """Close its windows; if it has none, send Ctrl+C to its console."""
        posted = [self.call.PostMessageW(window, WM_CLOSE, 0, 0) for window in self._windows()]
        return "WM_CLOSE" if any(posted) else self._ask_in_console()

    def force_end(self) -> str:
        """TerminateProcess."""
        if not self.call.TerminateProcess(self.process, ENDED_BY_US) and not self.ended():
            raise OSError(f"TerminateProcess failed with error {last_error()}")
        return "TerminateProcess"

    def ended(self) -> bool:
        """Whether the process object is signalled."""
        return bool(self.call.WaitForSingleObject(self.process, 0) == WAIT_OBJECT_0)

    def close(self) -> None:
        """Close the handle; from now on the pid may be reused."""
        self.call.CloseHandle(self.process)

    def _windows(self) -> list[int]:
        """The visible top-level windows of the process on this desktop."""
        if sys.platform != "win32":
            return []
        windows: list[int] = []

        @ctypes.WINFUNCTYPE(BOOL, HANDLE, ctypes.c_ssize_t)
        def collect(window: int, _: int) -> int:
            if self._owns(window) and self.call.IsWindowVisible(window) and not self._is_console(window):
                windows.append(window)
            return 1  # continue

        self.call.EnumWindows(collect, 0)
        return windows

    def _owns(self, window: int) -> bool:
        pid = DWORD(0)
        self.call.GetWindowThreadProcessId(window, byref(pid))
        return pid.value == self.pid

    def _is_console(self, window: int) -> bool:
        name = ctypes.create_unicode_buffer(MOST_CLASS)
        self.call.GetClassNameW(window, name, MOST_CLASS)
        return name.value in CONSOLES

    def _ask_in_console(self) -> str | None:
        """A process has one console; to use another's we would lose ours. So a child does it."""
        script = os.path.join(os.path.dirname(__file__), "console.py")
        command = [sys.executable, "-I", "-S", script, str(self.pid)]
        try:
            code = program.run(command, CONSOLE_LIMIT_S).code
        except SourceError:
            return None
        return ASKED_BY_CODE.get(code)
