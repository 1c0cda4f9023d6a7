"""The polling feed, against sockets that the tests open: what it reports is compared with what they did."""

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

from portbook import sources
from portbook.errors import SourceDenied, SourceGarbled, UsageError
from portbook.records import Owner, Socket
from portbook.sources import sockdiag
from portbook.watching import feeds
from portbook.watching.feeds import completion, poll, rows
from portbook.watching.feeds.base import FeedSettings, key_of
from tests import netlab
from tests.conftest import unheld_port
from tests.watching.feeds.opened import bound, cookie_of, kinds, listening, of_port

LINUX = sys.platform == "linux"
on_linux = pytest.mark.skipif(not LINUX, reason="sock_diag is Linux")
NOW = FeedSettings(interval_s=0.01)


@pytest.fixture
def feed():
    opened = poll.open_poll(NOW)
    yield opened
    opened.close()


def test_the_table_has_it_last_and_it_works_here():
    assert [*feeds.FEEDS][-1] == "poll"
    kind = feeds.load("poll")
    assert kind.missing() is None
    assert (kind.name, kind.sees_udp, kind.sees_failed) == ("poll", True, False)
    text = "what begins and ends between two readings: at 1 s, a listener of 200 ms is missed 4 times in 5"
    assert kind.all_missed(1.0) == (text, *kind.misses)


@pytest.mark.parametrize(
    ("interval_s", "lifetime_s", "expected"),
    [
        (1.0, 0.2, "at 1 s, a listener of 200 ms is missed 4 times in 5"),
        (5.0, None, "at 5 s, a listener of 1 s is missed 4 times in 5"),
        (0.25, None, "at 250 ms, a listener of 50 ms is missed 4 times in 5"),
        (10.0, 9.0, "at 10 s, a listener of 9 s is missed 1 times in 10"),
        (1.0, 2.0, "at 1 s, a listener of 2 s is never missed"),
    ],
)
def test_what_an_interval_misses_is_computed(interval_s, lifetime_s, expected):
    assert poll.blind_spot(interval_s, lifetime_s) == expected


@on_linux
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_listener_comes_and_goes(feed, address):
    with listening(address) as sock:
        port, cookie = sock.getsockname()[1], cookie_of(sock)
        (change,) = of_port(feed.read_now(), port)
        assert (change.kind, change.key, change.exact) == ("listening", cookie, False)
        assert key_of(change.socket) == cookie
        assert [owner.pid for owner in change.socket.owners] == [os.getpid()]
        assert change.parents[0].pid == os.getppid()
        assert not change.process_gone
        assert abs(change.at_ns - time.monotonic_ns()) < 60e9
        assert not of_port(feed.read_now(), port)
    assert [change.kind for change in feed.read_now() if change.key == cookie] == ["ended"]
    assert not [change for change in feed.read_now() if change.key == cookie]


@on_linux
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_udp_socket_that_connects_waits_for_nobody_any_more(feed, address):
    with bound(socket.SOCK_DGRAM, address) as sock, bound(socket.SOCK_DGRAM, address) as peer:
        assert kinds(feed.read_now(), sock) == ["bound"]
        sock.connect(peer.getsockname())
        assert kinds(feed.read_now(), sock) == ["connected"]
        cookie = cookie_of(sock)
    changes = [change for change in feed.read_now() if change.key == cookie]
    assert not changes


@on_linux
def test_a_bound_socket_listens_or_becomes_a_client(feed):
    if not sockdiag.shows_bound():
        pytest.skip("this kernel does not list bound TCP sockets")
    with socket.socket() as server, bound() as client:
        server.bind(("127.0.0.1", unheld_port()))  # a port of its own choice stays bound: SOCK_BINDPORT_LOCK
        changes = feed.read_now()
        assert kinds(changes, server, client) == ["bound", "bound"]
        assert [change.socket.state for change in changes if change.key == cookie_of(server)] == ["BOUND"]
        server.listen()
        client.connect(server.getsockname())
        changes = feed.read_now()
        assert (kinds(changes, server), kinds(changes, client)) == (["listening"], ["connected"])
        server.shutdown(socket.SHUT_RDWR)
        assert kinds(feed.read_now(), server) == ["bound"]


