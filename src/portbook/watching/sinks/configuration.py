"""Sinks as people write them: ``KIND:TARGET`` on the command line, ``[[sink]]`` tables in a file. Pure.

    --sink syslog:udp://127.0.0.1:514

    [[sink]]
    type = "syslog"
    target = "udp://127.0.0.1:514"
    severity = "warning"
    facility = "local3"

Both are checked wholly before anything is opened: an unknown key, a value of another type, a number out of range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from portbook.errors import UsageError, nearest
from portbook.events import LEVELS
from portbook.watching.sinks import SINKS, load
from portbook.watching.sinks.base import OptionType, SinkKind, SinkOption, SinkSettings

MOST_TEXT = 4096  # characters of a target or an option
MOST_TEXTS = 100
MOST_SHOWN = 40
TYPE, TARGET, SEVERITY = "type", "target", "severity"
COMMON = (TYPE, TARGET, SEVERITY)
WORDS: dict[OptionType, str] = {
    "number": "a whole number",
    "text": "a text",
    "flag": "true or false",
    "texts": "a list of texts",
}


def parse_text(text: str, place: str) -> SinkSettings:
    """Read ``KIND:TARGET`` or ``KIND``.

    :param place: where it is written, for messages: "--sink"
    :raises UsageError: it is not valid; the message has nothing behind the first colon, which may be a secret
    """
    kind, _, target = text.partition(":")
    row = load(kind, place)
    _check_text(target, TARGET, place)
    return SinkSettings(kind, target, row.severity, place, _defaults(row))


def parse_table(table: Mapping[str, Any], place: str, place_of: Callable[[str], str] | None = None) -> SinkSettings:
    """Read a ``[[sink]]`` table.

    :param place: where it is written, for messages: "watch.toml:12"
    :param place_of: where a key of it is written
    :raises UsageError: it is not valid
    """
    where = place_of or (lambda _: place)
    kind = table.get(TYPE)
    if not isinstance(kind, str):
        raise UsageError(
            f"{place}: the sink has no type", f'write type = "{next(iter(SINKS))}"; valid: {", ".join(SINKS)}'
        )
    row = load(kind, where(TYPE))
    valid = (*COMMON, *row.options)
    for key in table:
        if key not in valid:
            near = nearest(key, valid)
            hint = f"did you mean {near}?" if near else f"valid keys of {kind} are {', '.join(valid)}"
            raise UsageError(f"{where(key)}: unknown key {key[:MOST_SHOWN]!r} of the sink {kind}", hint)
    target, severity = table.get(TARGET, ""), table.get(SEVERITY, row.severity)
    _check_text(target, TARGET, where(TARGET))
    if severity not in LEVELS:
        raise UsageError(
            f"{where(SEVERITY)}: {_shown(severity)} is no severity", f"valid values are {', '.join(LEVELS)}"
        )
    given = {
        key: _checked(value, key, row.options[key], where(key)) for key, value in table.items() if key not in COMMON
    }
    return SinkSettings(kind, target, severity, place, {**_defaults(row), **given}, frozenset(given))


def _defaults(row: SinkKind) -> dict[str, Any]:
    return {name: option.default for name, option in row.options.items()}


def _checked(value: object, key: str, option: SinkOption, place: str) -> object:
    """A value of the type of the option, within its limits; raise UsageError."""
    if option.type == "flag" and isinstance(value, bool):
        return value
    if option.type == "number" and isinstance(value, int) and not isinstance(value, bool):
        if option.least <= value <= option.most:
            return value
        raise UsageError(f"{place}: {key} = {value} is out of range", f"valid are {option.least:,} to {option.most:,}")
    if option.type == "text" and isinstance(value, str):
        _check_text(value, key, place)
        if option.words and value not in option.words:
            raise UsageError(
                f"{place}: {key} = {_shown(value)} is not valid", f"valid values are {', '.join(option.words)}"
            )
        return value
    if option.type == "texts" and isinstance(value, list) and all(isinstance(text, str) for text in value):
        for text in value[:MOST_TEXTS]:
            _check_text(text, key, place)
        return tuple(value[:MOST_TEXTS])
    raise UsageError(f"{place}: {key} = {_shown(value)} is not {WORDS[option.type]}", option.meaning)


def _check_text(value: object, key: str, place: str) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{place}: {key} = {_shown(value)} is not a text", f'write {key} = "..."')
    if len(value) > MOST_TEXT:
        raise UsageError(f"{place}: {key} is longer than {MOST_TEXT:,} characters")
    if not value.isprintable():
        raise UsageError(f"{place}: {key} has an unprintable character")


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text[:MOST_SHOWN]
