"""The psutil source: its pure half, and a real reading of the sockets this test opens."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceDenied, SourceGarbled, SourceMissing
from portbook.records import Owner, Socket
from portbook.sources import psutil_
from portbook.sources.base import CAPABILITIES, Wanted
from portbook.sources.psutil_ import PsutilRows, parse

TCP, UDP = 1, 2


def one(*row) -> Socket:
    (found,) = parse(PsutilRows((row,))).sockets
    return found


# --- parse ---------------------------------------------------------------------------------------------------------


def test_a_listener():
    found = one(2, TCP, ("127.0.0.1", 80), (), "LISTEN", 7)
    owners = (Owner(7, how="psutil"),)
    assert found == Socket("tcp", "ipv4", "127.0.0.1", 80, None, None, "LISTEN", "loopback", owners=owners)


@pytest.mark.parametrize("family", [10, 23, 30])
def test_ipv6_has_another_number_on_every_system(family):
    found = one(family, TCP, ("::1", 80), ("::1", 90), "ESTABLISHED", 7)
    assert (found.family, found.remote_address, found.remote_port, found.reach) == ("ipv6", "::1", 90, "loopback")


@pytest.mark.parametrize("status", ["NONE", "CLOSE", ""])
def test_udp_has_no_state_unless_it_has_a_peer(status):
    assert one(2, UDP, ("0.0.0.0", 53), (), status, 7).state is None
    connected = one(2, UDP, ("127.0.0.1", 53), ("127.0.0.1", 54), status, 7)
    assert (connected.state, connected.remote_port) == ("ESTABLISHED", 54)


@pytest.mark.parametrize(
    ("status", "state", "text"),
    [("CLOSE", "CLOSE", None), ("DELETE_TCB", "CLOSE", None), ("NONE", "UNKNOWN", "NONE"), ("IDLE", "UNKNOWN", "IDLE")],
)
def test_tcp_states(status, state, text):
    found = one(2, TCP, ("127.0.0.1", 1), ("127.0.0.1", 2), status, 7)
    assert (found.state, found.state_text) == (state, text)


@pytest.mark.parametrize("pid", [None, 0])
def test_an_owner_that_is_not_known_is_none(pid):
    assert one(2, TCP, ("127.0.0.1", 1), ("127.0.0.1", 2), "TIME_WAIT", pid).owners == ()


def test_a_zone_is_split_off():
    found = one(10, TCP, ("fe80::1%eth0", 1), ("fe80::2%eth0", 2), "ESTABLISHED", 7)
    assert (found.local_address, found.zone, found.remote_address) == ("fe80::1", "eth0", "fe80::2")
    assert one(30, UDP, ("::1%lo0", 1), (), "NONE", 7).zone is None


def test_addresses_are_canonical():
    found = one(10, TCP, ("::ffff:7f00:1", 1), (), "LISTEN", 7)
    assert (found.local_address, found.reach) == ("::ffff:127.0.0.1", "loopback")


def test_sockets_without_a_port_are_omitted():
    assert parse(PsutilRows(((2, UDP, (), (), "NONE", 7), (2, TCP, ("0.0.0.0", 0), (), "CLOSE", 7)))).sockets == []


@pytest.mark.parametrize(
    "row",
    [
        (99, TCP, ("127.0.0.1", 1), (), "LISTEN", 7),
        (2, 3, ("127.0.0.1", 1), (), "LISTEN", 7),
        (2, TCP, ("x", 1), (), "", 7),
    ],
)
def test_impossible_rows_are_garbled(row):
    with pytest.raises(SourceGarbled):
        parse(PsutilRows((row,)))


ADDRESSES = st.just(()) | st.tuples(st.text(max_size=5) | st.ip_addresses().map(str), st.integers(0, 65535))
ROWS = st.tuples(
    st.integers(0, 40), st.integers(0, 4), ADDRESSES, ADDRESSES, st.text(max_size=4), st.none() | st.integers()
)


@given(st.lists(ROWS))
def test_any_rows_are_read_or_garbled(rows):
    with suppress(SourceGarbled):
        assert len(parse(PsutilRows(tuple(rows))).sockets) <= len(rows)


# --- read ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened():
    """A listener, both ends of a connection, a UDP socket and a connected one, of IPv4 and IPv6 each."""
    sockets: list[socket.socket] = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        listener = socket.create_server((address, 0), family=family)
        client = socket.create_connection(listener.getsockname()[:2])
        datagram = socket.socket(family, socket.SOCK_DGRAM)
        datagram.bind((address, 0))
        connected = socket.socket(family, socket.SOCK_DGRAM)
        connected.connect(datagram.getsockname())
        sockets += [listener, client, listener.accept()[0], datagram, connected]
    yield sockets
    for each in sockets:
        each.close()


@pytest.mark.skipif(os.name == "nt", reason="tests/windows has its own, which knows what Wine leaves out")
def test_it_finds_the_sockets_of_this_process(opened):
    found = {
        (s.protocol, s.local_address, s.local_port, s.remote_port): s for s in parse(psutil_.read(Wanted())).sockets
    }
    for each in opened:
        protocol = "tcp" if each.type == socket.SOCK_STREAM else "udp"
        try:
            remote_port = each.getpeername()[1]
        except OSError:
            remote_port = None
        row = found[protocol, *each.getsockname()[:2], remote_port]
        assert row.owners == (Owner(os.getpid(), how="psutil"),)
        assert (row.family == "ipv6") == (each.family == socket.AF_INET6)
        listening = protocol == "tcp" and remote_port is None
        assert row.state == ("LISTEN" if listening else None if remote_port is None else "ESTABLISHED")


@pytest.mark.parametrize(
    ("protocols", "families", "kinds"),
    [
        (("tcp", "udp"), ("ipv4", "ipv6"), ["inet"]),
        (("tcp", "udp"), ("ipv6",), ["inet6"]),
        (("udp",), ("ipv4", "ipv6"), ["udp"]),
        (("tcp",), ("ipv4",), ["tcp4"]),
    ],
)
def test_only_what_is_wanted_is_read(monkeypatch, protocols, families, kinds):
    asked = []
    monkeypatch.setattr(psutil, "net_connections", lambda kind: asked.append(kind) or [])
    assert psutil_.read(Wanted(protocols, families)) == PsutilRows(())
    assert asked == kinds


@pytest.mark.parametrize(
    ("error", "translated"),
    [
        (psutil.AccessDenied(1), SourceDenied),
        (OSError(87, "The parameter is incorrect"), SourceMissing),
        (KeyError("0C"), SourceMissing),
        (RuntimeError("no luck"), SourceMissing),
    ],
)
def test_errors_are_translated_and_kept(monkeypatch, error, translated):
    def fail(kind):
        raise error

    monkeypatch.setattr(psutil, "net_connections", fail)
    with pytest.raises(translated) as caught:
        psutil_.read(Wanted())
    assert caught.value.__cause__ is error


def test_rows_are_plain(monkeypatch):
    address = SimpleNamespace  # not a tuple: what is unknown is empty
    row = SimpleNamespace(
        family=socket.AF_INET, type=socket.SOCK_STREAM, laddr=("1.2.3.4", 5), raddr=address(), status="X", pid=1
    )
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [row])
    (plain,) = psutil_.read(Wanted()).rows
    assert plain == (2, 1, ("1.2.3.4", 5), (), "X", 1)
    assert type(plain[0]) is int


def test_it_can_be_used_here():
    assert psutil_.SOURCE.missing() is None
    assert psutil_.SOURCE.capabilities <= CAPABILITIES.keys()
