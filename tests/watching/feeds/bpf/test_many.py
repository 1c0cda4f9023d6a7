"""Many sockets in little time; nothing is missed, nothing is invented, and what does not fit is counted."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable

import pytest

from portbook.watching.feeds.base import Change, FeedSettings
from portbook.watching.feeds.bpf import FEED
from portbook.watching.feeds.bpf.record import ATTEMPT, IN_RING
from portbook.watching.feeds.bpf.subscription import Subscription
from tests.components import need

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("works")]
LIMIT_S = 30.0
# In a network namespace of its own, whose number it prints first.
ELSEWHERE = 'ip link set lo up && stat -Lc %i /proc/self/ns/net && exec "$@"'


def elsewhere(*command: str) -> list[str]:
    need(shutil.which("unshare") is not None and shutil.which("ip") is not None, "unshare and ip")
    return ["unshare", "--net", "sh", "-c", ELSEWHERE, "sh", *command]


def run_and_read(feed: Subscription, command: list[str], seen: Callable[[Change], None]) -> tuple[int, list[str]]:
    """Run a load, and read until 0.1 s after its end the ring is empty; its namespace and its lines."""
    environment = os.environ | {"VERBOSE": "1"}
    with (
        tempfile.TemporaryFile("w+") as printed,
        subprocess.Popen(command, stdout=printed, env=environment) as load,
    ):
        ended = None
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            for change in feed.read(0.05):
                seen(change)
            if ended is None and load.poll() is not None:
                ended = time.monotonic()
            if ended is not None and time.monotonic() - ended > 0.1 and feed._ring.is_empty():
                break
        assert load.wait(timeout=LIMIT_S) == 0
        printed.seek(0)
        netns, *lines, _ = printed.read().splitlines()
    return int(netns), lines


@pytest.mark.parametrize(("mode", "kind", "protocol"), [("listen", "listening", "tcp"), ("udp", "bound", "udp")])
def test_each_of_ten_thousand_sockets_of_short_lived_processes(
    feed: Subscription, socket_load: str, mode: str, kind: str, protocol: str
) -> None:
    """Each lives for some microseconds; the processes, of a hundred sockets each, for a millisecond."""
    changes: list[Change] = []
    netns, lines = run_and_read(feed, elsewhere(socket_load, mode, "10000", "0", "100"), changes.append)
    expected = Counter((int(pid), int(port)) for pid, port in map(str.split, lines))
    assert expected.total() == 10_000
    pids = {pid for pid, _ in expected}
    assert len(pids) == 100
    ours = [change for change in changes if change.socket is not None and change.socket.owners[0].pid in pids]
    assert {change.socket.netns for change in ours if change.socket} == {netns}
    seen = Counter(
        (change.socket.owners[0].pid, change.socket.local_port)
        for change in ours
        if change.socket is not None and change.kind == kind
    )
    assert (seen - expected, expected - seen) == (Counter(), Counter())
    assert {change.socket.protocol for change in ours if change.socket} == {protocol}
    assert {change.socket.owners[0].name for change in ours if change.socket} == {"socket_load"}
    assert not [change for change in changes if change.kind == "lost"]
    assert not [change for change in ours if change.kind == "failed"]
    lived = Counter(change.key for change in ours if change.kind == "bound")
    ended = Counter(change.key for change in changes if change.kind == "ended")
    assert lived.total() == 10_000
    assert {key: ended[key] for key in lived} == lived


def test_twenty_thousand_connections_make_no_record(feed: Subscription, socket_load: str) -> None:
    with subprocess.Popen(elsewhere(socket_load, "connect", "20000"), stdout=subprocess.PIPE, text=True) as running:
        records = []
        while running.poll() is None:
            records += feed._ring.take()
            feed._ring.free(wake=True)
            time.sleep(0.01)
        while taken := feed._ring.take():
            records += taken
    assert running.returncode == 0
    ours = [record for record in records if record[6].startswith(b"socket_load")]
    pids = {record[8] for record in ours}
    assert len(pids) == 1
    kinds = [record[14] for record in records if record[8] in pids]
    assert len(kinds) == 4  # attempt, bind, listen and end of the listener


def test_failures_among_successes(feed: Subscription, socket_load: str) -> None:
    changes: list[Change] = []
    netns, _ = run_and_read(feed, elsewhere(socket_load, "fail", "2000", "0", "20"), changes.append)
    ours = [change for change in changes if change.socket is not None and change.socket.netns == netns]
    loads = [change for change in ours if change.socket and change.socket.owners[0].name == "socket_load"]
    assert Counter(change.kind for change in loads) == {"failed": 2000, "bound": 20}


def test_what_does_not_fit_into_the_ring_is_counted(socket_load: str) -> None:
    """A small ring, which nobody reads meanwhile."""
    size = 16 * os.sysconf("SC_PAGE_SIZE")
    feed = FEED.open(FeedSettings(ring_bytes=size))
    assert isinstance(feed, Subscription)
    try:
        room = size // IN_RING.size
        subprocess.run([socket_load, "listen", "2000", "0"], stdout=subprocess.DEVNULL, check=True)
        taken = feed._ring.take()
        assert 0 < len(taken) <= room
        assert sum(feed._ring.lost()) + len(taken) >= 4 * 2000  # other processes of this machine come on top
        assert feed._ring.lost()[ATTEMPT] >= 2000 - room
        feed._ring.free(wake=True)
        changes = feed.read(0.0)
        (lost,) = [change for change in changes if change.kind == "lost"]
        assert lost.count >= 4 * 2000 - room
        assert "attempts" in lost.reason
        # It goes on, and what was lost is not taken for failures.
        changes = []
        subprocess.run([socket_load, "listen", "5", "0"], stdout=subprocess.DEVNULL, check=True)
        until = time.monotonic() + LIMIT_S
        while sum(change.kind == "listening" for change in changes) < 5 and time.monotonic() < until:
            changes += feed.read(0.1)
        kinds = Counter(c.kind for c in changes if c.socket and c.socket.owners[0].name == "socket_load")
        assert kinds == {"bound": 5, "listening": 5}
    finally:
        feed.close()


def test_a_feed_that_is_opened_and_closed_leaves_no_descriptor(works: None) -> None:
    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(10):
        feed = FEED.open(FeedSettings(ring_bytes=1 << 16))
        feed.read(0.0)
        feed.close()
    assert descriptors() == before


def test_a_ring_of_an_impossible_size_is_an_error_and_leaves_nothing(works: None) -> None:
    from portbook.errors import SourceError

    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(SourceError, match="map"):
        FEED.open(FeedSettings(ring_bytes=12345))
    assert sorted(os.listdir("/proc/self/fd")) == before
