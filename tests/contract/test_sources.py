"""What every source promises, held against sockets that this test opened and against the kernel, ss and lsof.

The sockets are those of ``portbook.testing``; each source reads them once, while they are all open, and the tests
look at what it said.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack
from itertools import combinations

import pytest

from portbook import sources, take, testing
from portbook.testing import BRIEF, KINDS, absent, child, identity, ports_of
from tests.components import need
from tests.conftest import ROOT
from tests.ss import rows

try:
    import pwd
except ImportError:
    pwd = None  # Windows, where these tests need another user that cannot be made

pytestmark = pytest.mark.usefixtures("own_network")

LINUX = sys.platform == "linux"
WORKING = [name for name in sources.names() if sources.missing(name) is None]
PROMISED = {name: sources.load(name).capabilities for name in WORKING}
BY_INODE = [name for name in WORKING if "inode" in PROMISED[name]]
EVERY_OWNER = BY_INODE if LINUX else []  # portbook finds all holders of an inode


@pytest.fixture(scope="module")
def whole_zoo(zoo):
    """All kinds. Those that do not last are there when the fixtures below look, and perhaps not much longer."""
    present = [kind for kind in KINDS if kind in BRIEF and absent(kind) is None]
    with testing.zoo(*present) as brief:
        yield {**zoo, **brief}


@pytest.fixture(scope="module")
def listings(whole_zoo):
    """The listing of the zoo by each source, owners included."""
    return {name: take(source=name).sockets for name in WORKING}


@pytest.fixture(scope="module")
def animals(whole_zoo):
    return [expected for kind in whole_zoo.values() for expected in kind]


@pytest.fixture(scope="module")
def lasting(zoo):
    return [expected for kind in zoo.values() for expected in kind]


def promised(source, expected):
    return expected.needs <= PROMISED[source]


def rows_of(listing, expected):
    """The row of a socket; several when they share address and port and the source does not tell them apart."""
    same = [s for s in listing if identity(s) == expected.identity]
    return [s for s in same if s.inode == expected.inode] if any(s.inode for s in same) else same


def of_the_zoo(listing, animals):
    """The rows whose both ends are of the zoo: others may use the same ports on other addresses."""
    ends = {(e.protocol, e.local_address, e.local_port) for e in animals}
    ours = [s for s in listing if (s.protocol, s.local_address, s.local_port) in ends]
    ports = ports_of(animals)
    return [s for s in ours if s.remote_port is None or s.remote_port in ports]


# --- what was opened is seen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", WORKING)
def test_what_is_promised_is_shown(source, kind, whole_zoo, listings):
    need(absent(kind) is None, absent(kind))
    for expected in whole_zoo[kind]:
        if promised(source, expected):
            assert rows_of(listings[source], expected), expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", WORKING)
def test_owners_are_those_that_hold_it_and_no_other(source, kind, whole_zoo, listings):
    need(absent(kind) is None, absent(kind))
    for expected in whole_zoo[kind]:
        rows = rows_of(listings[source], expected)
        pids = {owner.pid for row in rows for owner in row.owners}
        group = {pid for other in whole_zoo[kind] if other.identity == expected.identity for pid in other.pids}
        assert pids <= group, expected
        if promised(source, expected) and source in EVERY_OWNER:
            assert pids == set(expected.pids), expected
        elif promised(source, expected) and "owner" in PROMISED[source]:
            assert bool(pids) == bool(group), expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", WORKING)
def test_no_socket_is_shown_twice(source, kind, whole_zoo, listings):
    need(absent(kind) is None, absent(kind))
    wanted = Counter(expected.identity for expected in whole_zoo[kind])
    seen = Counter(identity(s) for s in listings[source])
    assert {i: seen[i] for i in wanted if seen[i]} == {i: n for i, n in wanted.items() if seen[i]}


@pytest.mark.parametrize("source", WORKING)
def test_nothing_is_shown_that_was_not_opened(source, animals, listings):
    opened = {expected.identity for expected in animals}
    assert {identity(s) for s in of_the_zoo(listings[source], animals)} <= opened


@pytest.mark.parametrize("source", BY_INODE)
def test_the_inode_is_the_descriptors(source, animals, listings):
    for expected in animals:
        if promised(source, expected):
            assert [s.inode for s in rows_of(listings[source], expected)] == [expected.inode]


@pytest.mark.parametrize("source", [name for name in WORKING if "uid" in PROMISED[name]])
def test_the_uid_is_ours(source, animals, listings):
    for expected in animals:
        for row in rows_of(listings[source], expected):
            assert row.uid in ((os.getuid(),) if expected.pids else (os.getuid(), None))


@pytest.mark.parametrize("source", [name for name in WORKING if "queues" in PROMISED[name]])
def test_queues_are_what_was_left_in_them(source, animals, listings):
    told = 0
    for expected in animals:
        for row in rows_of(listings[source], expected):
            for field in ("accept_queue", "backlog", "recv_queue", "send_queue"):
                if getattr(expected, field) is not None:
                    assert getattr(row, field) == getattr(expected, field), (field, expected)
                    told += 1
    assert told > 20


@pytest.mark.parametrize("source", WORKING)
def test_a_listener_has_no_byte_queues_and_others_have_no_accept_queue(source, listings):
    for row in listings[source]:
        if row.state == "LISTEN":
            assert (row.recv_queue, row.send_queue) == (None, None)
        else:
            assert (row.accept_queue, row.backlog) == (None, None)


@pytest.mark.parametrize("source", [name for name in WORKING if "v6only" in PROMISED[name]])
def test_v6only_is_the_sockets_option(source, animals, listings):
    told = set()
    for expected in animals:
        for row in rows_of(listings[source], expected):
            if row.state in ("LISTEN", "BOUND", None):
                assert row.v6only is expected.v6only, expected
                told.add(row.v6only)
            else:  # no other process can bind the port of a connection: the kernel does not report it
                assert row.v6only in (None, expected.v6only), expected
    need(absent("tcp6-listening") is None, "IPv6")
    assert told == {True, False, None}


@pytest.mark.parametrize(
    ("kind", "reach"),
    [
        ("tcp4-listening", "loopback"),
        ("tcp6-listening", "loopback"),
        ("tcp4-listening-wildcard", "any"),
        ("tcp6-listening-v6only", "any"),
        ("tcp6-listening-dual-stack", "any"),
        ("udp4", "loopback"),
        ("udp6-dual-stack", "any"),
    ],
)
@pytest.mark.parametrize("source", WORKING)
def test_reach(source, kind, reach, whole_zoo, listings):
    need(absent(kind) is None, absent(kind))
    for expected in whole_zoo[kind]:
        assert {s.reach for s in rows_of(listings[source], expected)} == {reach}


@pytest.mark.parametrize("source", WORKING)
def test_a_listing_narrowed_by_query_is_the_part_of_the_whole(source, lasting):
    """What is pushed down into the source leaves out nothing that the query wants."""
    ports = sorted(ports_of(lasting))
    whole = of_the_zoo(take(source=source).sockets, lasting)
    for terms, wanted in [
        ("protocol:udp", lambda s: s.protocol == "udp"),
        ("family:ipv6", lambda s: s.family == "ipv6"),
        ("protocol:tcp family:ipv4", lambda s: s.protocol == "tcp" and s.family == "ipv4"),
        ("state:listening", lambda s: s.state in ("LISTEN", "BOUND", None)),
        ("state:listen", lambda s: s.state == "LISTEN"),
        ("state:established", lambda s: s.state == "ESTABLISHED"),
        ("-state:established,time_wait", lambda s: s.state not in ("ESTABLISHED", "TIME_WAIT")),
        (f"port:{ports[0]}-{ports[3]}", lambda s: ports[0] <= s.local_port <= ports[3]),
        (f"port:{ports[2]},{ports[5]}", lambda s: s.local_port in (ports[2], ports[5])),
    ]:
        narrow = {identity(s) for s in of_the_zoo(take(terms, source=source).sockets, lasting)}
        assert narrow == {identity(s) for s in whole if wanted(s)}, terms
        assert narrow, terms


# --- sources agree -------------------------------------------------------------------------------------------------


def comparable(source, other, listing, animals):
    """The rows of the zoo that both sources promise, as what both know of them."""
    both = PROMISED[source] & PROMISED[other]
    expected = {e.identity: e.needs for e in animals}
    fields = [("uid", "uid"), ("inode", "inode")]
    return Counter(
        (identity(s), *(getattr(s, field) for field, promise in fields if promise in both and s.inode != 0))
        for s in of_the_zoo(listing, animals)
        if expected.get(identity(s), {s.protocol}) <= both
    )


@pytest.mark.parametrize(("one", "other"), list(combinations(WORKING, 2)))
def test_two_sources_agree_on_what_both_promise(one, other, animals, listings):
    seen = comparable(one, other, listings[one], animals)
    assert seen == comparable(other, one, listings[other], animals)
    assert len(seen) > 30


# --- other tools agree ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", BY_INODE)
def test_ss_agrees(source, lasting, brief_zoo):
    need(shutil.which("ss") is not None, "ss, of iproute2")
    animals = [*lasting, *(expected for kind in brief_zoo.values() for expected in kind)]
    seen = of_the_zoo(take(source=source).sockets, animals)
    assert set(BRIEF) == brief_zoo.keys() or absent("tcp6-time-wait")
    run = subprocess.run(["ss", "-tunapeH"], capture_output=True, text=True, check=True, timeout=30)
    said = defaultdict(list)
    for ss in rows(run.stdout):
        said[ss.identity].append(ss)
    compared = 0
    for row in seen:
        if row.state == "BOUND":
            continue  # the ss of Debian 12 cannot ask for them
        found = [ss for ss in said[identity(row)] if ss.inode == row.inode]
        assert len(found) == 1, (row, said[identity(row)])
        assert {owner.pid for owner in row.owners} == found[0].pids
        if "queues" in PROMISED[source]:
            mine = (row.accept_queue, row.backlog) if row.state == "LISTEN" else (row.recv_queue, row.send_queue)
            assert mine == found[0].queues
        if "v6only" in PROMISED[source] and row.local_address == "::":
            assert found[0].both is (not row.v6only)
        compared += 1
    assert compared >= 40


@pytest.mark.parametrize("source", BY_INODE)
def test_lsof_agrees(source, lasting, listings):
    need(shutil.which("lsof") is not None, "lsof")
    lsof = subprocess.run(["lsof", "-nP", "-i", "-F", "pd"], capture_output=True, text=True, check=True, timeout=60)
    held, pid = set(), 0
    for line in lsof.stdout.splitlines():
        pid = int(line[1:]) if line[0] == "p" else pid
        if line[0] == "d":
            held.add((pid, int(line[1:], 0)))
    # To lsof, a socket that is only bound is not of the Internet.
    rows = [row for row in of_the_zoo(listings[source], lasting) if row.inode and row.state != "BOUND"]
    ours = {(owner.pid, row.inode) for row in rows for owner in row.owners}
    inodes = {row.inode for row in rows}
    assert ours == {(pid, inode) for pid, inode in held if inode in inodes}
    assert len(ours) >= 40


# --- many at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", WORKING)
def test_three_hundred_sockets_at_once(source):
    with ExitStack() as hold:
        opened = [hold.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(150)]
        for _ in range(150):
            opened.append(hold.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            opened[-1].bind(("127.0.0.1", 0))
        wanted = {("tcp" if s.type == socket.SOCK_STREAM else "udp", s.getsockname()[1]) for s in opened}
        seen = take("address:127.0.0.1 state:listening", source=source).sockets
    ours = [s for s in seen if (s.protocol, s.local_port) in wanted]
    assert {(s.protocol, s.local_port) for s in ours} == wanted
    assert len(ours) == 300
    assert {tuple(owner.pid for owner in s.owners) for s in ours} == {(os.getpid(),)}


# --- odd processes -------------------------------------------------------------------------------------------------

NAMED = """
import ctypes
opened = socket.create_server(("127.0.0.1", 0))
libc = ctypes.CDLL(None)
if libc.prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0):  # PR_SET_NAME
    raise SystemExit("prctl")
