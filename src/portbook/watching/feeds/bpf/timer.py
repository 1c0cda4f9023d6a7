"""A descriptor that becomes readable at a time: timerfd_create(2), which Python has since 3.13."""

from __future__ import annotations

import ctypes
import os
import struct

CLOCK_MONOTONIC = 1
FLAGS = os.O_CLOEXEC | os.O_NONBLOCK  # TFD_CLOEXEC, TFD_NONBLOCK
ABSOLUTE = 1  # TFD_TIMER_ABSTIME
SETTING = struct.Struct("=qqqq")  # struct itimerspec: interval and first time, seconds and nanoseconds
SECOND_NS = 1_000_000_000


class Timer:
    """The timer; it is not set."""

    def __init__(self) -> None:
        """Make it; raise OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._libc.timerfd_create(CLOCK_MONOTONIC, FLAGS)
        if self.descriptor < 0:
            raise _last_error()
        self._set_to: int | None = None

    def set(self, at_ns: int | None) -> None:
        """Become readable at this time of time.monotonic_ns(); None: never."""
        if at_ns == self._set_to:
            return
        self._set_to = at_ns
        seconds, rest = divmod(at_ns or 0, SECOND_NS)
        if self._libc.timerfd_settime(self.descriptor, ABSOLUTE, SETTING.pack(0, 0, seconds, rest), None):
            raise _last_error()

    def close(self) -> None:
        """Give it up."""
        os.close(self.descriptor)


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
