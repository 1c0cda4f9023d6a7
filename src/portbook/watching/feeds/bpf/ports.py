"""The port of a socket that listens without having been bound: the kernel gives it one after it has told of it.

The record has the address of the socket. A moment later its port is read there, if the cookie is still the same.
"""

from __future__ import annotations

import struct
from contextlib import suppress

from portbook.errors import SourceError
from portbook.sources.bpf.btf import Layout
from portbook.sources.bpf.memory import ChangedMemory, KernelMemory
from portbook.watching.feeds.bpf.program import COMMON, COOKIE

WORD = struct.Struct("=Q")
PORT = struct.Struct("=H")
TRIES = 50


class AutomaticPorts:
    """Reads ports."""

    def __init__(self, layout: Layout) -> None:
        """Load the program that reads memory now: later this process may have given up the right to."""
        self._port, self._cookie = layout.places.get(COMMON + "skc_num"), layout.places.get(COOKIE)
        self._memory: KernelMemory | None = None
        with suppress(SourceError):
            self._memory = KernelMemory()

    def find(self, sock: int, cookie: int) -> int | None:
        """The port of a socket; None if it has none, is gone, or cannot be read (before Linux 5.14)."""
        if self._memory is None or self._port is None or self._cookie is None:
            return None
        with suppress(SourceError, ChangedMemory):
            for _ in range(TRIES):  # it may be about to get its port
                place = sock + self._cookie.offset
                words = self._memory.read(place, sock + self._port.offset, place)
                (port,) = PORT.unpack_from(words, WORD.size)
                if {*WORD.unpack_from(words), *WORD.unpack_from(words, 2 * WORD.size)} != {cookie}:
                    return None  # another one is there now
                if port:
                    return int(port)
        return None

    def close(self) -> None:
        """Let the kernel free the program."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
