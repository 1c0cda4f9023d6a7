"""The numbers that the engine steers by."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.scan import pacing
from portbook.scan.pacing import RoundTrip, TokenBucket, attempts_needed, window_size, within

# --- how long ------------------------------------------------------------------------------------------------------


def measured(*rtts_s: float) -> RoundTrip:
    trip = RoundTrip()
    for rtt_s in rtts_s:
        trip.measured(rtt_s)
    return trip


def test_before_the_first_measurement_it_is_one_second():
    assert RoundTrip().timeout_s() == 1.0


def test_the_arithmetic_of_rfc_6298():
    trip = measured(0.2)  # (2.2): SRTT = R, RTTVAR = R/2, RTO = SRTT + 4 * RTTVAR
    assert (trip.srtt_s, trip.rttvar_s) == pytest.approx((0.2, 0.1))
    assert trip.timeout_s() == pytest.approx(0.6)
    trip.measured(0.28)  # (2.3): RTTVAR = 3/4 RTTVAR + 1/4 |SRTT - R'|, then SRTT = 7/8 SRTT + 1/8 R'
    assert (trip.srtt_s, trip.rttvar_s) == pytest.approx((0.21, 0.095))
    assert trip.timeout_s() == pytest.approx(0.59)


def test_a_distant_host_that_never_varies_keeps_a_margin():
    assert measured(*[0.3] * 1000).timeout_s() == pytest.approx(0.4)


def test_karns_rule():
    trip = measured(0.02)
    before = trip.timeout_s()
    trip.measured(0.9, repeated=True)
    trip.measured(1.02)  # the system has repeated the SYN meanwhile: the answer may belong to either
    assert trip.timeout_s() == before


def test_later_attempts_are_given_more_time_up_to_a_limit():
    trip = measured(0.02)
    first = trip.timeout_s()
    assert [trip.timeout_s(n) / first for n in (1, 2, 3, 4, 9)] == pytest.approx([1, 2, 4, 4, 4])


@given(st.lists(st.floats(0, 30), max_size=50), st.integers(1, 20))
def test_the_timeout_is_between_floor_and_ceiling(rtts_s, attempt):
    assert pacing.FLOOR_S <= measured(*rtts_s).timeout_s(attempt) <= pacing.CEILING_S


@given(st.lists(st.floats(0.001, 0.9), min_size=1, max_size=200))
def test_the_mean_stays_among_what_was_measured(rtts_s):
    trip = measured(*rtts_s)
    assert min(rtts_s) - 1e-9 <= trip.srtt_s <= max(rtts_s) + 1e-9


# --- how fast ------------------------------------------------------------------------------------------------------


@given(rate=st.floats(0.1, 1e5), steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 500)), max_size=60))
def test_the_rate_is_never_exceeded(rate, steps):
    bucket, now, taken = TokenBucket(rate, 0.0), 0.0, 0
    for step_s, wanted in steps:
        now += step_s
        granted = min(wanted, bucket.available(now))
        bucket.take(granted)
        taken += granted
        assert taken <= rate * now + bucket.burst + 1e-6


@given(rate=st.floats(0.1, 1e5), count=st.integers(1, 300))
def test_who_waits_as_told_gets_the_whole_rate(rate, count):
    bucket, now = TokenBucket(rate, 0.0), 0.0
    for _ in range(count):
        if not bucket.available(now):
            now += bucket.wait_s()
        assert bucket.available(now) >= 1
        bucket.take(1)
    assert now <= count / rate * 1.000001


def test_a_clock_that_stands_still_gives_nothing():
    bucket = TokenBucket(10.0, 5.0)
    bucket.take(bucket.available(5.0))
    assert bucket.available(5.0) == bucket.available(4.0) == 0
    assert bucket.wait_s() == pytest.approx(0.1)


# --- how often -----------------------------------------------------------------------------------------------------


def test_without_losses_it_is_asked_as_often_as_told():
    assert [attempts_needed(1000, 0, retries, 7) for retries in (0, 1, 3)] == [1, 2, 4]


def test_losses_ask_for_more():
    # Five of a hundred packets lost each way: 9.75 % of the attempts. 1000 * 0.0975**6 is below 0.001, **5 is not.
    assert attempts_needed(1000, 108, 1, 7) == 6
    assert attempts_needed(1000, 1, 1, 7) == 2
    assert attempts_needed(1000, 1000, 1, 7) == 8  # the most there may be


def test_who_allows_no_more_gets_no_more():
    assert attempts_needed(1000, 500, 2, 2) == 3
    assert attempts_needed(1000, 500, 3, 0) == 4


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 20), st.integers(0, 20))
def test_attempts_are_within_what_is_allowed(answers, losses, retries, most):
    assert 1 + retries <= attempts_needed(answers, losses, retries, most) <= 1 + max(retries, most)


# --- how many at once ----------------------------------------------------------------------------------------------


@given(wanted=st.integers(1, 10**6), limit=st.integers(8, 10**6), used=st.integers(0, 10**6))
def test_a_window_fits_under_the_limit(wanted, limit, used):
    window = within(wanted, limit, used)
    assert 1 <= window <= wanted
    assert window == 1 or window + used < limit


def test_a_reserve_is_left_to_the_caller():
    assert within(1000, 1024, 10) == 1024 - 10 - pacing.RESERVE
    assert within(1000, 64, 8) == 64 - 8 - 16


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_NOFILE")
def test_the_soft_limit_is_read_and_not_raised():
    script = (
        "import resource\nfrom portbook.scan.pacing import window_size\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))\n"
        "print(window_size(), window_size(5), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    window, small, limit = map(int, done.stdout.split())
    assert 40 <= window <= 75
    assert (small, limit) == (5, 100)


def test_concurrency_goes_beyond_the_usual_window(monkeypatch):
    monkeypatch.setattr(pacing, "_descriptor_limit", lambda: None)
    assert window_size() == pacing.WINDOW
    assert window_size(5000) == 5000
