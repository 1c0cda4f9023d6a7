"""What commands share: the options that choose a format, and the writing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from portbook.numerals import counted
from portbook.records import Gap, Listing, Socket

Command = TypeVar("Command", bound=Callable[..., Any])
Key = tuple[Callable[[Socket], Any], bool]  # what to sort by, and whether backwards

FORMATS = {
    "json": "one JSON object",
    "jsonl": "JSON, one socket a line",
    "csv": "CSV, one socket a line",
}


def format_options(command: Command) -> Command:
    """--json, --jsonl, --csv: the last one counts."""
    for name, text in reversed(FORMATS.items()):
        command = click.option(f"--{name}", "form", flag_value=name, default=None, help=text)(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="JSON, one object a line")
strict_option = click.option("--strict", is_flag=True, help="exit with 3 when something could not be known")


def write_machine(listing: Listing, form: str, key: Key | None) -> None:
    """Write a listing for programs, UTF-8 whatever the terminal speaks."""
    from msgspec.structs import replace

    from portbook.render.machine import FORMATS as WRITERS

    if key is not None:
        listing = replace(listing, sockets=tuple(_sorted(listing.sockets, key)))
    write_bytes(WRITERS[form](listing))


def write_bytes(parts: Iterable[bytes]) -> None:
    """Write to stdout as it is."""
    sys.stdout.flush()
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


def write_people(listing: Listing, wide: bool, key: Key, netns: bool = False) -> None:
    """Write a listing as columns, and what could not be known on stderr."""
    from portbook.render import plain, text

    if listing.sockets:
        lines = plain.lines(_sorted(listing.sockets, key), text.style_of(sys.stdout), wide, netns)
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
    else:
        sys.stderr.write("portbook: no socket matches\n")
    write_gaps(listing.gaps)


def write_elsewhere(listing: Listing) -> None:
    """Say on stderr what waits on ports in other network namespaces."""
    count, places = listing.listeners_elsewhere, listing.namespaces_elsewhere
    if count and places:
        where = "another network namespace" if places == 1 else counted(places, "other network namespace")
        verb = "is" if count == 1 else "are"
        sys.stderr.write(f"portbook: {counted(count, 'more listener')} {verb} in {where}; --netns all shows them\n")


def write_gaps(gaps: Iterable[Gap]) -> None:
    """Say what could not be known, one line each, on stderr."""
    from portbook.render.text import safe

    for gap in gaps:
        sys.stderr.write(safe(f"portbook: {gap.why}" + (f"; {gap.hint}" if gap.hint else "")) + "\n")


def _sorted(sockets: Iterable[Socket], key: Key) -> list[Socket]:
    return sorted(sockets, key=key[0], reverse=key[1])
