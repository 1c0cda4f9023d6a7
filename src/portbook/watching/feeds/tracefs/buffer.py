"""The kernel's trace buffer as it is read from ``trace_pipe_raw``: pages of events. Pure.

The text of ``trace_pipe`` contains the names that processes choose, line ends included; the pages contain numbers only.

Facts: events/header_page, events/header_event and events/sock/inet_sock_set_state/format of tracefs;
Documentation/trace/{events,ftrace}.rst; include/linux/ring_buffer.h (the kinds of entries); kernel/trace/ring_buffer.c
(RB_MISSED_EVENTS); include/trace/events/sock.h.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from msgspec import Struct

from portbook.addresses import address_text
from portbook.records import Family

# The kinds of entries beside data: the number is where the length would be.
PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31
LENGTH_BITS, WORD = 5, 4
DELTA_BITS = 27
STAMP_MASK = (1 << 59) - 1  # of TIME_STAMP; the bits above come from the page
SIZE_MASK = (1 << 20) - 1  # of ``commit``: its upper bits are flags, such as that events are missing
HEADER_WORD = 4
FIELD = re.compile(rb"field:\s*([^;]*?)([A-Za-z_]\w*)(?:\[\d+\])?;\s*offset:(\d{1,5});\s*size:(\d{1,6});")
NEEDED = (
    "common_type",
    "common_pid",
    "skaddr",
    "oldstate",
    "newstate",
    "sport",
    "family",
    "protocol",
    "saddr",
    "saddr_v6",
)
ORDER = sys.byteorder
FAMILIES: dict[int, tuple[Family, str]] = {2: ("ipv4", "saddr"), 10: ("ipv6", "saddr_v6")}
TCP, LISTEN, CLOSE = 6, 10, 7

FieldSpan = tuple[int, int]  # offset and size


class PageLayout(Struct, frozen=True):
    """Where the parts of a page are."""

    size: int
    commit: FieldSpan
    data: int


class EventLayout(Struct, frozen=True):
    """Where the fields of the event are."""

    number: int  # common_type
    fields: dict[str, FieldSpan]


class Turn(Struct, frozen=True):
    """A TCP socket began to listen, or does not any more."""

    at_ns: int  # by the trace clock
    tid: int  # of the thread in the initial pid namespace
    socket_at: int  # its address in the kernel, which identifies it while it exists
    listens: bool
    family: Family
    address: str
    port: int  # 0: the kernel had not chosen it yet


def parse_page_layout(text: bytes) -> PageLayout:
    """Parse events/header_page; raise ValueError."""
    fields = _fields(text)
    try:
        data, commit = fields["data"], fields["commit"]
    except KeyError as error:
        raise ValueError(f"events/header_page has no field {error}") from error
    if not 0 < data[1] <= 1 << 20 or commit[1] not in (4, 8) or data[0] < 8 + commit[1]:
        raise ValueError("events/header_page describes no page")
    return PageLayout(data[0] + data[1], commit, data[0])


def parse_event_layout(text: bytes) -> EventLayout:
    """Parse events/sock/inet_sock_set_state/format; raise ValueError."""
    number = re.search(rb"^ID: (\d{1,9})$", text, re.MULTILINE)
    fields = _fields(text)
    lacking = [name for name in NEEDED if name not in fields]
    if number is None or lacking:
        raise ValueError(f"the format of inet_sock_set_state has no {', '.join(lacking) or 'number'}")
    return EventLayout(int(number[1]), {name: fields[name] for name in NEEDED})


def _fields(text: bytes) -> dict[str, FieldSpan]:
    return {match[2].decode(): (int(match[3]), int(match[4])) for match in FIELD.finditer(text)}


def parse_page(page: bytes, pages: PageLayout, events: EventLayout) -> list[Turn]:
    """The turns that a page tells of; what cannot be parsed ends it."""
    turns: list[Turn] = []
    if len(page) < pages.data:
        return turns
    at_ns = base_ns = int.from_bytes(page[:8], ORDER)
    end = min(pages.data + (_number(page, pages.commit) & SIZE_MASK), len(page))
    at = pages.data
    while at + HEADER_WORD <= end:
        word = int.from_bytes(page[at : at + HEADER_WORD], ORDER)
        kind, delta = _split(word)
        at += HEADER_WORD
        following = int.from_bytes(page[at : at + WORD], ORDER)
        if kind == TIME_EXTEND:
            at_ns += (following << DELTA_BITS) + delta
            at += WORD
            continue
        if kind == TIME_STAMP:
            at_ns = (base_ns & ~STAMP_MASK) | ((following << DELTA_BITS) + delta)
            at += WORD
            continue
        at_ns += delta
        if kind == PADDING:
            if not delta:
                break  # the rest of the page is empty
            at += following
            continue
        if kind:
            length = kind * WORD
        else:  # a long entry: its length stands before the data, and counts itself
            length = following - WORD
            at += WORD
        if length <= 0 or at + length > end:
            break
        turn = _parse_event(page[at : at + length], at_ns, events)
        if turn is not None:
            turns.append(turn)
        at += (length + WORD - 1) // WORD * WORD
    return turns


def _split(word: int) -> tuple[int, int]:
    """Kind and time of an entry: a bit field, which begins at the low end on little-endian processors."""
    if ORDER == "little":
        return word & ((1 << LENGTH_BITS) - 1), word >> LENGTH_BITS
    return word >> DELTA_BITS, word & ((1 << DELTA_BITS) - 1)


def _parse_event(data: bytes, at_ns: int, events: EventLayout) -> Turn | None:
    """One event; None for another one, or one that says nothing here."""
    fields = events.fields
    if max(offset + size for offset, size in fields.values()) > len(data):
        return None
    values = {name: _number(data, place) for name, place in fields.items()}
    family = FAMILIES.get(values["family"])
    if values["common_type"] != events.number or values["protocol"] != TCP or family is None:
        return None
    if LISTEN not in (values["oldstate"], values["newstate"]):
        return None
    name, address_field = family
    offset, size = fields[address_field]
    return Turn(
        at_ns,
        values["common_pid"],
        values["skaddr"],
        values["newstate"] == LISTEN,
        name,
        address_text(data[offset : offset + size]),
        values["sport"],
    )


def _number(data: bytes, place: FieldSpan) -> int:
    offset, size = place
    return int.from_bytes(data[offset : offset + size], ORDER)


def parse_losses(text: bytes) -> int:
    """How many events a processor's ``stats`` count as lost."""
    lost = 0
    for line in text.splitlines():
        name, _, value = line.partition(b": ")
        if name in (b"overrun", b"commit overrun", b"dropped events") and value.isdigit() and len(value) < 20:
            lost += int(value)
    return lost


def lost_since(before: Mapping[str, int], now: Mapping[str, int]) -> int:
    """How much the counters of the processors have grown."""
    return sum(max(0, count - before.get(name, 0)) for name, count in now.items())
