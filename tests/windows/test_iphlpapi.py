"""GetExtendedTcpTable and GetExtendedUdpTable, asked about sockets that these tests open."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from portbook.errors import SourceDenied, SourceMissing
from portbook.records import Owner, Socket
from portbook.sources import iphlpapi
from portbook.sources.base import Wanted
from tests.sources.mib_encode import Row, encode
from tests.windows.conftest import WINE, lacks

HOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
NO_BOUND = Wanted(states=Wanted().states - {"BOUND"})


def touch(each: socket.socket) -> socket.socket:
    """Under Wine 8 a socket gets its owner's pid when the owner first asks for one of these options."""
    option = socket.SO_KEEPALIVE if each.type == socket.SOCK_STREAM else socket.SO_BROADCAST
    each.getsockopt(socket.SOL_SOCKET, option)
    return each


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:
        yield lambda each: touch(stack.enter_context(each))


def read(wanted: Wanted = NO_BOUND) -> list[Socket]:
    return iphlpapi.parse(iphlpapi.read(wanted)).sockets


def row(of: socket.socket, sockets: list[Socket]) -> Socket:
    """The row of a socket: protocol, local address and port, and the peer's port."""
    protocol = "tcp" if of.type == socket.SOCK_STREAM else "udp"
    try:
        peer = of.getpeername()[1] if protocol == "tcp" else None
    except OSError:
        peer = None
    place = (protocol, *of.getsockname()[:2], peer)
    (found,) = [s for s in sockets if (s.protocol, s.local_address, s.local_port, s.remote_port) == place]
    return found


@FAMILIES
def test_a_listener(opened, family):
    listener = opened(socket.create_server((HOST[family], 0), family=family))
    found = row(listener, read())
    assert (found.state, found.remote_address, found.reach) == ("LISTEN", None, "loopback")
    assert found.family == ("ipv6" if family == socket.AF_INET6 else "ipv4")
    assert found.zone is None


@FAMILIES
def test_a_listener_on_every_address(opened, family):
    listener = opened(socket.create_server(("", 0), family=family))
    assert row(listener, read()).reach == "any"


@FAMILIES
def test_both_ends_of_a_connection(opened, family):
    listener = opened(socket.create_server((HOST[family], 0), family=family))
    client = opened(socket.create_connection(listener.getsockname()[:2]))
    server = opened(listener.accept()[0])
    sockets = read()
    for end, other in ((client, server), (server, client)):
        found = row(end, sockets)
        assert (found.state, found.remote_address) == ("ESTABLISHED", HOST[family])
        assert found.remote_port == other.getsockname()[1]


@FAMILIES
def test_udp(opened, family):
    datagram = opened(socket.socket(family, socket.SOCK_DGRAM))
    datagram.bind((HOST[family], 0))
    found = row(datagram, read())
    assert (found.state, found.remote_address, found.reach) == (None, None, "loopback")


def test_a_connection_of_ipv4_on_an_ipv6_socket_is_mapped(opened):
    listener = opened(socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True))
    client = opened(socket.create_connection(("127.0.0.1", listener.getsockname()[1])))
    server = opened(listener.accept()[0])
    (found,) = [s for s in read() if s.remote_port == client.getsockname()[1] and s.protocol == "tcp"]
    # Windows shows the server's end among IPv4 connections, Wine as ::ffff:127.0.0.1; both ends are there.
    assert (found.local_address, found.reach) in (("127.0.0.1", "loopback"), ("::ffff:127.0.0.1", "loopback"))
    assert found.local_port == server.getsockname()[1]


@lacks("lists only sockets of its own processes, none in TIME_WAIT", since=10)
def test_an_end_that_was_closed_first_waits_without_an_owner(opened):
    listener = opened(socket.create_server(("127.0.0.1", 0)))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    port = client.getsockname()[1]
    client.close()
    server.close()
    (found,) = until(lambda: [s for s in read() if s.local_port == port and s.state == "TIME_WAIT"])
    assert found.owners == ()
    assert found.remote_port == listener.getsockname()[1]


def until(look, limit_s: float = 5.0):
    """What ``look`` finds once it finds something: a change of state may show a moment later."""
    end = time.monotonic() + limit_s
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_half_closed_connections(opened):
    listener = opened(socket.create_server(("127.0.0.1", 0)))
    client = opened(socket.create_connection(listener.getsockname()))
    server = opened(listener.accept()[0])
    client.shutdown(socket.SHUT_WR)
    assert until(lambda: row(client, read()).state == "FIN_WAIT2")
    assert row(server, read()).state == "CLOSE_WAIT"


