"""How long, how fast, how often: pure, so that every time is made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.probe.pacing import (
    CEILING_S,
    FIRST_GROUP,
    FLOOR_S,
    INITIAL_S,
    LARGEST_GROUP,
    LIMIT_AFTER_LATE,
    LIMIT_AFTER_STARVED,
    LONGEST_PAUSE_S,
    MUTE_AFTER,
    PAUSE_S,
    SMALLEST_GROUP,
    VOUCH_S,
    Bucket,
    Losses,
    Refusals,
    RoundTrip,
)

TARGET, ROUTER = "10.77.0.2", "10.77.0.254"
PORT = 3000


def refusing(*times: float) -> Refusals:
    refusals = Refusals()
    for at in times:
        refusals.heard(PORT, TARGET, True, at, False)
    return refusals


# --- round trips ---------------------------------------------------------------------------------------------------


def test_the_timeout_is_the_mean_and_four_times_the_variation() -> None:  # RFC 6298 (2.2) and (2.3)
    trip = RoundTrip()
    assert trip.timeout_s == INITIAL_S
    trip.measured(0.2)
    assert trip.timeout_s == pytest.approx(0.2 + 4 * 0.1)
    trip.measured(0.4)  # variation 3/4 * 0.1 + 1/4 * 0.2, mean 7/8 * 0.2 + 1/8 * 0.4
    assert trip.timeout_s == pytest.approx(0.225 + 4 * 0.125)


@given(st.lists(st.floats(0, 10), min_size=1))
def test_the_timeout_keeps_a_margin_and_a_ceiling(trips: list[float]) -> None:
    trip = RoundTrip()
    for rtt in trips:
        trip.measured(rtt)
    assert FLOOR_S <= trip.timeout_s <= CEILING_S
    assert trip.timeout_s == CEILING_S or trip.timeout_s >= (trip.smoothed_s or 0) + FLOOR_S


# --- rates ---------------------------------------------------------------------------------------------------------


@given(st.floats(0.1, 1e5), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50))))
def test_no_more_is_sent_than_the_rate_allows(rate: float, steps: list[tuple[float, int]]) -> None:
    bucket, now, sent, last = Bucket(rate), 100.0, 0, 0
    for wait, count in steps:
        now += max(wait, bucket.wait_s(now))
        bucket.take(now, count)
        sent, last = sent + count, count
    assert sent - last <= (now - 100.0) * rate + 1e-6 * rate  # the last group may be overdrawn, and is waited for next


def test_without_a_rate_nothing_waits() -> None:
    bucket = Bucket(None)
    bucket.take(1.0, 10**6)
    assert bucket.wait_s(1.0) == 0


# --- losses --------------------------------------------------------------------------------------------------------


def test_without_losses_what_is_wanted_is_enough() -> None:
    losses = Losses()
    for _ in range(1000):
        losses.answered(0)
    assert losses.retries(1, 7) == 1


def test_as_many_attempts_as_losses_ask_for() -> None:
    losses = Losses()
    for late in [0] * 95 + [1] * 5:
        losses.answered(late)
    # A twentieth is lost: of 100 ports that answer 100 * 0.05 ** n are missed in n attempts; below 0.001 with four.
    assert losses.retries(1, 7) == 3
    assert losses.retries(1, 2) == 2
    assert losses.retries(6, 7) == 6


def test_when_everything_comes_late_the_most_is_done() -> None:
    losses = Losses()
    losses.answered(1)
    assert losses.retries(1, 7) == 7


# --- what silence is worth -----------------------------------------------------------------------------------------


def test_nothing_is_proven_before_anything_is_refused() -> None:
    refusals = Refusals()
    assert not refusals.known
    assert not refusals.prove(1.0)


def test_a_refusal_soon_after_proves_that_the_host_could_have_refused() -> None:
    refusals = refusing(10.0)
    assert refusals.known
    assert refusals.prove(10.0 - VOUCH_S / 2)
    assert not refusals.prove(10.0 - 2 * VOUCH_S)


def test_a_refusal_before_proves_nothing() -> None:
    assert not refusing(10.0).prove(10.0 + VOUCH_S / 10)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0, 100))
def test_refusals_that_overtake_one_another_are_kept_in_order(times: list[float], at: float) -> None:
    expected = any(at <= t <= at + VOUCH_S for t in times)
    assert refusing(*times).prove(at) == expected


def test_refusals_of_a_router_do_not_prove_silence_of_the_target() -> None:
    refusals = Refusals()
    refusals.heard(80, ROUTER, False, 10.0, False)
    assert refusals.prove(10.0)  # as long as nobody else refuses anything
    refusals.heard(PORT, TARGET, True, 20.0, False)
    assert not refusals.prove(10.0)
    refusals.heard(80, ROUTER, False, 30.0, False)
    assert not refusals.prove(30.0)
    assert refusals.control == (PORT, TARGET)


# --- groups --------------------------------------------------------------------------------------------------------


def test_groups_grow_while_all_silence_is_proven() -> None:
    refusals = refusing(1.0)
    sizes = []
    for _ in range(8):
        refusals.group_done(refusals.group, 1, refusals.group + 1, 0, True)
        sizes.append(refusals.group)
    assert sizes == sorted(sizes)
    assert sizes[-1] == LARGEST_GROUP
    assert not refusals.are_scarce


def test_a_missing_control_makes_groups_smaller_and_rarer() -> None:
    refusals = refusing(1.0)
    refusals.group_done(64, 1, 1, 63, True)
    assert refusals.group < FIRST_GROUP
    assert refusals.pause_s == PAUSE_S
    assert refusals.are_scarce


def test_groups_do_not_become_so_small_that_they_stop() -> None:
    refusals = refusing(1.0)
    for _ in range(100):
        refusals.group_done(refusals.group, 1, 1, refusals.group - 1, True)
    assert refusals.group == SMALLEST_GROUP


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_the_pause_stays_within_bounds(groups: list[tuple[int, bool]]) -> None:
    refusals = refusing(1.0)
    for refused, unproven in groups:
        refusals.group_done(10, refused, refused, unproven, refused > 0)
        assert refusals.pause_s == 0 or FLOOR_S <= refusals.pause_s <= LONGEST_PAUSE_S
        assert SMALLEST_GROUP <= refusals.group <= LARGEST_GROUP


def test_a_target_that_allows_ten_refusals_a_second_is_asked_more_often_than_one_that_allows_one() -> None:
    fast, slow = refusing(1.0), refusing(1.0)
    for _ in range(10):
        fast.group_done(10, round(10 * (fast.pause_s or 1)), 5, 5, True)
        slow.group_done(10, 1, 5, 5, True)
    assert fast.pause_s < slow.pause_s == PAUSE_S


def test_a_host_that_refuses_nothing_more_is_mute_until_it_does() -> None:
    refusals = refusing(1.0)
    for _ in range(MUTE_AFTER):
        assert refusals.known
        refusals.group_done(4, 0, 0, 4, False)
    assert refusals.mute
    assert not refusals.known
    refusals.heard(PORT, TARGET, True, 50.0, True)
    assert refusals.known


def test_refusals_of_other_ports_show_that_a_host_is_not_mute() -> None:
    refusals = refusing(1.0)
    for _ in range(2 * MUTE_AFTER):
        refusals.group_done(4, 0, 0, 4, True)
    assert not refusals.mute


def test_a_limit_is_told_from_packets_that_were_lost() -> None:
    lossy, limited = refusing(1.0), refusing(1.0)
    for _ in range(10 * LIMIT_AFTER_LATE):
        lossy.heard(PORT, TARGET, True, 2.0, True)
        lossy.group_done(4, 4, 5, 0, True)
    for _ in range(max(LIMIT_AFTER_LATE, LIMIT_AFTER_STARVED)):
        limited.heard(PORT, TARGET, True, 2.0, True)
        limited.group_done(4, 1, 1, 3, True)
    assert not lossy.limited
    assert limited.limited
