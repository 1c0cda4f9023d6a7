"""How many sockets may be open at once."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.probe import descriptors
from portbook.probe.descriptors import window_size, window_within


@given(wanted=st.integers(1, 10**6), limit=st.integers(8, 10**6), used=st.integers(0, 10**6))
def test_a_window_fits_under_the_limit(wanted, limit, used):
    window = window_within(wanted, limit, used)
    assert 1 <= window <= wanted
    assert window == 1 or window + used < limit


def test_a_reserve_is_left_to_the_caller():
    assert window_within(1000, 1024, 10) == 1024 - 10 - descriptors.RESERVE
    assert window_within(1000, 64, 8) == 64 - 8 - 16


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_NOFILE")
def test_the_soft_limit_is_read_and_not_raised():
    script = (
        "import resource\nfrom portbook.probe.descriptors import window_size\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))\n"
        "print(window_size(), window_size(5), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    window, small, limit = map(int, done.stdout.split())
    assert 40 <= window <= 75
    assert (small, limit) == (5, 100)


def test_concurrency_goes_beyond_the_usual_window(monkeypatch):
    monkeypatch.setattr(descriptors, "_descriptor_limit", lambda: None)
    assert window_size() == descriptors.WINDOW
    assert window_size(5000) == 5000
