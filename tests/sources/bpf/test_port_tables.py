"""The kernel's tables of ports, against sock_diag and sockets that the tests open."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections import defaultdict

import pytest
from msgspec.structs import replace

from portbook import query as grammar
from portbook import take, who
from portbook.testing import child
from tests.components import need
from tests.conftest import ROOT

if sys.platform != "linux":
    pytest.skip("BPF is a part of Linux", allow_module_level=True)

from portbook.errors import SourceMissing
from portbook.sources import bpf, sockdiag
from portbook.sources.bpf import btf, calls, fileless, memory, port_tables
from portbook.sources.bpf.memory import ChangedMemory, KernelMemory
from tests.sources.bpf.test_source import CHURN, CONNECTED, MPTCP, OTHERS
from tests.sources.test_sockdiag import DONE, encode

pytestmark = pytest.mark.usefixtures("own_network")


@pytest.fixture(scope="module")
def places(own_network):
    need(ROOT, "root, to load a program into the kernel")
    why = bpf.missing()
    need(why is None, f"a kernel that takes the program: {why}")
    found = bpf._layout().places
    need(port_tables.find(found, [1], False) is not None, "a kernel with the tables of ports: Linux 6.2")
    return found


def ports_by_sock_diag():
    ports = defaultdict(set)
    for s in take(source="sockdiag").sockets:
        ports[s.local_port].add(s.protocol)
    return ports


def test_every_port_is_in_use_exactly_where_sock_diag_has_a_socket(places, zoo, brief_zoo):
    """Among sockets of every kind, and every fifth of all other ports."""
    expected = ports_by_sock_diag()
    assert len(expected) > 20
    own = os.stat("/proc/thread-self/ns/net").st_ino
    ports = sorted({*expected, *range(1, 65536, 5)})
    for first in range(0, len(ports), 1000):
        part = ports[first : first + 1000]

        def every(tables, part=part):
            namespace = tables.own()
            assert namespace.inode == own
            return {port: found for port in part if (found := set(tables.protocols(namespace, port)))}

        assert port_tables._look(places, every) == {port: expected[port] for port in part if port in expected}


def test_what_has_no_owner_keeps_its_port(places):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server = listener.accept()[0]
    server.close()  # first: it waits
    client.close()
    own = os.stat("/proc/thread-self/ns/net").st_ino
    assert port_tables.find(places, [port], False) == {own: {"tcp"}}
    answer = who(port, source="bpf")
    assert [s.state for s in answer.sockets] == ["TIME_WAIT"]
    assert not answer.held


def test_multipath_tcp(places):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError as error:
        need(False, f"MPTCP: {error.strerror}")
    with child(MPTCP) as one:
        assert set(*port_tables.find(places, [one.said[0]], False).values()) == {"tcp"}


def test_what_stays_is_found_while_everything_else_changes(places):
    with child(CHURN) as one:
        for _ in range(4):
            for port in one.said:
                assert "tcp" in set().union(*port_tables.find(places, [port], False).values())


def test_a_namespace_without_a_process_or_a_name(places):
    """A descriptor keeps it: the one of the socket, or that of the namespace."""
    opened = []

    def open_elsewhere():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "unshare")
        opened.append(os.stat("/proc/thread-self/ns/net").st_ino)
        opened.append(socket.create_server(("", 0)))

    thread = threading.Thread(target=open_elsewhere)
    thread.start()
    thread.join()
    netns, listener = opened
    with listener:
        port = listener.getsockname()[1]
        assert port_tables.find(places, [port], True)[netns] == {"tcp"}
        assert port_tables.find(places, [port], False) == {}
        answer = who(port, source="bpf")
        assert [(h.owner.pid, {s.netns for s in h.sockets}) for h in answer.holders_elsewhere] == [
            (os.getpid(), {netns})
        ]
        filtered = [s for s in take(f"port:{port} netns:all", source="bpf").sockets if s.netns == netns]
        whole = [s for s in take("netns:all", source="bpf").sockets if s.netns == netns]
        assert filtered == whole
    assert port_tables.find(places, [port], True) == {}


def test_other_namespaces_are_read_where_they_have_the_port(places, monkeypatch):
    read = []
    original = sockdiag.read

    def record(wanted, *rest):
        read.append((os.stat("/proc/thread-self/ns/net").st_ino, wanted.protocols))
        return original(wanted, *rest)

    monkeypatch.setattr(sockdiag, "read", record)
    with child(OTHERS) as one, child(OTHERS):
        netns, port, *_ = one.said
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            unused = free.getsockname()[1]
        read.clear()
        answer = who(unused, source="bpf")
        assert not {netns, os.stat("/proc/thread-self/ns/net").st_ino} & {number for number, _ in read}
        assert netns not in {s.netns for s in answer.sockets_elsewhere}
        answer = who(port, source="bpf")
        assert len([s for s in answer.sockets_elsewhere if s.netns == netns]) == 2
        assert {protocols for number, protocols in read if number == netns} == {("tcp",)}


# --- several namespaces, not by port -------------------------------------------------------------------------------

IDLE = """
import ctypes
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
    raise SystemExit("unshare")
