"""The feed of ends, against sockets that the tests open and close."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import time
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.components import need

if sys.platform != "linux":
    pytest.skip("the kernel announces ends on Linux only", allow_module_level=True)

from portbook.errors import SourceMissing
from portbook.netconfig import ephemeral
from portbook.sources import sockdiag
from portbook.system import netlink
from portbook.watching import feeds
from portbook.watching.feeds import destroy
from portbook.watching.feeds.base import FeedSettings
from tests import netlab
from tests.conftest import ROOT, unheld_port
from tests.watching.feeds.opened import bound, cookie_of, kinds, listening

SELDOM = FeedSettings(interval_s=3600.0)  # never while a test runs: what is reported was announced
PATIENCE_S = 10.0  # for the kernel, which announces from a work queue


@pytest.fixture
def feed():
    opened = destroy.open_feed(SELDOM)
    yield opened
    opened.close()


def read_until(feed, count, cookies):
    """What is reported of these sockets, until there is so much, or nothing more came for too long."""
    changes = []
    deadline = time.monotonic() + PATIENCE_S
    while len(changes) < count and time.monotonic() < deadline:
        changes += [change for change in feed.read(0.1) if change.key in cookies]
    return changes


def drain(feed):
    """Everything that comes until a socket that is opened and closed now has been reported."""
    with bound(socket.SOCK_DGRAM) as mark:
        cookie = cookie_of(mark)
    changes = []
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and cookie not in {change.key for change in changes}:
        changes += feed.read(0.1)
    return changes


def test_it_is_in_the_table_before_polling():
    assert [*feeds.FEEDS].index("destroy") < [*feeds.FEEDS].index("poll")
    assert feeds.load("destroy").missing() is None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", ["tcp", "bound", "udp"])
def test_the_end_of_what_was_seen_is_exact(feed, kind, address):
    if kind == "bound" and not sockdiag.shows_bound():
        pytest.skip("this kernel does not list bound TCP sockets")
    sock = {
        "tcp": lambda: listening(address),
        "bound": lambda: bound(address=address),
        "udp": lambda: bound(socket.SOCK_DGRAM, address),
    }[kind]()
    cookie = cookie_of(sock)
    assert kinds(feed._poll_now(), sock) == ["listening" if kind == "tcp" else "bound"]
    before = time.monotonic_ns()
    sock.close()
    (end,) = read_until(feed, 1, {cookie})
    assert (end.kind, end.exact) == ("ended", True)
    assert before <= end.at_ns <= time.monotonic_ns()
    assert not [change for change in feed._poll_now() if change.key == cookie]


def test_the_end_of_what_was_there_before_is_reported():
    with listening() as sock:
        feed = destroy.open_feed(SELDOM)
        cookie = cookie_of(sock)
    assert [change.kind for change in read_until(feed, 1, {cookie})] == ["ended"]
    feed.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_lived_between_two_readings_is_reported_without_a_process(feed, kind, address):
    with bound(kind, address) as sock:
        if kind == socket.SOCK_STREAM:
            sock.listen()
        cookie, port = cookie_of(sock), sock.getsockname()[1]
    changes = read_until(feed, 2, {cookie})
    assert [change.kind for change in changes] == ["bound", "ended"]
    found = changes[0].socket
    assert (found.local_address, found.local_port, found.reach) == (address, port, "loopback")
    assert (found.protocol, found.cookie) == ("tcp" if kind == socket.SOCK_STREAM else "udp", cookie)
    assert (found.uid, found.owners, changes[0].process_gone, changes[0].exact) == (None, (), True, False)
    assert changes[0].at_ns <= changes[1].at_ns


def test_a_server_at_every_address_is_told_from_a_client_by_its_port(feed):
    fixed = next(port for port in range(2000, 3000) if not ephemeral.take().has(port) and is_free(port))
    with socket.create_server(("", fixed)) as server:
        server_cookie = cookie_of(server)
    with socket.socket() as client:
        client.listen()
        client_cookie, port = cookie_of(client), client.getsockname()[1]
    assert ephemeral.take().has(port)
    changes = drain(feed)
    assert [c.kind for c in changes if c.key == server_cookie] == ["bound", "ended"]
    assert not [c for c in changes if c.key == client_cookie]


def is_free(port):
    with socket.socket() as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return False
    return True


def test_connections_and_refused_ones_are_no_changes(feed):
    cookies = set()
    with listening() as server:
        feed._poll_now()
        refused = unheld_port()
        for _ in range(50):
            with socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
                cookies |= {cookie_of(client), cookie_of(accepted)}
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", refused)) == errno.ECONNREFUSED
                cookies.add(cookie_of(client))
            with bound(socket.SOCK_DGRAM) as client:
                client.connect(("127.0.0.1", refused))
                cookies.add(cookie_of(client))
            socket.socket().close()
        changes = drain(feed)
    assert not [change for change in changes if change.key in cookies]


def test_what_polling_has_ended_is_not_reported_again(feed):
    """A listener that is shut down gives its port back, and is freed later."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert kinds(feed._poll_now(), sock) == ["listening"]
        sock.shutdown(socket.SHUT_RDWR)
        assert kinds(feed._poll_now(), sock) == ["ended"]
        cookie = cookie_of(sock)
    assert not [change for change in drain(feed) if change.key == cookie]


