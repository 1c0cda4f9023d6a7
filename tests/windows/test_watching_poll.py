"""The polling feed on Windows: the tables of iphlpapi, psutil, and netstat as it is replayed."""

from __future__ import annotations

import os
import socket
import time

import pytest

from portbook.errors import SourceError
from portbook.watching import feeds
from portbook.watching.feeds import poll
from portbook.watching.feeds.base import FeedSettings, key_of
from tests.sources.test_netstat import DATA
from tests.windows.conftest import WINE, lacks
from tests.windows.test_iphlpapi import touch
from tests.windows.test_netstat import replay, replayed

__all__ = ["replay"]  # a fixture

SOURCES = pytest.mark.parametrize("source", [None, "iphlpapi", "psutil"])
NOW = 0.01  # interval, in seconds


def opened(kind, address="127.0.0.1"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    each = socket.socket(family, kind)
    each.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        each.listen()
    return touch(each)


def of_port(changes, each):
    port = each.getsockname()[1]
    return [change for change in changes if change.socket is not None and change.socket.local_port == port]


def test_it_is_the_feed_of_windows_and_the_others_say_that_they_are_not():
    kind, skipped = feeds.best()
    assert kind.name == "poll"
    assert [*skipped] == [f"{name}: only on Linux" for name in feeds.FEEDS if name != "poll"]


@SOURCES
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_socket_comes_and_goes(source, kind):
    feed = poll.open_poll(FeedSettings(NOW, source))
    with opened(kind) as each:
        (change,) = of_port(feed.read_now(), each)
        assert change.kind == ("listening" if kind == socket.SOCK_STREAM else "bound")
        assert (change.socket.local_address, change.socket.reach, change.exact) == ("127.0.0.1", "loopback", False)
        (owner,) = change.socket.owners
        assert (owner.pid, owner.name) == (os.getpid(), "python.exe")
        assert not change.process_gone
        assert change.key == key_of(change.socket)
        assert not of_port(feed.read_now(), each)
    assert [each.kind for each in feed.read_now() if each.key == change.key] == ["ended"]
    assert not [each for each in feed.read_now() if each.key == change.key]


@SOURCES
def test_ipv6(source):
    feed = poll.open_poll(FeedSettings(NOW, source))
    with opened(socket.SOCK_STREAM, "::1") as each:
        (change,) = of_port(feed.read_now(), each)
        assert (change.kind, change.socket.family, change.socket.local_address) == ("listening", "ipv6", "::1")
    assert [each.kind for each in feed.read_now() if each.key == change.key] == ["ended"]


@lacks("has no InternalGetBoundTcpEndpointTable", until=10)
def test_a_bound_socket_that_begins_to_listen():
    feed = poll.open_poll(FeedSettings(NOW))
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        touch(each)
        assert [change.kind for change in of_port(feed.read_now(), each)] == ["bound"]
        each.listen()
        assert [change.kind for change in of_port(feed.read_now(), each)] == ["listening"]


def test_one_of_two_sockets_at_different_addresses_ends():
    feed = poll.open_poll(FeedSettings(NOW))
    with opened(socket.SOCK_STREAM) as first:
        with socket.socket() as second:
            second.bind(("127.0.0.2", first.getsockname()[1]))
            second.listen()
            touch(second)
            keys = {change.socket.local_address: change.key for change in of_port(feed.read_now(), first)}
            assert keys.keys() == {"127.0.0.1", "127.0.0.2"}
        ended = [change.key for change in feed.read_now() if change.kind == "ended"]
        assert keys["127.0.0.2"] in ended
        assert keys["127.0.0.1"] not in ended


def test_connections_are_no_changes():
    feed = poll.open_poll(FeedSettings(NOW))
    with opened(socket.SOCK_STREAM) as server:
        feed.read_now()
        for _ in range(5):
            with socket.create_connection(server.getsockname()), server.accept()[0]:
                assert not of_port(feed.read_now(), server)


def test_it_waits_for_the_next_reading():
    feed = poll.open_poll(FeedSettings(3600.0))
    began = time.monotonic()
    with opened(socket.SOCK_STREAM):
        assert feed.read(0.05) == []
    assert 0.03 <= time.monotonic() - began < 60  # the clock has steps of 16 ms
    assert feed.fileno() == -1
    feed.close()


@pytest.mark.skipif(os.environ.get("PORTBOOK_REPLAY") == "1" or not WINE, reason="netstat.exe is not the one of Wine")
def test_a_source_that_does_not_work_is_an_error():
    with pytest.raises(SourceError):
        poll.open_poll(FeedSettings(NOW, "netstat"))


@replayed
def test_netstat_as_a_source(replay, tmp_path):
    text = (DATA / "english.cp437.txt").read_bytes()
    feed = poll.open_poll(FeedSettings(NOW, "netstat"))
    assert feed.read_now() == []
    changed = tmp_path / "netstat.txt"
    changed.write_bytes(text.replace(b"127.0.0.1:8080         0.0.0.0:0 ", b"127.0.0.1:8081         0.0.0.0:0 "))
    replay(netstat=changed)
    before, after = feed.read_now()
    assert (before.kind, before.key[1:4]) == ("ended", ("127.0.0.1", None, 8080))
    assert (after.kind, after.socket.local_port) == ("listening", 8081)
    assert [owner.pid for owner in after.socket.owners] == [4242]
    changed.write_bytes(b"nonsense")
    (lost,) = feed.read_now()
    assert lost.kind == "lost"
    assert feed.read_now() == []
    replay(netstat=DATA / "english.cp437.txt")
    assert [change.kind for change in feed.read_now()] == ["ended", "listening"]
