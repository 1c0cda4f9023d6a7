"""Text that is safe on a terminal, and columns and lines that fit its width.

Processes choose their own names and command lines, users the names of interfaces in their network namespaces, hosts
what they reply: every unprintable character is escaped (CWE-150). Who puts a text into a line escapes it with ``safe``;
what makes lines here does so once more: a text that was forgotten is badly aligned, and that is all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import repeat
from typing import TextIO

from msgspec import Struct

from portbook.addresses import format_endpoint
from portbook.escaping import safe
from portbook.numerals import UINT16, number_or_none
from portbook.records import Reach

REACH: dict[Reach, str] = {
    "loopback": "this machine",
    "address": "one address",
    "any": "every network",
    "none": "none",
    "multicast": "a multicast group",
    "broadcast": "broadcasts",
}
MOST_KEPT = 1_000  # padded cells: they stay in the cache of the processor
MOST_NOTE = 5_000  # characters of a message: two screens; a word from a file of targets may have megabytes
LEAST = 8  # characters that a shortened column keeps


def safe_endpoint(address: str, port: int | None = None, zone: str | None = None) -> str:
    """As ``format_endpoint``, safe: the zone is the name of an interface."""
    return safe(format_endpoint(address, port, zone))


class Column(Struct, frozen=True):
    """A column of a table: its title, and in which order it is shortened on a narrow terminal."""

    title: str
    shrinks: int = 0  # 0: never; the highest number is shortened first
    least: int = LEAST
    right: bool = False


class Style(Struct, frozen=True):
    """What an output can show."""

    width: int | None = None  # None: no limit
    colour: bool = False
    ellipsis: str = "…"
    gap: str = "  "  # between columns


BOLD, YELLOW, RED, DIM, PLAIN = "\x1b[1m", "\x1b[33m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


def paint(text: str, colour: str, style: Style) -> str:
    """The text in a colour or in bold, if the output shows that."""
    text = safe(text)
    if style.colour:
        return f"{colour}{text}{PLAIN}"
    return text


def bold(lines: Sequence[str], style: Style) -> list[str]:
    """The lines in bold, if the output shows that."""
    return [paint(line, BOLD, style) for line in lines]


def style_of(stream: TextIO) -> Style:
    """The width and colours of a terminal; no limit and no colours elsewhere. NO_COLOR is respected (no-color.org)."""
    encoding = (stream.encoding or "").lower().replace("-", "")
    ellipsis = "…" if encoding == "utf8" else "~"
    if not stream.isatty():
        return Style(None, False, ellipsis)
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and understands_escapes()
    return Style(_terminal_width(stream), colour, ellipsis)


def _terminal_width(stream: TextIO) -> int | None:
    columns = number_or_none(os.environ.get("COLUMNS", ""), UINT16, 1)
    if columns is not None:
        return columns
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


def understands_escapes() -> bool:
    """Whether escape sequences work: in a Windows console they must be enabled (SetConsoleMode, Windows 10)."""
    if sys.platform != "win32":
        return True
    import ctypes

    kernel = ctypes.windll.kernel32
    output = kernel.GetStdHandle(-11)  # STD_OUTPUT_HANDLE
    mode = ctypes.c_ulong()
    return bool(kernel.GetConsoleMode(output, ctypes.byref(mode)) and kernel.SetConsoleMode(output, mode.value | 4))


Rows = Sequence[Sequence[str]]


def table(columns: Sequence[Column], rows: Rows, style: Style, warn: Sequence[bool] = ()) -> list[str]:
    """Lines of aligned columns: a title line, then one line for each row; a row whose ``warn`` is true is coloured."""
    contents: list[Sequence[str]] = list(zip(*rows, strict=True)) or [() for _ in columns]
    return table_of_columns(columns, contents, style, warn)


def table_of_columns(
    columns: Sequence[Column], contents: Sequence[Sequence[str]], style: Style, warn: Sequence[bool] = ()
) -> list[str]:
    """The same, from the cells of each column."""
    texts = list(map(_distinct, contents))
    if not all(map(_is_ascii, texts)):
        return _table_of_wide(columns, list(zip(*contents, strict=True)), style, warn)
    titles = [c.title for c in columns]
    widths = _widths(columns, texts)
    fitted = _fit(columns, widths, style)
    fields = [_field(column, width) for column, width in zip(columns, fitted, strict=True)]
    title = style.gap.join(fields).format(*titles).rstrip()
    padded = [
        _padded(cells, distinct, most, column.right, style)
        for column, cells, distinct, most in zip(columns, contents, texts, fitted, strict=True)
    ]
    lines = list(map(str.rstrip, map(style.gap.join, zip(*padded, strict=True))))
    if not all(all(map(str.isprintable, distinct)) for distinct in texts):
        lines = list(map(safe, lines))
    return _coloured([title], lines, style, warn)


def _distinct(cells: Sequence[str]) -> Collection[str]:
    """Each different cell. There may be a hundred thousand cells: where most differ, all of them."""
    if len(set(cells[:MOST_KEPT])) > MOST_KEPT // 2:
        return cells
    return set(cells)


def _padded(cells: Sequence[str], distinct: Collection[str], width: int, right: bool, style: Style) -> Iterator[str]:
    """The cells in one width; each distinct text is made once where there are few."""
    pad = str.rjust if right else str.ljust
    is_cut = any(len(text) > width for text in distinct)
    if is_cut or len(distinct) <= MOST_KEPT:
        return map({text: pad(_cut(text, width, style), width) for text in distinct}.__getitem__, cells)
    return map(pad, cells, repeat(width))


def _is_ascii(cells: Iterable[str]) -> bool:
    """Whether each character takes one cell of a terminal."""
    return all(map(str.isascii, cells))


def _widths(columns: Sequence[Column], contents: Sequence[Collection[str]]) -> list[int]:
    """The cells that each column takes. There may be a hundred thousand rows: without a call for each, if possible."""
    widths: list[int] = []
    for column, cells in zip(columns, contents, strict=True):
        measure = len if _is_ascii(cells) else cell_count
        widths.append(max(len(column.title), max(map(measure, cells), default=0)))
    return widths


def _field(column: Column, width: int) -> str:
    """The replacement field of a cell, for ``str.format``: ``{:<15}``."""
    if column.right:
        return f"{{:>{width}}}"
    return f"{{:<{width}}}"


def room(columns: Sequence[Column], contents: Sequence[Sequence[str]], style: Style) -> int:
    """How many cells of a terminal are left beside a table; negative: so many are missing.

    :param contents: the cells of each column
    """
    if style.width is None:
        return 0
    widths = _widths(columns, list(map(_distinct, contents)))
    return style.width - sum(widths) - len(style.gap) * (len(widths) - 1)


def _coloured(title: list[str], lines: list[str], style: Style, warn: Sequence[bool]) -> list[str]:
    """The title line in bold, and the lines with a warning in yellow."""
    if not style.colour:
        return title + lines
    coloured = bold(title, style)
    if not warn:
        return coloured + lines
    for line, is_warning in zip(lines, warn, strict=True):
        if is_warning:
            coloured.append(paint(line, YELLOW, style))
        else:
            coloured.append(line)
    return coloured


def _fit(columns: Sequence[Column], widths: list[int], style: Style) -> list[int]:
    """Shorten the columns that may be shortened, in their order, until the line fits."""
    if style.width is None:
        return widths
    fitted = list(widths)
    excess = sum(widths) + len(style.gap) * (len(widths) - 1) - style.width
    shrinking = [i for i in range(len(columns)) if columns[i].shrinks]
    order = sorted(shrinking, key=lambda i: -columns[i].shrinks)
    for limits in ([c.least for c in columns], [LEAST] * len(columns), [0] * len(columns)):
        for i in order:
            least = min(fitted[i], max(limits[i], len(columns[i].title)))
            taken = min(max(excess, 0), fitted[i] - least)
            fitted[i] -= taken
            excess -= taken
    return fitted


def shorten(text: str, most: int | None) -> str:
    """The text; of one that is longer than ``most`` the beginning and the end, and how many characters are between."""
    if most is None or len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end]} [... {len(text) - most:,} characters ...] {text[len(text) - end :]}"


def _cut(cell: str, width: int, style: Style) -> str:
    if len(cell) <= width:
        return cell
    return cell[: width - 1] + style.ellipsis


# --- lines ---------------------------------------------------------------------------------------------------------


def wrap(text: str, style: Style, start: str = "", indent: str = "") -> list[str]:
    """The text broken at blanks to the width of the output: the first line begins with ``start``, others ``indent``.

    A word that is longer than a line stays whole. Without a width the text stays on one line.
    """
    text = safe(text)
    if style.width is None or cell_count(start + text) <= style.width:
        return [start + text]
    first, *words = text.split(" ")
    lines: list[str] = []
    current = start + first
    for word in words:
        if cell_count(f"{current} {word}") <= style.width:
            current = f"{current} {word}"
        else:
            lines.append(current)
            current = indent + word
    return [*lines, current]


def note(message: str) -> str:
    """A message for standard error: escaped, behind the name of the command, wrapped to the width of a terminal."""
    text = shorten(safe(message), MOST_NOTE)
    return "\n".join(wrap(text, style_of(sys.stderr), "portbook: ", "  ")) + "\n"


# --- characters of more or less than one cell ---------------------------------------------------------------------


def cell_count(text: str) -> int:
    """How many cells of a terminal the text takes: East Asian wide characters two, combining marks none (UAX #11)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    count = 0
    for c in text:
        if combining(c):
            continue
        count += 1
        if east_asian_width(c) in "WF":
            count += 1
    return count


def _table_of_wide(columns: Sequence[Column], rows: Rows, style: Style, warn: Sequence[bool]) -> list[str]:
    titles = [c.title for c in columns]
    widths = [max(map(cell_count, cells)) for cells in zip(titles, *rows, strict=True)]
    fitted = _fit(columns, widths, style)
    lines: list[str] = []
    for row in (titles, *rows):
        padded: list[str] = []
        for column, cell, width in zip(columns, row, fitted, strict=True):
            padded.append(_pad(cut(cell, width, style), width, column.right))
        lines.append(style.gap.join(padded).rstrip())
    return _coloured(lines[:1], list(map(safe, lines[1:])), style, warn)


def cut(text: str, width: int, style: Style) -> str:
    """The text in so many cells of a terminal; of one that is longer, the beginning."""
    if cell_count(text) <= width:
        return text
    room = width - 1
    for end, c in enumerate(text):
        room -= cell_count(c)
        if room < 0:
            return text[:end] + style.ellipsis
    return text


def _pad(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - cell_count(text))
    if right:
        return blanks + text
    return text + blanks
