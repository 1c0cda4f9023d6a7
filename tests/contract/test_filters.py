"""A filtered answer equals the filtered whole answer: every source, every kind of filter, every kind of namespace.

The namespaces differ in what keeps them: a process, a name, a bind mount, a descriptor, a socket of a process that is
elsewhere (namespaces(7)). The sockets differ in who has them: a process inside, one outside, nobody, the kernel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from portbook import query, sources, take, who
from portbook.testing import child, ports_of
from tests.components import need
from tests.conftest import ROOT
from tests.netlab import Namespace

if sys.platform != "linux":
    pytest.skip("network namespaces are a part of Linux", allow_module_level=True)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]

WORKING = [name for name in sources.names() if sources.missing(name) is None]
SEES_OTHERS = [name for name in WORKING if "namespaces" in sources.load(name).capabilities]
VXLAN = 4789

# What every namespace of the zoo has: a listener with a connection that is not accepted, a datagram socket, a bound
# one, and a connection in TIME_WAIT. The process keeps the sockets and, if told, leaves the namespace.
SERVE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
there = os.open(sys.argv[1], os.O_RDONLY)
if libc.setns(there, 0x40000000):
    raise SystemExit(os.strerror(ctypes.get_errno()))
os.close(there)
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
client = socket.create_connection(("127.0.0.1", port))
old = socket.create_connection(("127.0.0.1", port))
first = listener.accept()[0]
second = listener.accept()[0]
old.shutdown(socket.SHUT_WR)
second.recv(1)
second.close()
old.recv(1)
old.close()
waiting = socket.create_connection(("127.0.0.1", port))
datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
datagrams.bind(("::", 0))
bound = socket.socket()
bound.bind(("127.0.0.1", 0))
if sys.argv[2] == "leave":
    libc.setns(home, 0x40000000)
os.close(home)
say([port, datagrams.getsockname()[1], bound.getsockname()[1]])
wait()
"""


@contextmanager
def inhabited(path):
    """A process is inside."""
    with child(SERVE, path, "stay") as one:
        yield one.said


@contextmanager
def only_sockets(path):
    """The process has left, and keeps sockets."""
    with child(SERVE, path, "leave") as one:
        yield one.said


@contextmanager
def mounted(path, directory):
    """A process that is elsewhere keeps sockets, and a file keeps the namespace."""
    place = os.path.join(directory, "a place")
    with open(place, "wb"):
        pass
    subprocess.run(["mount", "--bind", path, place], check=True, timeout=30)
    try:
        with child(SERVE, place, "leave") as one:
            yield one.said
    finally:
        subprocess.run(["umount", place], check=True, timeout=30)


@contextmanager
def only_a_descriptor(namespace):
    """Nobody has a socket in it but the kernel: this process keeps the descriptor."""
    namespace.run("ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", str(VXLAN), "dev", "lo")
    namespace.run("ip", "link", "set", "vx0", "up")
    yield [VXLAN]


class Park:
    """The namespaces of the zoo by kind, and the ports in each."""

    def __init__(self, hold, directory):
        self.netns = {}
        self.ports = {}
        for kind, make in (
            ("process", lambda n: inhabited(n.path)),
            ("sockets", lambda n: only_sockets(n.path)),
            ("mount", lambda n: mounted(n.path, directory)),
            ("descriptor", only_a_descriptor),
        ):
            namespace = Namespace()
            self.netns[kind] = os.fstat(namespace.descriptor).st_ino
            self.ports[kind] = hold.enter_context(make(namespace))
            if kind == "descriptor":
                hold.callback(os.close, namespace.descriptor)
            else:
                os.close(namespace.descriptor)  # else we would keep it


@pytest.fixture(scope="module")
def park(zoo, tmp_path_factory):
    need(ROOT, "root, to make network namespaces")
    with ExitStack() as hold:
        yield Park(hold, str(tmp_path_factory.mktemp("park")))


@pytest.fixture(scope="module")
def own(own_network):
    return os.stat("/proc/self/ns/net").st_ino


