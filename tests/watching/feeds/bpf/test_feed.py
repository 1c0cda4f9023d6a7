"""The feed against sockets that the tests open."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from portbook.watching.feeds.base import Change, Feed, FeedSettings
from portbook.watching.feeds.bpf import FEED

pytestmark = [pytest.mark.root, pytest.mark.skipif(FEED.missing() is not None, reason=f"{FEED.missing()}")]
LIMIT_S = 10.0


@pytest.fixture
def feed() -> Iterator[Feed]:
    feed = FEED.open(FeedSettings())
    yield feed
    feed.close()


def changes_of(feed: Feed, port: int, kind: str) -> list[Change]:
    """The changes of the sockets with a port, until there is one of the kind."""
    keys, found = set(), []
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        for change in feed.read(0.5):
            if change.socket is not None and change.socket.local_port == port:
                keys.add(change.key)
            if change.key in keys:
                found.append(change)
        if any(change.kind == kind for change in found):
            return found
    raise AssertionError(f"no {kind}: {found}")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listener_from_bind_to_end(feed: Feed, family: int, address: str) -> None:
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
    bound, listening, ended = changes_of(feed, port, "ended")
    assert [bound.kind, listening.kind, ended.kind] == ["bound", "listening", "ended"]
    assert bound.at_ns < listening.at_ns < ended.at_ns
    found = listening.socket
    assert found is not None
    assert (found.protocol, found.state, found.local_address, found.local_port) == ("tcp", "LISTEN", address, port)
    assert found.netns == os.stat("/proc/self/ns/net").st_ino
    assert found.owners[0].pid == os.getpid()
    assert found.owners[0].exe == os.readlink("/proc/self/exe")
    assert listening.parents[0].pid == os.getppid()


def test_a_datagram_socket(feed: Feed) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", 0))
        port = server.getsockname()[1]
    bound, ended = changes_of(feed, port, "ended")
    assert (bound.kind, ended.kind) == ("bound", "ended")
    assert bound.socket is not None
    assert (bound.socket.protocol, bound.socket.state, bound.socket.v6only) == ("udp", None, False)


def test_a_listener_that_was_not_bound(feed: Feed) -> None:
    with socket.socket() as listener:
        listener.listen()
        port = listener.getsockname()[1]
    kinds = [change.kind for change in changes_of(feed, port, "ended")]
    assert kinds == ["listening", "ended"]


def test_a_failed_bind_of_a_process_that_stays(feed: Feed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder, socket.socket() as second:
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            second.bind(("127.0.0.1", port))
        *_, failed = changes_of(feed, port, "failed")
    assert failed.socket is not None
    assert failed.socket.owners[0].pid == os.getpid()
    assert failed.socket.local_address == "127.0.0.1"
