"""Turns of listeners are joined with what the tables show. Pure.

A turn names the socket by its address in the kernel, a row of the tables by its cookie. They have family, address and
port in common. The kernel traces a listener before it puts it into the tables, and takes it out before it traces that
it ended. So a turn is joined with a reading that began after it; one that came while the tables were read may be joined
with a row, and otherwise waits for the next reading.

A listener without a row has ended before the reading, or is where no process is: its key is made of its turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from portbook.records import Socket
from portbook.watching.feeds.base import SocketKey
from portbook.watching.feeds.rows import Difference
from portbook.watching.feeds.tracefs.buffer import Turn

MOST_LISTENERS = 100_000
ListenerPlace = tuple[str, str, int]  # family, address, port


class Begun(Struct):
    """A listener that a turn told of."""

    turn: Turn
    key: SocketKey | None = None  # None: not joined yet
    socket: Socket | None = None  # the row
    is_certain: bool = True  # False: another one at the same place may be meant


class EndedListener(Struct):
    """A listener that has ended, as a turn told."""

    at_ns: int
    key: SocketKey


class Joined(Struct):
    """What came of a join."""

    begun: list[Begun] = []
    ended: list[EndedListener] = []
    unexplained: list[Socket] = []  # listeners in the tables of which no turn told
    gone: list[int] = []  # cookies of sockets that are not in the tables any more, of which no turn told
    later: list[Turn] = []  # to be joined with the next reading


class Joiner:
    """Knows the listeners that turns told of, and those in the tables."""

    def __init__(self) -> None:
        self._open: dict[int, Begun] = {}  # by address in the kernel
        self._waiting: dict[int, Begun] = {}  # of them those that are not joined yet
        self._rows: dict[int, Socket] = {}  # listeners in the tables, by cookie
        self._at: dict[ListenerPlace, set[int]] = defaultdict(set)  # their cookies
        self._by_cookie: dict[int, int] = {}  # addresses in the kernel
        self._moved: set[int | None] = set()  # cookies of rows that were there before, and are elsewhere now

    @property
    def is_waiting(self) -> bool:
        """Whether a listener waits for the next reading."""
        return bool(self._waiting)

    def ports_waiting(self) -> set[int]:
        """The ports of the listeners that wait; 0 for one of which it is not known."""
        return {begun.turn.port for begun in self._waiting.values()}

    def namespaces_of(self, turns: Iterable[Turn]) -> set[int]:
        """The network namespaces of the rows that the turns are about."""
        keys = [begun.key for turn in turns if (begun := self._open.get(turn.socket_at))]
        rows = [self._rows.get(key) for key in keys if isinstance(key, int)]
        return {s.netns for s in rows if s is not None and s.netns is not None}

    def join(self, turns: Iterable[Turn], found: Difference, read_ns: int) -> Joined:
        """Join turns, in their order, with a reading.

        :param read_ns: when the reading began, by the clock of the turns
        """
        joined = Joined(begun=[], ended=[], unexplained=[], gone=[], later=[])
        listeners = [s for s in found.appeared if s.state == "LISTEN"]
        self._moved = {s.cookie for s in found.appeared if s.cookie in self._rows}
        for s in found.appeared:
            self._forget_row(s.cookie or 0)  # what it was before: it may have another port now
        for s in listeners:
            self._keep_row(s)
        gone = dict.fromkeys(found.ended)
        delayed: set[int] = set()
        for turn in turns:
            if turn.socket_at in delayed or (turn.at_ns >= read_ns and not turn.listens):
                delayed.add(turn.socket_at)
                joined.later.append(turn)
            elif turn.listens:
                self._begin(turn)
            else:
                self._end(turn, gone, joined)
        self._match(listeners, read_ns, joined)
        for cookie in gone:
            self._forget_row(cookie)
        joined.gone = list(gone)
        return joined

    def _begin(self, turn: Turn) -> None:
        known = self._open.get(turn.socket_at)
        if known is not None and isinstance(known.key, int) and known.key in self._rows:
            return  # it has listened before, and its row has stayed
        self._open[turn.socket_at] = self._waiting[turn.socket_at] = Begun(turn)
        if len(self._open) > MOST_LISTENERS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._waiting.pop(oldest, None)

    def _end(self, turn: Turn, gone: dict[int, None], joined: Joined) -> None:
        begun = self._open.pop(turn.socket_at, None)
        self._waiting.pop(turn.socket_at, None)
        key = begun.key if begun is not None else None
        if isinstance(key, tuple):
            joined.ended.append(EndedListener(turn.at_ns, key))
            return
        candidates = [cookie for cookie in gone if cookie in self._at.get(_place_of(turn), ())]
        if begun is None or key is None:
            cookie = next((each for each in candidates if each not in self._by_cookie), None)
        elif key in self._moved:
            return  # the same socket listens elsewhere now
        elif key in candidates or not candidates:
            cookie = key
        else:
            cookie = self._exchange(candidates[0], begun)
        if cookie is None:
            if begun is not None:
                self._pass_by(replace(begun.turn, port=turn.port), turn.at_ns, joined)
            return  # else it is a listener that nothing told of
        if cookie not in gone:
            self._open[turn.socket_at] = begun or Begun(turn, cookie)  # the row is there: it listens again
            return
        del gone[cookie]
        self._forget_row(cookie)
        joined.ended.append(EndedListener(turn.at_ns, cookie))

    def _exchange(self, cookie: int, begun: Begun) -> int:
        """Of several listeners at one place another one has ended: the key of this one is that of the other."""
        other = self._open.get(self._by_cookie.get(cookie, 0))
        if other is not None and isinstance(begun.key, int):
            other.key = begun.key
            self._by_cookie[begun.key] = other.turn.socket_at
        return cookie

    def _pass_by(self, turn: Turn, ended_ns: int, joined: Joined) -> None:
        """A listener that no reading has shown."""
        key = _key_of(turn)
        joined.begun.append(Begun(turn, key))
        joined.ended.append(EndedListener(ended_ns, key))

    def _match(self, listeners: list[Socket], read_ns: int, joined: Joined) -> None:
        """Give the listeners that wait their rows."""
        by_place: dict[ListenerPlace, list[Socket]] = defaultdict(list)
        for s in listeners:
            by_place[s.family, s.local_address, s.local_port].append(s)
        crowded = {place for place, sockets in by_place.items() if len(sockets) > 1}
        for socket_at, begun in list(self._waiting.items()):
            place = _place_of(begun.turn)
            candidates = by_place.get(place)
            if candidates:
                begun.socket = candidates.pop(0)
                begun.key = begun.socket.cookie or 0
                begun.is_certain = place not in crowded
                self._by_cookie[begun.key] = socket_at
            elif begun.turn.at_ns >= read_ns:
                continue  # it may not have been in the tables yet
            elif begun.turn.port:
                begun.key = _key_of(begun.turn)
            del self._waiting[socket_at]
            if begun.key is not None:
                joined.begun.append(begun)
        joined.unexplained = [s for sockets in by_place.values() for s in sockets]

    def _keep_row(self, s: Socket) -> None:
        if s.cookie:
            self._rows[s.cookie] = s
            self._at[s.family, s.local_address, s.local_port].add(s.cookie)

    def _forget_row(self, cookie: int) -> None:
        s = self._rows.pop(cookie, None)
        self._by_cookie.pop(cookie, None)
        if s is not None:
            place = (s.family, s.local_address, s.local_port)
            self._at[place].discard(cookie)
            if not self._at[place]:
                del self._at[place]


def _place_of(turn: Turn) -> ListenerPlace:
    return (turn.family, turn.address, turn.port)


def _key_of(turn: Turn) -> SocketKey:
    return ("traced", turn.socket_at, turn.at_ns)
