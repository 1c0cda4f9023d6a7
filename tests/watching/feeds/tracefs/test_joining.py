"""Turns and rows are joined: every order in which they can come."""

from __future__ import annotations

import random

from portbook.records import Socket
from portbook.watching.feeds.rows import Difference
from portbook.watching.feeds.tracefs.buffer import Turn
from portbook.watching.feeds.tracefs.joining import Joiner


def turn(at, listens, port=80, socket_at=1, tid=7):
    return Turn(at, tid, socket_at, listens, "ipv4", "127.0.0.1", port)


def row(cookie, port=80, netns=5):
    return Socket("tcp", "ipv4", "127.0.0.1", port, state="LISTEN", cookie=cookie, netns=netns)


def reading(*appeared, ended=()):
    return Difference(appeared=list(appeared), ended=list(ended), connected=[])


def seen(joined):
    return [(each.turn.at_ns, each.key) for each in joined.begun], [(each.at_ns, each.key) for each in joined.ended]


def test_a_listener_gets_the_cookie_of_its_row_and_ends_by_it():
    joiner = Joiner()
    joined = joiner.join([turn(10, True)], reading(row(99)), 20)
    assert seen(joined) == ([(10, 99)], [])
    assert joined.begun[0].socket == row(99)
    joined = joiner.join([turn(30, False)], reading(ended=[99]), 40)
    assert seen(joined) == ([], [(30, 99)])
    assert joined.gone == []


def test_one_that_was_there_before_ends_exactly():
    joiner = Joiner()
    assert joiner.join([], reading(row(99)), 5).unexplained == [row(99)]
    joined = joiner.join([turn(30, False)], reading(ended=[99]), 40)
    assert seen(joined) == ([], [(30, 99)])


def test_one_that_no_reading_has_shown_is_reported_from_its_turns():
    joined = Joiner().join([turn(10, True, port=0), turn(12, False, port=4711)], reading(), 20)
    key = ("traced", 1, 10)
    assert seen(joined) == ([(10, key)], [(12, key)])
    assert joined.begun[0].turn.port == 4711  # which the kernel had not chosen yet
    joiner = Joiner()
    assert seen(joiner.join([turn(10, True)], reading(), 20)) == ([(10, key)], [])
    assert seen(joiner.join([turn(30, False)], reading(), 40)) == ([], [(30, key)])


def test_what_came_while_the_tables_were_read_waits_or_is_joined():
    joiner = Joiner()
    joined = joiner.join([turn(25, True)], reading(), 20)
    assert (seen(joined), joiner.is_waiting) == (([], []), True)
    assert seen(joiner.join([], reading(row(99)), 40)) == ([(25, 99)], [])
    assert not joiner.is_waiting
    joined = joiner.join([turn(45, False)], reading(), 44)
    assert (seen(joined), joined.later) == (([], []), [turn(45, False)])
    assert seen(joiner.join(joined.later, reading(ended=[99]), 60)) == ([], [(45, 99)])
    assert seen(Joiner().join([turn(25, True)], reading(row(98)), 20)) == ([(25, 98)], [])


def test_what_ended_without_a_turn_is_told_apart():
    joiner = Joiner()
    joiner.join([turn(10, True)], reading(row(99)), 20)
    assert joiner.join([], reading(ended=[99, 12345]), 30).gone == [99, 12345]


def test_a_restart_between_two_readings():
    joiner = Joiner()
    joiner.join([turn(10, True)], reading(row(99)), 20)
    joined = joiner.join([turn(30, False), turn(31, True, socket_at=2)], reading(row(100), ended=[99]), 40)
    assert seen(joined) == ([(31, 100)], [(30, 99)])
    same_place_in_the_kernel = [turn(50, False, socket_at=2), turn(51, True, socket_at=2)]
    joined = joiner.join(same_place_in_the_kernel, reading(row(101), ended=[100]), 60)
    assert seen(joined) == ([(51, 101)], [(50, 100)])


