"""The text of a policy: what it means, and what is said about each mistake."""

from __future__ import annotations

import time
import tomllib
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portbook.errors import PolicyError, UsageError
from portbook.watching.policy import Policy, parse
from portbook.watching.policy.glob import pattern
from portbook.watching.policy.keys import KEYS
from portbook.watching.policy.lines import find
from portbook.watching.policy.records import Network

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
EVERY = ((0, 65535),)


def policy(*rules: str, head: str = "") -> Policy:
    return parse("\n".join(["version = 1", head, *rules]), now=NOW)


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        parse(text, now=NOW)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def selector(*lines: str):
    return policy("[[allow]]", *lines).rules[0].selector


# --- what is valid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "tcp", "udp"),
    [
        ("22", ((22, 22),), ((22, 22),)),
        ('"22"', ((22, 22),), ((22, 22),)),
        ('"8000-8100"', ((8000, 8100),), ((8000, 8100),)),
        ("[443, 80, 81]", ((80, 81), (443, 443)), ((80, 81), (443, 443))),
        ('"http"', ((80, 80),), ((80, 80),)),
        ('"53/udp"', (), ((53, 53),)),
        ('["53/udp", "53/tcp", 80]', ((53, 53), (80, 80)), ((53, 53), (80, 80))),
        ('"any"', EVERY, EVERY),
    ],
)
def test_ports(value, tcp, udp):
    found = selector(f"port = {value}")
    assert (found.tcp, found.udp) == (tcp, udp)


def test_a_rule_without_a_port_is_about_every_port_of_its_protocol():
    found = selector('protocol = "udp"', 'exe = "/usr/sbin/chronyd"')
    assert (found.tcp, found.udp) == ((), EVERY)


def test_reach_is_words_and_networks():
    found = selector("port = 1", 'reach = ["loopback", "10.0.0.0/8", "[2001:db8::1]", "localhost"]')
    assert found.reach is not None
    assert found.reach[0] == "loopback"
    assert found.reach[1:] == (
        Network("10.0.0.0/8", 4, 10 << 24, (11 << 24) - 1),
        Network("2001:db8::1", 6, 0x20010DB8 << 96 | 1, 0x20010DB8 << 96 | 1),
    )


def test_rules_keep_the_order_of_the_file_and_are_numbered_by_kind():
    found = policy("[[deny]]", "port = 1", "[[allow]]", "port = 2", "[[deny]]", "port = 3", "[[require]]", "port = 4")
    assert [rule.label for rule in found.rules] == [
        "deny[1] (policy.toml:3)",
        "allow[1] (policy.toml:5)",
        "deny[2] (policy.toml:7)",
        "require[1] (policy.toml:9)",
    ]


def test_a_date_includes_its_day_in_the_zone_of_the_machine():
    (rule,) = policy("[[allow]]", "port = 1", "until = 2026-12-31").rules
    local_end = datetime(2027, 1, 1).astimezone()
    assert rule.applies(local_end - timedelta(microseconds=1))
    assert not rule.applies(local_end)


def test_a_time_with_an_offset_is_a_moment():
    (rule,) = policy("[[allow]]", "port = 1", "until = 2026-12-31T18:00:00+01:00").rules
    moment = datetime(2026, 12, 31, 18, tzinfo=timezone(timedelta(hours=1)))
    assert rule.ends == moment
    assert rule.applies(moment - timedelta(seconds=1))
    assert not rule.applies(moment)


def test_what_has_ended_and_what_trusts_a_name_is_a_warning():
    found = policy("[[allow]]", "port = 1", "until = 2026-11-01", "[[allow]]", "port = 2", 'name = "x"')
    assert [str(warning) for warning in found.warnings] == [
        "policy.toml:3: allow[1] ended with 2026-11-01; renew it, or remove it",
        "policy.toml:6: allow[2] trusts a name that every process may give itself; add exe, user or service",
    ]


# --- what is not ---------------------------------------------------------------------------------------------------

