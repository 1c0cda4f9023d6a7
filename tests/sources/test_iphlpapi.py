"""The pure half of the iphlpapi source: tables as bytes. What needs Windows is in tests/windows."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceGarbled, SourceMissing
from portbook.records import Gap, Owner, Socket
from portbook.sources import iphlpapi
from portbook.sources.base import CAPABILITIES, Wanted
from portbook.sources.iphlpapi import LAYOUTS, STATES, IphlpapiTables, MibTable, address_text, parse
from tests.sources.mib_encode import Row, encode

DATA = Path(__file__).parents[1] / "data" / "iphlpapi" / "windows"
TABLES = list(LAYOUTS)
LOOPBACK4, ANY4 = IPv4Address("127.0.0.1").packed, bytes(4)
LOOPBACK6, LINK_LOCAL = IPv6Address("::1").packed, IPv6Address("fe80::1").packed


def one(protocol, family, kind, row, filler=0) -> Socket:
    (found,) = parse(IphlpapiTables((encode(protocol, family, kind, [row], filler),))).sockets
    return found


# --- recorded ------------------------------------------------------------------------------------------------------


def recorded(kind: str) -> list[Socket]:
    lines = (DATA / "wine-8.tables.txt").read_text().splitlines()
    tables = [MibTable(*line.split()[:3], bytes.fromhex(line.split()[3])) for line in lines]
    return parse(IphlpapiTables(tuple(t for t in tables if t.kind == kind))).sockets


@pytest.mark.parametrize("kind", ["module", "pid"])
def test_tables_recorded_under_wine(kind):
    def owned(pid):
        return (Owner(pid, how="iphlpapi"),)

    def tcp(address, port, state, peer=None, pid=0, family="ipv4", reach="loopback"):
        remote = ("127.0.0.1", peer) if peer else (None, None)
        return Socket("tcp", family, address, port, *remote, state, reach, owners=owned(pid) if pid else ())

    def udp(address, port, family, reach):
        return Socket("udp", family, address, port, reach=reach, owners=owned(204))

    assert recorded(kind) == [
        tcp("0.0.0.0", 4002, "LISTEN", pid=204, reach="any"),
        tcp("127.0.0.1", 4001, "LISTEN", pid=204),
        tcp("127.0.0.1", 6001, "ESTABLISHED", 4001, pid=204),
        tcp("127.0.0.1", 4001, "ESTABLISHED", 6001),
        tcp("127.0.0.1", 4002, "CLOSE_WAIT", 6003),
        tcp("127.0.0.1", 6002, "TIME_WAIT", 4002),
        tcp("127.0.0.1", 6003, "FIN_WAIT2", 4002),
        tcp("::", 4004, "LISTEN", family="ipv6", reach="any"),
        tcp("::1", 4003, "LISTEN", family="ipv6"),
        udp("127.0.0.1", 5001, "ipv4", "loopback"),
        udp("0.0.0.0", 5002, "ipv4", "any"),
        udp("::1", 5003, "ipv6", "loopback"),
        udp("::", 5004, "ipv6", "any"),
    ]


# --- composed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "family", "kind"), TABLES)
@pytest.mark.parametrize("filler", [0, 0xFF])
def test_every_layout_ignores_what_is_in_no_field(protocol, family, kind, filler):
    local = LOOPBACK4 if family == "ipv4" else LOOPBACK6
    row = Row(local, 0x1234, 5, local, 0x4321, pid=99, tag=7, created=0)
    found = one(protocol, family, kind, row, filler)
    tag = 7 if kind == "module" else None
    state = None if protocol == "udp" else "BOUND" if kind == "bound" else "ESTABLISHED"
    assert found.local_port == 0x1234
    assert found.owners == (Owner(99, how="iphlpapi", service_tag=tag),)
    assert (found.state, found.remote_port) == (state, 0x4321 if state == "ESTABLISHED" else None)
    reach = "none" if kind == "bound" else "loopback"
    assert (found.local_address, found.reach) == (address_text(local), reach)


@pytest.mark.parametrize(("number", "state"), list(STATES.items()))
def test_states(number, state):
    assert one("tcp", "ipv4", "pid", Row(LOOPBACK4, 1, number, LOOPBACK4, 2)).state == state


def test_a_state_that_is_new_keeps_its_number():
    found = one("tcp", "ipv4", "pid", Row(LOOPBACK4, 1, 77, LOOPBACK4, 2))
    assert (found.state, found.state_text) == ("UNKNOWN", "MIB_TCP_STATE 77")
    assert (found.remote_address, found.remote_port) == ("127.0.0.1", 2)


@pytest.mark.parametrize("number", [2, 100])
def test_listening_and_bound_rows_have_no_peer(number):
    found = one("tcp", "ipv4", "pid", Row(ANY4, 1, number, LOOPBACK4, 0x1234))  # the peer columns may hold anything
    assert (found.remote_address, found.remote_port) == (None, None)


def test_a_scope_is_shown_for_link_local_addresses_only():
    assert one("tcp", "ipv6", "pid", Row(LINK_LOCAL, 1, 2, scope=12)).zone == "12"
    assert one("udp", "ipv6", "pid", Row(IPv6Address("febf::1").packed, 1, scope=3)).zone == "3"
    assert one("tcp", "ipv6", "pid", Row(LINK_LOCAL, 1, 2, scope=0)).zone is None
    assert one("tcp", "ipv6", "pid", Row(LOOPBACK6, 1, 2, scope=4096)).zone is None
    assert one("tcp", "ipv6", "pid", Row(IPv6Address("fec0::1").packed, 1, 2, scope=4)).zone is None


def test_pid_0_is_no_owner():
    assert one("tcp", "ipv4", "pid", Row(LOOPBACK4, 1, 11, LOOPBACK4, 2, pid=0)).owners == ()


def test_rows_of_one_process_share_their_owners():
    rows = [Row(LOOPBACK4, port, 2, pid=8) for port in range(1, 4)]
    sockets = parse(IphlpapiTables((encode("tcp", "ipv4", "pid", rows),))).sockets
    assert len({id(s.owners) for s in sockets}) == 1


def test_a_service_tag_is_32_bits():
    assert (
        one("tcp", "ipv4", "module", Row(LOOPBACK4, 1, 2, pid=8, tag=0xFFFF_FFFF_0000_0021)).owners[0].service_tag
        == 0x21
    )


@pytest.mark.parametrize(
    ("filetime", "moment"),
    [
        (0, None),
        (116_444_736_000_000_000, datetime(1970, 1, 1, tzinfo=UTC)),  # the figure of KB 167296
        (133_485_408_000_000_010, datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
        (-1, None),
        (2**63 - 1, None),  # no year of datetime
    ],
)
def test_creation_time(filetime, moment):
    assert one("tcp", "ipv4", "module", Row(LOOPBACK4, 1, 2, created=filetime)).created == moment


def test_bound_endpoints_that_listen_or_are_connected_are_omitted():
    bound = encode("tcp", "ipv4", "bound", [Row(ANY4, 1000, pid=8), Row(ANY4, 2000, pid=8), Row(ANY4, 3000, pid=8)])
    listening = encode("tcp", "ipv6", "pid", [Row(LOOPBACK6, 2000, 2, pid=8), Row(LOOPBACK6, 3000, 2, pid=9)])
    udp = encode("udp", "ipv4", "pid", [Row(ANY4, 1000, pid=8)])
    sockets = parse(IphlpapiTables((listening, udp, bound))).sockets
    assert [(s.local_port, s.remote_port, s.owners[0].pid) for s in sockets if s.state == "BOUND"] == [
        (1000, None, 8),
        (3000, None, 8),
    ]


def test_an_empty_table_is_no_sockets():
    for key in TABLES:
        assert parse(IphlpapiTables((encode(*key, []),))).sockets == []


def test_a_table_may_have_slack_behind_its_rows():
    table = encode("tcp", "ipv4", "pid", [Row(LOOPBACK4, 1, 2)])
    assert len(parse(IphlpapiTables((table._replace(data=table.data + bytes(1000)),))).sockets) == 1


@pytest.mark.parametrize(("protocol", "family", "kind"), TABLES)
def test_a_count_beyond_the_bytes_is_garbled(protocol, family, kind):
    table = encode(protocol, family, kind, [Row(bytes(4), 1), Row(bytes(4), 2)])
    for data in (b"", table.data[:3], table.data[:-1], b"\xff\xff\xff\xff" + table.data[4:]):
        with pytest.raises(SourceGarbled, match=f"{protocol}/{family}/{kind}"):
            parse(IphlpapiTables((table._replace(data=data),)))


def test_an_unknown_kind_of_table_is_garbled():
    with pytest.raises(SourceGarbled):
        parse(IphlpapiTables((MibTable("tcp", "ipv4", "basic", bytes(4)),)))


def test_gaps_are_passed_on():
    gap = Gap("socket", None, "why")
    assert parse(IphlpapiTables((), (gap,))).gaps == [gap]


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("::", "::"),
        ("::1", "::1"),
        ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("FE80::A", "fe80::a"),
    ],
)
def test_ipv6_text_is_canonical(address, text):
    assert address_text(IPv6Address(address).packed) == text


@pytest.mark.skipif(sys.platform == "win32", reason="here it can be read")
def test_elsewhere_the_source_is_missing():
    assert iphlpapi.SOURCE.missing() == "only on Windows"
    with pytest.raises(SourceMissing):
        iphlpapi.read(Wanted())


def test_the_capabilities_are_valid():
    assert iphlpapi.SOURCE.capabilities <= CAPABILITIES.keys()


# --- any -----------------------------------------------------------------------------------------------------------

PORTS = st.integers(0, 0xFFFF)
ADDRESSES = {"ipv4": st.binary(min_size=4, max_size=4), "ipv6": st.binary(min_size=16, max_size=16)}
EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
FILETIMES = st.datetimes(datetime(1602, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC))


@st.composite
def tables(draw):
    """A table, and the sockets that are in it."""
    protocol, family, kind = draw(st.sampled_from([key for key in TABLES if key[2] != "bound"]))
    rows, sockets = [], []
    for _ in range(draw(st.integers(0, 5))):
        moment = draw(st.none() | FILETIMES) if kind == "module" else None
        tag = draw(st.integers(0, 2**32 - 1)) if kind == "module" else 0
        number = draw(st.sampled_from(sorted(STATES)))
        local, remote = draw(ADDRESSES[family]), draw(ADDRESSES[family])
        port, remote_port, pid = draw(PORTS), draw(PORTS), draw(st.integers(0, 2**32 - 1))
        created = (moment - EPOCH) // timedelta(microseconds=1) * 10 if moment else 0
        rows.append(Row(local, port, number, remote, remote_port, 0, pid, created, tag))
        state = STATES[number] if protocol == "tcp" else None
        peer = protocol == "tcp" and number not in (2, 100)
        sockets.append(
            Socket(
                protocol,
                family,
                address_text(local),
                port,
                address_text(remote) if peer else None,
                remote_port if peer else None,
                state,
                iphlpapi.reach_of(address_text(local)),
                owners=(Owner(pid, how="iphlpapi", service_tag=tag or None),) if pid else (),
                created=moment,
            )
        )
    return encode(protocol, family, kind, rows), sockets


@given(tables())
def test_what_was_encoded_is_read_back(case):
    table, sockets = case
    found = parse(IphlpapiTables((table,))).sockets
    assert [s for s in found if s.state != "BOUND"] == [s for s in sockets if s.state != "BOUND"]


@given(st.sampled_from(TABLES), st.binary(max_size=400))
def test_any_bytes_are_read_or_garbled(key, data):
    try:
        reading = parse(IphlpapiTables((MibTable(*key, data),)))
    except SourceGarbled:
        return
    assert len(reading.sockets) <= int.from_bytes(data[:4], "little")


@given(st.sampled_from(TABLES), st.data())
def test_any_bytes_with_a_right_count_are_read(key, data):
    layout = LAYOUTS[key]
    count = data.draw(st.integers(0, 3))
    body = data.draw(st.binary(min_size=count * layout.row.size, max_size=count * layout.row.size))
    table = MibTable(*key, count.to_bytes(4, "little") + bytes(layout.header - 4) + body)
    for found in parse(IphlpapiTables((table,))).sockets:
        assert 0 <= found.local_port <= 0xFFFF
        assert found.state is None or found.state in get_args(iphlpapi.State)