def test_three_hundred_sockets(opened):
    tcp = [opened(socket.create_server(("127.0.0.1", 0))) for _ in range(150)]
    udp = [opened(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(150)]
    for each in udp:
        each.bind(("127.0.0.1", 0))
    found = {(s.protocol, s.local_port) for s in read()}
    assert {("tcp", s.getsockname()[1]) for s in tcp} <= found
    assert {("udp", s.getsockname()[1]) for s in udp} <= found


# --- owners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(socket.AF_INET, socket.SOCK_STREAM, id="tcp4"),
        pytest.param(
            socket.AF_INET6,
            socket.SOCK_STREAM,
            id="tcp6",
            marks=lacks("says pid 0 for every TCP socket of IPv6", until=10),
        ),
        pytest.param(socket.AF_INET, socket.SOCK_DGRAM, id="udp4"),
        pytest.param(socket.AF_INET6, socket.SOCK_DGRAM, id="udp6"),
    ],
)
def test_the_owner_is_this_process(opened, family, kind):
    each = opened(socket.socket(family, kind))
    each.bind((HOST[family], 0))
    if kind == socket.SOCK_STREAM:
        each.listen()
    (owner,) = row(touch(each), read()).owners
    assert (owner.pid, owner.how) == (os.getpid(), "iphlpapi")


CHILD = """
import socket, sys
s = socket.create_server(("127.0.0.1", 0)); s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
print(s.getsockname()[1], flush=True); sys.stdin.read()
"""


def test_the_owner_is_another_process():
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        port = int(child.stdout.readline())
        (found,) = [s for s in read() if s.local_port == port]
        assert found.owners == (Owner(child.pid, how="iphlpapi"),)
        child.communicate(timeout=20)


@lacks("leaves the creation time of every socket 0")
def test_when_a_socket_was_made(opened):
    before = datetime.now(UTC) - timedelta(seconds=1)
    created = row(opened(socket.create_server(("127.0.0.1", 0))), read()).created
    assert before <= created <= datetime.now(UTC) + timedelta(seconds=1)


@lacks("leaves module information 0, and so the service tag")
def test_a_service_leaves_its_tag_in_the_row():
    assert any(owner.service_tag for s in read() for owner in s.owners)


# --- bound ---------------------------------------------------------------------------------------------------------


@lacks("has no InternalGetBoundTcpEndpointTable")
@FAMILIES
def test_a_socket_that_is_bound_and_does_not_listen(opened, family):
    each = opened(socket.socket(family, socket.SOCK_STREAM))
    each.bind((HOST[family], 0))
    found = row(each, read(Wanted()))
    assert (found.state, found.remote_address) == ("BOUND", None)


@pytest.mark.skipif(not WINE, reason="Windows has the export")
def test_without_the_export_there_is_a_gap():
    (gap,) = iphlpapi.read(Wanted()).gaps
    assert gap.what == "socket"
    assert "InternalGetBoundTcpEndpointTable" in gap.why
    assert "InternalGetBoundTcp6EndpointTable" in gap.why


@pytest.mark.parametrize("wanted", [NO_BOUND, Wanted(protocols=("udp",)), Wanted(states=frozenset(("LISTEN",)))])
def test_there_is_no_gap_where_bound_sockets_are_not_wanted(wanted):
    assert iphlpapi.read(wanted).gaps == ()


# --- what is requested ---------------------------------------------------------------------------------------------


def keys(wanted: Wanted) -> list[tuple[str, str, str]]:
    return [table[:3] for table in iphlpapi.read(wanted).tables]


def test_only_what_is_wanted_is_read():
    assert keys(Wanted(("udp",), ("ipv6",))) == [("udp", "ipv6", "module")]
    assert keys(replace(NO_BOUND, protocols=("tcp",), families=("ipv4",))) == [("tcp", "ipv4", "module")]
    assert keys(Wanted(states=frozenset((None,)))) == [("udp", "ipv4", "module"), ("udp", "ipv6", "module")]
    assert keys(Wanted(states=frozenset(("LISTEN",)))) == [("tcp", "ipv4", "module"), ("tcp", "ipv6", "module")]


def test_for_listeners_alone_the_class_of_listeners_is_used(opened):
    listener = opened(socket.create_server(("127.0.0.1", 0)))
    client = opened(socket.create_connection(listener.getsockname()))
    sockets = read(Wanted(states=frozenset(("LISTEN",))))
    assert {s.state for s in sockets} == {"LISTEN"}
    assert listener.getsockname()[1] in {s.local_port for s in sockets}
    assert client.getsockname()[1] not in {s.local_port for s in sockets}