@on_linux
def test_a_socket_that_moves_to_another_port_is_seen_there(feed):
    """A port that the kernel chose is given back by shutdown, and the same socket can listen elsewhere."""
    with socket.socket() as sock, bound(address="127.0.0.2") as other:
        sock.listen()
        (first,) = [change for change in feed.read_now() if change.key == cookie_of(sock)]
        sock.shutdown(socket.SHUT_RDWR)
        port = other.getsockname()[1]
        sock.bind(("127.0.0.3", port))
        sock.listen()
        (second,) = [change for change in feed.read_now() if change.key == cookie_of(sock)]
        assert (second.kind, second.socket.local_port) == ("listening", port)
        assert first.socket.local_port != port


@on_linux
def test_a_look_at_some_ports_leaves_the_others_alone():
    lookout = rows.Lookout(everywhere=False)
    with listening() as first, listening() as second, bound(socket.SOCK_DGRAM) as udp:
        lookout.look()
        ports = {first.getsockname()[1]}
        with socket.create_server(("127.0.0.2", first.getsockname()[1])) as third:
            found = lookout.look(tcp_ports=ports)
            assert cookie_of(third) in {s.cookie for s in found.appeared}
            cookies = [cookie_of(sock) for sock in (first, second, third)]
        second.close()
        assert cookies[2] in lookout.look(tcp_ports=ports).ended
        found = lookout.look()
        assert cookies[1] in found.ended
        assert cookies[2] not in found.ended
        assert not {cookies[0], cookie_of(udp)} & {*found.ended, *(s.cookie for s in found.appeared)}


@on_linux
def test_a_look_at_some_ports_knows_a_socket_that_has_moved_there():
    lookout = rows.Lookout(everywhere=False)
    with socket.socket() as sock, bound(address="127.0.0.2") as other:
        sock.listen()
        lookout.look()
        port = other.getsockname()[1]
        sock.shutdown(socket.SHUT_RDWR)
        sock.bind(("127.0.0.3", port))
        sock.listen()
        assert cookie_of(sock) in {s.cookie for s in lookout.look(tcp_ports={port}).appeared}
        found = lookout.look()
        assert cookie_of(sock) not in {*found.ended, *(s.cookie for s in found.appeared)}


@on_linux
def test_what_ended_is_reported_before_what_came(feed):
    with listening() as first:
        feed.read_now()
        port, cookie = first.getsockname()[1], cookie_of(first)
    with socket.create_server(("127.0.0.1", port)) as second:
        changes = [change for change in feed.read_now() if change.key in (cookie, cookie_of(second))]
    assert [(change.kind, change.key == cookie) for change in changes] == [("ended", True), ("listening", False)]


@on_linux
def test_many_of_both_families_are_each_reported_once(feed):
    with ExitStack() as stack:
        opened = [
            stack.enter_context(bound(kind, address))
            for _ in range(150)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
            for address in ("127.0.0.1", "::1")
        ]
        for sock in opened:
            if sock.type == socket.SOCK_STREAM:
                sock.listen()
        cookies = [cookie_of(sock) for sock in opened]
        changes = [change for change in feed.read_now() if change.key in set(cookies)]
        assert sorted(change.key for change in changes) == sorted(cookies)
        assert all([owner.pid for owner in change.socket.owners] == [os.getpid()] for change in changes)
        opened[7].close()
        assert [change.key for change in feed.read_now() if change.key in set(cookies)] == [cookies[7]]
    ended = {change.key for change in feed.read_now() if change.kind == "ended"}
    assert ended >= {*cookies} - {cookies[7]}


