"""Pages of the trace buffer, made here as Documentation/trace and include/linux/ring_buffer.h describe them."""

from __future__ import annotations

import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.watching.feeds.tracefs import buffer
from portbook.watching.feeds.tracefs.buffer import Turn

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the pages are made for little-endian processors")

HEADER_PAGE = b"""\
	field: u64 timestamp;	offset:0;	size:8;	signed:0;
	field: local_t commit;	offset:8;	size:8;	signed:1;
	field: int overwrite;	offset:8;	size:1;	signed:1;
	field: char data;	offset:16;	size:4080;	signed:0;
"""
FORMAT = b"""\
name: inet_sock_set_state
ID: 2287
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:const void * skaddr;	offset:8;	size:8;	signed:0;
	field:int oldstate;	offset:16;	size:4;	signed:1;
	field:int newstate;	offset:20;	size:4;	signed:1;
	field:__u16 sport;	offset:24;	size:2;	signed:0;
	field:__u16 dport;	offset:26;	size:2;	signed:0;
	field:__u16 family;	offset:28;	size:2;	signed:0;
	field:__u16 protocol;	offset:30;	size:2;	signed:0;
	field:__u8 saddr[4];	offset:32;	size:4;	signed:0;
	field:__u8 daddr[4];	offset:36;	size:4;	signed:0;
	field:__u8 saddr_v6[16];	offset:40;	size:16;	signed:0;
	field:__u8 daddr_v6[16];	offset:56;	size:16;	signed:0;

print fmt: "family=%s oldstate=%s", __print_symbolic(REC->family, { 2, "AF_INET" }), REC->saddr
"""
# Linux 4.16 to 5.x: the protocol is a byte.
OLD_FORMAT = FORMAT.replace(b"__u16 protocol;	offset:30;	size:2;", b"__u8 protocol;	offset:30;	size:1;")
PAGES, EVENTS = buffer.parse_page_layout(HEADER_PAGE), buffer.parse_event_layout(FORMAT)
LISTEN, CLOSE, SYN_RECV = 10, 7, 3


def event(old, new, port, tid=77, address="127.0.0.1", at=0xFFFF888100000001, number=2287, protocol=6, family=None):
    is_six = ":" in address
    four = b"\x7f\0\0\6" if is_six else socket.inet_aton(address)
    six = socket.inet_pton(socket.AF_INET6, address) if is_six else b"\0" * 10 + b"\xff\xff" + four
    family = family or (10 if is_six else 2)
    return struct.pack(
        "=HBBiQiiHHHH4s4s16s16s", number, 0, 0, tid, at, old, new, port, 0, family, protocol, four, b"", six, b""
    )


