"""Text with ``*`` for any run of characters: names in rules. Pure, and in linear time, whatever the text is."""

from __future__ import annotations

from msgspec import Struct


class Pattern(Struct, frozen=True):
    """A text, or a text with ``*``."""

    text: str
    parts: tuple[str, ...] | None = None  # between the asterisks; None: there is none, and the text is compared
    within: str = ""  # a character that an asterisk does not match: "/" of paths

    def matches(self, text: str) -> bool:
        """Whether a text is meant."""
        if self.parts is None:
            return text == self.text
        return _matches(self.parts, text, self.within)

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
    return Pattern(text, tuple(text.split("*")), within)


def _matches(parts: tuple[str, ...], text: str, within: str) -> bool:
    """The first place of each part is as good as any later one, where an asterisk matches every character."""
    if within and within in text:
        return _matches_each("*".join(parts), text, within)
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