@on_linux
def test_connections_are_no_changes(feed):
    with listening() as server:
        feed.read_now()
        port = server.getsockname()[1]
        for _ in range(8):
            with socket.create_connection(server.getsockname()), server.accept()[0]:
                assert not of_port(feed.read_now(), port)


@on_linux
def test_nothing_that_stays_is_said_to_have_ended_while_others_come_and_go(feed):
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            with suppress(OSError), ExitStack() as stack:
                for _ in range(40):
                    stack.enter_context(listening())
                    stack.enter_context(bound(socket.SOCK_DGRAM))

    with ExitStack() as stack:
        staying = [stack.enter_context(listening()) for _ in range(400)]
        staying += [stack.enter_context(bound(socket.SOCK_DGRAM)) for _ in range(400)]
        cookies = {cookie_of(sock) for sock in staying}
        assert {change.key for change in feed.read_now()} >= cookies
        thread = threading.Thread(target=churn)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        lookout = feed._reader._lookout
        found = [lookout.look() for _ in range(25)]
    assert not cookies & {key for each in found for key in (*each.ended, *each.connected)}
    assert not cookies & {s.cookie for each in found for s in each.appeared}
    assert any(each.appeared for each in found)


@on_linux
def test_it_waits_for_the_next_reading_and_no_longer_than_it_may(feed):
    slow = poll.open_poll(FeedSettings(interval_s=3600))
    began = time.monotonic()
    with listening():
        assert slow.read(0.02) == []
    assert 0.02 <= time.monotonic() - began < 30
    assert slow.fileno() == -1
    with listening() as sock:
        for _ in range(1000):
            changes = feed.read(10)
            if changes:
                break
        assert kinds(changes, sock) == ["listening"]


@on_linux
def test_the_sockets_of_a_process_that_is_killed_have_ended():
    feed = poll.open_poll(NOW)
    opened = "import socket, signal; s = socket.create_server(('127.0.0.1', 0)); "
    waits = "print(s.getsockname()[1], flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", opened + waits], stdout=subprocess.PIPE, text=True) as child:
        port = int(child.stdout.readline())
        (change,) = of_port(feed.read_now(), port)
        assert [owner.pid for owner in change.socket.owners] == [child.pid]
        assert change.parents[0].pid == os.getpid()
        child.send_signal(signal.SIGKILL)
        child.wait()
    ended = []
    for _ in range(100):
        ended += [each.kind for each in feed.read_now() if each.key == change.key]
        if ended:
            break
    assert ended == ["ended"]


@on_linux
def test_a_socket_that_vanishes_while_its_owner_is_looked_for_is_reported():
    feed = poll.open_poll(NOW)
    sock = listening()
    found = feed._reader._lookout.look()
    cookie = cookie_of(sock)
    sock.close()
    (change,) = [c for c in completion.complete(found.appeared, 5) if c.key == cookie]
    assert (change.kind, change.process_gone, change.socket.owners, change.at_ns) == ("listening", True, (), 5)


# --- other namespaces ----------------------------------------------------------------------------------------------


@on_linux
def test_other_namespaces_are_read_as_root():
    netlab.needed()
    with ExitStack() as stack:
        namespace = stack.enter_context(open_namespace())
        feed = poll.open_poll(NOW)
        with namespace:
            sock = listening()
            udp = bound(socket.SOCK_DGRAM)
            idle = bound()
        stack.callback(udp.close)
        changes = feed.read_now()
        assert (kinds(changes, sock), kinds(changes, udp)) == (["listening"], ["bound"])
        assert kinds(changes, idle) == (["bound"] if sockdiag.shows_bound() else [])
        (change,) = [each for each in changes if each.key == cookie_of(sock)]
        assert change.socket.netns == os.fstat(namespace.descriptor).st_ino
        cookie = cookie_of(sock)
        sock.close()
        idle.close()
        assert "ended" in [each.kind for each in feed.read_now() if each.key == cookie]


