"""The scan's check of itself: ports of this machine that must be found, because they are known to answer.

The way miners used canaries: when one falls silent, something is wrong with the air, not with the bird.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from threading import Thread
from typing import NamedTuple

from portbook.addresses import family_of, reach_of, socket_address, split_zone
from portbook.probe.outcome import Answer, Outcome
from portbook.probe.request import Probe
from portbook.records import Protocol, Socket
from portbook.scanner.report import SelfCheck
from portbook.scanner.targets import Span

MOST_LOOKED_AT = 1024  # addresses that are checked for being ours; each costs a system call
MOST_CANARIES = 8  # a scan has to live with 64 descriptors
MOST_EACH = 4  # on one address
MOST_TRIES = 8  # to get a free port that the scan does not ask anyway
MOST_REPLIES = 100  # of all UDP canaries: nobody can make two machines chat for ever
MOST_NAMED = 20  # missed ports

Pair = tuple[str, int]  # address and port
TYPES: dict[Protocol, socket.SocketKind] = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Place(NamedTuple):
    """An address of this machine that is to be scanned."""

    target: str
    address: str
    zone: str | None


class SelfWatch:
    """Canaries and known ports of one scan: what was expected of each, and what was answered."""

    def __init__(self, protocol: Protocol, spans: Iterable[Span], ports: Sequence[int]) -> None:
        self.protocol = protocol
        self._asked = frozenset(ports)
        self._places = [place for place in islice(_places(spans), MOST_LOOKED_AT) if is_ours(place, protocol)]
        self._birds = dict(_open(protocol, self._places, self._asked))
        self._known = self._listening()
        self._seen: dict[Pair, Outcome] = {}
        if protocol == "udp" and self._birds:
            Thread(target=answer_datagrams, args=(list(self._birds),), daemon=True).start()
        self._pairs = {(probe.address, probe.port): probe for probe in self._birds.values()}
        self.watched = self._known.keys() | self._pairs.keys() if self._known is not None else self._pairs.keys()

    def extras(self) -> list[Probe]:
        """Canaries that the scan would not ask by itself."""
        return [probe for probe in self._birds.values() if probe.port not in self._asked]

    def hidden(self) -> list[Probe]:
        """Canaries on ports that somebody wants to know about: to be asked once more when the canaries are gone."""
        return [probe for probe in self._birds.values() if probe.port in self._asked]

    def takes(self, answer: Answer) -> bool:
        """Note the answer of a watched port; True when it is a canary's, and nobody else's business."""
        pair = (answer.address or "", answer.port)
        self._seen[pair] = answer.outcome
        return pair in self._pairs

    def close(self) -> None:
        """Let the canaries go."""
        for bird in self._birds:
            bird.close()

    def judge(self, partial: bool) -> SelfCheck | None:
        """What was missed; of a partial scan, among the ports that it came to."""
        if not self._places:
            return None
        canaries, dead = self._missed(self._pairs, partial)
        after = self._listening() if self._known is not None else None
        listed = [pair for pair in self._known or () if after and pair in after]
        known, deaf = self._missed(listed, partial)
        names = [f"canary {_shown(pair)}" for pair in dead] + [_shown(pair) for pair in deaf]
        return SelfCheck(
            addresses=len(self._places),
            canaries=len(canaries),
            canaries_missed=len(dead),
            known=None if after is None else len(known),
            known_missed=None if after is None else len(deaf),
            missed=tuple(names[:MOST_NAMED]),
        )

    def _missed(self, pairs: Iterable[Pair], partial: bool) -> tuple[list[Pair], list[Pair]]:
        """The ports that should have been found, and those that were not."""
        expected = sorted(pair for pair in pairs if pair in self._seen or not partial)
        return expected, [pair for pair in expected if self._seen.get(pair) != "open"]

    def _listening(self) -> dict[Pair, None] | None:
        if self.protocol == "udp" or not self._places:
            return None
        rows = _tables()
        birds = {probe.port for probe in self._birds.values()}
        return None if rows is None else dict.fromkeys(_covered(rows, self._places, self._asked - birds))


def is_ours(place: Place, protocol: Protocol) -> bool:
    """Whether this machine has the address: it can be bound, and a packet to it would leave from it.

    The second because ``net.ipv4.ip_nonlocal_bind`` lets anything be bound (ip(7)); connecting a datagram socket
    sends nothing (udp(7)).
    """
    try:
        with _socket(place, socket.SOCK_DGRAM) as bound:
            bound.bind(socket_address(place.address, 0, place.zone))
        if reach_of(place.address) == "loopback":
            return True
        with _socket(place, socket.SOCK_DGRAM) as connected:
            connected.connect(socket_address(place.address, 9, place.zone))  # RFC 863: discard
            return split_zone(connected.getsockname()[0])[0] == place.address
    except OSError:
        return False


def answer_datagrams(birds: Sequence[socket.socket], most: int = MOST_REPLIES) -> None:
    """Answer what this machine itself sends to the canaries, until they are closed."""
    from selectors import EVENT_READ, DefaultSelector

    with DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):  # closed: no descriptor any more
        for bird in birds:
            selector.register(bird, EVENT_READ)
        while most > 0 and birds[0].fileno() >= 0:
            for key, _ in selector.select(timeout=0.1):
                most -= _answer(key.fileobj)  # type: ignore[arg-type]


def _answer(bird: socket.socket) -> int:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        _, sender = bird.recvfrom(2048)
        if reach_of(sender[0]) == "loopback" or sender[0] == bird.getsockname()[0]:
            bird.sendto(b"canary", sender)
            return 1
    return 0


# --- opening -------------------------------------------------------------------------------------------------------


def _places(spans: Iterable[Span]) -> Iterator[Place]:
    return (Place(span.target, address, span.zone) for span in spans for address in span.addresses())


def _open(protocol: Protocol, places: Sequence[Place], asked: frozenset[int]) -> Iterator[tuple[socket.socket, Probe]]:
    """A few canaries on each of the first addresses. Having none is no error: the report counts those there are."""
    each = max(1, min(MOST_EACH, MOST_CANARIES // (len(places) or 1)))
    for place in places[: MOST_CANARIES // each]:
        for _ in range(each):
            try:
                bird = _open_one(protocol, place, asked)
            except OSError:  # no descriptor or no port is left
                return
            yield bird, Probe(place.target, place.address, bird.getsockname()[1], place.zone)


def _open_one(protocol: Protocol, place: Place, asked: frozenset[int]) -> socket.socket:
    for last in (*[False] * (MOST_TRIES - 1), True):
        bird = _socket(place, TYPES[protocol])
        try:
            bird.bind(socket_address(place.address, 0, place.zone))
            if last or bird.getsockname()[1] not in asked:
                bird.setblocking(False)
                if protocol == "tcp":
                    bird.listen(16)
                return bird
        except OSError:
            bird.close()
            raise
        bird.close()
    raise AssertionError("the last try returns")


def _socket(place: Place, kind: socket.SocketKind) -> socket.socket:
    return socket.socket(family_of(place.address), kind)


# --- what this machine says itself ---------------------------------------------------------------------------------


def _tables() -> Sequence[Socket] | None:
    """TCP listeners in the machine's tables; None when they cannot be read."""
    from portbook import inventory, query
    from portbook.errors import SourceError

    try:
        return inventory.select(query.parse("state:listen protocol:tcp"))[1]
    except SourceError:
        return None


def _covered(rows: Iterable[Socket], places: Sequence[Place], ports: frozenset[int]) -> Iterator[Pair]:
    """Address and port of every listener that the scan asks."""
    for row in rows:
        if row.local_port in ports and row.interface is None:
            takes = _taker(row)
            yield from ((place.address, row.local_port) for place in places if takes(place))


def _taker(row: Socket) -> Callable[[Place], bool]:
    """Which addresses reach a listener: its own, or every one of its family, and of IPv4 when it takes both."""
    if row.local_address == "::" and row.v6only is False:
        return lambda place: True
    if row.reach == "any":
        return lambda place: (":" in place.address) == (row.family == "ipv6")
    return lambda place: place.address == row.local_address and place.zone in (None, row.zone)


def _shown(pair: Pair) -> str:
    return f"[{pair[0]}]:{pair[1]}" if ":" in pair[0] else f"{pair[0]}:{pair[1]}"
