"""TOML text to a policy, strictly: every mistake is found at once, with its line and what would be valid. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from portbook.errors import PolicyError, UsageError, nearest
from portbook.events import Level
from portbook.records import PROTOCOLS
from portbook.watching.policy import conflicts, keys
from portbook.watching.policy.keys import ABOUT, KEYS, SELECTORS, TOP_KEYS, Entry, join_ranges, shown
from portbook.watching.policy.lines import Lines, find
from portbook.watching.policy.records import (
    ANY,
    EVERY_PORT,
    RULE_KINDS,
    VERSION,
    Policy,
    PolicyRule,
    Problem,
    RuleKind,
    Selector,
    end_of,
)

MOST_BYTES = 1 << 20
MOST_RULES = 10_000
MOST_PROBLEMS = 100  # that are reported
MOST_DOTS = 10_000  # on one line: tomllib takes a time that is quadratic in the parts of a dotted key
EVERYTHING: Entry = EVERY_PORT, EVERY_PORT


def parse(text: str, file: str = "policy.toml", now: datetime | None = None) -> Policy:
    """Read a policy.

    :param file: how messages call it
    :param now: aware; a rule that has ended by then gets a warning. None: the present
    :raises PolicyError: it is not valid; ``problems`` has every mistake
    """
    if len(text) > MOST_BYTES:
        raise PolicyError([Problem(file, 0, f"it is longer than {MOST_BYTES >> 20} MiB", "write fewer rules")])
    document = _load(text, file)
    reader = _Reader(find(text), file)
    policy = reader.read(document, now or datetime.now(UTC))
    if reader.problems:
        raise PolicyError(sorted(reader.problems, key=lambda problem: problem.line)[:MOST_PROBLEMS])
    return policy


def _load(text: str, file: str) -> dict[str, Any]:
    """The tables of the text; raise PolicyError."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise PolicyError([Problem(file, number, "it is nested too deeply", "write one table for each rule")])
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise PolicyError([Problem(file, 0, "it is nested too deeply", "write one table for each rule")]) from error
    except ValueError as error:  # TOMLDecodeError, and a number of thousands of digits
        raise PolicyError([_toml_problem(str(error), text, file)]) from error


def _toml_problem(message: str, text: str, file: str) -> Problem:
    """The message of tomllib ends in ``(at line 3, column 5)`` or ``(at end of document)``."""
    what, _, place = message.rpartition(" (at ")
    line = 0
    if place.startswith("line "):
        line = int(place[5:].partition(",")[0])
    elif place.startswith("end of"):
        line = text.count("\n") + 1
    hint = "see https://toml.io for the syntax; text needs quotes"
    return Problem(file, line, f"this is not TOML: {(what or message)[:200]}", hint)


