"""The options that choose an output format, and the writing of answers: shared by the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from portbook.cli import base

if TYPE_CHECKING:  # not needed to complete options
    from portbook.records import Gap, Listing, Socket

# The key of a socket, or the fields that are compared, and whether the order is reversed.
SortKey = tuple[Callable[["Socket"], Any] | tuple[str, ...], bool]

FORMATS = {
    "json": "one JSON object",
    "jsonl": "JSON lines, one socket on each line",
    "csv": "CSV, one socket on each line",
}


def format_options(command: base.Decorated) -> base.Decorated:
    """Add --json, --jsonl and --csv; the last one given counts."""
    for name, text in reversed(FORMATS.items()):
        command = base.option(f"--{name}", "form", flag_value=name, default=None, help=text)(command)
    return command


json_option = base.option("--json", "as_json", is_flag=True, help="JSON, one object on each line")
strict_option = base.option("--strict", is_flag=True, help="exit with 3 if the answer has gaps")


def write_machine(listing: Listing, form: str, key: SortKey | None) -> None:
    """Write a listing for programs: in UTF-8, whatever the encoding of the terminal is."""
    from msgspec.structs import replace

    from portbook.render.machine import FORMATS as WRITERS

    if key is not None:
        listing = replace(listing, sockets=tuple(_sorted(listing.sockets, key)))
    write_bytes(WRITERS[form](listing))


def write_bytes(parts: Iterable[bytes]) -> None:
    """Write bytes to standard output."""
    sys.stdout.flush()
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


def write_people(listing: Listing, wide: bool, key: SortKey, netns: bool = False) -> None:
    """Write a listing as columns to standard output, and its gaps to standard error."""
    from portbook.enrich import has_relay
    from portbook.render import plain, text

    if listing.sockets:
        targets = None
        if has_relay(listing.sockets):
            from portbook.enrich.relays import Relays

            targets = Relays().short_targets(listing.sockets)
        lines = plain.lines(_sorted(listing.sockets, key), text.style_of(sys.stdout), wide, netns, targets)
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
    write_gaps(listing.gaps)


def write_elsewhere(listing: Listing) -> None:
    """Write to standard error how many listeners other network namespaces have."""
    from portbook.numerals import counted
    from portbook.render.text import note

    count, places = listing.listeners_elsewhere, listing.namespaces_elsewhere
    if count and places:
        where = "another network namespace" if places == 1 else counted(places, "other network namespace")
        verb, pronoun = ("is", "it") if count == 1 else ("are", "them")
        sys.stderr.write(note(f"{counted(count, 'more listener')} {verb} in {where}; --netns all shows {pronoun}"))


def write_gaps(gaps: Iterable[Gap]) -> None:
    """Write each gap to standard error: as one line, which a terminal may have to break."""
    from portbook.render.text import note

    for gap in gaps:
        hint = f"; {gap.hint}" if gap.hint else ""
        sys.stderr.write(note(f"{gap.why}{hint}"))


def _sorted(sockets: Iterable[Socket], key: SortKey) -> list[Socket]:
    order, is_reversed = key
    if not isinstance(order, tuple):
        return sorted(sockets, key=order, reverse=is_reversed)
    from operator import attrgetter

    ordered = list(sockets)
    for field in reversed(order):  # sorting is stable, and one number or text is compared faster than a tuple
        ordered.sort(key=attrgetter(field), reverse=is_reversed)
    return ordered
