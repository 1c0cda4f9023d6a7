"""What people write for a moment and a duration."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import UsageError
from portbook.times import WEEKDAYS, format_moment, parse_duration, parse_moment, parse_past

try:
    BERLIN = ZoneInfo("Europe/Berlin")
except ZoneInfoNotFoundError:
    pytest.skip("Windows has no time zones of IANA, and the package tzdata is not installed", allow_module_level=True)
NOW = datetime(2026, 11, 28, 15, 30, tzinfo=BERLIN)  # a Saturday
LIKELY = st.sampled_from([*"0123456789:-+.@ tz", "ago", "h", "d", "yesterday", "last ", *WEEKDAYS])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-28T15:30:00+01:00"),
        ("14:03", "2026-11-28T14:03:00+01:00"),
        ("9:05:07.25", "2026-11-28T09:05:07.250000+01:00"),
        ("today", "2026-11-28T00:00:00+01:00"),
        ("today 09:00", "2026-11-28T09:00:00+01:00"),
        ("Yesterday  14:03", "2026-11-27T14:03:00+01:00"),
        ("yesterday", "2026-11-27T00:00:00+01:00"),
        ("monday 09:00", "2026-11-23T09:00:00+01:00"),
        ("last Mon 09:00", "2026-11-23T09:00:00+01:00"),
        ("saturday 09:00", "2026-11-28T09:00:00+01:00"),
        ("saturday 16:00", "2026-11-21T16:00:00+01:00"),
        ("2h ago", "2026-11-28T13:30:00+01:00"),
        ("2 hours ago", "2026-11-28T13:30:00+01:00"),
        ("1h30m", "2026-11-28T14:00:00+01:00"),
        ("90 min ago", "2026-11-28T14:00:00+01:00"),
        ("2026-07-01", "2026-07-01T00:00:00+02:00"),
        ("2026-07-01 14:03", "2026-07-01T14:03:00+02:00"),
        ("2026-07-01T14:03:05.5Z", "2026-07-01T16:03:05.500000+02:00"),
        ("2026-07-01t14:03-05:00", "2026-07-01T21:03:00+02:00"),
        ("@1700000000", "2023-11-14T23:13:20+01:00"),
        # 2026-10-25 03:00 CEST became 02:00 CET: a day ago is 24 hours ago
        ("35 days ago", "2026-10-24T16:30:00+02:00"),
    ],
)
def test_a_moment(text, expected):
    assert parse_moment(text, NOW, BERLIN).astimezone(BERLIN).isoformat() == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "noonish", "25:00", "14:60", "2026-02-30", "2026-13-01", "2 fortnights ago", "ago", "yesterday yesterday",
        "14", "@", "@nan", "@1e99", "9" * 50 + "d", "200000d ago", "mo 09:00", "yesterday 14:03 ago", "-2h", "x" * 999,
    ],
)  # fmt: skip
def test_what_is_no_moment(text):
    with pytest.raises(UsageError, match="is not a time; write 14:03, 'yesterday 14:03'"):
        parse_moment(text, NOW, BERLIN)


@pytest.mark.parametrize("text", ["2026-03-29 02:30", "2026-03-29T02:30:00"])
def test_a_time_that_the_clock_left_out_is_refused_with_the_two_that_may_be_meant(text):
    with pytest.raises(UsageError) as refused:
        parse_moment(text, NOW, BERLIN)
    message = str(refused.value)
    assert message.startswith("2026-03-29 02:30:00 does not exist here")
    assert "'2026-03-29T01:30:00+01:00' or '2026-03-29T03:30:00+02:00'" in message


def test_a_time_that_was_twice_is_refused_with_both():
    now = datetime(2026, 10, 25, 12, 0, tzinfo=BERLIN)
    with pytest.raises(UsageError) as refused:
        parse_moment("today 02:30", now, BERLIN)
    message = str(refused.value)
    assert message.startswith("2026-10-25 02:30:00 was twice here")
    for meant in ("2026-10-25T02:30:00+01:00", "2026-10-25T02:30:00+02:00"):
        assert f"'{meant}'" in message
        assert parse_moment(meant, now, BERLIN) == datetime.fromisoformat(meant)


def test_the_hours_beside_a_change_are_not_refused():
    assert parse_moment("2026-03-29 03:00", NOW, BERLIN).isoformat() == "2026-03-29T01:00:00+00:00"
    assert parse_moment("2026-10-25 03:00", NOW, BERLIN).isoformat() == "2026-10-25T02:00:00+00:00"
    assert parse_moment("2026-10-25 01:59", NOW, BERLIN).isoformat() == "2026-10-24T23:59:00+00:00"


@pytest.mark.skipif(sys.platform == "win32", reason="TZ is of POSIX")
def test_the_zone_of_the_machine_is_that_of_the_system():
    code = (
        "from datetime import *; from portbook.times import *; now = datetime(2026, 7, 1, 12, tzinfo=UTC);"
        "print(parse_moment('14:03', now).isoformat(), format_moment(now))\n"
        "try: parse_moment('2026-10-25 02:30', now)\n"
        "except Exception as error: print(error)"
    )
    environment = os.environ | {"TZ": "CET-1CEST,M3.5.0,M10.5.0/3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "2026-07-01T12:03:00+00:00 2026-07-01 14:00:00 +02:00"
    assert "was twice here" in second


def test_the_future_is_refused():
    with pytest.raises(UsageError, match=r"2026-11-28 16:00:00 \+01:00 is in the future; write 'yesterday 16:00'"):
        parse_past("16:00", NOW, BERLIN)
    with pytest.raises(UsageError, match="is in the future; of what has not happened"):
        parse_past("2027-01-01", NOW, BERLIN)
    assert parse_past("15:30", NOW, BERLIN) == NOW


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 7_776_000), ("1h30m", 5400), ("2 weeks", 1_209_600), ("1.5 h", 5400), ("10s", 10)]
)
def test_a_duration(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1d ago", "nan d", "1e9d", "99999999w"])
def test_what_is_no_duration(text):
    with pytest.raises(UsageError, match="is not a duration; write 90d"):
        parse_duration(text)


@given(st.lists(LIKELY, max_size=8).map("".join) | st.text(max_size=20))
def test_any_text_is_a_moment_or_refused(text):
    try:
        moment = parse_moment(text, NOW, BERLIN)
    except UsageError:
        return
    assert moment.tzinfo is UTC


@given(st.datetimes(datetime(1980, 1, 1), datetime(2037, 1, 1)))
def test_what_is_printed_is_read_back(naive):
    moment = naive.replace(microsecond=0, tzinfo=UTC)
    printed = format_moment(moment, BERLIN)
    assert parse_moment(printed, NOW, BERLIN) == moment