class _Reader:
    """Collects the rules, and the problems."""

    def __init__(self, lines: Lines, file: str) -> None:
        self.lines = lines
        self.file = file
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def read(self, document: dict[str, Any], now: datetime) -> Policy:
        self._check_version(document)
        self._check_keys(document, TOP_KEYS, "", 1)
        default = document.get("default", "deny")
        if default not in ("deny", "allow"):
            self._add("", 1, "default", f"{shown(default)} is not a default", 'write "deny" or "allow"')
            default = "deny"
        severity: Level = self._value(document, "severity", keys.read_severity, "", 1) or "warning"
        rules = self._rules(document)
        for problem in conflicts.find(rules, self.file):
            self.problems.append(problem)
        self.warnings += conflicts.warn(rules, default, self.file, now)
        return Policy(tuple(rules), default, severity, self.file, tuple(self.warnings))

    def _check_version(self, document: dict[str, Any]) -> None:
        version = document.get("version")
        hint = f"write version = {VERSION}"
        if version is None:
            self.problems.append(Problem(self.file, 1, "the version is missing", f"{hint} at the beginning"))
        elif type(version) is not int or version != VERSION:
            what = f"version {shown(version)} is not known to this portbook"
            self._add("", 1, "version", what, f"{hint}, or use a newer portbook")

    def _check_keys(self, table: dict[str, Any], valid: tuple[str, ...], name: str, ordinal: int) -> None:
        for key in table.keys() - set(valid):
            likely = nearest(key, valid)
            where = f"in [[{name}]]" if name else "outside of the rules"
            hint = f"valid keys {where} are {', '.join(valid)}"
            if not name and key in KEYS:
                hint = "it belongs into a rule: write [[allow]], [[deny]] or [[require]] above it"
            elif likely is not None:
                hint = f"did you mean {likely}? {hint}"
            self._add(name, ordinal, key, f"unknown key {shown(key)}", hint)

    def _rules(self, document: dict[str, Any]) -> list[PolicyRule]:
        """The rules in the order of the file."""
        tables: list[tuple[int, RuleKind, int, dict[str, Any]]] = []
        for kind in RULE_KINDS:
            found = document.get(kind, [])
            if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
                self._add(kind, 1, "", f"{kind} is not a list of rules", f"write [[{kind}]], with two brackets")
                continue
            for ordinal, table in enumerate(found, 1):
                tables.append((self.lines.of(kind, ordinal), kind, ordinal, table))
        if len(tables) > MOST_RULES:
            what = f"it has {len(tables):,} rules"
            self.problems.append(Problem(self.file, 0, what, f"at most {MOST_RULES:,}"))
            return []
        tables.sort(key=lambda entry: entry[0])
        return [rule for _, kind, ordinal, table in tables for rule in self._rule(kind, ordinal, table)]

    def _rule(self, kind: RuleKind, ordinal: int, table: dict[str, Any]) -> Iterator[PolicyRule]:
        """The rule, unless something is wrong with it."""
        before = len(self.problems)
        self._check_keys(table, KEYS, kind, ordinal)
        entries = self._entries(kind, ordinal, table)
        selectors = {key: self._value(table, key, read, kind, ordinal) for key, read in SELECTORS.items()}
        about = {key: self._value(table, key, read, kind, ordinal) for key, read in ABOUT.items()}
        ends = self._end(about["until"], kind, ordinal)
        self._check_whole(kind, ordinal, table)
        if len(self.problems) > before:
            return
        whole = Selector(*_joined(entries), **selectors)
        line = self.lines.of(kind, ordinal)
        until = None if about["until"] is None else str(about["until"])
        yield PolicyRule(
            kind,
            ordinal,
            line,
            whole,
            tuple(Selector(*entry, **selectors) for entry in entries) if kind == "require" else (),
            about["comment"],
            about["owner"],
            about["severity"],
            until,
            ends,
            f"{kind}[{ordinal}] ({self.file}:{line})",
        )

    def _check_whole(self, kind: RuleKind, ordinal: int, table: dict[str, Any]) -> None:
        """What is wrong with keys together."""
        if "sha256" in table and "exe" not in table:
            self._add(kind, ordinal, "sha256", "sha256 without exe", 'name the file too: exe = "/usr/sbin/nginx"')
        if not table.keys() - ABOUT.keys():
            hint = 'write port = …, name = … or another; for every socket port = "any"'
            self._add(kind, ordinal, "", f"[[{kind}]] says nothing about sockets", hint)
        if kind == "require" and ("port" not in table or table["port"] == ANY):
            self._add(kind, ordinal, "port", "a requirement without a port", "write port = 443: what must listen")

    def _entries(self, kind: RuleKind, ordinal: int, table: dict[str, Any]) -> list[Entry]:
        """The ports of the rule, each value by itself, narrowed by the protocol."""
        entries = self._value(table, "port", keys.read_entries, kind, ordinal) or [EVERYTHING]
        protocols = self._value(table, "protocol", keys.read_protocols, kind, ordinal) or PROTOCOLS
        narrowed: list[Entry] = []
        for tcp, udp in entries:
            narrow = (tcp if "tcp" in protocols else (), udp if "udp" in protocols else ())
            if not any(narrow):
                what = f"port {keys.port_text(tcp, udp)} is not a port of {', '.join(protocols)}"
                self._add(kind, ordinal, "protocol", what, "omit protocol, or write the port without a protocol")
            narrowed.append(narrow)
        return narrowed

    def _end(self, until: date | datetime | None, kind: RuleKind, ordinal: int) -> datetime | None:
        if until is None:
            return None
        try:
            return end_of(until)
        except (OverflowError, ValueError, OSError):
            self._add(kind, ordinal, "until", f"{until} cannot be computed with", "write a date such as 2026-12-31")
            return None

    def _value(self, table: dict[str, Any], key: str, read: Any, name: str, ordinal: int) -> Any:
        """The value of a key; None if there is none, or if it is not valid."""
        if key not in table:
            return None
        try:
            return read(table[key])
        except UsageError as error:
            what = str(error.args[0])
            self._add(name, ordinal, key, what if what.startswith(key) else f"{key}: {what}", error.hint)
            return None

    def _add(self, name: str, ordinal: int, key: str, what: str, hint: str | None) -> None:
        line = self.lines.of(name, ordinal, key)
        self.problems.append(Problem(self.file, line, what, hint))


def _joined(entries: list[Entry]) -> tuple[Any, Any]:
    tcp = join_ranges(found for entry in entries for found in entry[0])
    udp = join_ranges(found for entry in entries for found in entry[1])
    return tcp, udp
