"""The trace feed, against sockets that the tests open, and instances that they make."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from tests.components import need

if sys.platform != "linux":
    pytest.skip("tracefs is Linux", allow_module_level=True)

from portbook.errors import SourceDenied, SourceMissing
from portbook.watching import feeds
from portbook.watching.feeds import tracefs
from portbook.watching.feeds.base import FeedSettings
from portbook.watching.feeds.tracefs import instance
from tests import netlab
from tests.conftest import ROOT
from tests.watching.feeds.opened import bound, cookie_of, kinds, listening

SELDOM = FeedSettings(interval_s=3600.0)  # never while a test runs: what is reported was traced
PATIENCE_S = 10.0
SMALL = 1  # byte: the least buffer that there is


@pytest.fixture
def feed():
    needed()
    opened = tracefs.open_feed(SELDOM)
    yield opened
    opened.close()


@pytest.fixture
def instances():
    """The directory of instances, as a descriptor."""
    needed()
    root = instance.open_tracefs()
    directory = os.open("instances", os.O_RDONLY, dir_fd=root)
    os.close(root)
    yield directory
    os.close(directory)


def needed():
    need(ROOT, "root, for tracefs")
    need(tracefs.missing() is None, tracefs.missing())


def read_until(feed, enough):
    """What is reported until that is enough, or it takes too long."""
    changes = []
    deadline = time.monotonic() + PATIENCE_S
    while not enough(changes) and time.monotonic() < deadline:
        changes += feed.read(0.1)
    return changes


def of_ports(changes, ports, pid=None):
    """The changes of listeners of this process, or another one, on these ports, and their ends.

    Everything on this machine is traced, other tests included.
    """
    pid = pid or os.getpid()
    begun = [c for c in changes if c.kind == "listening" and c.socket.local_port in ports]
    begun = [c for c in begun if pid in [owner.pid for owner in c.socket.owners]]
    keys = {c.key for c in begun}
    return begun, [c for c in changes if c.kind == "ended" and c.key in keys]


def test_it_is_in_the_table_behind_bpf_and_before_the_feeds_that_poll():
    names = [*feeds.FEEDS]
    assert names.index("bpf") < names.index("tracefs") < names.index("destroy")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_a_listener_and_its_end_are_exact(feed, address):
    with bound(address=address) as sock:
        before = time.monotonic_ns()
        sock.listen()
        after = time.monotonic_ns()
        cookie = cookie_of(sock)
        changes = read_until(feed, lambda changes: kinds(changes, sock))
        (change,) = [c for c in changes if c.key == cookie]
        assert (change.kind, change.exact, change.process_gone) == ("listening", True, False)
        assert before <= change.at_ns <= after
        assert (change.socket.local_address, change.socket.local_port) == sock.getsockname()[:2]
        assert [owner.pid for owner in change.socket.owners] == [os.getpid()]
        assert change.socket.owners[0].exe
        assert change.parents[0].pid == os.getppid()
        assert (change.socket.cookie, change.socket.netns) == (cookie, os.stat("/proc/self/ns/net").st_ino)
        before = time.monotonic_ns()
    after = time.monotonic_ns()
    (end,) = [c for c in read_until(feed, lambda cs: any(c.key == cookie for c in cs)) if c.key == cookie]
    assert (end.kind, end.exact) == ("ended", True)
    assert before <= end.at_ns <= after


def test_the_end_of_a_listener_that_was_there_before_is_exact():
    needed()
    with listening() as sock:
        cookie = cookie_of(sock)
        feed = tracefs.open_feed(SELDOM)
    changes = read_until(feed, lambda changes: any(c.key == cookie for c in changes))
    feed.close()
    assert [(c.kind, c.exact) for c in changes if c.key == cookie] == [("ended", True)]


def test_listeners_of_microseconds_are_all_reported_with_the_process(feed):
    ports = []
    for number in range(500):
        with listening(("127.0.0.1", "::1")[number % 2]) as sock:
            ports.append(sock.getsockname()[1])
    changes = read_until(feed, lambda changes: len(of_ports(changes, set(ports))[1]) >= 500)
    begun, ended = of_ports(changes, set(ports))
    assert sorted(c.socket.local_port for c in begun) == sorted(ports)
    assert sorted(map(str, (c.key for c in begun))) == sorted(map(str, (c.key for c in ended)))
    assert all(c.exact and not c.process_gone for c in begun)


def test_a_short_lived_process_with_a_hostile_name(feed):
    """Its name has line ends and what looks like another event: the pages contain no names."""
    code = (
        "import socket\n"
        "open('/proc/self/comm', 'wb').write(b'x]\\n-1 [0] 0.1: ')\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        port = int(child.stdout.readline())
    changes = read_until(feed, lambda changes: of_ports(changes, {port}, child.pid)[1])
    begun, ended = of_ports(changes, {port}, child.pid)
    assert [(c.kind, c.socket.owners[0].pid) for c in begun] == [("listening", child.pid)]
    assert [c.kind for c in ended] == ["ended"]


def test_a_listener_of_a_thread_has_its_process(feed):
    ended = threading.Event()
    opened = []

    def work():
        with listening() as sock:
            opened.append(sock.getsockname()[1])
        ended.wait(PATIENCE_S)

    thread = threading.Thread(target=work)
    thread.start()
    changes = read_until(feed, lambda changes: opened and of_ports(changes, opened)[1])
    ended.set()
    thread.join()
    assert [c.process_gone for c in of_ports(changes, opened)[0]] == [False]


def test_connections_are_not_traced(feed):
    with listening() as server:
        cookie = cookie_of(server)
        read_until(feed, lambda changes: kinds(changes, server))
        for _ in range(100):
            with socket.create_connection(server.getsockname()), server.accept()[0]:
                pass
        place = (threading.get_native_id(), server.getsockname()[1])
        assert not [turn for turn in feed._drain() if (turn.tid, turn.port) == place]
    changes = read_until(feed, lambda changes: any(c.key == cookie for c in changes))
    assert [c.kind for c in changes if c.key == cookie] == ["ended"]


def test_a_port_that_the_kernel_chooses_while_it_begins_to_listen(feed):
    with socket.socket() as sock:
        sock.listen()
        cookie, port = cookie_of(sock), sock.getsockname()[1]
        changes = read_until(feed, lambda changes: kinds(changes, sock))
        (change,) = [c for c in changes if c.key == cookie]
        assert [owner.pid for owner in change.socket.owners] == [os.getpid()]
    changes = read_until(feed, lambda changes: any(c.key == cookie for c in changes))
    assert [(c.kind, c.exact) for c in changes if c.key == cookie] == [("ended", True)]
    with socket.socket() as sock:
        sock.listen()
        port = sock.getsockname()[1]
    assert [c.exact for c in of_ports(read_until(feed, lambda cs: of_ports(cs, {port})[1]), {port})[0]] == [True]


def test_several_processes_that_share_a_port_are_told_apart(feed):
    code = (
        "import socket, sys, os, signal\n"
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()\n"
        "print(int.from_bytes(s.getsockopt(1, 57, 8), 'little'), flush=True); signal.pause()\n"
    )
    with ExitStack() as stack, socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        workers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code, str(port)], stdout=subprocess.PIPE, text=True)
            )
            for _ in range(3)
        ]
        cookies = {int(worker.stdout.readline()): worker for worker in workers}
        changes = read_until(feed, lambda changes: {c.key for c in changes} >= {*cookies})
        pids = {c.key: [owner.pid for owner in c.socket.owners] for c in changes if c.key in cookies}
        assert pids == {cookie: [worker.pid] for cookie, worker in cookies.items()}
        for cookie, worker in list(cookies.items())[::-1]:
            worker.kill()
            worker.wait()
            changes = read_until(feed, lambda cs: any(c.kind == "ended" and c.key in cookies for c in cs))
            assert [(c.key, c.exact) for c in changes if c.key in cookies] == [(cookie, True)]


def test_udp_and_bound_sockets_are_polled():
    needed()
    feed = tracefs.open_feed(FeedSettings(interval_s=0.02))
    with bound(socket.SOCK_DGRAM) as udp:
        changes = read_until(feed, lambda changes: kinds(changes, udp))
        assert [(c.kind, c.exact) for c in changes if c.key == cookie_of(udp)] == [("bound", False)]
        cookie = cookie_of(udp)
    changes = read_until(feed, lambda changes: any(c.key == cookie for c in changes))
    assert [c.kind for c in changes if c.key == cookie] == ["ended"]
    feed.close()


def test_other_namespaces(feed):
    netlab.needed()
    namespace = netlab.Namespace()
    try:
        netns = os.fstat(namespace.descriptor).st_ino
        code = (
            "import socket\n"
            "s = socket.create_server(('127.0.0.1', 4567)); print(int.from_bytes(s.getsockopt(1, 57, 8), 'little'))\n"
            "import sys; sys.stdout.flush(); input(); s.close()\n"
            "with socket.create_server(('127.0.0.1', 4568)): pass\n"
            "input()\n"
        )
        with namespace:
            child = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        with child:
            cookie = int(child.stdout.readline())
            changes = read_until(feed, lambda changes: any(c.key == cookie for c in changes))
            (change,) = [c for c in changes if c.key == cookie]
            assert (change.socket.netns, change.socket.owners[0].pid, change.exact) == (netns, child.pid, True)
            child.stdin.write("\n")
            child.stdin.flush()
            changes = read_until(feed, lambda changes: of_ports(changes, {4568}, child.pid)[1])
            assert [(c.kind, c.exact) for c in changes if c.key == cookie] == [("ended", True)]
            assert [c.socket.netns for c in of_ports(changes, {4568}, child.pid)[0]] == [netns]
            child.kill()
    finally:
        namespace.close()


def test_what_the_buffer_could_not_hold_is_counted():
    needed()
    feed = tracefs.open_feed(FeedSettings(interval_s=3600.0, ring_bytes=SMALL))
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        ports = []
        for _ in range(2000):
            with listening() as sock:
                ports.append(sock.getsockname()[1])
        turns = feed._drain()
    finally:
        os.sched_setaffinity(0, processors)
    (lost,) = [c for c in feed._count_losses() if c.kind == "lost"]
    assert "the trace buffer was full" in lost.reason
    seen = len([turn for turn in turns if turn.tid == threading.get_native_id()])
    assert 0 < seen < 4000
    assert lost.count + len(turns) >= 4000
    assert feed._due_ns == 0  # what the tables show is read at once
    feed.close()


# --- instances -----------------------------------------------------------------------------------------------------


def test_it_is_removed_when_it_is_closed(instances):
    feed = tracefs.open_feed(SELDOM)
    name = feed._instance.name
    second = tracefs.open_feed(SELDOM)
    assert {name, second._instance.name} <= set(os.listdir(instances))
    feed.close()
    second.close()
    assert not {name, second._instance.name} & set(os.listdir(instances))


def test_no_descriptor_stays_open(feed):
    before = len(os.listdir("/proc/self/fd"))
    tracefs.open_feed(SELDOM).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_killed_process_left_is_removed_and_nothing_else(instances):
    code = (
        "import signal\n"
        "from portbook.watching.feeds import tracefs\n"
        "from portbook.watching.feeds.base import FeedSettings\n"
        "feed = tracefs.open_feed(FeedSettings())\n"
        "print(feed._instance.name, flush=True); signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        left = child.stdout.readline().strip()
        tracefs.open_feed(SELDOM).close()
        assert left in os.listdir(instances)  # its process lives
        child.send_signal(signal.SIGKILL)
    similar = ["portbook", "portbook-web", f"portbook-{child.pid}", f"{left}x", f"x{left}", f"portbook-{child.pid}-1-x"]
    pid, start = os.getpid(), instance.start_of(os.getpid())
    reused = f"portbook-{pid}-{start - 1}-1"  # of a process that had our pid before
    try:
        for name in (*similar, reused):
            os.mkdir(name, dir_fd=instances)
        assert left in os.listdir(instances)
        tracefs.open_feed(SELDOM).close()
        names = os.listdir(instances)
        assert {*similar} <= {*names}
        assert not {left, reused} & {*names}
    finally:
        for name in (*similar, reused, left):
            with suppress(OSError):
                os.rmdir(name, dir_fd=instances)


def test_one_that_is_in_use_cannot_be_removed(instances):
    """Another watch may not see our process, from another pid namespace."""
    feed = tracefs.open_feed(SELDOM)
    with pytest.raises(OSError, match="busy"):
        os.rmdir(feed._instance.name, dir_fd=instances)
    feed.close()


def test_names_of_instances_are_checked_wholly():
    stale = f"portbook-1-{(instance.start_of(1) or 0) + 1}-1"
    names = ["portbook-0-1-1", "portbook-1-1", "portbook-01-1-1", f"{stale}\n", "portbook-1-1-1/.."]
    fullwidth = "portbook-1\uff11-1-1"
    assert [*instance._stale([*names, fullwidth, stale])] == [stale]


def test_tracefs_is_mounted_for_us_alone():
    needed()
    with open("/proc/self/mountinfo", "rb") as file:
        before = file.read()
    root = instance._mount_privately()
    assert "instances" in os.listdir(root)
    os.close(root)
    with open("/proc/self/mountinfo", "rb") as file:
        assert file.read() == before


def test_it_says_why_it_does_not_work(as_nobody, monkeypatch):
    done = as_nobody(sys.executable, "-c", "from portbook.watching.feeds import tracefs; print(tracefs.missing())")
    assert done.stdout == "tracefs: it is for root only; run with sudo\n"
    needed()
    monkeypatch.setattr(instance, "EVENT", "events/sock/nothing")
    assert tracefs.missing() == (
        "tracefs: the kernel has no trace event sock/inet_sock_set_state; Linux 4.16 and later have it"
    )
    with pytest.raises(SourceMissing, match="no trace event"):
        tracefs.open_feed(SELDOM)
    monkeypatch.setattr("portbook.system.privilege.has", lambda _: False)
    with pytest.raises(SourceDenied):
        instance._mount_privately()


def test_tracefs_that_may_not_be_written():
    """A hardened unit has it read-only."""
    needed()
    code = "from portbook.watching.feeds import tracefs; print(tracefs.missing())"
    mount = "mount -t tracefs tracefs /sys/kernel/tracing && mount -o remount,bind,ro /sys/kernel/tracing"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == (
        "tracefs: /sys/kernel/tracing may not be written here; "
        "in a unit of systemd, ReadWritePaths=/sys/kernel/tracing makes it writable\n"
    ), done.stderr


def test_the_descriptor_wakes_a_waiting_loop(feed):
    import select

    feed.read(0)
    with listening() as sock:
        deadline = time.monotonic() + PATIENCE_S
        changes = []
        while not kinds(changes, sock) and time.monotonic() < deadline:
            assert select.select([feed.fileno()], [], [], PATIENCE_S)[0]
            changes += feed.read(0)
        assert kinds(changes, sock) == ["listening"]
