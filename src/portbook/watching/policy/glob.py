"""Text with ``*`` for any run of characters: names in rules. Pure, and in linear time, whatever the text is.

``[*]`` is an asterisk itself: a process may be called so, and a rule for it must not be one for every process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

STAR = "[*]"  # an asterisk itself
WILD = re.compile(r"\*(?!(?<=\[\*)\])")


class Pattern(Struct, frozen=True):
    """A text, or a text with ``*``."""

    text: str
    parts: tuple[str, ...] | None = None  # between the asterisks; None: there is none, and the text is compared
    within: str = ""  # a character that an asterisk does not match: "/" of paths

    def matches(self, text: str) -> bool:
        """Whether a text is meant."""
        if self.parts is None:
            return text == self.text
        if self.within:
            return _matches_each(self.text, text, self.within)
        return _matches(self.parts, text)

    def covers(self, other: Pattern) -> bool:
        """Whether it is certain that every text that the other matches is matched by this."""
        if self == other:
            return True
        if other.parts is None:
            return self.matches(other.text)
        return self.text == "*" and not self.within


def pattern(text: str, within: str = "") -> Pattern:
    """Make a pattern."""
    if "*" not in text:
        return Pattern(text)
    parts = tuple(part.replace(STAR, "*") for part in WILD.split(text))
    if len(parts) == 1:
        return Pattern(parts[0])
    return Pattern(text, parts, within)


def quote(text: str) -> str:
    """A pattern that matches this text only."""
    return text.replace("*", STAR)


class PatternSet:
    """Several patterns, of which any matches: those that are only text, or only end in an asterisk, in one step."""

    __slots__ = ("_others", "_prefixes", "texts")

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        texts: set[str] = set()
        prefixes: list[str] = []
        others: list[Pattern] = []
        for each in patterns:
            if each.parts is None:
                texts.add(each.text)
            elif len(each.parts) == 2 and not each.parts[1] and not each.within:
                prefixes.append(each.parts[0])
            else:
                others.append(each)
        self.texts = frozenset(texts)
        self._prefixes = tuple(prefixes)
        self._others = tuple(others)

    def matches(self, text: str) -> bool:
        """Whether a text is meant."""
        if text in self.texts or text.startswith(self._prefixes):
            return True
        return bool(self._others) and any(each.matches(text) for each in self._others)


def _matches(parts: tuple[str, ...], text: str) -> bool:
    """The first place of each part is as good as any later one."""
    first, *middle, last = parts
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _matches_each(whole: str, text: str, within: str) -> bool:
    """Component by component: an asterisk stays in one."""
    patterns, components = whole.split(within), text.split(within)
    if len(patterns) != len(components):
        return False
    return all(pattern(p).matches(c) for p, c in zip(patterns, components, strict=True))
