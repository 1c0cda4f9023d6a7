"""Windows: functions of the system's own libraries, called with ctypes, and its clock.

Facts: learn.microsoft.com, LoadLibraryExW (LOAD_LIBRARY_SEARCH_SYSTEM32) and FILETIME (minwinbase.h).
"""

from __future__ import annotations

import ctypes
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

LOAD_LIBRARY_SEARCH_SYSTEM32 = 0x800  # only the system's own library, never one beside the program
ERROR_ACCESS_DENIED = 5
FILETIME_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)

# (library, function, type of the result, types of the arguments)
Prototypes = tuple[tuple[str, str, Any, tuple[Any, ...]], ...]


class Functions:
    """Functions of Windows as attributes. Each is looked up when it is first used."""

    def __init__(self, prototypes: Prototypes) -> None:
        self._prototypes = {prototype[1]: prototype for prototype in prototypes}

    def __getattr__(self, name: str) -> Any:
        """The function; raises OSError if its library is missing, AttributeError if the library lacks it."""
        library, _, result, arguments = self._prototypes[name]
        function = getattr(load_library(library), name)
        function.restype, function.argtypes = result, arguments
        setattr(self, name, function)
        return function


def load_library(name: str) -> Any:
    """Load a library of the system; raises OSError."""
    if sys.platform != "win32":
        raise OSError(f"{name}.dll is part of Windows")
    return ctypes.WinDLL(name, use_last_error=True, winmode=LOAD_LIBRARY_SEARCH_SYSTEM32)


def is_wine() -> bool:
    """Whether this is Wine, which lacks some functions that it exports (winehq.org, Developer FAQ)."""
    return sys.platform == "win32" and hasattr(load_library("ntdll"), "wine_get_version")


def last_error() -> int:
    """The error number that the last function of this thread left behind (GetLastError)."""
    if sys.platform != "win32":
        return 0
    return ctypes.get_last_error()


def filetime_to_datetime(filetime: int) -> datetime | None:
    """A FILETIME (100 ns since 1601, UTC) as aware UTC; None for 0 (unknown) and for what exceeds the calendar."""
    if filetime <= 0:
        return None
    try:
        return FILETIME_EPOCH + timedelta(microseconds=filetime // 10)
    except OverflowError:
        return None
