"""The tables of /proc/net: captured ones against what ss said of the same sockets, and what else they might hold."""

from __future__ import annotations

import os
import re
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from portbook import take
from portbook.errors import SourceDenied, SourceGarbled, SourceMissing
from portbook.records import STATES
from portbook.sources import procfs
from portbook.sources.base import Wanted
from portbook.testing import identity, ports_of
from tests.components import need
from tests.ss import rows

pytestmark = pytest.mark.usefixtures("own_network")

DATA = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "procfs", "linux")
NETNS = 4026531833
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, of Linux")


def captured(name):
    with open(os.path.join(DATA, name), "rb") as file:
        return file.read()


def big_endian(text):
    """The same table as a big-endian machine prints it: the bytes of each word of an address the other way round."""

    def turned(found):
        words = re.findall(rb"(..)(..)(..)(..)", found[1])
        return b"".join(b"".join(reversed(word)) for word in words) + found[2]

    return re.sub(rb"\b((?:[0-9A-F]{8}){1,4})(:[0-9A-F]{4} )", turned, text)


def raw(order="little", turn=lambda text: text):
    tables = (procfs.ProcfsTable(*key, turn(captured(name))) for key, name in procfs.TABLES.items())
    return procfs.ProcfsTables(tuple(tables), order, NETNS)


@pytest.fixture
def said():
    return list(rows(captured("ss.txt").decode()))


@pytest.mark.parametrize(("order", "turn"), [("little", lambda text: text), ("big", big_endian)])
def test_the_captured_tables_agree_with_ss(said, order, turn):
    sockets = procfs.parse(raw(order, turn)).sockets
    assert sorted((identity(s) for s in sockets), key=repr) == sorted((ss.identity for ss in said), key=repr)
    by_key = {(ss.identity, ss.inode): ss for ss in said}
    for s in sockets:
        ss = by_key[identity(s), s.inode]
        assert s.uid == (ss.uid if s.inode else None)
        assert s.netns == NETNS
        if s.state == "LISTEN":
            assert (s.accept_queue, s.backlog) == (ss.queues[0], None)  # the backlog is not in the table
        elif s.state == "CLOSE_WAIT":
            assert s.recv_queue == 1  # the FIN counts
        else:
            assert (s.recv_queue, s.send_queue) == ss.queues


def test_turning_words_round_changes_every_address_but_the_symmetric():
    assert big_endian(b"  1: 0100007F:0050 00000000:0000 0A") == b"  1: 7F000001:0050 00000000:0000 0A"


def test_the_captured_reach():
    reach = {(s.local_address, s.reach) for s in procfs.parse(raw()).sockets}
    assert reach == {
        ("0.0.0.0", "any"), ("::", "any"), ("127.0.0.53", "loopback"), ("127.0.0.1", "loopback"), ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
    }  # fmt: skip


ROW = captured("tcp").splitlines()[1]


def table(text, protocol="tcp", family="ipv4", order="little"):
    return procfs.ProcfsTables((procfs.ProcfsTable(protocol, family, text),), order)


@pytest.mark.parametrize("text", [b"", b"  sl  local_address\n", b"  sl  local_address"])
def test_an_empty_table_has_no_rows(text):
    assert procfs.parse(table(text)).sockets == []


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"0:",
        ROW[:60],
        ROW.replace(b"00000000:0050", b"00000000"),
        ROW.replace(b"00000000:0050", b"00000000:"),
        ROW.replace(b"00000000:0050", b"00000000:10050"),
        ROW.replace(b"00000000:0050", b"0000000:0050"),
        ROW.replace(b"00000000:0050", b"0000000000:0050"),
        ROW.replace(b"00000000:0050", b"0000000X:0050"),
        ROW.replace(b"00000000:0050", b"00000000:005X"),
        ROW.replace(b"00000000:0050", b"00000000:+050"),
        ROW.replace(b"00000000:0050", b"00000000:-050"),
        ROW.replace(b"00000000:0050", b"00000000:0x50"),
        ROW.replace(b"00000000:0050", b"00000000:0_50"),
        ROW.replace(b"00000000:0050", b"0" * 32 + b":0050"),  # an IPv6 address in the table of IPv4
        ROW.replace(b"8775341", b"8_775_341"),
        ROW.replace(b"8775341", b"+8775341"),
        ROW.replace(b"00000000:00000001", b"00000000:0x000001"),
        ROW.replace(b"00000000:00000001", b"00000000:000_0001"),
        ROW.replace(b" 0A ", b" 0F "),
        ROW.replace(b" 0A ", b" A "),
        ROW.replace(b"8775341", b"inode"),
        ROW.replace(b"00000000:00000001", b"00000000"),
        b"\xff" * 150,
    ],
)
def test_what_makes_no_sense_is_garbled(row):
    with pytest.raises(SourceGarbled, match="/proc/net/tcp line 3"):
        procfs.parse(table(b"head\n" + ROW + b"\n" + row + b"\n"))


@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from(ROW.split() + captured("udp6").splitlines()[1].split()), max_size=14).map(b" ".join),
    st.sampled_from(list(procfs.TABLES)),
    st.sampled_from(["little", "big"]),
)
@example(b" ".join([b"0:", b"\xff" * 8 + b":0050", *ROW.split()[2:]]), ("tcp", "ipv4"), "little")
def test_any_bytes_are_rows_or_garbled(text, key, order):
    try:
        reading = procfs.parse(table(b"head\n" + text, *key, order))
    except SourceGarbled:
        return
    for s in reading.sockets:
        assert (s.protocol, s.family) == key
        assert 0 <= s.local_port <= 65535
        assert s.state in (*STATES, None)
        assert (":" in s.local_address) == (s.family == "ipv6")


# --- reading -------------------------------------------------------------------------------------------------------


@on_linux
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_only_the_wanted_tables_are_read(protocol, family):
    tables = procfs.read(Wanted((protocol,), (family,))).tables
    assert [(t.protocol, t.family) for t in tables] == [(protocol, family)]


@on_linux
def test_the_namespace_is_that_of_the_tables():
    assert f"net:[{procfs.read(Wanted()).netns}]" == os.readlink("/proc/self/ns/net")


@on_linux
def test_what_the_tables_do_not_have_is_a_gap(zoo):
    need("tcp4-bound" in zoo, "bound sockets")
    listing = take("state:bound", source="procfs")
    ports = ports_of(zoo["tcp4-bound"])
    assert not ports & {s.local_port for s in listing.sockets}
    assert not listing.complete
    assert [gap.what for gap in listing.gaps if "bound" in gap.why] == ["socket"]


@on_linux
@pytest.mark.parametrize("query", ["state:listen", "protocol:udp", "state:established"])
def test_where_nothing_is_missed_there_is_no_such_gap(query):
    assert procfs.read(Wanted(states=frozenset(("LISTEN",)))).gaps == ()
    assert not [gap for gap in take(query, source="procfs").gaps if gap.what == "socket"]


def test_a_machine_without_ipv6_has_no_tables_for_it(monkeypatch):
    monkeypatch.setattr(procfs, "_read", lambda name: None if name.endswith("6") else b"head\n")
    reading = procfs.parse(procfs.read(Wanted()))
    assert reading.sockets == []


def test_a_machine_without_the_tables_is_a_missing_source(monkeypatch):
    monkeypatch.setattr(procfs, "_read", lambda _: None)
    with pytest.raises(SourceMissing, match="/proc/net/tcp"):
        procfs.read(Wanted())


def test_a_refusal_names_the_file(monkeypatch, tmp_path):
    def refused(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(SourceDenied, match="/proc/net/tcp"):
        procfs._read("tcp")
