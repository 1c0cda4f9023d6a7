"""Errors, backoff and breaker: what portbook.resilience promises, with clocks that only tests turn."""

from __future__ import annotations

import errno
import socket
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from portbook import resilience
from portbook.resilience import Breaker, BreakerSettings, classify, of_errno, of_winerror, waits

# --- errors --------------------------------------------------------------------------------------------------------


def windows_error(number: int, code: int = 22) -> OSError:
    """What Proactor raises: only Windows lets OSError have a winerror by itself."""
    error = OSError(code, "text")
    error.winerror = number
    return error


@pytest.mark.parametrize(
    ("error", "name", "posix"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, ""), "ECONNREFUSED", "ECONNREFUSED"),
        (OSError(errno.EHOSTUNREACH, ""), "EHOSTUNREACH", "EHOSTUNREACH"),
        (PermissionError(errno.EACCES, ""), "EACCES", "EACCES"),
        (TimeoutError(errno.ETIMEDOUT, ""), "ETIMEDOUT", "ETIMEDOUT"),
        (TimeoutError("timed out"), "ETIMEDOUT", "ETIMEDOUT"),
        (OSError(errno.EMFILE, ""), "EMFILE", "EMFILE"),
        (windows_error(1225), "ERROR_CONNECTION_REFUSED", "ECONNREFUSED"),
        (windows_error(10013), "WSAEACCES", "EACCES"),
        (windows_error(121), "ERROR_SEM_TIMEOUT", "ETIMEDOUT"),
        (windows_error(10060), "WSAETIMEDOUT", "ETIMEDOUT"),
        (windows_error(4242), "WinError 4242", ""),
        (OSError("no number"), "0", "0"),
        (UnicodeError(), "UnicodeError", ""),
    ],
)
def test_errors_are_classified(error, name, posix):
    fault = classify(error)
    assert (fault.name, fault.posix) == (name, posix)
    assert fault.reason


def test_every_error_of_windows_has_a_reason():
    for _, posix in resilience.WINDOWS.values():
        assert resilience.REASONS[posix]


def test_numbers_of_windows_mean_what_posix_means():
    # winerror.h and winsock2.h: the pairs for one event, as a blocking call and a completion port report it
    for one, other in ((10061, 1225), (10051, 1231), (10065, 1232), (10060, 121), (10053, 1236)):
        assert of_winerror(one).posix == of_winerror(other).posix
    assert of_errno(10061) == of_winerror(10061)  # errno on Windows has the numbers of Windows Sockets


def test_a_real_refusal_has_the_reason_of_the_table():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound, not listening
        with socket.socket() as sock, pytest.raises(OSError, match="refused") as raised:
            sock.connect(holder.getsockname())
    assert classify(raised.value).posix == "ECONNREFUSED"


def test_shortages_are_distinguished_from_answers():
    assert of_errno(errno.EMFILE).scarce
    assert of_winerror(10055).scarce
    assert not of_errno(errno.ECONNREFUSED).scarce


# --- backoff -------------------------------------------------------------------------------------------------------


def middle() -> float:
    return 0.5


def test_the_default_waits():
    assert list(islice(waits(random=middle), 4)) == pytest.approx([0.1, 0.3, 0.7, 1.5])


def test_waits_are_capped():
    assert max(islice(waits(random=lambda: 0.999, cap_s=2.0), 2000)) == 2.0


@given(st.floats(0, 1, exclude_max=True))
def test_jitter_goes_a_quarter_either_way(chance):
    first, second = islice(waits(random=lambda: chance), 2)
    assert 0.07499 < first < 0.12501
    assert 0.22499 < second < 0.37501


@given(deadline_s=st.floats(0.01, 100), step_s=st.floats(0, 3))
def test_the_last_wait_ends_with_the_deadline(deadline_s, step_s):
    now = 1000.0

    def clock() -> float:
        return now

    for wait_s in waits(deadline_s=deadline_s, clock=clock):
        assert wait_s > 0
        assert now + wait_s <= 1000.0 + deadline_s + 1e-9
        now += wait_s + step_s  # the attempt takes time as well
    assert now >= 1000.0 + deadline_s - 1e-9