def test_a_buffer_that_is_too_small_grows(opened, monkeypatch):
    listeners = [opened(socket.create_server(("127.0.0.1", 0))) for _ in range(40)]
    monkeypatch.setattr(iphlpapi, "FIRST_SIZE", 8)
    assert {s.getsockname()[1] for s in listeners} <= {s.local_port for s in read()}


def test_a_class_that_is_refused_is_followed_by_the_next(monkeypatch):
    monkeypatch.setitem(iphlpapi.CLASSES, "tcp", (("module", 99, 99), ("pid", 5, 3)))
    assert ("tcp", "ipv4", "pid") in keys(NO_BOUND)


def test_one_table_that_is_refused_is_a_gap(monkeypatch):
    monkeypatch.setitem(iphlpapi.FAMILY_NUMBER, "ipv6", 99)
    raw = iphlpapi.read(NO_BOUND)
    assert {table.family for table in raw.tables} == {"ipv4"}
    assert [gap.why for gap in raw.gaps] == [
        "GetExtendedTcpTable (ipv6) failed with error 87",
        "GetExtendedUdpTable (ipv6) failed with error 87",
    ]


def test_no_table_at_all_is_an_error(monkeypatch):
    monkeypatch.setattr(iphlpapi, "FAMILY_NUMBER", {"ipv4": 99, "ipv6": 99})
    with pytest.raises(SourceMissing, match="error 87"):
        iphlpapi.read(NO_BOUND)


def test_refused_access_is_an_error_of_its_own(monkeypatch):
    monkeypatch.setattr(iphlpapi, "_call", lambda *_: (iphlpapi.ERROR_ACCESS_DENIED, 0))
    with pytest.raises(SourceDenied):
        iphlpapi.read(NO_BOUND)


def test_a_library_that_is_not_there_is_an_error():
    with pytest.raises(SourceMissing, match="cannot be loaded"):
        iphlpapi._library("portbook-has-no-such-library")


def test_it_can_be_used_here():
    assert iphlpapi.SOURCE.missing() is None


class Exporting:
    """A library with the two exports that Wine lacks, which allocate from the heap they are given as in Windows."""

    def __init__(self, tables: dict[str, bytes], code: int = 0) -> None:
        self.InternalGetBoundTcpEndpointTable = self.export(tables["ipv4"], code)
        self.InternalGetBoundTcp6EndpointTable = self.export(tables["ipv6"], code)

    @staticmethod
    def export(data: bytes, code: int):
        def function(table, heap, flags):
            if code == 0 and data:
                allocate = iphlpapi._library("kernel32").HeapAlloc
                allocate.restype, allocate.argtypes = (
                    ctypes.c_void_p,
                    [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_size_t],
                )
                table._obj.value = allocate(heap, flags, len(data))
                ctypes.memmove(table._obj.value, data, len(data))
            return code

        return function


BOUND = {
    "ipv4": encode("tcp", "ipv4", "bound", [Row(bytes(4), 1000, pid=8), Row(bytes([127, 0, 0, 1]), 1001, pid=9)]).data,
    "ipv6": encode("tcp", "ipv6", "bound", [Row(bytes(16), 1002, pid=10)]).data,
}


def test_bound_tables_are_taken_from_the_heap():
    tables, gaps = iphlpapi._bound_tables(Exporting(BOUND), ("ipv4", "ipv6"))
    assert gaps == []
    sockets = iphlpapi.parse(iphlpapi.IphlpapiTables(tuple(tables))).sockets
    assert [(s.state, s.local_address, s.local_port, s.owners[0].pid) for s in sockets] == [
        ("BOUND", "0.0.0.0", 1000, 8),
        ("BOUND", "127.0.0.1", 1001, 9),
        ("BOUND", "::", 1002, 10),
    ]


def test_a_bound_table_that_fails_is_a_gap():
    tables, (gap,) = iphlpapi._bound_tables(Exporting(BOUND, code=5), ("ipv4",))
    assert tables == []
    assert "InternalGetBoundTcpEndpointTable failed with error 5" in gap.why


def test_no_bound_table_is_no_sockets():
    tables, gaps = iphlpapi._bound_tables(Exporting({"ipv4": b"", "ipv6": b""}), ("ipv4", "ipv6"))
    reading = iphlpapi.parse(iphlpapi.IphlpapiTables(tuple(tables), tuple(gaps)))
    assert (reading.sockets, reading.gaps) == ([], [])