say(opened.getsockname()[1])
wait()
"""
NAMES = {
    "spaces": b"my own server",
    "brackets": b"[kworker/0:1]",
    "looks-like-stat": b") R 1 2 3 (",
    "newline": b"two\nlines",
    "escape": b"\x1b[31mred\x07",
    "not-ascii": "Grüße 日本".encode(),
    "not-utf-8": b"\xff\xfe\x80bad",
    "bidi": "a\u202eexe.txt".encode(),
    "empty": b"",
    "longest": b"fifteen-bytes-x",
    "cut-in-a-character": "fourteen bytes€".encode()[:15],
}


@pytest.fixture(scope="module")
def named():
    """A child for each odd name: its pid and port."""
    need(LINUX, "Linux, where a process can name itself")
    with ExitStack() as hold:
        yield {key: hold.enter_context(child(NAMED, name.hex())) for key, name in NAMES.items()}


@pytest.fixture(scope="module")
def named_owners(named):
    ports = ",".join(str(one.said) for one in named.values())
    seen = {source: take(f"port:{ports} state:listen", source=source).sockets for source in WORKING}
    return {source: {s.local_port: s.owners for s in rows} for source, rows in seen.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", WORKING)
def test_odd_process_names(source, name, named, named_owners):
    pid, port, _ = named[name]
    with open(f"/proc/{pid}/comm", "rb") as file:
        assert file.read() == NAMES[name] + b"\n", "the kernel has the name"
    (owner,) = named_owners[source][port]
    assert (owner.pid, owner.name) == (pid, NAMES[name].decode("utf-8", "replace"))


LEADERLESS = """
import ctypes, time
def serve():
    opened = socket.create_server(("127.0.0.1", 0))
    for _ in range(1000):
        with open(f"/proc/self/task/{os.getpid()}/stat", "rb") as file:
            if b") Z " in file.read():
                break
        time.sleep(0.01)
    say(opened.getsockname()[1])
    wait()
    os._exit(0)
