"""Windows: this process as a service: what the service control manager orders, and what it wants to hear.

It has the methods of ``notify.ServiceManager``, so that a watch needs not know which of both started it.

Facts: learn.microsoft.com, StartServiceCtrlDispatcherW, RegisterServiceCtrlHandlerExW, SERVICE_STATUS (winsvc.h),
Service State Transitions, ReportEventW.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from threading import Event as Flag
from threading import Thread
from typing import Any

from portbook.errors import UsageError
from portbook.system.winapi import Functions, last_error

CONNECT_LIMIT_S = 20.0  # the manager itself waits for 30 s
STOP_HINT_MS, START_HINT_MS = 20_000, 60_000
OWN_PROCESS = 0x10
STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
CONTROL_STOP, CONTROL_INTERROGATE, CONTROL_SHUTDOWN, CONTROL_PARAMCHANGE = 1, 4, 5, 6
ACCEPTED = 0x1 | 0x4 | 0x8  # SERVICE_ACCEPT_STOP, _SHUTDOWN, _PARAMCHANGE
NO_ERROR, ERROR_CALL_NOT_IMPLEMENTED = 0, 120
ERROR_SERVICE_SPECIFIC_ERROR, ERROR_FAILED_SERVICE_CONTROLLER_CONNECT = 1066, 1063
EVENTLOG_ERROR_TYPE = 1
DWORD, LPWSTR, HANDLE = ctypes.c_uint32, ctypes.c_wchar_p, ctypes.c_void_p
NOT_STARTED_BY_THE_MANAGER = UsageError(
    "--service is for a process that the service control manager of Windows starts",
    "packaging/windows/README.md shows how it does",
)


class ServiceTableEntry(ctypes.Structure):
    """SERVICE_TABLE_ENTRYW."""

    _fields_ = (("name", LPWSTR), ("main", ctypes.c_void_p))


class ServiceState(ctypes.Structure):
    """SERVICE_STATUS."""

    _fields_ = tuple(
        (name, DWORD)
        for name in ("type", "state", "accepted", "win32_exit_code", "specific_exit_code", "checkpoint", "wait_hint_ms")
    )


API = Functions(
    (
        ("advapi32", "StartServiceCtrlDispatcherW", ctypes.c_int, (ctypes.c_void_p,)),
        ("advapi32", "RegisterServiceCtrlHandlerExW", HANDLE, (LPWSTR, ctypes.c_void_p, ctypes.c_void_p)),
        ("advapi32", "SetServiceStatus", ctypes.c_int, (HANDLE, ctypes.c_void_p)),
        ("advapi32", "RegisterEventSourceW", HANDLE, (LPWSTR, LPWSTR)),
        (
            "advapi32",
            "ReportEventW",
            ctypes.c_int,
            (HANDLE, ctypes.c_uint16, ctypes.c_uint16, DWORD, HANDLE, ctypes.c_uint16, DWORD, HANDLE, HANDLE),
        ),
        ("advapi32", "DeregisterEventSource", ctypes.c_int, (HANDLE,)),
    )
)


class WindowsService:
    """A service of one process. Use ``connect``."""

    listens = True

    def __init__(self, on_stop: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """Say what the orders of the manager do; both are called in a thread of its."""
        self._on_stop, self._on_reload = on_stop, on_reload
        self._handle: int | None = None
        self._state = ServiceState(OWN_PROCESS, START_PENDING, 0, NO_ERROR, 0, 0, START_HINT_MS)
        self._began, self._ended = Flag(), Flag()
        self._failure = 0
        self._callbacks: tuple[Any, ...] = ()  # as long as they may be called, they have to be kept

    def connect(self) -> None:
        """Tell the manager that this is the process that it started; raise UsageError if it did not."""
        if sys.platform != "win32":
            raise NOT_STARTED_BY_THE_MANAGER
        main = ctypes.WINFUNCTYPE(None, DWORD, ctypes.c_void_p)(self._main)
        handler = ctypes.WINFUNCTYPE(DWORD, DWORD, DWORD, ctypes.c_void_p, ctypes.c_void_p)(self._handle_control)
        self._callbacks = main, handler
        Thread(target=self._dispatch, name="portbook-service", daemon=True).start()
        if not self._began.wait(CONNECT_LIMIT_S) or self._failure:
            raise NOT_STARTED_BY_THE_MANAGER

    def ready(self, status: str) -> None:
        """Say that it runs."""
        self._report(RUNNING)

    def reloading(self) -> None:
        """There is no state for it."""

    def status(self, text: str) -> None:
        """There is no place for it."""

    def alive(self) -> None:
        """Nothing waits for it."""

    def stopping(self, status: str) -> None:
        """Say that it is about to end."""
        self._report(STOP_PENDING, wait_hint_ms=STOP_HINT_MS)

    def stopped(self, exit_code: int) -> None:
        """Say that it has ended: the manager may end the process from then on."""
        self._report(STOPPED, exit_code)
        self._ended.set()

    # --- in threads of the manager ---------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        table = (ServiceTableEntry * 2)()
        table[0].name = ""  # of a process with one service it is not used
        table[0].main = ctypes.cast(self._callbacks[0], ctypes.c_void_p)
        try:
            if not API.StartServiceCtrlDispatcherW(ctypes.byref(table)):
                self._failure = last_error() or ERROR_FAILED_SERVICE_CONTROLLER_CONNECT
        except OSError:
            self._failure = ERROR_FAILED_SERVICE_CONTROLLER_CONNECT
        self._began.set()

    def _main(self, _: int, __: Any) -> None:
        handler = ctypes.cast(self._callbacks[1], ctypes.c_void_p)
        self._handle = API.RegisterServiceCtrlHandlerExW("", handler, None)
        self._report(START_PENDING, wait_hint_ms=START_HINT_MS)
        self._began.set()
        self._ended.wait()

    def _handle_control(self, control: int, _: int, __: Any, ___: Any) -> int:
        if control in (CONTROL_STOP, CONTROL_SHUTDOWN):
            self._report(STOP_PENDING, wait_hint_ms=STOP_HINT_MS)
            self._on_stop()
        elif control == CONTROL_PARAMCHANGE:
            self._on_reload()
        elif control != CONTROL_INTERROGATE:
            return ERROR_CALL_NOT_IMPLEMENTED
        return NO_ERROR

    def _report(self, state: int, exit_code: int = 0, wait_hint_ms: int = 0) -> None:
        own = self._state
        own.state, own.wait_hint_ms = state, wait_hint_ms
        own.accepted = ACCEPTED if state == RUNNING else 0
        own.checkpoint = own.checkpoint + 1 if state in (START_PENDING, STOP_PENDING) else 0
        if exit_code:
            own.win32_exit_code, own.specific_exit_code = ERROR_SERVICE_SPECIFIC_ERROR, exit_code
        if self._handle:
            API.SetServiceStatus(self._handle, ctypes.byref(own))


def log_error(source: str, text: str) -> None:
    """Write a line to the log of applications: a service has no standard error that anybody reads."""
    try:
        log = API.RegisterEventSourceW(None, source)
        if log:
            strings = (LPWSTR * 1)(text)
            API.ReportEventW(log, EVENTLOG_ERROR_TYPE, 0, 1, None, 1, 0, ctypes.byref(strings), None)
            API.DeregisterEventSource(log)
    except (OSError, AttributeError):
        return