def test_many_ends_are_each_reported_once(feed):
    with ExitStack() as stack:
        opened = [
            stack.enter_context(bound(kind, address))
            for _ in range(60)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
            for address in ("127.0.0.1", "::1")
        ]
        for sock in opened:
            if sock.type == socket.SOCK_STREAM:
                sock.listen()
        cookies = {cookie_of(sock) for sock in opened}
        assert {change.key for change in feed._poll_now()} >= cookies
    changes = read_until(feed, len(cookies), cookies) + drain(feed)
    ended = [change.key for change in changes if change.kind == "ended" and change.key in cookies]
    assert sorted(ended) == sorted(cookies)


def test_when_announcements_are_lost_it_is_said_and_the_tables_are_read(feed):
    feed._channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least: sock(7)
    with ExitStack() as stack:
        opened = [stack.enter_context(bound(socket.SOCK_DGRAM)) for _ in range(300)]
        cookies = {cookie_of(sock) for sock in opened}
        feed._poll_now()
    changes = []
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and {c.key for c in changes if c.kind == "ended"} < cookies:
        changes += feed.read(0.1)
    assert sorted(c.key for c in changes if c.kind == "ended" and c.key in cookies) == sorted(cookies)
    (lost,) = [c for c in changes if c.kind == "lost"]  # one for all of a second
    assert "more ends than fit" in lost.reason
    assert feed._poll.read_at_ns > 0
    feed._losses_said_ns = -destroy.LOSSES_TOGETHER_NS
    feed._losses = 7
    assert [c.count for c in feed._report_losses(True)] == [8]
    assert feed._report_losses(True) == []


def test_the_descriptor_wakes_a_waiting_loop(feed):
    def is_readable(timeout_s):
        return bool(select.select([feed.fileno()], [], [], timeout_s)[0])

    drain(feed)
    with bound(socket.SOCK_DGRAM) as sock:
        cookie = cookie_of(sock)
    assert is_readable(PATIENCE_S)
    assert read_until(feed, 2, {cookie})
    quick = destroy.open_feed(FeedSettings(interval_s=0.01))
    with listening() as sock:
        deadline = time.monotonic() + PATIENCE_S
        changes = []
        while not kinds(changes, sock) and time.monotonic() < deadline:
            assert select.select([quick.fileno()], [], [], PATIENCE_S)[0]
            changes += quick.read(0)
        assert kinds(changes, sock) == ["listening"]
    quick.close()


