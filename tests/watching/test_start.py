"""Sockets that open and close while the watch starts: each is reported once, and its end is."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from portbook.testing import child
from portbook.watching import comparison, feeds
from portbook.watching.loop import Loop, Settings
from tests.rounds import rounds

ROUNDS = 40  # each with about ten sockets that open or close during it
CHURN = """
import random, select, time
say()
alive, log = [], []
while not select.select([sys.stdin], [], [], 0)[0]:
    kind = random.choice((socket.SOCK_STREAM, socket.SOCK_DGRAM))
    opened = socket.socket(socket.AF_INET, kind)
    cookie = int.from_bytes(opened.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)
    opened.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        opened.listen(1)
    alive.append((cookie, opened, time.monotonic_ns()))
    if len(alive) > 5:
        cookie, opened, since = alive.pop(random.randrange(len(alive)))
        before = time.monotonic_ns()
        opened.close()
        log.append((cookie, since, before, time.monotonic_ns()))
    time.sleep(random.random() * 0.001)
print(json.dumps(log), flush=True)
"""


class Round:
    """One watch, and what it reported."""

    def __init__(self, feed: str) -> None:
        kind = feeds.load(feed)
        self.began_ns = self.subscribed_ns = time.monotonic_ns()

        def look() -> comparison.SocketTables:
            self.subscribed_ns = time.monotonic_ns()
            return comparison.look(None, kind.sees_other_namespaces)

        loop = Loop(Settings(feed=feed), look=look)
        self.events = loop.start()
        self.started_ns = time.monotonic_ns()
        self.events += loop.wait(0.005)
        self.ended_ns = time.monotonic_ns()
        self.events += loop.wait(0)
        self.events += loop.stop()


@pytest.mark.root
def test_what_opens_and_closes_during_the_start_is_reported_once():
    done: list[Round] = []
    with child(CHURN) as churning:
        for _ in rounds(lambda: len(done) >= ROUNDS):
            done.append(Round("bpf"))
        churning.process.stdin.close()
        log = json.loads(churning.process.stdout.read())
    compared = Counter()
    for each in done:
        during = [row for row in log if row[1] < each.ended_ns and row[3] > each.began_ns]
        compare(each, during, compared)
    assert compared["opens"] > 2 * ROUNDS
    assert compared["ends"] > ROUNDS


def compare(each: Round, log, compared):
    assert [event.reason for event in each.events if event.event in ("gap", "blind")] == []
    opens = Counter(e.cookie for e in each.events if e.event in ("opened", "present", "restarted"))
    ends = Counter(e.cookie for e in each.events if e.event in ("closed", "short_lived"))
    followed = {e.identity for e in each.events if e.event == "restarted"}
    identities = {e.cookie: e.identity for e in each.events}
    for cookie, opened_ns, closing_ns, closed_ns in log:
        is_open_after = closing_ns > each.started_ns
        opened_after = opened_ns > each.subscribed_ns + 1_000_000
        if is_open_after or opened_after:
            compared["opens"] += 1
            assert opens[cookie] == 1, (cookie, opened_ns, closing_ns)
        else:
            assert opens[cookie] <= 1
        if opens[cookie] and closed_ns < each.ended_ns and identities[cookie] not in followed:
            compared["ends"] += 1
            assert ends[cookie] == 1, (cookie, opened_ns, closing_ns)
