"""What silence is worth, computed from invented times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from portbook.scanner.udp.refusals import (
    FIRST_GROUP,
    LARGEST_GROUP,
    LIMIT_AFTER_LATE,
    LIMIT_AFTER_SILENT_CONTROLS,
    LONGEST_PAUSE_S,
    PAUSE_S,
    PROOF_S,
    SHORTEST_PAUSE_S,
    SMALLEST_GROUP,
    STOPPED_AFTER,
    Refusals,
)

TARGET, ROUTER = "10.77.0.2", "10.77.0.254"
PORT = 3000


def refusing(*times: float) -> Refusals:
    refusals = Refusals()
    for at in times:
        refusals.record(PORT, TARGET, True, at, False)
    return refusals


# --- what silence is worth -----------------------------------------------------------------------------------------


def test_nothing_is_proven_before_anything_is_refused() -> None:
    refusals = Refusals()
    assert not refusals.are_expected
    assert not refusals.prove(1.0)


def test_a_refusal_soon_after_proves_that_the_host_could_have_refused() -> None:
    refusals = refusing(10.0)
    assert refusals.are_expected
    assert refusals.prove(10.0 - PROOF_S / 2)
    assert not refusals.prove(10.0 - 2 * PROOF_S)


def test_a_refusal_before_proves_nothing() -> None:
    assert not refusing(10.0).prove(10.0 + PROOF_S / 10)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0, 100))
def test_refusals_that_overtake_one_another_are_kept_in_order(times: list[float], at: float) -> None:
    expected = any(at <= t <= at + PROOF_S for t in times)
    assert refusing(*times).prove(at) == expected


def test_refusals_of_a_router_do_not_prove_silence_of_the_target() -> None:
    refusals = Refusals()
    refusals.record(80, ROUTER, False, 10.0, False)
    assert refusals.prove(10.0)  # as long as no other host refuses anything
    refusals.record(PORT, TARGET, True, 20.0, False)
    assert not refusals.prove(10.0)
    refusals.record(80, ROUTER, False, 30.0, False)
    assert not refusals.prove(30.0)
    assert refusals.control == (PORT, TARGET)


# --- groups --------------------------------------------------------------------------------------------------------


def test_groups_grow_while_all_silence_is_proven() -> None:
    refusals = refusing(1.0)
    sizes = []
    for _ in range(8):
        refusals.adapt(refusals.group_size, 1, refusals.group_size + 1, 0, True)
        sizes.append(refusals.group_size)
    assert sizes == sorted(sizes)
    assert sizes[-1] == LARGEST_GROUP
    assert not refusals.are_scarce


def test_a_missing_control_makes_groups_smaller_and_rarer() -> None:
    refusals = refusing(1.0)
    refusals.adapt(64, 1, 1, 63, True)
    assert refusals.group_size < FIRST_GROUP
    assert refusals.pause_s == PAUSE_S
    assert refusals.are_scarce


def test_groups_do_not_become_so_small_that_they_stop() -> None:
    refusals = refusing(1.0)
    for _ in range(100):
        refusals.adapt(refusals.group_size, 1, 1, refusals.group_size - 1, True)
    assert refusals.group_size == SMALLEST_GROUP


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_the_pause_stays_within_bounds(groups: list[tuple[int, bool]]) -> None:
    refusals = refusing(1.0)
    for refused, unproven in groups:
        refusals.adapt(10, refused, refused, unproven, refused > 0)
        assert refusals.pause_s == 0 or SHORTEST_PAUSE_S <= refusals.pause_s <= LONGEST_PAUSE_S
        assert SMALLEST_GROUP <= refusals.group_size <= LARGEST_GROUP


def test_a_target_with_ten_refusals_a_second_is_probed_more_often_than_one_with_one() -> None:
    fast, slow = refusing(1.0), refusing(1.0)
    for _ in range(10):
        fast.adapt(10, round(10 * (fast.pause_s or 1)), 5, 5, True)
        slow.adapt(10, 1, 5, 5, True)
    assert fast.pause_s < slow.pause_s == PAUSE_S


def test_a_host_that_no_longer_refuses_has_stopped_until_it_does() -> None:
    refusals = refusing(1.0)
    for _ in range(STOPPED_AFTER):
        assert refusals.are_expected
        refusals.adapt(4, 0, 0, 4, False)
    assert refusals.have_stopped
    assert not refusals.are_expected
    refusals.record(PORT, TARGET, True, 50.0, True)
    assert refusals.are_expected


def test_refusals_of_other_ports_show_that_a_host_has_not_stopped() -> None:
    refusals = refusing(1.0)
    for _ in range(2 * STOPPED_AFTER):
        refusals.adapt(4, 0, 0, 4, True)
    assert not refusals.have_stopped


def test_a_limit_is_distinguished_from_lost_packets() -> None:
    lossy, limited = refusing(1.0), refusing(1.0)
    for _ in range(10 * LIMIT_AFTER_LATE):
        lossy.record(PORT, TARGET, True, 2.0, True)
        lossy.adapt(4, 4, 5, 0, True)
    for _ in range(max(LIMIT_AFTER_LATE, LIMIT_AFTER_SILENT_CONTROLS)):
        limited.record(PORT, TARGET, True, 2.0, True)
        limited.adapt(4, 1, 1, 3, True)
    assert not lossy.are_limited
    assert limited.are_limited