RULE = "version = 1\n[[allow]]\nport = 22\n"
# What is written behind a rule on lines 2 and 3: the line of the mistake, and words of the message.
MISTAKES = [
    ("prot = 3", 4, "unknown key 'prot'; did you mean port?"),
    ("Name = 'x'", 4, "unknown key 'Name'; did you mean name?"),
    ("zzz = 3", 4, "valid keys in [[allow]] are port, protocol"),
    ("[[allow]]\nport = 65536", 5, "out of range; write 22"),
    ("[[allow]]\nport = 0", 5, "out of range"),
    ("[[allow]]\nport = '90-80'", 5, "runs backwards"),
    ("[[allow]]\nport = 'nosuchservice'", 5, "write 22"),
    ("[[allow]]\nport = 8.5", 5, "8.5 is not a port"),
    ("[[allow]]\nport = true", 5, "true is not a port"),
    ("[[allow]]\nport = []", 5, "array is empty"),
    ("[[allow]]\nport = [80, 'any']", 5, '"any" beside other ports'),
    ("[[allow]]\nport = [80, 'any']\n", 5, '"any" beside other ports'),
    ("[[allow]]\nport = '127.0.0.1:80'", 5, "has an address; write port = 80 and reach"),
    ("protocol = 'sctp'", 4, '"tcp", "udp"'),
    ("[[allow]]\nport = '53/udp'\nprotocol = 'tcp'", 6, "is not a port of tcp"),
    ("reach = 'lan'", 4, "'lan' is not a reach"),
    ("reach = '10.0.0.1/8'", 4, 'write "10.0.0.0/8", or "10.0.0.1"'),
    ("reach = 'fe80::1%eth0'", 4, "has an interface"),
    ("exe = 'sshd'", 4, "not a whole path"),
    ("exe = '/usr/sbin/sshd (deleted)'", 4, "deleted file"),
    ("exe = ''", 4, "the text is empty"),
    ("exe = 3", 4, "3 is not text"),
    ("sha256 = '" + "0" * 64 + "'", 4, "sha256 without exe"),
    ("exe = '/x'\nsha256 = 'xyz'", 5, "64 hexadecimal digits"),
    ("user = -1", 4, "-1 is not text"),
    ("severity = 'high'", 4, 'valid values are "info", "warning", "critical"'),
    ("severity = 'quiet'", 4, "is not a severity"),
    ("until = '2026-12-31'", 4, "without quotes"),
    ("until = 2026-12-31T10:00:00", 4, "no offset"),
    ("until = 12:00:00", 4, "is not a date"),
    ("until = 0001-01-01T00:00:00+23:00", 4, "cannot be computed with"),
    ("[[allow]]", 4, "[[allow]] says nothing about sockets"),
    ("[[allow]]\ncomment = 'x'", 4, "says nothing about sockets"),
    ("[[require]]\nname = 'x'", 4, "a requirement without a port"),
    ("[[require]]\nport = 'any'", 5, "a requirement without a port"),
    ("[allow2]", 4, "unknown key 'allow2'; did you mean allow?"),
    ("[[allow]]\nport = 22", 4, "allow[2] repeats allow[1] on line 2"),
    ("[[allow]]\nport = 22\ncomment = 'other'", 4, "repeats"),
    ("[[deny]]\nport = 22", 2, "allow[1] allows nothing: deny[1] on line 4 denies all of it"),
    ("[[deny]]\nport = '1-1000'", 2, "deny[1] on line 4 denies all of it"),
    ("[[deny]]\nuser = 'bob'\n[[require]]\nport = 80\nuser = 'bob'", 6, "require[1] requires what deny[1] on line 4"),
    ("[[deny]]\nport = 'any'\nreach = ['loopback', 'any']\n[[allow]]\nport = 80\nreach = 'loopback'", 7, "denies all"),
    ("port = 23", 4, "this is not TOML"),
    ("x = 'unclosed", 4, "this is not TOML"),
    ("x = " + "9" * 5000, 0, "this is not TOML"),
    ("x = " + "[" * 5000, 0, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "line", "words"), MISTAKES, ids=[text[:40] for text, _, _ in MISTAKES])
def test_a_mistake_is_shown_with_its_line_and_what_is_valid(text, line, words):
    found = problems(RULE + text)
    place = f"policy.toml:{line}: " if line else "policy.toml"
    assert any(problem.startswith(place) and words in problem for problem in found), found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the version is missing; write version = 1"),
        ("version = 2", "policy.toml:1: version 2 is not known"),
        ("version = 1\ndefault = 'reject'", "policy.toml:2: 'reject' is not a default"),
        ("version = 1\nport = 22", "policy.toml:2: unknown key 'port'; it belongs into a rule"),
        ("version = 1\n[allow]\nport = 22", "policy.toml:2: allow is not a list of rules; write [[allow]]"),
    ],
)
def test_a_mistake_outside_of_rules(text, words):
    assert any(words in problem for problem in problems(text))


def test_every_mistake_is_reported_at_once():
    found = problems("version = 3\n[[allow]]\nport = 0\nexe = 'x'\n[[deny]]\nprot = 1\n")
    assert [problem.split(":")[1] for problem in found] == ["1", "3", "4", "6"]


def test_the_message_of_the_error_has_the_first_mistake_and_how_many_more():
    with pytest.raises(PolicyError, match=r"^policy.toml:1: version 3 .*; and 1 more mistake$"):
        parse("version = 3\n[[allow]]\nport = 0\n")


