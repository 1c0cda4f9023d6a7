"""From a situation and the result of a bind to a verdict: pure."""

from __future__ import annotations

import pytest

from portbook.addresses import DUAL, Endpoint
from portbook.bind.attempt import BindAttempt, Options
from portbook.netconfig.facts import Caller, ExcludedRange
from portbook.records import Owner, Socket
from portbook.verdict.judge import bound_all, is_explained, judge
from portbook.verdict.situation import Situation
from tests.verdict.verdicts import codes, finding

V4, V6 = Endpoint("0.0.0.0"), Endpoint("::")
IN_USE = BindAttempt(V4, 80, 98, "EADDRINUSE", "bind")
DENIED = BindAttempt(V4, 80, 13, "EACCES", "bind")
SHORT = BindAttempt(V4, 80, 24, "EMFILE", "socket")
HAD, HAD6 = BindAttempt(V4, 80), BindAttempt(V6, 80)
LISTENER = Socket("tcp", "ipv4", "0.0.0.0", 80, state="LISTEN", inode=1, owners=(Owner(7, "nginx"),))
BOUND = Socket("tcp", "ipv4", "0.0.0.0", 80, state="BOUND", inode=2, owners=(Owner(8, "odd"),))


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ([HAD, HAD6], True),
        ([IN_USE, HAD6], False),
        ([DENIED], False),
        ([SHORT, SHORT], None),
        ([SHORT, HAD6], None),
        ([SHORT, IN_USE], False),
    ],
)
def test_every_bind_must_succeed_and_a_lack_of_descriptors_is_no_refusal(tried, expected):
    assert bound_all(tried) is expected
    assert judge(Situation("linux", 80), tried).can_have is expected


def test_tables_and_bind_agree():
    verdict = judge(Situation("linux", 80, sockets=(LISTENER,)), [IN_USE, HAD6])
    assert (verdict.can_have, verdict.foreseen, codes(verdict)) == (False, False, ["listener"])
    assert (verdict.taken, verdict.free) == (("0.0.0.0",), ("[::]",))
    assert is_explained(verdict)


def test_a_bind_that_succeeds_wins_over_every_rule():
    verdict = judge(Situation("linux", 80, sockets=(LISTENER,)), [HAD, HAD6])
    assert (verdict.can_have, verdict.foreseen) == (True, False)
    assert finding(verdict, "listener").severity == "warns"
    assert finding(verdict, "unexplained").evidence == {"error": None, "against": ["listener"]}
    assert not is_explained(verdict)


def test_a_bind_that_fails_wins_over_finding_nothing():
    verdict = judge(Situation("linux", 80), [IN_USE, HAD6])
    assert (verdict.can_have, verdict.foreseen) == (False, True)
    assert finding(verdict, "unexplained").evidence == {"error": 98, "error_name": "EADDRINUSE", "step": "bind"}


@pytest.mark.parametrize(
    ("tried", "severity", "foreseen"), [(IN_USE, "blocks", None), (HAD, "warns", None)], ids=["fails", "succeeds"]
)
def test_the_bind_decides_what_no_system_shows(tried, severity, foreseen):
    verdict = judge(Situation("linux", 80, sockets=(BOUND,)), [tried, HAD6])
    found = finding(verdict, "bound-only")
    assert (found.severity, found.confidence, verdict.foreseen) == (severity, "certain", foreseen)
    assert is_explained(verdict)


def test_a_holder_does_not_explain_that_permission_is_missing():
    verdict = judge(Situation("linux", 8080, sockets=(LISTENER,)), [DENIED, HAD6])
    found = finding(verdict, "unexplained")
    assert (found.severity, found.evidence["error_name"]) == ("blocks", "EACCES")
    assert "SELinux" in found.remedy


def test_permission_below_the_limit_with_a_capability_that_does_not_count():
    situation = Situation("linux", 80, caller=Caller(0, True, True), privileged_below=1024)
    verdict = judge(situation, [DENIED, BindAttempt(V6, 80, 13, "EACCES", "bind")])
    assert finding(verdict, "privileged-port").endpoints == ("0.0.0.0", "[::]")
    assert is_explained(verdict)


def test_each_endpoint_needs_its_own_explanation():
    verdict = judge(
        Situation("linux", 80, sockets=(LISTENER,)), [IN_USE, BindAttempt(V6, 80, 98, "EADDRINUSE", "bind")]
    )
    assert finding(verdict, "unexplained").endpoints == ("[::]",)


def test_a_machine_without_ipv6():
    verdict = judge(Situation("linux", 80, endpoints=DUAL), [BindAttempt(DUAL[0], 80, 97, "EAFNOSUPPORT", "socket")])
    assert (verdict.can_have, codes(verdict, "blocks")) == (False, ["ipv6-disabled"])
    verdict = judge(Situation("linux", 80, ipv6="absent"), [HAD])
    assert (verdict.can_have, codes(verdict, "warns")) == (True, ["ipv6-disabled"])


def test_what_blocks_comes_first():
    situation = Situation("linux", 80, sockets=(LISTENER,), ephemeral=(1, 1000), endpoints=(Endpoint("127.0.0.1"),))
    verdict = judge(situation, [BindAttempt(Endpoint("127.0.0.1"), 80, 98, "EADDRINUSE", "bind")])
    assert [f.severity for f in verdict.findings] == ["blocks", "shadows", "warns"]


# --- Windows: error numbers say which kind of holder it is -----------------------------------------------------------

WINDOWS = Situation("windows", 80, sockets=(LISTENER,))


def test_an_ordinary_holder_of_windows():
    verdict = judge(WINDOWS, [BindAttempt(V4, 80, 10048, "WSAEADDRINUSE", "bind"), HAD6])
    assert codes(verdict) == ["listener"]


def test_an_exclusive_holder_of_windows():
    verdict = judge(WINDOWS, [BindAttempt(V4, 80, 10013, "WSAEACCES", "bind"), HAD6])
    assert codes(verdict) == ["listener", "exclusive-holder"]
    assert finding(verdict, "exclusive-holder").evidence == {"error": 10013}
    assert is_explained(verdict)


def test_an_excluded_range_is_no_exclusive_holder():
    excluded = (ExcludedRange("ipv4", "tcp", 50, 149, administered=False),)
    verdict = judge(
        Situation("windows", 80, excluded=excluded), [BindAttempt(V4, 80, 10013, "WSAEACCES", "bind"), HAD6]
    )
    assert codes(verdict) == ["excluded-range"]


def test_an_administered_range_may_allow_an_explicit_bind():
    excluded = (ExcludedRange("ipv4", "tcp", 80, 80, administered=True),)
    verdict = judge(Situation("windows", 80, excluded=excluded), [HAD, HAD6])
    found = finding(verdict, "excluded-range")
    assert (verdict.can_have, verdict.foreseen, found.severity) == (True, None, "warns")
    assert found.text.endswith("this does not block the bind: a bind that names the port is allowed")
    assert is_explained(verdict)


def test_access_denied_without_a_visible_holder():
    verdict = judge(Situation("windows", 80), [BindAttempt(V4, 80, 10013, "WSAEACCES", "bind"), HAD6])
    assert "excludedportrange" in finding(verdict, "unexplained").remedy


def test_options_are_kept():
    options = Options("udp", reuse_address=True)
    assert judge(Situation("linux", 80, "udp", options=options), [HAD]).options == options