# --- breaker -------------------------------------------------------------------------------------------------------

SETTINGS = BreakerSettings(failures=3, pause_s=1.0, most_pause_s=4.0)


def failed_times(breaker: Breaker, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        breaker.failed(now)


def test_a_breaker_opens_after_so_many_failures_in_a_row():
    breaker = Breaker(SETTINGS)
    failed_times(breaker, 2)
    breaker.answered()
    failed_times(breaker, 2)
    assert breaker.may_probe(0.0)
    breaker.failed(0.0)
    assert breaker.position == "open"
    assert not breaker.may_probe(0.9)


def test_one_trial_at_a_time_and_an_answer_closes():
    breaker = Breaker(SETTINGS)
    failed_times(breaker, 3)
    assert breaker.may_probe(1.0)
    assert breaker.position == "half-open"
    assert not breaker.may_probe(1.0)
    breaker.answered()
    assert breaker.position == "closed"
    failed_times(breaker, 2)
    assert breaker.position == "closed"  # it counts from the beginning again


def test_pauses_double_up_to_a_limit():
    breaker = Breaker(SETTINGS)
    failed_times(breaker, 3)
    now, pauses = 0.0, []
    for _ in range(5):
        pauses.append(breaker.trial_at - now)
        now = breaker.trial_at
        assert breaker.may_probe(now)
        breaker.failed(now, trial=True)
    assert pauses == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_probes_that_began_before_the_trial_do_not_decide_it():
    breaker = Breaker(SETTINGS)
    failed_times(breaker, 3)
    assert breaker.may_probe(1.0)
    breaker.failed(1.1)
    assert breaker.position == "half-open"
    breaker.failed(2.0, trial=True)
    assert breaker.position == "open"


def test_every_change_is_reported():
    told = []
    breaker = Breaker(SETTINGS, told.append)
    failed_times(breaker, 3)
    breaker.may_probe(5.0)
    breaker.failed(6.0, trial=True)
    breaker.may_probe(9.0)
    breaker.answered()
    moves = [(change.before, change.after) for change in told]
    assert moves == [
        ("closed", "open"),
        ("open", "half-open"),
        ("half-open", "open"),
        ("open", "half-open"),
        ("half-open", "closed"),
    ]
    assert told[0].text == "3 probes in a row were not answered; next trial in 1 s"


class BreakerMachine(RuleBasedStateMachine):
    """A breaker beside the shortest description of one, and a caller that never breaks its word."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.told = []
        self.breaker = Breaker(SETTINGS, self.told.append)
        self.in_a_row = 0
        self.trial = False
        self.opened_at = None

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def ask(self):
        before = self.breaker.position
        allowed = self.breaker.may_probe(self.now)
        if before == "closed":
            assert allowed
        elif before == "half-open":
            assert not allowed
        elif allowed:
            assert self.now >= self.opened_at + SETTINGS.pause_s
            self.trial = True
        else:
            assert self.now < self.opened_at + SETTINGS.most_pause_s

    @rule()
    def silence(self):
        self.breaker.failed(self.now)
        self.in_a_row += 1
        if self.in_a_row == SETTINGS.failures:
            self.opened_at = self.now

    @precondition(lambda self: self.trial)
    @rule()
    def trial_fails(self):
        self.breaker.failed(self.now, trial=True)
        self.in_a_row += 1
        self.trial = False
        self.opened_at = self.now

    @rule()
    def answer(self):
        self.breaker.answered()
        self.in_a_row, self.trial = 0, False

    @invariant()
    def position_is_what_was_heard(self):
        expected = "closed" if self.in_a_row < SETTINGS.failures else "half-open" if self.trial else "open"
        assert self.breaker.position == expected

    @invariant()
    def changes_form_a_chain(self):
        for earlier, later in zip(self.told, self.told[1:], strict=False):
            assert earlier.after == later.before != later.after
        assert (self.told[-1].after if self.told else "closed") == self.breaker.position


TestBreaker = BreakerMachine.TestCase
