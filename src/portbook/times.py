"""What people write for a moment and a duration: ``14:03``, ``yesterday 14:03``, ``monday 09:00``, ``2h ago``, ``90d``.

A moment without an offset is local time. Where the clock is put forward, some local times do not exist; where it is put
back, some exist twice. Neither is guessed: the error names the moments that may be meant, with their offsets.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta, tzinfo

from portbook.errors import UsageError

MOST_SHOWN = 40  # characters of a wrong text
MOST_TEXT = 100
LONGEST_S = 100 * 366 * 86400.0
FORMS = "write 14:03, 'yesterday 14:03', 'monday 09:00', '2h ago', 2026-11-28T14:03 or 2026-11-28T14:03+01:00"
DURATIONS = "write 90d, 12h, 30min or 1h30m"
UNITS = {
    "s": 1, "sec": 1, "secs": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "mins": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([a-z]+)\s*")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(\.[0-9]{1,6})?)?\Z")
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+ ?(Z|[+-][0-9:]+)?)?\Z")


def parse_duration(text: str) -> float:
    """Seconds of ``90d``, ``1h30m``, ``2 weeks``.

    A day has 24 hours.

    :raises UsageError: it is no duration, or longer than a hundred years
    """
    seconds = _duration(text.strip().lower())
    if seconds is None:
        raise UsageError(f"{text[:MOST_SHOWN]!r} is not a duration", DURATIONS)
    return seconds


def parse_moment(text: str, now: datetime, zone: tzinfo | None = None) -> datetime:
    """The moment that a text means, in UTC.

    :param now: what ``2h ago`` and ``yesterday`` are counted from; aware
    :param zone: of a text without an offset; None: that of this machine
    :raises UsageError: it is no moment, or a local time that does not exist or exists twice
    """
    words = text.strip().lower()
    local_now = now.astimezone(zone)
    try:
        moment = _moment(words, text.strip(), local_now, zone) if len(words) <= MOST_TEXT else None
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise UsageError(f"{text[:MOST_SHOWN]!r} is not a time", FORMS)
    # In UTC, because times of one zone are compared without their offsets (datetime, "Aware and Naive Objects").
    return moment.astimezone(UTC)


def parse_past(text: str, now: datetime, zone: tzinfo | None = None) -> datetime:
    """A moment as ``parse_moment`` reads it, that is not in the future; raise UsageError."""
    moment = parse_moment(text, now, zone)
    if moment > now:
        hint = "of what has not happened there is no history"
        if _CLOCK.match(text.strip()):
            hint = f"write 'yesterday {text.strip()}'"
        raise UsageError(f"{format_moment(moment, zone)} is in the future", hint)
    return moment


def format_moment(moment: datetime, zone: tzinfo | None = None) -> str:
    """A moment in local time, with the offset: ``2026-11-28 14:03:05 +01:00``."""
    local = moment.astimezone(zone)
    offset = local.strftime("%z")
    return f"{local:%Y-%m-%d %H:%M:%S} {offset[:3]}:{offset[3:5]}"


def _moment(words: str, text: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    if not words:
        return None
    if words == "now":
        return now
    if words.startswith("@"):
        return datetime.fromtimestamp(float(words[1:]), UTC).astimezone(zone)
    if _ISO.match(text.upper()):
        return _iso(text, zone)
    ago = _duration(words.removesuffix("ago").strip())
    if ago is not None:
        return (now.astimezone(UTC) - timedelta(seconds=ago)).astimezone(zone)
    day, _, clock = words.rpartition(" ")
    if not _CLOCK.match(clock):
        day, clock = words, ""
    at = time() if not clock else _time(clock)
    return _on_day(day.strip().removeprefix("last ").strip(), at, now, zone)


def _on_day(day: str, at: time, now: datetime, zone: tzinfo | None) -> datetime | None:
    today = now.date()
    if day in ("", "today"):
        return _local(datetime.combine(today, at), zone)
    if day == "yesterday":
        return _local(datetime.combine(today - timedelta(days=1), at), zone)
    numbers = [n for n, name in enumerate(WEEKDAYS) if len(day) >= 3 and name.startswith(day)]
    if not numbers:
        return None
    since = (today.weekday() - numbers[0]) % 7
    if since == 0 and at > now.time():  # this day last week: the last one that has been
        since = 7
    return _local(datetime.combine(today - timedelta(days=since), at), zone)


def _iso(text: str, zone: tzinfo | None) -> datetime:
    day, clock = text[:10], text[10:].upper()
    moment = datetime.fromisoformat(day + clock[:1] + clock[1:].replace(" ", ""))  # format_moment has a blank
    if moment.tzinfo is not None:
        return moment.astimezone(zone)
    return _local(moment, zone)


def _time(text: str) -> time:
    found = _CLOCK.match(text)
    hour, minute, second, fraction = found.groups() if found else ("", "", "", "")
    return time(int(hour), int(minute), int(second or 0), round(float(fraction or 0) * 1e6))


def _local(naive: datetime, zone: tzinfo | None) -> datetime:
    """A local time with its offset.

    :raises UsageError: it does not exist, or exists twice
    """
    moments = [naive.replace(tzinfo=zone, fold=fold).astimezone(UTC).astimezone(zone) for fold in (0, 1)]
    possible = [m for m in moments if m.replace(tzinfo=None, fold=0) == naive]
    written = naive.isoformat(" ")
    either = " or ".join(sorted(f"'{m.isoformat()}'" for m in moments))
    if not possible:
        raise UsageError(f"{written} does not exist here: the clock was put forward", f"write {either}")
    if moments[0].utcoffset() != moments[1].utcoffset() and len(possible) == 2:
        raise UsageError(f"{written} was twice here: the clock was put back", f"write {either}")
    return possible[0]


def _duration(words: str) -> float | None:
    seconds, at = 0.0, 0
    while at < len(words):
        part = _PART.match(words, at)
        if part is None or part[2] not in UNITS:
            return None
        seconds += float(part[1]) * UNITS[part[2]]
        at = part.end()
    if not words or seconds > LONGEST_S:
        return None
    return seconds