@on_linux
def test_sockets_of_a_namespace_without_a_process_are_followed():
    """A descriptor keeps the namespace: ours."""
    netlab.needed()
    namespace = netlab.Namespace()
    try:
        inside = namespace.start("sleep", "60")
        with namespace:
            sock, other = listening(), listening()
        feed = poll.open_poll(NOW)
        inside.kill()
        inside.wait()
        for _ in range(3):
            assert not kinds(feed.read_now(), sock, other)
        cookie = cookie_of(sock)
        sock.close()
        assert [change.kind for change in feed.read_now() if change.key == cookie] == ["ended"]
        cookie = cookie_of(other)
        other.close()
    finally:
        namespace.close()
    ended = []
    for _ in range(100):
        ended += [change.kind for change in feed.read_now() if change.key == cookie]
        if ended:
            break
    assert ended == ["ended"]


@on_linux
def test_a_socket_that_replaces_another_one_elsewhere_is_seen_after_a_while(monkeypatch):
    netlab.needed()
    with open_namespace() as namespace:
        with namespace:
            first = listening()
        feed = poll.open_poll(NOW)
        cookie = cookie_of(first)
        first.close()
        with namespace:
            second = listening()
        with second:
            changes = feed.read_now()  # mostly nothing: the kernel counts as many sockets as before
            monkeypatch.setattr(rows, "WHOLE_EVERY_S", 0.0)
            changes += feed.read_now()
            assert kinds(changes, second) == ["listening"]
            assert [change.kind for change in changes if change.key == cookie] == ["ended"]


@on_linux
def test_a_namespace_that_ends_takes_its_sockets_along():
    netlab.needed()
    feed = poll.open_poll(NOW)
    code = "import socket, signal; s = socket.create_server(('127.0.0.1', 4242)); print(1, flush=True); signal.pause()"
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", f'ip link set lo up; exec "{sys.executable}" -c "{code}"'],
        stdout=subprocess.PIPE,
    ) as child:
        child.stdout.readline()
        changes = of_port(feed.read_now(), 4242)
        mine = [c for c in changes if c.socket.netns == os.stat(f"/proc/{child.pid}/ns/net").st_ino]
        assert [[owner.pid for owner in c.socket.owners] for c in mine] == [[child.pid]]
        child.kill()
        child.wait()
    ended = []
    for _ in range(100):
        ended += [each.kind for each in feed.read_now() if each.key == mine[0].key]
        if ended:
            break
    assert ended == ["ended"]


def open_namespace():
    from contextlib import contextmanager

    @contextmanager
    def opened():
        namespace = netlab.Namespace()
        # Something has to be in it to be found: a process.
        child = namespace.start("sleep", "60")
        try:
            yield namespace
        finally:
            child.kill()
            namespace.close()

    return opened()


@on_linux
def test_an_ordinary_user_sees_the_sockets_of_all(as_nobody):
    with listening() as sock:
        code = f"""
import socket, os, sys
from portbook.watching.feeds import completion, poll, rows
from portbook.watching.feeds.base import FeedSettings
feed = poll.open_poll(FeedSettings())
own = socket.create_server(("127.0.0.1", 0))
changes = [c for c in feed.read_now() if c.socket and c.socket.local_port == own.getsockname()[1]]
print([(c.kind, [o.pid == os.getpid() for o in c.socket.owners]) for c in changes])
own.close()
print([c.kind for c in feed.read_now() if c.key == changes[0].key])
print(any(row & 0xFFFF == socket.htons({sock.getsockname()[1]})
          for rows in feed._reader._lookout._places[feed._reader._lookout._own].rows.values() for row in rows))
"""
        done = as_nobody(sys.executable, "-c", code)
    assert done.stdout.splitlines() == ["[('listening', [True])]", "['ended']", "True"], done.stderr


# --- sources -------------------------------------------------------------------------------------------------------


