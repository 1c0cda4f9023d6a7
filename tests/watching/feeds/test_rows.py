"""Rows of sock_diag, compared without records of them: against the parser of the source, and with damage."""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portbook.errors import SourceGarbled
from portbook.records import Socket
from portbook.sources import sockdiag
from portbook.sources.base import Wanted
from portbook.sources.sockdiag import SockdiagDump, SockdiagTable
from portbook.watching.feeds import rows
from tests.watching.feeds.opened import bound, listening

SIZES = st.lists(st.sampled_from([88, 92, 100, 124, 125, 132]), max_size=200)


def message(number, size):
    """A row of a listener of IPv4; what is behind it are attributes, which end where they say."""
    port = socket.htons(number & 0xFFFF)
    head = sockdiag.HEADER.pack(size, sockdiag.SOCK_DIAG_BY_FAMILY, 2, 77, 0)
    row = sockdiag.ROW.pack(2, 10, 0, port, 0, b"\x7f\0\0\1" + bytes(12), bytes(16), 0, number, 0, 0, 0, 0, number)
    rest = size - len(head) - len(row)
    attribute = struct.pack("=HH", rest, 99).ljust(rest, b"\0")[:rest] if rest else b""
    return (head + row + attribute).ljust((size + 3) & ~3, b"\0")


@settings(max_examples=40)
@given(SIZES)
def test_rows_of_any_lengths_are_those_that_the_source_parses(sizes):
    data = b"".join(message(number + 1, size) for number, size in enumerate(sizes)) + rows.END
    table = SockdiagTable("tcp", data)
    found = rows.parse_rows(table)
    expected = sockdiag.parse(SockdiagDump((table,))).sockets
    assert {(row >> 16, socket.ntohs(row & 0xFFFF)) for row in found} == {(s.cookie, s.local_port) for s in expected}
    assert len(found) == len(sizes)
    some = sorted(found)[::3]
    picked = sockdiag.parse(SockdiagDump((SockdiagTable("tcp", rows.select_rows(data, set(some))),))).sockets
    assert [s.cookie for s in picked] == [row >> 16 for row in some]


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_rows_or_refused(data, has_end):
    try:
        found = rows.parse_rows(SockdiagTable("tcp", data + rows.END * has_end))
    except SourceGarbled:
        return
    assert isinstance(found, set)


@settings(max_examples=40)
@given(SIZES.filter(bool), st.data())
def test_damage_is_refused_or_costs_what_it_hit(sizes, data):
    whole = b"".join(message(number + 1, size) for number, size in enumerate(sizes)) + rows.END
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + bytes((whole[at] ^ data.draw(st.integers(1, 255)),)) + whole[at + 1 :]
    try:
        assert len(rows.parse_rows(SockdiagTable("tcp", damaged))) <= len(sizes) + 1
    except SourceGarbled:
        return


@pytest.mark.skipif(sys.platform != "linux", reason="sock_diag is Linux")
def test_the_rows_of_this_machine_are_those_of_the_source():
    with ExitStack() as stack:
        for address in ("127.0.0.1", "::1"):
            for _ in range(40):
                stack.enter_context(listening(address))
                stack.enter_context(bound(socket.SOCK_DGRAM, address))
        for states, protocol in (({"LISTEN"}, "tcp"), ({None}, "udp")):
            dump = sockdiag.read(Wanted(protocols=(protocol,), states=frozenset(states)))
            found = set().union(*map(rows.parse_rows, dump.tables))
            expected = {(s.cookie, s.local_port) for s in sockdiag.parse(dump).sockets}
            assert {(row >> 16, socket.ntohs(row & 0xFFFF)) for row in found} == expected
            assert len(expected) >= 80


def test_numbers_of_a_namespace():
    text = (
        b"sockets: used 9\nTCP: inuse 5 orphan 0 tw 2 alloc 7 mem 1\nUDP: inuse 3 mem 0\nRAW: inuse 1\nTCP6: inuse 2\n"
    )
    assert rows.parse_numbers(text) == (b"9", b"5", b"3", b"2")
    assert rows.parse_numbers(b"TCP:\n\nsockets: used\n\xff") == ()


@pytest.mark.skipif(sys.platform != "linux", reason="other namespaces are Linux")
def test_without_proc_it_says_that_other_namespaces_are_not_found(monkeypatch):
    def fail():
        raise FileNotFoundError(2, "No such file or directory", "/proc")

    monkeypatch.setattr("portbook.system.namespaces.inhabited", fail)
    monkeypatch.setattr("portbook.system.privilege.has", lambda _: True)
    found = rows.Lookout().look()
    assert found.problems == ("other network namespaces could not be found: No such file or directory",)
    assert all(isinstance(s, Socket) for s in found.appeared)
