"""The source that looks from inside the kernel: its pure half against an encoder, the other against /proc."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from portbook import take, who
from portbook.errors import SourceDenied, SourceGarbled, SourceMissing
from portbook.records import Owner, Socket
from portbook.sources import bpf, sockdiag
from portbook.sources.base import OtherNamespaces, Wanted
from portbook.sources.bpf import BpfDump, assembler, btf, calls, fileless, offsets, program
from portbook.sources.bpf.fileless import FileCounts, KernelCounts, NamespaceDump
from portbook.sources.bpf.record import FORMAT, SIZE
from portbook.system import namespaces
from portbook.testing import child
from tests.components import need
from tests.conftest import NOBODY, ROOT
from tests.rounds import rounds
from tests.sources.test_sockdiag import DONE, NUMBERS, encode, rows

if sys.platform != "linux":
    pytest.skip("BPF is a part of Linux", allow_module_level=True)

OWN, OTHER = 4026531833, 4026532000

# --- the pure half -------------------------------------------------------------------------------------------------


def record(s, pid, flags=0):
    """A socket as program.RECORD says, field by field."""
    packed = [ipaddress.ip_address(a).packed.ljust(16, b"\0") for a in (s.local_address, s.remote_address or "0.0.0.0")]
    number = NUMBERS[s.state] if s.protocol == "tcp" else {None: 7, "ESTABLISHED": 1}[s.state]
    queues = (s.accept_queue, s.backlog) if s.state == "LISTEN" else (s.recv_queue, s.send_queue)
    return struct.pack(
        "=QQQ16s16sIIIIIIIIHHBBBB", s.inode, s.cookie or 0, s.cgroup_id or 0, *packed, pid, 3, s.netns, s.uid or 0,
        *(n or 0 for n in queues), {None: 0, "lo": 1}[s.interface or s.zone], 0,
        s.local_port, socket.htons(s.remote_port or 0), {"ipv4": 2, "ipv6": 10}[s.family],
        {"tcp": 6, "udp": 17}[s.protocol], number, flags | (1 if s.v6only else 0),
    )  # fmt: skip


@st.composite
def held(draw):
    """A socket that has a file, and who holds it."""
    s = draw(rows().filter(lambda s: s.state not in ("TIME_WAIT", "SYN_RECV")))
    waits = s.state in ("LISTEN", "BOUND", None)
    small = st.integers(0, 2**31 - 1)
    linked = s.family == "ipv6" and ipaddress.ip_address(s.local_address).is_link_local
    scope = draw(st.sampled_from([None, "lo"]))
    s = replace(
        s, inode=draw(st.integers(1, 2**32 - 1)), uid=draw(small), interface=None if linked else scope,
        zone=scope if linked else None,
        cgroup_id=draw(st.none() | st.integers(1, 2**64 - 1)), netns=draw(st.sampled_from([OWN, OTHER])),
        v6only=draw(st.booleans()) if waits and s.family == "ipv6" else None,
        **{field: draw(small) for field in ("recv_queue", "send_queue", "accept_queue", "backlog")
           if getattr(s, field) is not None},
    )  # fmt: skip
    pids = draw(st.lists(st.integers(1, 2**22), min_size=1, max_size=3, unique=True))
    return s, sorted(pids)


def unique(several):
    return list({s.inode: (s, pids) for s, pids in several}.values())


def inside():
    return {netns: NamespaceDump([], {1: "lo"}) for netns in (OWN, OTHER)}


@given(st.lists(held(), max_size=8).map(unique), st.randoms())
def test_records_are_parsed_in_any_order(several, order):
    records = [record(s, pid) for s, pids in several for pid in pids]
    order.shuffle(records)
    reading = bpf.parse(BpfDump(b"".join(records), OWN, True, inside()))
    expected = [replace(s, owners=tuple(Owner(pid, how="fd") for pid in pids)) for s, pids in several]
    assert sorted(reading.sockets, key=lambda s: s.inode) == sorted(expected, key=lambda s: s.inode)
    assert (reading.gaps, reading.other_namespaces) == ([], None)


@given(st.lists(held(), max_size=8).map(unique))
def test_other_namespaces_are_counted_when_they_were_not_requested(several):
    data = b"".join(record(s, pid) for s, pids in several for pid in pids)
    reading = bpf.parse(BpfDump(data, OWN, False, inside()))
    assert {s.inode for s in reading.sockets} == {s.inode for s, _ in several if s.netns == OWN}
    others = [s for s, _ in several if s.netns == OTHER]
    assert reading.other_namespaces == OtherNamespaces(len(others), len({s.netns for s in others}))


LISTENER = Socket(
    "tcp", "ipv4", "127.0.0.1", 80, state="LISTEN", reach="loopback", uid=0, inode=7, accept_queue=0, backlog=5,
    cookie=9, netns=OWN,
)  # fmt: skip
CONNECTED = Socket(
    "tcp", "ipv4", "127.0.0.1", 80, "127.0.0.2", 4000, "ESTABLISHED", "loopback", uid=0, inode=8, recv_queue=0,
    send_queue=0, cookie=10, netns=OWN,
)  # fmt: skip


def test_a_thread_counts_only_where_its_process_does_not_hold_the_socket():
    data = record(LISTENER, 5, 2) + record(LISTENER, 5) + record(LISTENER, 6, 2) + record(LISTENER, 6, 2)
    (row,) = bpf.parse(BpfDump(data, OWN, False)).sockets
    assert row.owners == (Owner(5, how="fd"), Owner(6, how="task-fd"))


def test_only_the_holder_of_a_multipath_socket_is_taken_from_its_file():
    below = replace(CONNECTED, inode=7, cookie=77)
    above = replace(CONNECTED, local_port=9999, inode=7)
    (row,) = bpf.parse(with_dump(record(above, 5, 4), below)).sockets
    assert row == replace(below, owners=(Owner(5, how="fd"),))
    files = fileless.summarize(record(above, 5, 4) + record(replace(LISTENER, inode=8), 5))
    assert (files.inodes, files.mptcp_inodes) == ({8}, {7})


def with_dump(records, *several):
    dump = sockdiag.SockdiagTable("tcp", b"".join(map(encode, several)) + DONE)
    return BpfDump(records, OWN, False, {OWN: NamespaceDump([sockdiag.SockdiagDump((dump,), OWN)], {})})


def test_what_has_a_file_is_not_taken_from_the_dump_too():
    flying = replace(LISTENER, inode=99, local_port=81, cookie=11)
    reading = bpf.parse(with_dump(record(LISTENER, 5), LISTENER, flying))
    assert [(s.local_port, len(s.owners)) for s in reading.sockets] == [(80, 1), (81, 0)]


@pytest.mark.parametrize("data", [b"abc", encode(LISTENER)[:-4] + DONE, encode(LISTENER)])
def test_a_namespace_whose_dump_cannot_be_read_costs_no_other(data):
    garbled = sockdiag.SockdiagDump((sockdiag.SockdiagTable("tcp", data),), 99)
    dump = with_dump(record(LISTENER, 5), replace(LISTENER, inode=99, local_port=81, cookie=11))
    namespaces = {99: NamespaceDump([garbled], {}), **dump.namespaces}
    assert fileless.unowned(namespaces) is None
    reading = bpf.parse(replace(dump, namespaces=namespaces))
    assert [s.local_port for s in reading.sockets] == [80, 81]
    (gap,) = reading.gaps
    assert gap.why.startswith("network namespace 99 was not read: sock_diag: a tcp dump")
    with pytest.raises(SourceGarbled):
        bpf.parse(replace(dump, namespaces={OWN: NamespaceDump([garbled], {})}))


@pytest.mark.parametrize("state", sorted(fileless.PASSED))
def test_a_connection_that_lost_its_process_meanwhile_comes_once_as_it_was_seen_last(state):
    passed = replace(CONNECTED, state=state, inode=0, uid=None, cookie=0)
    elsewhere = replace(CONNECTED, remote_port=4001, inode=12)
    data = record(LISTENER, 5) + record(CONNECTED, 5) + record(elsewhere, 5)
    reading = bpf.parse(with_dump(data, passed))
    assert [(s.state, s.remote_port) for s in reading.sockets] == [
        ("LISTEN", None), ("ESTABLISHED", 4001), (state, 4000),
    ]  # fmt: skip


@pytest.mark.parametrize("state", ["SYN_RECV", "ESTABLISHED", "CLOSE_WAIT"])
def test_a_connection_that_was_accepted_meanwhile_comes_once_with_its_owner(state):
    waiting = replace(CONNECTED, inode=0, state=state)
    other = replace(waiting, remote_port=4002)
    reading = bpf.parse(with_dump(record(LISTENER, 5) + record(CONNECTED, 5), waiting, other))
    assert [(s.remote_port, bool(s.owners)) for s in reading.sockets] == [(None, True), (4000, True), (4002, False)]


def test_a_datagram_socket_with_the_same_ends_stays():
    datagrams = replace(CONNECTED, protocol="udp", inode=13)
    passed = replace(CONNECTED, state="TIME_WAIT", inode=0, uid=None, cookie=0)
    reading = bpf.parse(with_dump(record(datagrams, 5), passed))
    assert [(s.protocol, s.state) for s in reading.sockets] == [("udp", "ESTABLISHED"), ("tcp", "TIME_WAIT")]


@given(st.binary(max_size=300), st.data())
def test_any_bytes_are_sockets_or_garbled(data, more):
    damaged = bytearray(more.draw(st.sampled_from([data, record(LISTENER, 5) + record(CONNECTED, 6)])))
    for _ in range(more.draw(st.integers(0, 4)) if damaged else 0):
        damaged[more.draw(st.integers(0, len(damaged) - 1))] = more.draw(st.integers(0, 255))
    try:
        reading = bpf.parse(BpfDump(bytes(damaged), OWN, True))
    except SourceGarbled as error:
        assert "bpf" in str(error)  # noqa: PT017
    else:
        assert len(reading.sockets) <= len(damaged) // SIZE


@given(st.lists(held(), max_size=8).map(unique))
def test_columns_count_what_the_kernel_counts(several):
    data = b"".join(record(s, pid) for s, pids in several for pid in pids)
    files = fileless.summarize(data)
    assert files.mptcp_inodes == frozenset()
    assert files.inodes == {s.inode for s, _ in several}
    assert files.with_interface == {s.netns for s, _ in several if s.zone or s.interface}
    for netns in (OWN, OTHER):
        mine = [s for s, _ in several if s.netns == netns]
        expected = Counter(s.protocol for s in mine if s.state != "BOUND")
        assert {p: n for p, n in files.counts.get(netns, FileCounts(Counter(), 0)).hashed.items() if n} == dict(
            expected
        )


# --- what is asked of sock_diag ------------------------------------------------------------------------------------

SOCKSTAT = b"""sockets: used 290
TCP: inuse 12 orphan 1 tw 3 alloc 14 mem 2
UDP: inuse 4 mem 0
UDPLITE: inuse 1
RAW: inuse 7
FRAG: inuse 0 memory 0
"""
SOCKSTAT6 = b"TCP6: inuse 5\nUDP6: inuse 2\nUDPLITE6: inuse 0\nRAW6: inuse 1\nFRAG6: inuse 0 memory 0\n"


def test_the_kernels_count():
    assert fileless.parse_counts(SOCKSTAT + SOCKSTAT6) == KernelCounts(tcp=17, udp=6, waiting=3)
    assert fileless.parse_counts(SOCKSTAT) == KernelCounts(tcp=12, udp=4, waiting=3)
    assert fileless.parse_counts(b"") == KernelCounts(0, 0, 0)


@pytest.fixture
def asked(monkeypatch):
    """The requests to sock_diag, and its answers: fileless rows by state."""
    requests, answers = [], {}

    def read(wanted, limit_s=None):
        requests.append((wanted.protocols, "transient" if wanted.states == fileless.TRANSIENT else "all"))
        several = [
            replace(CONNECTED, state=state, inode=0, remote_port=1000 + i)
            for state, count in answers.items()
            for i in range(count)
        ]
        return sockdiag.SockdiagDump((sockdiag.SockdiagTable("tcp", b"".join(map(encode, several)) + DONE),), OWN)

    monkeypatch.setattr(sockdiag, "read", read)
    return requests, answers


def missing(monkeypatch, there, tcp=0, udp=0, pending=0):
    monkeypatch.setattr(fileless, "counts", lambda: there)
    return fileless.read(Wanted(), FileCounts(Counter({"tcp": tcp, "udp": udp}), pending), frozenset())


def test_nothing_is_read_again_when_the_numbers_fit(asked, monkeypatch):
    missing(monkeypatch, KernelCounts(tcp=7, udp=3, waiting=0), tcp=7, udp=3)
    assert asked[0] == []


def test_what_closed_needs_the_states_without_a_process(asked, monkeypatch):
    asked[1].update({"TIME_WAIT": 2, "FIN_WAIT2": 1, "LAST_ACK": 1, "SYN_RECV": 1})
    missing(monkeypatch, KernelCounts(tcp=9, udp=3, waiting=3), tcp=8, udp=3, pending=1)  # LAST_ACK is in use
    assert asked[0] == [(("tcp",), "transient")]


@pytest.mark.parametrize("there", [9, 7])
def test_what_cannot_be_explained_needs_all(asked, monkeypatch, there):
    missing(monkeypatch, KernelCounts(tcp=there, udp=3, waiting=0), tcp=8, udp=3)
    assert asked[0] == [(("tcp",), "transient"), (("tcp",), "all")]


def test_udp_has_one_table(asked, monkeypatch):
    missing(monkeypatch, KernelCounts(tcp=0, udp=3, waiting=0), udp=2)
    assert asked[0] == [(("udp",), "all")]


def test_without_the_kernels_count_all_is_read(asked, monkeypatch):
    def fail():
        raise FileNotFoundError(2, "no sockstat")

    monkeypatch.setattr(fileless, "counts", fail)
    fileless.read(Wanted(), FileCounts(Counter(), 0), frozenset())
    assert asked[0] == [(("tcp", "udp"), "all")]


@pytest.mark.parametrize("wanted", [Wanted(ports=((1, 2),)), Wanted(("tcp",)), Wanted(states=frozenset(("LISTEN",)))])
def test_a_part_cannot_be_counted(asked, wanted):
    fileless.read(wanted, FileCounts(Counter(), 0), frozenset())
    assert len(asked[0]) == 1


# --- the program ---------------------------------------------------------------------------------------------------


def layout(without=()):
    """Members at places that tell them apart."""
    return {
        path: None if path in without else btf.Place(8 * i, 2 if path.endswith(("type", "protocol")) else 4, 0x20)
        for i, path in enumerate(program.PATHS)
    }


@pytest.mark.parametrize("without", [(), program.V6, program.CGROUP])
@pytest.mark.parametrize(
    "choice",
    [
        program.Choice(),
        program.Choice((2,), 1 << 10, 0, ((80, 80), (8000, 8100))),
        program.Choice(netns=OWN),
    ],
)
def test_every_program_assembles_and_ends(without, choice):
    code = program.build(layout(without), choice)
    assert code.assemble()[-8] == 0x95  # exit
    assert len(code.instructions) < 512
    text = code.listing()
    assert ("family is" in text) is False
    for low, high in choice.ports:
        assert f"if r1 < {low} goto" in text
        assert f"if r1 <= {high} goto port" in text


def test_a_kernel_that_lacks_something():
    assert program.missing(layout()) is None
    assert program.missing(layout(program.CGROUP + program.V6)) is None
    assert program.missing(layout(("sock.sk_uid",))) == "sock.sk_uid"


# --- the kernel ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def works():
    need(ROOT, "root, to load a program into the kernel")
    why = bpf.missing()
    need(why is None, f"a kernel that takes the program: {why}")


def everything(source):
    return take(source=source).sockets


def comparable(s):
    """All but what differs by nature: how owners were found, and what counts down."""
    return replace(s, owners=tuple(sorted(o.pid for o in s.owners)), ends_in_ms=s.ends_in_ms and 1)


@pytest.mark.usefixtures("works")
def test_sock_diag_and_the_full_walk_say_the_same_of_every_kind(zoo, brief_zoo):
    mine, theirs = (sorted(map(comparable, everything(name)), key=repr) for name in ("bpf", "sockdiag"))
    assert len(mine) > 40
    assert mine == theirs


CHURN = """
import random, time
random.seed(1)
stable = [socket.create_server(("127.0.0.1", 0)) for _ in range(50)]
say([s.getsockname()[1] for s in stable])
import select
held = []
while not select.select([0], [], [], 0)[0]:
    listener = random.choice(stable)
    client = socket.create_connection(listener.getsockname())
    if random.random() < 0.9:  # ends with RST (socket(7), SO_LINGER): thousands in TIME_WAIT would slow the readings
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    held.append((client, listener.accept()[0] if random.random() < 0.9 else None))
    if random.random() < 0.3 and os.fork() == 0:
        time.sleep(0.005)
        os._exit(0)
    if len(held) > 60:
        for one in held.pop(random.randrange(60)):
            if one:
                one.close()
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
"""


@pytest.mark.usefixtures("works")
def test_what_stays_is_the_same_in_both_while_everything_else_changes(own_network):
    """Each reading of bpf lies between two of sock_diag: what both of those have, with the same owners, it has too."""
    compared = []
    with child(CHURN):
        for _ in rounds(lambda: len(compared) > 30 * 50, least=30):
            before, between, after = (
                {s.inode: s for s in everything(n) if s.inode} for n in ("sockdiag", "bpf", "sockdiag")
            )
            for inode in before.keys() & after.keys():
                one, other = before[inode], after[inode]
                if (one.owners, one.state) == (other.owners, other.state) and one.owners:
                    assert {o.pid for o in between[inode].owners} >= {o.pid for o in one.owners}
                    assert (between[inode].local_port, between[inode].state) == (one.local_port, one.state)
                    compared.append(inode)
            identities = Counter(
                (s.local_port, s.remote_port, s.local_address) for s in between.values() if s.remote_port
            )
            assert max(identities.values(), default=1) == 1


OTHERS = """
import ctypes, fcntl, struct
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000):  # CLONE_NEWNET
    raise SystemExit("unshare")
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
waiting = socket.create_connection(("127.0.0.1", port))  # nobody accepts it
left, right = socket.socketpair()
flying = socket.create_server(("127.0.0.1", 0))
flying_port = flying.getsockname()[1]
socket.send_fds(left, [b"x"], [flying.fileno()])
flying.close()
old = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(old.getsockname())
server = old.accept()[0]
client.shutdown(socket.SHUT_WR)
server.recv(1)
server.close()
client.recv(1)
client.close()
say([os.stat("/proc/self/ns/net").st_ino, port, flying_port, old.getsockname()[1]])
wait()
"""


@pytest.fixture(scope="module")
def other_namespace(works):
    """A process in a network namespace of its own, which holds one of each kind that has no file."""
    with child(OTHERS) as one:
        yield one


def test_another_namespace_is_counted_and_shown_on_request(other_namespace, own_network):
    netns, port, flying, old = other_namespace.said
    default = take("state:listening")
    assert netns not in {s.netns for s in default.sockets}
    assert default.listeners_elsewhere >= 2
    assert default.namespaces_elsewhere >= 1
    rows = take(f"netns:{netns}").sockets
    assert {s.netns for s in rows} == {netns}
    seen = {(s.local_port, s.state): {o.pid for o in s.owners} for s in rows}
    assert seen[port, "LISTEN"] == {other_namespace.pid}
    assert seen[flying, "LISTEN"] == set()  # in flight
    assert seen[port, "ESTABLISHED"] == set()  # not accepted
    states = Counter((s.local_port, s.state) for s in rows)
    assert (
        states[old, "FIN_WAIT2"]
        + states[old, "TIME_WAIT"]
        + sum(n for (p, state), n in states.items() if state in ("TIME_WAIT", "FIN_WAIT2"))
        >= 1
    )
    assert max(states.values()) == 1


def test_the_caller_stays_where_it_is(other_namespace, own_network):
    before = os.stat("/proc/thread-self/ns/net").st_ino
    take("netns:all")
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
    assert "portbook-namespaces" not in {thread.name for thread in threading.enumerate()}


def test_who_tells_other_namespaces_apart(other_namespace, own_network):
    netns, port, flying, _ = other_namespace.said
    answer = who(port)
    there = [h for h in answer.holders_elsewhere if h.owner.pid == other_namespace.pid]
    assert [{s.netns for s in h.sockets} for h in there] == [{netns}]
    own = [s for s in answer.sockets if s.state != "TIME_WAIT"]  # a connection of an earlier test may have had the port
    assert (answer.held, answer.holders, own) == (False, (), [])
    assert [s.owners for s in who(flying).sockets_elsewhere if s.netns == netns] == [()]


SERVE = """
import socket, sys
listener = socket.create_server(("", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_a_name_given_by_ip_netns(works, own_network):
    name = f"portbook-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
    try:
        command = ["ip", "netns", "exec", name, sys.executable, "-c", SERVE]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            port = int(process.stdout.readline())
            (row,) = [s for s in take(f"netns:{name} state:listen").sockets if s.local_port == port]
            assert (row.netns_name, row.owners[0].pid) == (name, process.pid)
            assert row.netns == os.stat(f"/run/netns/{name}").st_ino
            process.stdin.close()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=30)


MPTCP = """
def opened():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
listener = opened()
listener.bind(("127.0.0.1", 0))
listener.listen(7)
port = listener.getsockname()[1]
client, plain = opened(), socket.socket()
client.connect(("127.0.0.1", port))
one = listener.accept()[0]
plain.connect(("127.0.0.1", port))
two = listener.accept()[0]
other = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    wait()
    os._exit(0)
say([port, other.getsockname()[1]])
wait()
"""


@pytest.mark.usefixtures("works")
def test_multipath_tcp_has_its_holders(own_network):
    """Its file is that of another socket than those that TCP has: what Go's listeners are by default since 1.24."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError as error:
        need(False, f"MPTCP: {error.strerror}")
    with child(MPTCP) as one:
        port, other = one.said
        for query in (
            f"port:{port}",
            f"port:{port} state:listen",
            f"remote-port:{port}",
            f"port:{port} protocol:tcp",
            "",
        ):
            mine, theirs = (
                [s for s in map(comparable, take(query, source=name).sockets) if port in (s.local_port, s.remote_port)]
                for name in ("bpf", "sockdiag")
            )
            assert sorted(mine, key=repr) == sorted(theirs, key=repr), query
            assert all(len(s.owners) == 2 for s in mine), query
        assert take(f"port:{port} protocol:udp", source="bpf").sockets == ()
        assert f"{port}/tcp" in who(other).holders[0].other_ports
        assert take("state:listening", source="bpf").gaps == take("state:listening", source="sockdiag").gaps


WORKERS = """
one, two = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
readers = [os.pipe()[0] for _ in range(5)]
pids = [os.getpid()]
for _ in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        wait()
        os._exit(0)
    pids.append(pid)
say([one.getsockname()[1], two.getsockname()[1], pids])
wait()
"""


@pytest.mark.usefixtures("works")
@pytest.mark.parametrize("workers", [3, 40])
def test_all_workers_of_a_server_are_named_with_their_other_ports(workers, own_network):
    """Few are looked at one by one for what else they wait on, many in one pass."""
    with child(WORKERS, str(workers)) as server:
        port, other, pids = server.said
        holders = who(port, source="bpf").holders
        assert sorted(h.owner.pid for h in holders) == sorted(pids)
        assert all(h.other_ports == (f"{other}/tcp",) for h in holders)


@pytest.mark.usefixtures("works")
def test_raw_sockets_udp_lite_and_ping_are_not_udp(own_network):
    def counted():
        return Counter((s.protocol, s.local_port) for s in everything("bpf"))

    before = counted()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136) as lite,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, 136) as lite6,
        socket.socket(socket.AF_UNIX),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as real,
    ):
        lite.bind(("127.0.0.1", 0))
        lite6.bind(("::1", 0))
        real.bind(("127.0.0.1", 0))
        after = counted()
        assert after - before == Counter({("udp", real.getsockname()[1]): 1})


@pytest.mark.usefixtures("works")
def test_sockets_without_a_port_are_not_shown(own_network):
    with socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
        assert 0 not in {s.local_port for s in everything("bpf")}


@pytest.mark.usefixtures("works")
def test_a_port_is_compared_in_the_kernel(own_network):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, other = one.getsockname()[1], two.getsockname()[1]
        raw = bpf.read(Wanted(ports=((port, port),)))
        assert len(raw.records) % SIZE == 0
        ports = {r[13] for r in FORMAT.iter_unpack(raw.records)}
        assert ports == {port}
        both = bpf.read(Wanted(ports=((port, port), (other, other))))
        assert {r[13] for r in FORMAT.iter_unpack(both.records)} == {port, other}


MANY = """
import ctypes, resource, signal
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
each = min(most, 200_000) - 10
null = os.open("/dev/null", os.O_RDONLY)
for _ in range(each):
    os.dup(null)
me = os.getpid()
for _ in range(1_050_000 // each):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        while os.getppid() == me:
            signal.pause()
        os._exit(0)
say()
wait()
"""
LAST = """
one = socket.create_server(("127.0.0.1", 0))
say(one.getsockname()[1])
wait()
"""


@pytest.mark.usefixtures("works")
def test_a_million_files_without_a_socket_do_not_end_the_reading(own_network):
    """The kernel lets the reader take a breath then: EAGAIN, MAX_ITER_OBJECTS in kernel/bpf/bpf_iter.c."""
    import resource

    need(resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 10_000, "processes that may open 10,000 files")
    with child(MANY), child(LAST) as last:
        (row,) = take(f"port:{last.said} state:listen", source="bpf").sockets
        assert [o.pid for o in row.owners] == [last.pid]


@pytest.mark.usefixtures("works")
def test_a_free_port_needs_no_further_query(own_network, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    read_files = calls.read_files

    def read_one_process(program, function, pids=None):
        assert pids == (os.getpid(),), "files of all processes were read"  # the census runs for one
        return read_files(program, function, pids)

    monkeypatch.setattr(calls, "read_files", read_one_process)
    assert not who(port, source="bpf").held
    listing = take(f"port:{port}", source="bpf")
    assert (listing.sockets, listing.listeners_elsewhere) == ((), None)


@pytest.mark.usefixtures("works")
def test_pids_are_those_of_our_pid_namespace(own_network):
    script = (
        "import os, socket; from portbook import take; s = socket.create_server(('127.0.0.1', 0)); "
        "(row,) = take(f'port:{s.getsockname()[1]} state:listen', source='bpf').sockets; "
        "print(os.getpid(), [o.pid for o in row.owners], row.owners[0].name)"
    )
    for extra in ([], ["unshare", "--pid", "--fork", "--mount-proc"]):  # and one more inside
        run = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", *extra, sys.executable, "-c", script],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        pid, pids, name = run.stdout.split()
        assert pids == f"[{pid}]"
        assert int(pid) < 10
        assert name.startswith("python")


# --- where it does not work ----------------------------------------------------------------------------------------


def one_line(why):
    return why is not None and "\n" not in why and len(why) < 400


def falls_back():
    """A listing is complete without it, and says nothing of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listing = take(f"port:{listener.getsockname()[1]}")
    return (listing.source, [o.pid for s in listing.sockets for o in s.owners], listing.gaps) == (
        "sockdiag", [os.getpid()], (),
    )  # fmt: skip


@pytest.fixture
def unremembered(monkeypatch, tmp_path):
    """Nothing is known of the kernel's structures yet."""
    monkeypatch.setattr(offsets, "_known", {})
    monkeypatch.setattr(offsets, "SYSTEM_DIRECTORY", str(tmp_path))


@pytest.mark.usefixtures("works", "unremembered")
@pytest.mark.parametrize("content", [None, b"", b"\x9f\xeb\1\0", b"garbage" * 1000, "half"])
def test_btf_that_is_missing_or_damaged(monkeypatch, tmp_path, content, own_network):
    path = tmp_path / "vmlinux"
    if content is not None:
        whole = btf.read()
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    monkeypatch.setattr(btf, "PATH", str(path))
    assert one_line(bpf.missing())
    assert falls_back()


@pytest.mark.usefixtures("works")
def test_a_cache_that_is_spoiled_or_cannot_be_written_costs_time_only(monkeypatch, tmp_path, own_network):
    monkeypatch.setattr(offsets, "SYSTEM_DIRECTORY", str(tmp_path))
    kept = tmp_path / "portbook" / "offsets.json"
    for spoil in (lambda: kept.write_bytes(b"{"), lambda: kept.write_bytes(kept.read_bytes().replace(b"8", b"9")),
                  kept.unlink):  # fmt: skip
        monkeypatch.setattr(offsets, "_known", {})
        assert take("state:listening").source == "bpf"
        spoil()
    monkeypatch.setattr(offsets, "SYSTEM_DIRECTORY", "/proc")
    monkeypatch.setattr(offsets, "_known", {})
    assert take("state:listening").source == "bpf"


@pytest.mark.usefixtures("works", "unremembered")
def test_a_kernel_without_the_iterator(monkeypatch, own_network):
    monkeypatch.setattr(program, "FUNCTION", "bpf_iter_nothing")
    with pytest.raises(SourceMissing, match=r"kernel .* has no bpf_iter_nothing; Linux 5\.12"):
        bpf.read(Wanted())
    assert falls_back()


@pytest.mark.usefixtures("works")
def test_a_refused_program_has_the_message_of_the_verifier(monkeypatch, own_network):
    known = offsets.offsets(program.PATHS, (program.FUNCTION, *program.COUNTING))
    wrong = {**known.places, "socket.sk": btf.Place(9000, 8)}
    monkeypatch.setattr(offsets, "offsets", lambda *_: replace(known, places=wrong))
    with pytest.raises(SourceMissing, match=r"does not load the program: .*access beyond struct socket.*\(Permission"):
        bpf.read(Wanted())
    assert one_line(bpf.missing())
    assert falls_back()


@pytest.mark.usefixtures("works")
def test_a_kernel_without_a_function_that_the_program_calls(monkeypatch, own_network):
    real = program.build

    def build(*arguments):
        code = real(*arguments)
        call = next(
            n for n, instruction in enumerate(code.instructions) if instruction.code == assembler.JUMP | assembler.CALL
        )
        code.instructions[call] = replace(code.instructions[call], value=9999)
        return code

    monkeypatch.setattr(program, "build", build)
    with pytest.raises(SourceMissing, match=r"kernel .* lacks a function that the program calls; Linux 5\.12"):
        bpf.read(Wanted())
    assert falls_back()


def test_the_end_of_a_log():
    log = (
        "0: R1=ctx()\n; int x\n5: (79) r1 = *(u64 *)(r1 +9)\ninvalid bpf_context access\nprocessed 6 insns (limit 1)\n"
    )
    assert calls._reason(log) == "; int x / 5: (79) r1 = *(u64 *)(r1 +9) / invalid bpf_context access"
    assert calls._reason("") == ""


REMEDY = "run with sudo, or with CAP_BPF and CAP_PERFMON" if not ROOT else ""  # nothing more than root has is known


@pytest.mark.parametrize(
    ("content", "code", "kind", "hint"),
    [
        ("none integrity [confidentiality]\n", errno.EINVAL, SourceDenied, "locked down against reading"),
        ("none integrity [confidentiality]\n", errno.EPERM, SourceDenied, "locked down against reading"),
        ("none [integrity] confidentiality\n", errno.EPERM, SourceDenied, REMEDY),
        ("[none] integrity confidentiality\n", errno.EPERM, SourceDenied, REMEDY),
        ("[none] integrity confidentiality\n", errno.EINVAL, SourceMissing, "Invalid argument"),
        (None, errno.EPERM, SourceDenied, REMEDY),
    ],
)
def test_a_kernel_that_is_locked_down(monkeypatch, tmp_path, content, code, kind, hint):
    monkeypatch.setattr(calls, "LOCKDOWN", str(tmp_path / "lockdown"))
    if content is not None:
        (tmp_path / "lockdown").write_text(content)
    error = calls._refused(code, "bpf: no")
    assert type(error) is kind
    assert hint in str(error)


SAY = (
    "import socket, os; from portbook import take; from portbook.sources import bpf; "
    "s = socket.create_server(('127.0.0.1', 0)); listing = take(f'port:{s.getsockname()[1]}'); "
    "print(bpf.missing()); print(listing.source, [o.pid for r in listing.sockets for o in r.owners] == [os.getpid()], "
    "listing.gaps)"
)


def said(*command):
    run = subprocess.run([*command, sys.executable, "-c", SAY], capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr == ""
    return run.stdout.splitlines()


def test_without_privilege(as_nobody):
    run = as_nobody(sys.executable, "-c", SAY)
    assert run.stdout.splitlines() == [
        f"bpf: uid {NOBODY} may not load programs into the kernel; run with sudo, or with CAP_BPF and CAP_PERFMON",
        "sockdiag True ()",
    ], run.stderr


@pytest.mark.usefixtures("works")
def test_root_that_has_lost_the_capabilities():
    lost = "--bounding-set=-bpf,-perfmon,-sys_admin"
    why, listed = said("setpriv", lost, "--inh-caps=-all")
    assert why.startswith("bpf: uid 0 may not load programs")
    assert listed == "sockdiag True ()"


TWO_CAPABILITIES = """
import ctypes, os, struct, sys
from portbook import take
query = f"port:{sys.argv[1]} state:listen"
take(query)  # what is imported when it is needed lies where only root may read
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
two = 1 << 38 - 32 | 1 << 39 - 32  # CAP_PERFMON, CAP_BPF
if libc.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 0, 0, 0, two, two, 0)):
    raise OSError(ctypes.get_errno(), "capset")
listing = take(query)
print(os.getuid(), listing.source, [o.pid for s in listing.sockets for o in s.owners], listing.gaps)
"""


@pytest.mark.usefixtures("works")
def test_a_user_with_the_two_capabilities_sees_whom_root_holds():
    """CAP_BPF and CAP_PERFMON are enough: not root, and no CAP_SYS_PTRACE to look at others' descriptors."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", TWO_CAPABILITIES, str(listener.getsockname()[1])]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == f"65534 bpf [{os.getpid()}] ()\n", run.stderr


@pytest.mark.usefixtures("works")
def test_the_root_of_a_user_namespace():
    """It has every capability, inside: the kernel refuses all the same."""
    why, listed = said("unshare", "--user", "--map-root-user")
    assert why.startswith("bpf: the kernel does not load the program (Operation not permitted); run as root outside")
    assert listed == "sockdiag True ()"


@pytest.mark.usefixtures("works")
def test_proc_of_another_pid_namespace():
    """Pids would be named after the wrong processes."""
    run = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", "from portbook.sources import bpf; print(bpf.missing())"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "/proc shows another pid namespace: our pid is 1," in run.stdout


@pytest.mark.usefixtures("works")
def test_other_namespaces_that_cannot_be_entered_are_a_gap(other_namespace, own_network, monkeypatch):
    def refuse(path, netns):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(namespaces, "_enter", refuse)
    listing = take("netns:all")
    (gap,) = [gap for gap in listing.gaps if gap.what == "socket"]
    assert "Operation not permitted" in gap.why
    assert gap.hint is None, "this root has CAP_SYS_ADMIN"
    assert other_namespace.said[1] in {s.local_port for s in listing.sockets}  # what has a file is there


def test_all_namespaces_without_privilege_are_a_gap_with_what_is_missing(as_nobody):
    script = "from portbook import take; print([g.why for g in take('netns:all').gaps if g.what == 'socket'])"
    run = as_nobody(sys.executable, "-c", script)
    assert "only this network namespace was read: bpf: uid 65534 may not load programs" in run.stdout, run.stderr