def entry(data, delta=5):
    """Data of a length that is a multiple of four, up to 112 bytes."""
    return struct.pack("=I", len(data) // 4 | delta << 5) + data


def long_entry(data, delta=5):
    return struct.pack("=II", delta << 5, len(data) + 4) + data


def extended(delta):
    return struct.pack("=II", 30 | (delta & 0x7FFFFFF) << 5, delta >> 27)


def stamped(at):
    return struct.pack("=II", 31 | (at & 0x7FFFFFF) << 5, at >> 27)


def page(*entries, base=1_000_000, flags=0, rest=b""):
    data = b"".join(entries)
    return (struct.pack("=QQ", base, len(data) | flags) + data + rest).ljust(4096, b"\0")


def turns(content, events=EVENTS):
    return buffer.parse_page(content, PAGES, events)


def test_a_listener_and_its_end():
    found = turns(page(entry(event(CLOSE, LISTEN, 8080)), entry(event(LISTEN, CLOSE, 8080), delta=7)))
    assert found == [
        Turn(1_000_005, 77, 0xFFFF888100000001, True, "ipv4", "127.0.0.1", 8080),
        Turn(1_000_012, 77, 0xFFFF888100000001, False, "ipv4", "127.0.0.1", 8080),
    ]
    (six,) = turns(page(entry(event(CLOSE, LISTEN, 53, address="fe80::1"))))
    assert (six.family, six.address, six.port) == ("ipv6", "fe80::1", 53)


def test_the_byte_of_the_protocol_in_older_kernels():
    old = buffer.parse_event_layout(OLD_FORMAT)
    garbage = event(CLOSE, LISTEN, 8080, protocol=6 | 0x5A00)  # behind the byte nothing is written
    assert len(turns(page(entry(garbage)), old)) == 1
    assert turns(page(entry(garbage))) == []


@pytest.mark.parametrize(
    "other",
    [
        event(CLOSE, LISTEN, 1, number=2288),
        event(CLOSE, LISTEN, 1, protocol=132),
        event(CLOSE, LISTEN, 1, family=1),
        event(SYN_RECV, CLOSE, 1),
        b"\0" * 8,
    ],
    ids=["another event", "SCTP", "another family", "a connection", "short"],
)
def test_other_events_are_left_out(other):
    found = turns(page(entry(other), entry(event(CLOSE, LISTEN, 2))))
    assert [turn.port for turn in found] == [2]


def test_time_is_added_up():
    far = 5_000_000_000
    found = turns(
        page(
            extended(far),
            entry(event(CLOSE, LISTEN, 1)),
            struct.pack("=II", 29 | 3 << 5, 12) + b"\xff" * 8,  # a discarded entry: its length counts the word itself
            long_entry(event(LISTEN, CLOSE, 1)),
            stamped(7_000_000_000),
            entry(event(CLOSE, LISTEN, 2)),
        )
    )
    assert [(turn.at_ns, turn.port) for turn in found] == [
        (1_000_000 + far + 5, 1),
        (1_000_000 + far + 5 + 3 + 5, 1),
        (7_000_000_005, 2),
    ]


def test_a_page_ends_where_it_says():
    first = entry(event(CLOSE, LISTEN, 1))
    behind = entry(event(CLOSE, LISTEN, 2))
    assert [turn.port for turn in turns(page(first, rest=behind))] == [1]
    assert [turn.port for turn in turns(page(first, flags=1 << 31 | 1 << 30))] == [1]  # RB_MISSED_EVENTS, _STORED
    assert [turn.port for turn in turns(page(first, struct.pack("=I", 29), behind))] == [1]  # the rest is padding
    assert turns(b"") == turns(b"\0" * 15) == turns(page()) == []


def test_formats_that_say_too_little():
    with pytest.raises(ValueError, match="no field 'data'"):
        buffer.parse_page_layout(b"field: local_t commit;	offset:8;	size:8;")
    with pytest.raises(ValueError, match="describes no page"):
        buffer.parse_page_layout(HEADER_PAGE.replace(b"size:4080", b"size:0"))
    with pytest.raises(ValueError, match="has no skaddr"):
        buffer.parse_event_layout(FORMAT.replace(b"skaddr", b"nothing"))
    with pytest.raises(ValueError, match="has no number"):
        buffer.parse_event_layout(FORMAT.replace(b"ID:", b"IT:"))


def test_losses():
    text = b"entries: 6\noverrun: 3\ncommit overrun: 4\nbytes: 456\ndropped events: 5\nread events: 9\n"
    assert buffer.parse_losses(text) == 12
    assert buffer.parse_losses(b"overrun: x\noverrun: -1\noverrun: " + b"9" * 50) == 0
    assert buffer.lost_since({"cpu0": 12}, {"cpu0": 15, "cpu1": 2}) == 5
    assert buffer.lost_since({"cpu0": 12}, {"cpu0": 0}) == 0  # the counter was reset


@given(st.binary(max_size=600))
def test_any_bytes_can_be_parsed(data):
    for turn in turns(data):
        assert 0 <= turn.port < 1 << 16


@given(st.binary(max_size=300), st.integers(0, 1 << 64 - 1))
def test_any_page_can_be_parsed(data, base):
    for turn in turns(struct.pack("=QQ", base & (1 << 64) - 1, len(data)) + data):
        assert turn.family in ("ipv4", "ipv6")


@given(st.lists(st.binary(min_size=4, max_size=120), max_size=6), st.integers(1, 100))
def test_what_is_damaged_does_not_reach_what_was_before(parts, port):
    found = turns(page(entry(event(CLOSE, LISTEN, port)), *parts))
    assert found[0].port == port


@given(st.binary(max_size=500))
def test_any_format_is_parsed_or_refused(text):
    for parse in (buffer.parse_page_layout, buffer.parse_event_layout):
        try:
            parse(text)
        except ValueError:
            continue
    buffer.parse_losses(text)
