"""The commands of Windows: where they are, and how the bytes that they print become text.

They print in the language of the system, in the OEM code page, whatever the console of this process is set to.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple

from portbook.errors import SourceMissing
from portbook.system.winapi import load_library


class Console(NamedTuple):
    """What is needed to run a command and to decode its output."""

    directory: str  # where Windows keeps its commands
    codec: str  # "cp850"


def console() -> Console:
    """Read both from Windows; raise SourceMissing elsewhere."""
    if sys.platform != "win32":
        raise SourceMissing("only Windows has this command")
    kernel32 = load_library("kernel32")
    return Console(system_directory(kernel32), f"cp{kernel32.GetOEMCP()}")


def system_directory(kernel32: Any) -> str:
    """Where Windows keeps its commands; raise SourceMissing. PATH could lead to another program with the same name."""
    buffer = ctypes.create_unicode_buffer(260)  # MAX_PATH
    length = kernel32.GetSystemDirectoryW(buffer, len(buffer))
    if not 0 < length < len(buffer):
        raise SourceMissing("GetSystemDirectoryW does not return the directory of the system's commands")
    return buffer.value


def decode(data: bytes, codec: str) -> str:
    """The output of a command as text.

    A system that is set to UTF-8 prints that, whatever its OEM code page was before. If Python lacks the code page,
    only ASCII is decoded: rows consist of it.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode(codec, "replace")
    except (LookupError, ValueError):
        return data.decode("ascii", "replace")