threading.Thread(target=serve).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)  # exit(2): of this thread alone
"""
OWN_TABLE = """
import ctypes
CLONE_FILES = 0x400
def serve():
    if ctypes.CDLL(None).unshare(CLONE_FILES):
        os._exit(3)
    opened = socket.create_server(("127.0.0.1", 0))
    say(opened.getsockname()[1])
    wait()
    os._exit(0)
threading.Thread(target=serve).start()
"""


@pytest.mark.parametrize("source", EVERY_OWNER)
@pytest.mark.parametrize("script", [LEADERLESS, OWN_TABLE], ids=["leader-has-exited", "thread-with-a-table-of-its-own"])
def test_what_only_a_thread_holds(source, script):
    with child(script) as other:
        (row,) = take(f"port:{other.said} state:listen", source=source).sockets
        assert [(owner.pid, owner.how) for owner in row.owners] == [(other.pid, "task-fd")]


@pytest.fixture
def deleted(tmp_path):
    """A process whose executable has been deleted: its pid, the path, the port it holds."""
    need(LINUX and shutil.which("sleep") is not None, "Linux and sleep(1)")
    path = tmp_path / "gone"
    shutil.copy2(shutil.which("sleep"), path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(["sleep", "120"], executable=path, pass_fds=[listener.fileno()])
    path.unlink()
    try:
        yield process.pid, str(path), port
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("source", WORKING)
def test_a_deleted_executable(source, deleted):
    pid, path, port = deleted
    assert os.readlink(f"/proc/{pid}/exe") == path + " (deleted)"
    (row,) = take(f"port:{port} state:listen", source=source).sockets
    ((found, name, exe),) = [(owner.pid, owner.name, owner.exe) for owner in row.owners]
    assert (found, name, exe) == (pid, "gone", path)


# --- other users ---------------------------------------------------------------------------------------------------

# A listener, a connection that waits to be accepted, one in TIME_WAIT, one that stays in SYN_RECV (TCP_DEFER_ACCEPT).
OF_NOBODY = """
os.setgid(65534)
os.setuid(65534)
def connect(listener):
    client = socket.socket()
    client.connect(listener.getsockname())
    return client
