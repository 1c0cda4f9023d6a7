"""Text that is safe on a terminal, and columns that fit one.

Names come from processes, which choose them: whatever is not printable is escaped (CWE-150).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from portbook.numerals import UINT16, number_or_none

LEAST = 8  # a shrunk column keeps this many characters


def safe(text: str) -> str:
    """The text with everything unprintable escaped: controls, line ends, direction overrides."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Column(NamedTuple):
    """A column: its title, and how readily it is shortened when the terminal is narrow."""

    title: str
    shrinks: int = 0  # 0 never; the highest goes first
    least: int = LEAST
    right: bool = False


class Style(NamedTuple):
    """What the output can show."""

    width: int | None = None  # None: no limit
    colour: bool = False
    ellipsis: str = "…"
    gap: str = "  "  # between columns


BOLD, YELLOW, RED, DIM, PLAIN = "\x1b[1m", "\x1b[33m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


def style_of(stream: TextIO) -> Style:
    """Sized to the terminal; unlimited and without colour elsewhere. NO_COLOR is respected (no-color.org)."""
    ellipsis = "…" if (stream.encoding or "").lower().replace("-", "") == "utf8" else "~"
    if not stream.isatty():
        return Style(None, False, ellipsis)
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and _understands_colour()
    return Style(_terminal_width(stream), colour, ellipsis)


def _terminal_width(stream: TextIO) -> int | None:
    columns = number_or_none(os.environ.get("COLUMNS", ""), UINT16, 1)
    if columns is not None:
        return columns
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


def _understands_colour() -> bool:
    """Whether escape sequences work: a Windows console has to be told (SetConsoleMode, Windows 10)."""
    if sys.platform != "win32":
        return True
    import ctypes

    kernel = ctypes.windll.kernel32
    output = kernel.GetStdHandle(-11)  # STD_OUTPUT_HANDLE
    mode = ctypes.c_ulong()
    return bool(kernel.GetConsoleMode(output, ctypes.byref(mode)) and kernel.SetConsoleMode(output, mode.value | 4))


Rows = Sequence[Sequence[str]]


def table(columns: Sequence[Column], rows: Rows, style: Style, warn: Sequence[bool] = ()) -> list[str]:
    """Lines of aligned columns: a title line, then one for each row; rows that ``warn`` are coloured."""
    if not all(cell.isascii() for row in rows for cell in row):
        return _table_of_wide(columns, rows, style, warn)
    titles = [c.title for c in columns]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    fitted = _fit(columns, widths, style)
    if fitted != widths:
        rows = [[_cut(cell, width, style) for cell, width in zip(row, fitted, strict=True)] for row in rows]
    line = style.gap.join(f"{{:{'>' if c.right else '<'}{w}}}" for c, w in zip(columns, fitted, strict=True)).format
    return _coloured([line(*titles).rstrip()], [line(*row).rstrip() for row in rows], style, warn)


def fits(columns: Sequence[Column], rows: Rows, style: Style) -> bool:
    """Whether a table of these cells needs no cutting."""
    if style.width is None:
        return True
    widths = [max(map(cells, column)) for column in zip([c.title for c in columns], *rows, strict=True)]
    return sum(widths) + len(style.gap) * (len(widths) - 1) <= style.width


def _coloured(title: list[str], lines: list[str], style: Style, warn: Sequence[bool]) -> list[str]:
    if not style.colour:
        return title + lines
    marked = [f"{YELLOW}{line}{PLAIN}" if w else line for line, w in zip(lines, warn, strict=True)] if warn else lines
    return [f"{BOLD}{line}{PLAIN}" for line in title] + marked


def _fit(columns: Sequence[Column], widths: list[int], style: Style) -> list[int]:
    """Take from the columns that shrink, the readiest first, until the line fits."""
    if style.width is None:
        return widths
    fitted = list(widths)
    excess = sum(widths) + len(style.gap) * (len(widths) - 1) - style.width
    order = sorted((i for i in range(len(columns)) if columns[i].shrinks), key=lambda i: -columns[i].shrinks)
    for limits in ([c.least for c in columns], [LEAST] * len(columns), [0] * len(columns)):
        for i in order:
            least = min(fitted[i], max(limits[i], len(columns[i].title)))
            taken = min(max(excess, 0), fitted[i] - least)
            fitted[i] -= taken
            excess -= taken
    return fitted


def _cut(cell: str, width: int, style: Style) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + style.ellipsis


# --- characters of more or less than one cell ---------------------------------------------------------------------


def cells(text: str) -> int:
    """How many cells of a terminal the text takes: East Asian wide characters two, combining marks none (UAX #11)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _table_of_wide(columns: Sequence[Column], rows: Rows, style: Style, warn: Sequence[bool]) -> list[str]:
    titles = [c.title for c in columns]
    widths = [max(map(cells, column)) for column in zip(titles, *rows, strict=True)]
    fitted = _fit(columns, widths, style)
    lines = [
        style.gap.join(
            _pad(_cut_wide(cell, width, style), width, column.right)
            for column, cell, width in zip(columns, row, fitted, strict=True)
        ).rstrip()
        for row in (titles, *rows)
    ]
    return _coloured(lines[:1], lines[1:], style, warn)


def _cut_wide(text: str, width: int, style: Style) -> str:
    if cells(text) <= width:
        return text
    while cells(text) > width - 1:
        text = text[:-1]
    return text + style.ellipsis


def _pad(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - cells(text))
    return blanks + text if right else text + blanks
