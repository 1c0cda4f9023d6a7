"""Identities that end and come back again and again. Pure, and bounded."""

from __future__ import annotations

from collections import deque

from portbook.records import Socket

MOST_REMEMBERED = 2_048  # identities of which an end is remembered
MOST_TIMES = 1_000  # returns of one identity that are counted


class Flaps:
    """How often one identity came back."""

    __slots__ = ("flapping", "last_ns", "rules", "socket", "times")

    def __init__(self, socket: Socket) -> None:
        self.socket = socket  # the one that ended last
        self.times: deque[int] = deque(maxlen=MOST_TIMES)  # of its returns, by the monotonic clock
        self.last_ns = 0  # when something of it last ended or came back
        self.flapping = False
        self.rules: set[str] = set()  # of which a violation was reported since it flaps


class FlapCounter:
    """Counts returns: ``flaps`` within ``window_ns`` make an identity flapping, a window without any settles it."""

    def __init__(self, flaps: int, window_ns: int) -> None:
        self._flaps = flaps
        self._window_ns = window_ns
        self._by_identity: dict[str, Flaps] = {}  # that which was last seen at the end
        self._flapping = 0  # how many

    def ended(self, identity: str, socket: Socket, at_ns: int) -> None:
        """The last socket of an identity ended."""
        flaps = self._by_identity.pop(identity, None) or Flaps(socket)
        flaps.socket = socket
        flaps.last_ns = at_ns
        self._by_identity[identity] = flaps
        if len(self._by_identity) > MOST_REMEMBERED:
            self._forget_one()

    def returned(self, identity: str, at_ns: int) -> tuple[Flaps | None, bool]:
        """It is open again: its count, if an end is remembered, and whether it has begun to flap with this return."""
        flaps = self._by_identity.pop(identity, None)
        if flaps is None:
            return None, False
        self._by_identity[identity] = flaps
        if at_ns - flaps.last_ns > self._window_ns and not flaps.flapping:
            flaps.times.clear()
        flaps.last_ns = at_ns
        flaps.times.append(at_ns)
        while flaps.times[0] <= at_ns - self._window_ns:
            flaps.times.popleft()
        begins = not flaps.flapping and len(flaps.times) >= self._flaps
        if begins:
            flaps.flapping = True
            self._flapping += 1
        return flaps, begins

    def of(self, identity: str) -> Flaps | None:
        """The count of an identity that flaps; None of any other."""
        flaps = self._by_identity.get(identity)
        return flaps if flaps is not None and flaps.flapping else None

    def settled(self, now_ns: int) -> list[tuple[str, Flaps]]:
        """Forget what was quiet for a window, and return the identities of it that were flapping."""
        settled: list[tuple[str, Flaps]] = []
        while self._by_identity:
            identity = next(iter(self._by_identity))
            flaps = self._by_identity[identity]
            if now_ns - flaps.last_ns < self._window_ns:
                break
            del self._by_identity[identity]
            if flaps.flapping:
                settled.append((identity, flaps))
                self._flapping -= 1
        return settled

    def next_ns(self) -> int | None:
        """When ``settled`` may have something to return; None: never, as it is now."""
        if not self._flapping:
            return None
        return next(flaps.last_ns for flaps in self._by_identity.values() if flaps.flapping) + self._window_ns

    def _forget_one(self) -> None:
        """The one that was seen least recently. One that flaps stays, unless nearly all do."""
        for count, (identity, flaps) in enumerate(self._by_identity.items()):
            if not flaps.flapping or count >= MOST_REMEMBERED // 4:
                del self._by_identity[identity]
                self._flapping -= flaps.flapping
                return