def test_a_socket_that_listens_again_has_not_ended():
    joiner = Joiner()
    joiner.join([turn(10, True)], reading(row(99)), 20)
    assert seen(joiner.join([turn(30, False), turn(31, True)], reading(), 40)) == ([], [])
    assert seen(joiner.join([turn(50, False)], reading(ended=[99]), 60)) == ([], [(50, 99)])


def test_a_socket_that_listens_again_elsewhere_is_reported_there():
    joiner = Joiner()
    joiner.join([turn(10, True)], reading(row(99)), 20)
    joined = joiner.join([turn(30, False), turn(31, True, port=81)], reading(row(99, port=81)), 40)
    assert seen(joined)[0] == [(31, 99)]
    assert joined.begun[0].socket.local_port == 81


def test_several_at_one_place_are_told_apart_by_the_tables():
    joiner = Joiner()
    begun = [turn(10, True, socket_at=1), turn(11, True, socket_at=2)]
    joined = joiner.join(begun, reading(row(98), row(99)), 20)
    assert sorted(each.key for each in joined.begun) == [98, 99]
    assert not any(each.is_certain for each in joined.begun)
    assert joiner.join([turn(30, False, socket_at=1)], reading(ended=[99]), 40).ended[0].key == 99
    assert joiner.join([turn(50, False, socket_at=2)], reading(ended=[98]), 60).ended[0].key == 98


def test_an_end_of_what_is_not_known_is_nothing():
    joined = Joiner().join([turn(10, False)], reading(), 20)
    assert (seen(joined), joined.later) == (([], []), [])


def test_the_namespaces_of_what_ends():
    joiner = Joiner()
    joiner.join([turn(10, True)], reading(row(99, netns=77)), 20)
    assert joiner.namespaces_of([turn(30, False), turn(31, False, socket_at=3)]) == {77}


class Kernel:
    """Sockets that open and close at random, often at the same places, and a reader."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.joiner = Joiner()
        self.clock = self.opened = 0
        self.table = {}  # address in the kernel, and port, by cookie
        self.last = set()
        self.turns = []
        self.begun, self.ended = [], []

    def act(self):
        self.clock += 1
        if self.table and self.chance.random() < 0.5:
            self.close(self.chance.choice(list(self.table)))
            return
        self.opened += 1
        used = {socket_at for socket_at, _ in self.table.values()}
        socket_at = self.chance.choice([at for at in range(1, 40) if at not in used])
        port = self.chance.choice([80, 81, 82])
        self.table[1000 + self.opened] = (socket_at, port)
        self.turns.append(turn(self.clock, True, port, socket_at))

    def close(self, cookie):
        socket_at, port = self.table.pop(cookie)
        self.turns.append(turn(self.clock, False, port, socket_at))

    def read(self, before, after):
        """Read the tables; so many actions happen before that, and between that and the reading of the buffer."""
        for _ in range(before):
            self.act()
        self.clock += 1
        read_ns, now = self.clock, dict(self.table)
        for _ in range(after):
            self.act()
        found = reading(*(row(c, now[c][1]) for c in now.keys() - self.last), ended=self.last - now.keys())
        self.last = set(now)
        joined = self.joiner.join(sorted(self.turns, key=lambda each: each.at_ns), found, read_ns)
        self.turns = joined.later
        assert not joined.unexplained
        assert not joined.gone
        self.begun += [each.key for each in joined.begun]
        self.ended += [each.key for each in joined.ended]


def test_every_listener_begins_and_ends_once_in_whatever_order_readings_come():
    for seed in range(100):
        kernel = Kernel(seed)
        for _ in range(15):
            kernel.read(kernel.chance.randrange(6), kernel.chance.randrange(4))
        kernel.clock += 1
        for cookie in list(kernel.table):
            kernel.close(cookie)
        for _ in range(3):
            kernel.read(0, 0)
        assert len(kernel.begun) == len(set(kernel.begun)) == kernel.opened
        assert sorted(map(str, kernel.begun)) == sorted(map(str, kernel.ended))