def usable_sources():
    return [name for name in sources.names() if sources.missing(name) is None]


@pytest.mark.parametrize("name", sources.names())
def test_each_source_can_be_polled(name):
    if name not in usable_sources():
        pytest.skip(f"{name}: {sources.missing(name)}")
    feed = poll.open_poll(FeedSettings(source=name))
    with listening() as sock:
        port = sock.getsockname()[1]
        (change,) = of_port(feed.read_now(), port)
        assert change.kind == "listening"
        assert [owner.pid for owner in change.socket.owners] == [os.getpid()]
        assert not of_port(feed.read_now(), port)
    assert [each.kind for each in feed.read_now() if each.key == change.key] == ["ended"]


def test_a_source_is_for_the_feed_that_polls():
    assert feeds.for_source(None, None) is None
    assert feeds.for_source("bpf", None) == "bpf"
    assert feeds.for_source(None, "procfs") == feeds.for_source("poll", "procfs") == "poll"
    with pytest.raises(UsageError, match="the feed bpf does not read a data source; name the feed poll, or no source"):
        feeds.for_source("bpf", "procfs")


def test_a_source_that_there_is_not_is_a_wrong_usage():
    with pytest.raises(UsageError, match="unknown source 'nonsense'"):
        poll.open_poll(FeedSettings(source="nonsense"))


class Failing:
    """A reader that fails when it is told to."""

    all_known = False

    def __init__(self):
        self.error = None
        self.problems = ()

    def compare(self):
        if self.error is not None:
            raise self.error
        return poll.Comparison([], [], [], self.problems)


def test_a_source_that_fails_is_said_once_and_then_reminded(monkeypatch):
    reader = Failing()
    feed = poll.Poll(reader, 0.0)
    reader.error = SourceGarbled("sock_diag: nonsense")
    first = feed.read_now()
    assert [(c.kind, c.count, c.reason) for c in first] == [("lost", 1, "sock_diag: nonsense")]
    assert [feed.read_now() for _ in range(10)] == [[]] * 10
    monkeypatch.setattr(poll, "REMIND_S", 0.0)
    assert [(c.kind, c.count) for c in feed.read_now()] == [("lost", 11)]
    monkeypatch.setattr(poll, "REMIND_S", 3600.0)
    reader.error = SourceDenied("refused")
    assert [c.reason for c in feed.read_now()] == ["refused"]
    reader.error = None
    assert feed.read_now() == []
    reader.error = SourceDenied("refused")
    assert [c.reason for c in feed.read_now()] == ["refused"]
    reader.error, reader.problems = None, ("a namespace",)
    assert [c.reason for c in feed.read_now()] == ["a namespace"]
    assert feed.read_now() == []


def test_a_first_reading_that_fails_is_an_error():
    reader = Failing()
    reader.error = SourceDenied("refused")
    with pytest.raises(SourceDenied):
        poll.Poll(reader, 1.0)


def test_what_happened_while_a_source_failed_is_compared_afterwards(monkeypatch):
    """One row went and one came. One has another process: where nothing else tells them apart, another socket."""

    def row(port, pid=7):
        return Socket("tcp", "ipv4", "127.0.0.1", port, state="LISTEN", owners=(Owner(pid),))

    answers = [[row(1), row(2)], SourceGarbled("half a table"), [row(2), row(3), row(2, pid=9)]]

    def select(*_, **__):
        answer = answers.pop(0)
        if isinstance(answer, SourceGarbled):
            raise answer
        return "psutil", answer, []

    monkeypatch.setattr("portbook.inventory.select", select)
    feed = poll.Poll(poll.RecordReader(None), 0.0)
    assert [change.kind for change in feed.read_now()] == ["lost"]
    changes = feed.read_now()
    assert [change.kind for change in changes] == ["ended", "listening", "listening"]
    assert [change.socket.local_port for change in changes[1:]] == [3, 2]
