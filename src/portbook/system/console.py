"""The commands of Windows: where they are, and how the bytes they print become text.

They speak the language of the system in the OEM code page, whatever the console of this process is set to.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple

from portbook.errors import SourceMissing
from portbook.system.winapi import load_library


class Console(NamedTuple):
    """What is needed to run a command and to read it."""

    directory: str  # where Windows keeps its commands
    codec: str  # "cp850"


def console() -> Console:
    """Ask Windows; raise SourceMissing elsewhere."""
    if sys.platform != "win32":
        raise SourceMissing("only Windows has this command")
    kernel32 = load_library("kernel32")
    return Console(system_directory(kernel32), f"cp{kernel32.GetOEMCP()}")


def system_directory(kernel32: Any) -> str:
    """Where Windows keeps its commands. PATH could lead to another program of that name."""
    buffer = ctypes.create_unicode_buffer(260)  # MAX_PATH
    length = kernel32.GetSystemDirectoryW(buffer, len(buffer))
    if not 0 < length < len(buffer):
        raise SourceMissing("GetSystemDirectoryW does not say where the system's commands are")
    return buffer.value


def decode(data: bytes, codec: str) -> str:
    """Text of a command. A code page that Python lacks leaves ASCII, which is all that the rows need."""
    try:
        return data.decode(codec, "replace")
    except (LookupError, ValueError):
        return data.decode("ascii", "replace")
