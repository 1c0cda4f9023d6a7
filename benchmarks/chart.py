"""Draws README's chart from the figures in docs/benchmarks.md.

python benchmarks/chart.py        writes docs/benchmarks.svg; the tests check that it is what the page says
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "docs", "benchmarks.md")
PICTURE = os.path.join(ROOT, "docs", "benchmarks.svg")

WIDTH, LABEL, BAR, ROW, HEAD = 800, 250, 400, 22, 34
OURS, OTHERS = "#0a7d5a", "#9aa4ad"


class Panel(NamedTuple):
    """One comparison: a section of the page, and the rows of its tables to draw, by their first words."""

    title: str
    section: str
    rows: dict[str, str]  # the row's first cell begins so: what it is called in the chart


PANELS = (
    Panel(
        "List 100,000 sockets with their owners",
        "large: 25 processes, 100,000 sockets",
        {
            "portbook list --all --jsonl": "portbook list --all --jsonl",
            "ss -tunap": "ss -tunap",
            "lsof -nP -i": "lsof -nP -i",
        },
    ),
    Panel(
        "The same inside a Python process",
        "large: 25 processes, 100,000 sockets",
        {"portbook.take()": "portbook.take()", 'psutil.net_connections("inet")': "psutil.net_connections()"},
    ),
    Panel(
        "Who holds a port, among 200,000 descriptors",
        "fds: 50 processes, 5,000 sockets, 200,000 other descriptors",
        {"portbook who 2000": "portbook who 2000", "ss -tnlp sport = :2000": "ss -tnlp sport = :2000"},
    ),
    Panel(
        "Scan 65,535 ports of loopback",
        "65,535 ports of loopback, 50 open",
        {
            "portbook scan": "portbook scan",
            "nmap -sT": "nmap -sT -T5 --min-rate 20000",
            "python peers.py pool": "a pool of 100 threads",
        },
    ),
)


def median_ms(page: str, section: str, name: str) -> float:
    """The median of the row whose first cell begins with a name; raises ValueError if there is none."""
    _, heading, rest = page.partition(f"### {section}\n")
    if not heading:
        raise ValueError(f"no section {section!r}")
    table = rest.partition("\n### ")[0]
    found = re.search(rf"^\| `{re.escape(name)}[^|]*\| *\d+ *\| *([\d.,]+) ms", table, re.MULTILINE)
    if found is None:
        raise ValueError(f"no row {name!r} in {section!r}")
    return float(found[1].replace(",", ""))


def draw(page: str) -> str:
    """The chart as SVG."""
    body: list[str] = []
    y = 0
    for panel in PANELS:
        figures = {label: median_ms(page, panel.section, name) for name, label in panel.rows.items()}
        body += _panel(panel.title, figures, y)
        y += HEAD + ROW * len(figures)
    height = y + 10
    style = "text{font:13px system-ui,sans-serif;fill:#57606a}.title{font-weight:600}.ours{font-weight:600}"
    dark = "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">',
            f"<title>portbook beside ss, lsof, psutil and nmap</title><style>{style}{dark}</style>",
            *body,
            "</svg>",
            "",
        ]
    )


def _panel(title: str, figures: dict[str, float], top: int) -> Iterator[str]:
    yield f'<text class="title" x="0" y="{top + 24}">{escape(title)}</text>'
    longest = max(figures.values())
    for i, (label, value) in enumerate(figures.items()):
        y = top + HEAD + i * ROW
        ours = label.startswith("portbook")
        kind = ' class="ours"' if ours else ""
        width = max(2, round(BAR * value / longest))
        colour = OURS if ours else OTHERS
        yield f'<text{kind} x="{LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(label)}</text>'
        yield f'<rect x="{LABEL}" y="{y + 2}" width="{width}" height="{ROW - 6}" rx="2" fill="{colour}"/>'
        yield f'<text{kind} x="{LABEL + width + 6}" y="{y + 14}">{value:,.0f} ms{_times(value, figures)}</text>'


def _times(value: float, figures: dict[str, float]) -> str:
    """How many times as long as portbook, for the others."""
    ours = next(figure for label, figure in figures.items() if label.startswith("portbook"))
    return "" if value == ours else f", {value / ours:.1f} times"


def main() -> None:
    """Write the picture."""
    with open(PAGE, encoding="utf-8") as file:
        picture = draw(file.read())
    with open(PICTURE, "w", encoding="utf-8") as file:
        file.write(picture)


if __name__ == "__main__":
    main()