one, deferred = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
first = connect(one)
server, _ = one.accept()
first.shutdown(socket.SHUT_WR)
server.close()
first.recv(1)
first.close()
second = connect(one)
deferred.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
third = connect(deferred)
say([one.getsockname()[1], deferred.getsockname()[1]])
wait()
"""


@pytest.fixture(scope="module")
def of_nobody():
    need(LINUX and ROOT, "root on Linux, to become another user")
    with child(OF_NOBODY) as other:
        yield other


@pytest.mark.parametrize("source", WORKING)
def test_a_socket_of_another_user(source, of_nobody):
    rows = take(f"port:{of_nobody.said[0]} state:listen", source=source).sockets
    assert [[owner.pid for owner in row.owners] for row in rows] == [[of_nobody.pid]]
    assert [row.owners[0].user for row in rows] == [pwd.getpwuid(65534).pw_name]
    assert [row.uid for row in rows] == [65534 if "uid" in PROMISED[source] else None]


@pytest.mark.parametrize("source", [name for name in WORKING if "uid" in PROMISED[name]])
def test_a_uid_that_the_kernel_does_not_know_is_not_roots(source, of_nobody):
    """For a connection in TIME_WAIT or SYN_RECV the kernel reports uid 0, regardless of who made it."""
    ports = ",".join(map(str, of_nobody.said))
    rows = [*take(f"port:{ports}", source=source).sockets, *take(f"remote-port:{ports}", source=source).sockets]
    assert {"LISTEN", "ESTABLISHED", "TIME_WAIT", "SYN_RECV"} == {row.state for row in rows}
    for row in rows:
        assert row.uid == 65534 or (row.uid is None and row.inode == 0), row
