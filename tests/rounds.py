"""Repetition for tests of races and of what comes by itself: as long as it takes, however fast the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


def rounds(enough: Callable[[], bool], most: int = 1000, limit_s: float = 60.0, least: int = 1) -> Iterator[int]:
    """Count rounds from 0 until ``enough()`` is true after one of them, and at least ``least`` rounds.

    A fixed number of rounds shows less on a slow machine, or on a fast one; then a floor on what was seen measures the
    machine. Raises AssertionError after ``most`` rounds or ``limit_s`` seconds.
    """
    began = time.monotonic()
    for number in range(most):
        yield number
        if number + 1 >= least and enough():
            return
        elapsed_s = time.monotonic() - began
        if elapsed_s > limit_s:
            raise AssertionError(f"{number + 1} rounds in {elapsed_s:.0f} s did not show enough")
    raise AssertionError(f"{most} rounds did not show enough")


def until(reached: Callable[[], object], what: str, limit_s: float = 30.0) -> None:
    """Wait for what happens by itself; raise AssertionError when it has not happened after ``limit_s`` seconds."""
    end = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < end, f"{what} did not happen within {limit_s:g} s"
        time.sleep(0.01)
