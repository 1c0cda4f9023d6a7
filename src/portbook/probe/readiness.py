"""TCP ports that are dialed again and again, all at the same time, until each of them accepts a connection.

An attempt is not given up for being slow: a handshake may take as long as there is time. Another attempt begins beside
it after a while, because the first may have been sent to a host that was not there yet. All addresses of a name are
dialed at once, and one that accepts is enough, so that a silent one delays nothing (the idea of RFC 8305). Names are
looked up again, in a thread that is left alone when it does not return.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from socket import MSG_PEEK, socket
from threading import Thread
from time import monotonic, sleep

from portbook.addresses import socket_address
from portbook.probe import tcp
from portbook.probe.descriptors import window_size
from portbook.probe.outcome import Evidence, Outcome, describe_reason
from portbook.probe.resolve import Resolved, ResolvedAddress, lookup_outcome, resolve_one
from portbook.resilience import classify, waits

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0  # between refusals
BESIDE_S = 3.0  # a further attempt begins beside a silent one after this
MOST_BESIDE = 8  # attempts at one address at the same time; then the newest is replaced
LOOKUP_AGAIN_S = 5.0  # the address of a service may change while it starts
LOOKUP_POLL_S = 0.02
STABLE_S = 1.0  # how long a connection has to last
# select() on Windows handles 512 sockets, and Ctrl-C does not interrupt it.
MOST_SOCKETS = 500 if sys.platform == "win32" else 1000
LONGEST_WAIT_S = 0.1 if sys.platform == "win32" else 60.0

DROPPED = Evidence("syn-ack", text="accepted, and closed the connection: a proxy in front of a service that is down?")
NO_LOOKUP = Evidence("resolver", text="no answer from the resolver")


class AwaitedAttempt:
    """A connection that begins, or that has to last."""

    __slots__ = ("address", "lasts_until", "socket")

    def __init__(self, address: AwaitedAddress, sock: socket) -> None:
        self.address, self.socket = address, sock
        self.lasts_until: float | None = None  # connected, when this is not None


class AwaitedAddress:
    """One address of a target, and the attempts at it."""

    __slots__ = ("attempts", "destination", "next_at", "pauses", "result", "target")

    def __init__(self, target: AwaitedPort, destination: ResolvedAddress) -> None:
        self.target, self.destination = target, destination
        self.attempts: list[AwaitedAttempt] = []
        self.next_at = 0.0  # not to be dialed before
        self.pauses = waits(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self.result: tuple[Outcome, Evidence] = (tcp.SILENT.outcome, tcp.SILENT.evidence)


class AwaitedPort:
    """A host and a port that is waited for."""

    __slots__ = ("addresses", "failure", "is_ready", "lookup", "lookup_at", "name", "pauses", "port")

    def __init__(self, host: str | ResolvedAddress, port: int) -> None:
        self.name = host if isinstance(host, str) else None  # None: there is nothing to look up
        self.port = port
        self.is_ready = False
        self.addresses: dict[ResolvedAddress, AwaitedAddress] = {}
        if isinstance(host, ResolvedAddress):
            self.addresses[host] = AwaitedAddress(self, host)
        self.failure: Evidence | None = NO_LOOKUP  # of the last lookup
        self.lookup: SimpleQueue[Resolved] | None = None  # of the one that is in progress
        self.lookup_at = 0.0  # when the next begins
        self.pauses = waits(FIRST_PAUSE_S, LONGEST_PAUSE_S)  # between lookups that fail

    def results(self) -> Iterator[tuple[Outcome, Evidence]]:
        """Why it is not ready: one result for each address, or that of the lookup."""
        if not self.addresses and self.failure is not None:
            yield lookup_outcome(self.failure), self.failure
        for address in self.addresses.values():
            yield address.result

    def reason(self) -> str:
        """Why it is not ready, in a few words: "refused"."""
        return ", ".join(dict.fromkeys(describe_reason(*result) for result in self.results()))


class Readiness:
    """Dials until every target is ready; a context manager, which closes all sockets."""

    def __init__(self, targets: Sequence[AwaitedPort], *, stable: bool, clock: Callable[[], float] = monotonic) -> None:
        self.targets = targets
        self._stable, self._clock = stable, clock
        self._selector = DefaultSelector()
        self._most_sockets = window_size(MOST_SOCKETS)

    def __enter__(self) -> Readiness:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            tcp.abort(key.data.socket)
        self._selector.close()

    def missing(self) -> list[AwaitedPort]:
        """The targets that are not ready."""
        return [target for target in self.targets if not target.is_ready]

    def turn(self, until: float) -> None:
        """Begin what is due, then wait until something happens, at most until a time of the clock."""
        for target in self.missing():
            self._look_up(target)
            for address in target.addresses.values():
                self._dial(address)
        self._settle_lasting()
        for attempt, events in self._wait(until):
            if attempt.socket.fileno() >= 0:  # its target may have become ready in this turn
                self._settle(attempt, events)

    # --- names ---

    def _look_up(self, target: AwaitedPort) -> None:
        now = self._clock()
        if target.name is None:
            return
        if target.lookup is None:
            if now < target.lookup_at:
                return
            target.lookup = SimpleQueue()
            Thread(target=_resolve_into, args=(target.name, target.lookup), daemon=True).start()
        try:
            resolved = target.lookup.get_nowait()
        except Empty:
            return
        target.lookup = None
        target.failure = resolved.failure
        if resolved.addresses:
            target.lookup_at = now + LOOKUP_AGAIN_S
            self._take_addresses(target, resolved.addresses)
        else:
            target.lookup_at = now + next(target.pauses)

    def _take_addresses(self, target: AwaitedPort, found: Sequence[ResolvedAddress]) -> None:
        for gone in target.addresses.keys() - set(found):
            self._drop_all(target.addresses.pop(gone))
        for destination in found:
            target.addresses.setdefault(destination, AwaitedAddress(target, destination))

    # --- connections ---

    def _dial(self, address: AwaitedAddress) -> None:
        now = self._clock()
        if now < address.next_at:
            return
        if len(self._selector.get_map()) >= self._most_sockets:
            address.next_at = now + FIRST_PAUSE_S
            return
        if len(address.attempts) >= MOST_BESIDE:
            self._drop(address.attempts[-1])
        address.next_at = now + BESIDE_S
        sock: socket | None = None
        try:
            sock = tcp.create_socket(address.destination.address)
            place = socket_address(address.destination.address, address.target.port, address.destination.zone)
            result = tcp.start_connect(sock, place)
        except OSError as error:  # no descriptor, no such family, no such interface
            result = tcp.fault_result(classify(error), error.errno or 0, sent=False)
        if sock is None:
            self._fail(address, result or tcp.NOT_CONNECTED)
            return
        attempt = AwaitedAttempt(address, sock)
        address.attempts.append(attempt)
        self._selector.register(sock, EVENT_WRITE, attempt)
        if result is not None:
            self._connected(attempt, result)

    def _settle(self, attempt: AwaitedAttempt, events: int) -> None:
        if attempt.lasts_until is None:
            self._connected(attempt, tcp.finish_connect(attempt.socket, attempt.address.target.port))
        elif events & EVENT_READ:
            self._heard(attempt)

    def _connected(self, attempt: AwaitedAttempt, result: tcp.ConnectResult) -> None:
        if result.outcome != "open":
            self._drop(attempt)
            self._fail(attempt.address, result)
        elif self._stable:
            attempt.lasts_until = self._clock() + STABLE_S
            self._selector.modify(attempt.socket, EVENT_READ, attempt)
        else:
            self._ready(attempt)

    def _heard(self, attempt: AwaitedAttempt) -> None:
        """The other side has sent something, which only a service does, or has closed."""
        try:
            data = attempt.socket.recv(1, MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._ready(attempt)
            return
        self._drop(attempt)
        self._fail(attempt.address, tcp.ConnectResult("closed", DROPPED))

    def _settle_lasting(self) -> None:
        now = self._clock()
        attempts = [key.data for key in self._selector.get_map().values()]
        for attempt in attempts:
            if attempt.lasts_until is not None and now >= attempt.lasts_until and attempt.socket.fileno() >= 0:
                self._ready(attempt)

    def _fail(self, address: AwaitedAddress, result: tcp.ConnectResult) -> None:
        address.result = (result.outcome, result.evidence)
        address.next_at = self._clock() + next(address.pauses)

    def _ready(self, attempt: AwaitedAttempt) -> None:
        """Hang up with FIN: a test is no error in the server's log. Whatever else is in progress is of no use."""
        target = attempt.address.target
        target.is_ready = True
        attempt.address.attempts.remove(attempt)
        self._selector.unregister(attempt.socket)
        tcp.hang_up(attempt.socket)
        for address in target.addresses.values():
            self._drop_all(address)

    def _drop_all(self, address: AwaitedAddress) -> None:
        for attempt in list(address.attempts):
            self._drop(attempt)

    def _drop(self, attempt: AwaitedAttempt) -> None:
        attempt.address.attempts.remove(attempt)
        self._selector.unregister(attempt.socket)
        tcp.abort(attempt.socket)

    # --- waiting ---

    def _wait(self, until: float) -> list[tuple[AwaitedAttempt, int]]:
        if not self.missing():
            return []
        wait_s = max(0.0, min(self._next_at(until) - self._clock(), LONGEST_WAIT_S))
        if not self._selector.get_map():  # which select() of Windows refuses
            sleep(wait_s)
            return []
        return [(key.data, events) for key, events in self._selector.select(wait_s)]

    def _next_at(self, until: float) -> float:
        """When something is to be done even if nothing happens."""
        times = [until]
        for target in self.missing():
            if target.lookup is not None:
                times.append(self._clock() + LOOKUP_POLL_S)
            elif target.name is not None:
                times.append(target.lookup_at)
            times += [address.next_at for address in target.addresses.values()]
        for key in self._selector.get_map().values():
            attempt: AwaitedAttempt = key.data
            if attempt.lasts_until is not None:
                times.append(attempt.lasts_until)
        return min(times)


def _resolve_into(host: str, answers: SimpleQueue[Resolved]) -> None:
    answers.put(resolve_one(host))