def test_what_others_send_is_ignored(feed):
    need(ROOT, "root, to send to the groups")
    port_id = feed._channel.getsockname()[0]
    row = sockdiag.ROW.pack(2, 7, 0, socket.htons(4711), 0, b"\x7f\0\0\1".ljust(16, b"\0"), bytes(16), 0, 99, *[0] * 5)
    message = netlink.HEADER.pack(netlink.HEADER.size + len(row), 20, 0, 0, 0) + row
    with socket.socket(netlink.AF_NETLINK, socket.SOCK_RAW, netlink.SOCK_DIAG) as stranger:
        with suppress(OSError):
            stranger.sendto(message, (port_id, 0))
        with suppress(OSError):
            stranger.sendto(message, (0, 1))
    assert [end.cookie for end in destroy.parse(message, 1)] == [99]  # it would have been taken from the kernel
    assert 99 not in {change.key for change in drain(feed)}


def test_an_ordinary_user_gets_every_end(as_nobody):
    code = """
import socket, time
from portbook.watching.feeds import destroy
from portbook.watching.feeds.base import FeedSettings
feed = destroy.open_feed(FeedSettings(interval_s=3600.0))
kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
def run(count, look):
    cookies, changes = [], []
    for number in range(count):
        with socket.socket(socket.AF_INET, kinds[number % 2]) as sock:
            sock.bind(("127.0.0.1", 0))
            if not number % 2:
                sock.listen()
            cookies.append(int.from_bytes(sock.getsockopt(1, 57, 8), "little"))
            if look:
                changes += feed._poll_now()
    ended, deadline = [], time.monotonic() + 10
    while len(ended) < len(cookies) and time.monotonic() < deadline:
        changes += feed.read(0.1)
        ended = [c.key for c in changes if c.kind == "ended" and c.key in cookies]
    print(sorted(ended) == sorted(cookies), feed._reader._lookout._everywhere)
run(200, False)
run(20, True)
"""
    done = as_nobody(sys.executable, "-c", code)
    assert done.stdout.split() == ["True", "False"] * 2, done.stderr


def test_it_says_when_there_are_no_announcements(monkeypatch):
    monkeypatch.setattr(destroy, "GROUPS", {1000: "tcp"})
    with pytest.raises(SourceMissing, match=r"the ends of sockets are not announced here .*; Linux 4\.3"):
        destroy.join()
    assert "not announced here" in destroy.missing()


def test_other_namespaces_are_polled():
    netlab.needed()
    feed = destroy.open_feed(SELDOM)
    namespace = netlab.Namespace()
    try:
        namespace.start("sleep", "60")
        with namespace:
            sock = listening()
        assert kinds(feed._poll_now(), sock) == ["listening"]
        cookie = cookie_of(sock)
        sock.close()
        assert [c.kind for c in feed._poll_now() if c.key == cookie] == ["ended"]
    finally:
        namespace.close()
        feed.close()


def test_nothing_stays_open():
    before = os.listdir("/proc/self/fd")
    feed = destroy.open_feed(SELDOM)
    assert len(os.listdir("/proc/self/fd")) > len(before)
    feed.close()
    assert sorted(os.listdir("/proc/self/fd")) == sorted(before)


@given(st.binary(max_size=400), st.integers(0, 1 << 32))
def test_any_bytes_can_be_parsed(data, groups):
    for end in destroy.parse(data, groups):
        assert end.protocol in ("tcp", "udp")


@given(st.binary(min_size=72, max_size=72), st.binary(max_size=40), st.sampled_from([1, 2, 4, 8]))
def test_any_row_becomes_a_record_or_nothing(row, attributes, groups):
    row = struct.pack("=B", 2 + 8 * (row[0] & 1)) + row[1:]
    length = netlink.HEADER.size + len(row) + len(attributes)
    message = netlink.HEADER.pack(length, 20, 0, 0, 0) + row + attributes
    for end in destroy.parse(message, groups):
        with suppress(destroy.SourceGarbled):
            assert destroy.socket_of(end, 1).netns == 1
