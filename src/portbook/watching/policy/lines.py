"""On which line of a TOML text each table and key stands: ``tomllib`` does not say. Pure.

The text has been read by ``tomllib`` before, so it is valid: what is wrong here is at worst a line number. Facts:
TOML v1.0.0 (https://toml.io/en/v1.0.0), strings, comments, keys, array of tables.
"""

from __future__ import annotations

import re

from msgspec import Struct

# A header ``[[allow]]`` or ``[name]``, or a key; quoted or bare. Values are skipped by _skip_value.
HEADER = re.compile(r"[ \t]*\[\[?([^\]\n]*)\]\]?")
KEY = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)""")
# What a value is made of: strings, which may have anything in them, comments, brackets, and the rest.
PIECE = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[\[{]|[\]}]|\n|[^\"'#\[\]{}\n]+|[\"']",
    re.DOTALL,
)


class Lines(Struct):
    """Lines by name of the table, its ordinal from 1, and key; the key "" is the header. The table "" is the file."""

    known: dict[tuple[str, int, str], int]

    def of(self, table: str, ordinal: int = 1, key: str = "") -> int:
        """The line of a key; if it is not known, of the header, of the first such table, or 0."""
        places = ((table, ordinal, key), (table, ordinal, ""), (table, 1, ""), ("", 1, table or key), (key, 1, ""))
        return next((self.known[place] for place in places if place in self.known), 0)


def find(text: str) -> Lines:
    """Find the lines of the tables and keys."""
    known: dict[tuple[str, int, str], int] = {}
    counts: dict[str, int] = {}
    table, ordinal = "", 1
    at, line = 0, 1
    while at < len(text):
        header, key = HEADER.match(text, at), KEY.match(text, at)
        if header is not None:
            table = _bare(header[1].strip())
            counts[table] = ordinal = counts.get(table, 0) + 1
            known[table, ordinal, ""] = line
            at = header.end()
        elif key is not None:
            known.setdefault((table, ordinal, _bare(key[1])), line)
            at = key.end()
        at, line = _skip_value(text, at, line)
    return Lines(known)


def _bare(name: str) -> str:
    """A key without quotes."""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        return name[1:-1]
    return name


def _skip_value(text: str, at: int, line: int) -> tuple[int, int]:
    """Go behind the end of the line in which the value ends, also if it has several; return the place and its line."""
    depth = 0
    while at < len(text):
        piece = PIECE.match(text, at)
        if piece is None:
            return len(text), line
        found, at = piece[0], piece.end()
        line += found.count("\n")
        if found in "[{":
            depth += 1
        elif found in "]}":
            depth -= 1
        elif found == "\n" and depth <= 0:
            break
    return at, line
