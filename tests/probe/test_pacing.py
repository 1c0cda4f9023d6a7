"""Timeouts, rates and numbers of attempts, computed from invented times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.probe.pacing import CEILING_S, FLOOR_S, Losses, RoundTrip, TokenBucket

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


def test_more_time_after_silence_up_to_a_limit():
    trip = measured(*[0.02] * 1000)
    assert [trip.timeout_s(n) for n in (0, 1, 2, 3, 9, 10**6)] == pytest.approx([0.12, 0.24, 0.48, 0.96, 3, 3])


@given(st.lists(st.floats(0, 30), max_size=50), st.integers(0, 20))
def test_the_timeout_keeps_a_margin_and_a_ceiling(rtts_s, doublings):
    trip = measured(*rtts_s)
    assert FLOOR_S <= trip.timeout_s(doublings) <= CEILING_S
    assert trip.timeout_s() in (1.0, CEILING_S) or trip.timeout_s() >= trip.srtt_s + FLOOR_S


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
def test_waiting_the_returned_time_gives_the_whole_rate(rate, count):
    bucket, now = TokenBucket(rate, 0.0), 0.0
    for _ in range(count):
        now += bucket.wait_s(now)
        assert bucket.available(now) >= 1
        bucket.take()
    assert now <= count / rate * 1.000001


@given(st.floats(0.1, 1e5), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50))))
def test_a_group_that_overdraws_is_waited_for(rate, steps):
    """Several datagrams for one port are sent together, whatever is available; the next one waits for all."""
    bucket, now, sent, last = TokenBucket(rate, 100.0, burst=1.0), 100.0, 0, 0
    for wait, count in steps:
        now += max(wait, bucket.wait_s(now))
        assert bucket.available(now) == 1
        bucket.take(count)
        sent, last = sent + count, count
    assert sent - last <= (now - 100.0) * rate + 1e-6 * rate


def test_a_stopped_clock_gives_nothing():
    bucket = TokenBucket(10.0, 5.0)
    bucket.take(bucket.available(5.0))
    assert bucket.available(5.0) == bucket.available(4.0) == 0
    assert bucket.wait_s(5.0) == pytest.approx(0.1)


def test_without_a_rate_nothing_waits():
    bucket = TokenBucket(None, 1.0)
    bucket.take(10**6)
    assert bucket.wait_s(1.0) == 0
    assert bucket.available(1.0) >= 10**6


# --- how often -----------------------------------------------------------------------------------------------------


def losing(answers: int, losses: int) -> Losses:
    """The losses of a host, all of them before one of its answers."""
    host = Losses()
    for answer in range(answers):
        host.answered(0 if answer else losses)
    return host


def test_without_losses_there_are_as_many_attempts_as_the_limits_say():
    assert [losing(1000, 0).attempts(retries, 7) for retries in (0, 1, 3)] == [1, 2, 4]
    assert Losses().attempts(2, 7) == 3


def test_losses_cause_more_attempts():
    # Five of a hundred packets lost each way: 9.75 % of the attempts. 1000 * 0.0975**6 is below 0.001, **5 is not.
    assert losing(1000, 108).attempts(1, 7) == 6
    assert losing(1000, 1).attempts(1, 7) == 2
    assert losing(1000, 1000).attempts(1, 7) == 8  # the most there may be
    assert losing(1, 1).attempts(1, 7) == 8  # every answer came late


def test_a_twentieth_lost():
    # Of 100 ports that answer 100 * (5/105) ** n are missed in n attempts; below 0.001 with four.
    host = Losses()
    for silences in [0] * 95 + [1] * 5:
        host.answered(silences)
    assert host.attempts(1, 7) == 4
    assert host.attempts(1, 2) == 3
    assert host.attempts(6, 7) == 7


def test_there_are_no_more_attempts_than_allowed():
    assert losing(1000, 500).attempts(2, 2) == 3
    assert losing(1000, 500).attempts(3, 0) == 4


@given(st.integers(1, 1000), st.integers(0, 10**6), st.integers(0, 20), st.integers(0, 20))
def test_attempts_are_within_what_is_allowed(answers, losses, retries, most):
    assert 1 + retries <= losing(answers, losses).attempts(retries, most) <= 1 + max(retries, most)
