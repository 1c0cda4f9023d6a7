"""The clocks of the watch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from portbook.watching.records import Moment


class Clock(Protocol):
    """Where the watch reads the time. Tests have one of their own: ``portbook.testing.watching.FakeClock``."""

    def now(self) -> Moment:
        """The time."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait while no feed is open."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def __init__(self) -> None:
        self._asleep_ns = _asleep()

    def now(self) -> Moment:
        """The time."""
        return Moment(datetime.now(UTC), time.monotonic_ns(), self._asleep_ns())

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def _asleep() -> Callable[[], int]:
    """What tells how long the machine has been suspended since it started: a clock that counts that, less one that
    does not.

    Linux: CLOCK_BOOTTIME and CLOCK_MONOTONIC, clock_gettime(2). macOS: CLOCK_MONOTONIC and CLOCK_UPTIME_RAW,
    clock_gettime(3). Windows: GetTickCount64 and QueryUnbiasedInterruptTime, on learn.microsoft.com.
    """
    if sys.platform == "win32":
        return _asleep_on_windows
    if sys.platform == "linux":
        return lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    if hasattr(time, "CLOCK_UPTIME_RAW"):
        uptime = time.CLOCK_UPTIME_RAW
        return lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC) - time.clock_gettime_ns(uptime)
    return lambda: 0


def _asleep_on_windows() -> int:
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetTickCount64.restype = ctypes.c_ulonglong
    awake = ctypes.c_ulonglong()
    if not kernel.QueryUnbiasedInterruptTime(ctypes.byref(awake)):
        return 0
    return int(kernel.GetTickCount64()) * 1_000_000 - awake.value * 100


SYSTEM_CLOCK = SystemClock()