@pytest.fixture(scope="module")
def pool(park, zoo, own):
    """Terms of every field, about what is there."""
    animals = [expected for kind in zoo.values() for expected in kind]
    ports = sorted({port for kind in park.ports.values() for port in kind} | set(list(ports_of(animals))[:4]))
    inodes = [expected.inode for expected in animals if expected.inode][:3]
    return [
        *(f"port:{port}" for port in ports),
        f"port:{ports[0]}-{ports[len(ports) // 2]}",
        "port:1-65535",
        f"-port:{ports[0]}",
        *(f"remote-port:{port}" for port in ports[:3]),
        "protocol:tcp", "protocol:udp", "-protocol:udp", "family:ipv4", "family:ipv6",
        *(f"state:{s}" for s in ("listen", "bound", "listening", "established", "time_wait", "unconn", "connected")),
        "-state:time_wait", "-state:listen", "state:all",
        "address:127.0.0.1", "address:*", "address:::/0", "-address:127.0.0.0/8", "remote-address:127.0.0.1",
        "reach:loopback", "reach:any", "-reach:loopback",
        *(f"inode:{inode}" for inode in inodes),
        f"pid:{os.getpid()}", "pid:1-4294967295", f"-pid:{os.getpid()}", "process:python*", "-process:python*",
        "command:setns", "user:root", f"user:{os.getuid()}", "service:*",
    ]  # fmt: skip


def told(sockets):
    """What does not change while the tests run: how long TIME_WAIT still lasts and what a process is doing do.

    Of owners ``who`` also says where they were started.
    """
    without = {"state": None, "script": None, "directory": None, "project": None, "orphaned": None, "tracer": None}
    stable = (replace(s, ends_in_ms=None, owners=tuple(replace(o, **without) for o in s.owners)) for s in sockets)
    return sorted(stable, key=repr)


def check_filter(source, terms, netns, ours):
    """Compare what the query gives with the whole, filtered here; only in the namespaces of the zoo."""
    wanted = query.parse(" ".join((*terms, *netns)))
    whole = take(" ".join(netns), source=source).sockets
    tests = [test for test in (wanted.socket_test(), wanted.owner_test()) if test is not None]
    expected = [s for s in whole if s.netns in ours and all(test(s) for test in tests)]
    assert told(s for s in take(wanted, source=source).sockets if s.netns in ours) == told(expected)


@pytest.mark.parametrize("kind", ["process", "sockets", "mount"])
@pytest.mark.parametrize("source", SEES_OTHERS)
def test_what_has_no_file_is_seen_in_every_kind_of_namespace(source, kind, park):
    """The connection that nobody has accepted, and the one in TIME_WAIT: the namespace has to be entered.

    First of all tests, because TIME_WAIT lasts a minute.
    """
    port = park.ports[kind][0]
    rows = [
        s
        for s in take(f"netns:{park.netns[kind]} -state:listen", source=source).sockets
        if port in (s.local_port, s.remote_port)
    ]
    without = sorted((s.state, s.local_port == port) for s in rows if s.inode == 0)
    assert without == [("ESTABLISHED", True), ("TIME_WAIT", False)]


@pytest.mark.parametrize("source", WORKING)
def test_own_namespace(source, pool, own):
    @settings(max_examples=12 if source in ("lsof", "psutil") else 40)
    @given(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True))
    def check(terms):
        check_filter(source, terms, [], {own, None})

    check()


@pytest.mark.parametrize("source", SEES_OTHERS)
def test_every_namespace(source, pool, park, own):
    namespaces = ["all", *map(str, park.netns.values())]

    @settings(max_examples=40)
    @given(
        st.lists(st.sampled_from(pool), max_size=3, unique=True),
        st.sampled_from(namespaces),
    )
    def check(terms, netns):
        check_filter(source, terms, [f"netns:{netns}"], {own, *park.netns.values()})

    check()


@pytest.mark.parametrize("kind", ["process", "sockets", "mount", "descriptor"])
@pytest.mark.parametrize("source", SEES_OTHERS)
def test_who_and_a_port_show_what_the_whole_shows(source, kind, park):
    netns = park.netns[kind]
    whole = [s for s in take("netns:all", source=source).sockets if s.netns == netns]
    assert {s.local_port for s in whole} >= set(park.ports[kind])
    for port in park.ports[kind]:
        expected = told(s for s in whole if s.local_port == port)
        assert told(s for s in take(f"netns:all port:{port}", source=source).sockets if s.netns == netns) == expected
        assert told(s for s in who(port, source=source).sockets_elsewhere if s.netns == netns) == expected


def test_the_command_shows_it_too(park):
    port = park.ports["sockets"][0]
    run = subprocess.run(
        [sys.executable, "-m", "portbook", "who", str(port), "--json"], capture_output=True, timeout=60, check=False
    )
    answer = json.loads(run.stdout)
    assert run.returncode == 1
    assert park.netns["sockets"] in {s["netns"] for s in answer["sockets_elsewhere"]}


def test_the_socket_of_the_other_process_is_not_kept(park):
    """Its namespace was entered through a copy of the descriptor, which has been closed."""
    take("netns:all")
    links = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }
    rows = take(f"netns:{park.netns['sockets']}").sockets
    assert rows
    assert not links & {f"socket:[{s.inode}]" for s in rows}