@pytest.mark.parametrize(
    "rules",
    [
        ("[[deny]]\nport = 22\nreach = 'any'", "[[allow]]\nport = 22\nreach = 'loopback'"),
        ("[[deny]]\nport = 22\nuser = 'bob'", "[[allow]]\nport = 22"),
        ("[[deny]]\nport = 22\nuntil = 2026-12-01", "[[allow]]\nport = 22"),
        ("[[deny]]\nport = 22\nprotocol = 'udp'", "[[allow]]\nport = 22"),
        ("[[deny]]\nexe = '/opt/*'", "[[allow]]\nexe = '/opt/x/bin/y'"),
    ],
)
def test_what_denies_a_part_contradicts_nothing(rules):
    assert len(policy(*rules).rules) == 2


# --- lines ---------------------------------------------------------------------------------------------------------


def test_lines_are_found_behind_values_of_several_lines():
    text = '''version = 1
[[ allow ]] # one
"port" = [ # ] not the end
  22,
  "]",
]
comment = """
[[allow]]
port = 3 \\"""
"""
owner = \'\'\'
[[deny]] \'\'\'
   [["allow"]]
   name = "#"   # name = 3
[deny]
'''
    assert tomllib.loads(text.replace('"]",', ""))
    lines = find(text)
    assert [lines.of("allow", 1), lines.of("allow", 1, "port"), lines.of("allow", 1, "comment")] == [2, 3, 7]
    assert [lines.of("allow", 1, "owner"), lines.of("allow", 2), lines.of("allow", 2, "name")] == [11, 13, 14]
    assert [lines.of("deny"), lines.of("nothing", 4, "x")] == [15, 0]


def test_rules_in_one_line_have_the_line_of_their_array():
    found = problems("version = 1\n\nallow = [{port = 22}, {prot = 3}]\n")
    assert found[0].startswith("policy.toml:3: unknown key 'prot'")


# --- any text ------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.integers(-10, 70000).map(str),
    st.sampled_from(
        ['"any"', '"loopback"', '"*"', '"/x*/y"', "true", "2026-12-31", "1e400", "nan", "[]", "{}", '"nginx"']
    ),
    st.text(max_size=8).map(repr),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3).map(lambda each: f"[{', '.join(each)}]"))
LINES = st.one_of(
    st.sampled_from(["[[allow]]", "[[deny]]", "[[require]]", "[allow]", "version = 1", "# x", 'default = "allow"']),
    st.builds("{} = {}".format, st.sampled_from([*KEYS, "prot", "default"]), VALUES),
)


@settings(max_examples=300, deadline=2000)
@given(st.one_of(st.text(max_size=200), st.lists(LINES, max_size=20).map(lambda ls: "\n".join(["version = 1", *ls]))))
@example("version = 1\n[[allow]]\nexe = '\x00'\nname = '\ud800'")
def test_any_text_is_a_policy_or_a_usage_error(text):
    with suppress(UsageError):
        found = parse(text, now=NOW)
        assert all(rule.line <= text.count("\n") + 1 for rule in found.rules)


HEAD = "version = 1\n"
LONG = [
    HEAD + "[[deny]]\nname = 'a'\n" * 40_000,
    HEAD + "[" + " " * 1_000_000 + "a]",
    HEAD + "a = '''" + "'" * 1_000_000,
    HEAD + 'a = "' + "\\" * 999_999,
    HEAD + "[[allow]]\nname = '" + "*" * 900_000 + "'",
    HEAD + "a" + ".a" * 500_000 + " = 1",
    HEAD + ("a" + ".a" * 9_999 + " = 1\n") * 50,
    HEAD + "#" * 1_000_000,
    HEAD + "\n".join(f"[[{kind}]]\nport = 1\nname = 'n{i}*'" for i in range(4_999) for kind in ("allow", "deny")),
    "\n" * 1_048_577,
]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_no_text_takes_long(text):
    began = time.monotonic()
    with suppress(UsageError):
        parse(text, now=NOW)
    assert time.monotonic() - began < 30


# --- patterns ------------------------------------------------------------------------------------------------------


@given(st.text("ab*/", max_size=8), st.text("ab/", max_size=10))
def test_patterns_match_as_regular_expressions_do(text, other):
    import re

    expected = re.fullmatch(".*".join(map(re.escape, text.split("*"))), other, re.DOTALL)
    assert pattern(text).matches(other) == bool(expected)
    expected = re.fullmatch("[^/]*".join(map(re.escape, text.split("*"))), other)
    assert pattern(text, "/").matches(other) == bool(expected)


@given(st.text("ab*", max_size=5), st.text("ab*", max_size=5), st.text("ab", max_size=6))
def test_what_a_pattern_covers_it_matches(one, two, text):
    if pattern(one).covers(pattern(two)) and pattern(two).matches(text):
        assert pattern(one).matches(text)
