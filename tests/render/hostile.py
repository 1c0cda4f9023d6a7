"""Records whose every text is hostile, made from the types of their fields: a new field is hostile at once."""

from __future__ import annotations

import types
from datetime import UTC, datetime, timedelta
from functools import cache
from random import Random
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Struct

# Controls of ASCII and of Latin 1 (CSI is one of them), line ends of Unicode, bidirectional controls (CVE-2021-42574),
# surrogates as fsdecode() makes them and others, noncharacters, formulas, quotes of every format, long digits.
PARTS = (
    *("\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\r", "\n", "\0", "\x7f", "\x85", "\t", "\b" * 9),
    *("\u2028", "\u202e", "\u2066", "\u061c", "\u200f", "\ufeff", "\xad", "\U000e0041"),
    *("\udcff", "\udcfe\udc80", "\ud800", "\udfff", "\ufffe", "\uffff", "\U0010ffff"),
    *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\uff1d1"),
    *('"', "'", ",", ";", "\\", "]]>", "<!--", "&lt;", "<x y='", "%s{0}{port}", "a" * 300, "9" * 5000),
    *("nginx", " ", "", "漢字", "e\u0301", "🚢"),
)
ADDRESSES = ("192.0.2.1", "0.0.0.0", "127.0.0.1", "::", "::1", "fe80::1", "2001:db8::1", "::ffff:192.0.2.1")
NUMBERS = (0, 1, 2, 80, 65535, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)
SMALL = (0, 1, 5, 1000)
FLOATS = (0.0, 0.0001, 1.5, 99.9, 1e6, 1e9)
FIRST = datetime(1970, 1, 1, tzinfo=UTC)
# Fields whose text portbook itself makes or has checked before a record exists.
CHECKED = {
    "target": ("192.0.2.1", "host.example", "fe80::1%eth0", "192.0.2.0/28"),
    "host": ("192.0.2.1", "host.example", "fe80::1"),
}
ADDRESS_FIELDS = frozenset(("address", "local_address", "remote_address", "sender", "addresses"))
# How many of something there are: format_age() and range() take no more.
COUNTS = frozenset(("count", "tried", "age_s", "days_left", "retries", "wave", "attempts"))


def text(random: Random) -> str:
    """A few hostile parts; one of them alone in every second."""
    return "".join(random.choices(PARTS, k=random.choice((1, 1, 3, 6))))


def make(random: Random, kind: Any, field: str = "") -> Any:
    """A value of a type."""
    origin = get_origin(kind)
    if origin is Literal:
        return random.choice(get_args(kind))
    if origin in (Union, types.UnionType):
        return make(random, random.choice(get_args(kind)), field)
    if origin in (tuple, list, frozenset):
        items = [one for one in get_args(kind) if one is not ...]
        if ... in get_args(kind) or origin is not tuple:
            items = items * random.randrange(4)
        return origin(make(random, one, field) for one in items)
    if origin is dict:
        key, value = get_args(kind)
        return {make(random, key, field): make(random, value, field) for _ in range(random.randrange(3))}
    if isinstance(kind, type) and (issubclass(kind, Struct) or hasattr(kind, "_fields")):
        return record(random, kind)
    return _value(random, kind, field)


def _value(random: Random, kind: Any, field: str) -> Any:
    if kind in (str, Any):
        if field in ADDRESS_FIELDS:
            return random.choice(ADDRESSES)
        return random.choice(CHECKED[field]) if field in CHECKED else text(random)
    if kind is int:
        if "port" in field:
            return random.randrange(65536)
        return random.choice(SMALL if field in COUNTS else NUMBERS)
    if kind is float:
        return random.choice(FLOATS)
    if kind is bool:
        return random.random() < 0.5
    if kind is datetime:
        return FIRST + timedelta(seconds=random.randrange(2**32))
    if kind in (None, type(None)):
        return None
    raise AssertionError(f"{field}: no values of {kind}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def record(random: Random, kind: Any, **fixed: Any) -> Any:
    """A record of a class, with every field that is not given made from its type."""
    hints = _hints(kind)
    values = {field: make(random, hint, field) for field, hint in hints.items()}
    if any(field.endswith("_ms") and value is None for field, value in values.items()):  # all were measured, or none
        values.update({field: None for field in values if field.endswith("_ms") and field in hints})
    return kind(**{**values, **fixed})