listener = socket.create_server(("", 0))
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 0))
say([os.stat("/proc/self/ns/net").st_ino, listener.getsockname()[1], udp.getsockname()[1]])
wait()
"""
QUERIES = ["", "state:listening", "state:established", "protocol:udp", "family:ipv4", "state:time_wait,fin_wait2"]


@pytest.mark.parametrize("query", QUERIES)
def test_a_part_of_other_namespaces_is_that_part_of_the_whole(places, query):
    """What has no file is there too: in flight, not accepted, closed. Nothing else is lost or added."""
    with child(OTHERS) as one, child(IDLE) as idle:
        wanted = {one.said[0], idle.said[0]}
        part = take(f"netns:all {query}", source="bpf").sockets
        keep = grammar.parse(query).socket_test() or (lambda _: True)
        whole = [s for s in take("netns:all", source="bpf").sockets if keep(s)]

    def comparable(sockets):
        return sorted(
            (s.protocol, s.local_port, s.remote_port or 0, str(s.state), s.netns, tuple(o.pid for o in s.owners))
            for s in sockets
            if s.netns in wanted
        )

    assert comparable(part) == comparable(whole)
    assert comparable(whole) or query.startswith("state:time")


def test_an_idle_namespace_is_not_dumped(places, monkeypatch):
    read = []
    original = sockdiag.read

    def record(wanted, *rest):
        read.append(os.stat("/proc/thread-self/ns/net").st_ino)
        return original(wanted, *rest)

    with child(IDLE) as idle, child(OTHERS) as busy:
        netns, port, udp_port = idle.said
        monkeypatch.setattr(sockdiag, "read", record)
        rows = [s for s in take("netns:all state:listening", source="bpf").sockets if s.netns == netns]
        assert sorted(s.local_port for s in rows) == sorted([port, udp_port])
        assert busy.said[0] in read
        assert netns not in read


# --- sockets of the kernel -----------------------------------------------------------------------------------------


@pytest.fixture
def tunnel():
    """A vxlan device, whose socket the kernel opens and no process has."""
    add = ["ip", "link", "add", "vx9", "type", "vxlan", "id", "9", "local", "127.0.0.1", "dstport", "4789"]
    need(subprocess.run(add, capture_output=True, check=False).returncode == 0, "vxlan in the kernel")
    try:
        subprocess.run(["ip", "link", "set", "vx9", "up"], check=True)
        yield 4789
    finally:
        subprocess.run(["ip", "link", "delete", "vx9"], check=True)


def test_a_socket_of_the_kernel_is_known_to_have_no_owner(places, tunnel):
    (row,) = take(f"port:{tunnel}", source="sockdiag").sockets
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        port = ours.getsockname()[1]
        assert port_tables.kept_by_kernel(places, [tunnel, port]) == {row.inode}


def test_a_socket_of_the_kernel_costs_no_second_pass(places, tunnel, zoo, monkeypatch):
    passes = []
    original = calls.read_files
    monkeypatch.setattr(calls, "read_files", lambda *given: passes.append(given) or original(*given))
    listing = take(source="bpf")
    assert [s.owners for s in listing.sockets if s.local_port == tunnel] == [()]
    assert len(passes) == 1
    monkeypatch.setattr(port_tables, "kept_by_kernel", lambda *_: frozenset())
    assert len(take(source="bpf").sockets) == len(listing.sockets)
    assert len(passes) == 3  # where that cannot be looked up, one that looks for this port alone


# --- where it does not work ----------------------------------------------------------------------------------------


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("path", ["net.hash_mix", "inet_bind_bucket.port", "sock.__sk_common.skc_num", "net.ns.ops"])
def test_a_kernel_that_hashes_in_another_way_is_noticed(places, listening, monkeypatch, path):
    monkeypatch.setattr(port_tables, "_proven", [])
    other = {**places, path: btf.Place(places[path].offset + 8, places[path].size)}
    if path == "net.ns.ops":  # only tells namespaces from the head of their list
        other = {**places, path: None}
    assert port_tables.find(other, [listening], True) is None
    monkeypatch.setattr(port_tables, "_proven", [])
    assert port_tables.find(places, [listening], False)


def test_everything_is_found_without_the_tables(places, listening, monkeypatch):
    monkeypatch.setattr(port_tables, "_proven", [False])
    assert [h.owner.pid for h in who(listening, source="bpf").holders] == [os.getpid()]
    with child(OTHERS) as one:
        answer = who(one.said[1], source="bpf")
        assert len([s for s in answer.sockets_elsewhere if s.netns == one.said[0]]) == 2


def test_a_table_that_changes_all_the_time_is_given_up(places, listening, monkeypatch):
    def change(*_):
        raise ChangedMemory("it is not there")

    monkeypatch.setattr(port_tables._Tables, "_entries", change)
    assert port_tables.find(places, [listening], False) is None
    assert who(listening, source="bpf").held


def test_a_kernel_without_programs_that_can_be_called(places, listening, monkeypatch):
    def refuse(_):
        raise SourceMissing("no")

    monkeypatch.setattr(calls, "load_callable", refuse)
    assert port_tables.find(places, [listening], False) is None
    assert memory._read_pid_level(places["task_struct.thread_pid"], places["pid.level"]) is None
    monkeypatch.setattr(memory, "pid_level", lambda _: None)
    assert [h.owner.pid for h in who(listening, source="bpf").holders] == [os.getpid()]  # the program looks itself


def test_memory_that_is_not_there(places):
    with KernelMemory() as opened:
        assert opened.task > 1 << 63
        with pytest.raises(ChangedMemory, match="nothing at one of 0x0"):
            opened.read(0)
        with pytest.raises(ChangedMemory):
            opened.read(opened.task, 8)
        assert opened.read(opened.task + places["task_struct.tgid"].offset) != bytes(8)


def test_a_dump_without_attributes_is_counted_as_a_whole():
    """What the fast way over rows in TIME_WAIT counts is what is parsed."""
    passed = replace(CONNECTED, state="TIME_WAIT", inode=0, uid=None, cookie=0, v6only=None)
    rows = [replace(passed, remote_port=1000 + i) for i in range(5000)]
    rows[40] = replace(rows[40], inode=77)
    rows[60] = replace(rows[60], state="SYN_RECV")
    rows[80] = replace(rows[80], cgroup_id=5)
    table = sockdiag.SockdiagTable("tcp", b"".join(map(encode, rows)) + DONE)
    summary = sockdiag.summarize(table)
    assert (summary.rows, summary.syn_recv, summary.with_inode) == (5000, 1, [(80, 77)])
    assert sockdiag.summarize(table, {77}).rows == 4999
    parsed = sockdiag.parse(sockdiag.SockdiagDump((table,))).sockets
    assert [s.remote_port for s in parsed] == [row.remote_port for row in rows]
    assert fileless.unowned({1: fileless.NamespaceDump([sockdiag.SockdiagDump((table,))], {})}) == [
        fileless.Unowned(1, "tcp", 80, 77)
    ]
