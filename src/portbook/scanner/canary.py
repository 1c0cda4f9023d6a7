"""The scan's check of itself: ports of this machine that must be found open, because they are known to answer.

As miners used canaries: when one falls silent, something is wrong with the air, not with the bird.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from threading import Thread
from typing import NamedTuple

from portbook.addresses import family_of, format_endpoint, reach_of, socket_address, split_zone
from portbook.probe.outcome import Answer, Outcome
from portbook.probe.request import Probe
from portbook.records import Protocol, Socket
from portbook.scanner.report import SelfCheck
from portbook.scanner.targets import Span

MOST_CHECKED = 1024  # addresses that are checked for belonging to this machine; each costs a system call
MOST_CANARIES = 8  # a scan must work with 64 descriptors
MOST_EACH = 4  # on one address
MOST_TRIES = 8  # to get a free port that is not among the scanned ones
MOST_REPLIES = 100  # of all UDP canaries together, so that no peer can keep them answering without end
MOST_NAMED = 20  # missed ports in the report

AddressPort = tuple[str, int]
TYPES: dict[Protocol, socket.SocketKind] = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class ScannedAddress(NamedTuple):
    """An address of this machine that is to be scanned."""

    target: str
    address: str
    zone: str | None


class SelfWatch:
    """Canaries and known ports of one scan: which are expected to be open, and the outcome of each."""

    def __init__(self, protocol: Protocol, spans: Iterable[Span], ports: Sequence[int]) -> None:
        self.protocol = protocol
        self._scanned_ports = frozenset(ports)
        candidates = islice(_addresses(spans), MOST_CHECKED)
        self.addresses = [address for address in candidates if is_local(address)]
        self._listeners = dict(_open_canaries(protocol, self.addresses, self._scanned_ports))
        self._canaries = {(probe.address, probe.port) for probe in self._listeners.values()}
        self._known = self._known_ports()
        self._outcomes: dict[AddressPort, Outcome] = {}
        if protocol == "udp" and self._listeners:
            Thread(target=answer_datagrams, args=(list(self._listeners),), daemon=True).start()
        self.watched = self._canaries | (self._known or set())

    def extras(self) -> list[Probe]:
        """Return probes of the canaries whose ports are not scanned anyway."""
        return [probe for probe in self._listeners.values() if probe.port not in self._scanned_ports]

    def hidden(self) -> list[Probe]:
        """Return probes of the canaries on scanned ports: these are probed again when the canaries are closed."""
        return [probe for probe in self._listeners.values() if probe.port in self._scanned_ports]

    def takes(self, answer: Answer) -> bool:
        """Record the answer of a watched port; True when it is a canary's, which is no answer of the scan."""
        address_port = (answer.address or "", answer.port)
        self._outcomes[address_port] = answer.outcome
        return address_port in self._canaries

    def close(self) -> None:
        """Close the canary sockets."""
        for listener in self._listeners:
            listener.close()

    def judge(self, partial: bool) -> SelfCheck | None:
        """Return what was missed, None when no address of this machine was scanned.

        :param partial: the scan ended early: only ports that have an answer are judged
        """
        if not self.addresses:
            return None
        canaries, missed_canaries = self._missed(self._canaries, partial)
        throughout = self._listening_throughout()
        known, missed_known = self._missed(throughout or (), partial)
        names = [f"canary {format_endpoint(*address_port)}" for address_port in missed_canaries]
        names += [format_endpoint(*address_port) for address_port in missed_known]
        return SelfCheck(
            addresses=len(self.addresses),
            canaries=len(canaries),
            canaries_missed=len(missed_canaries),
            known=None if throughout is None else len(known),
            known_missed=None if throughout is None else len(missed_known),
            missed=tuple(names[:MOST_NAMED]),
        )

    def _missed(self, ports: Iterable[AddressPort], partial: bool) -> tuple[list[AddressPort], list[AddressPort]]:
        """Return the ports that should have been found open, and those that were not."""
        expected = sorted(port for port in ports if port in self._outcomes or not partial)
        return expected, [port for port in expected if self._outcomes.get(port) != "open"]

    def _listening_throughout(self) -> set[AddressPort] | None:
        """Return the known ports that are still listening; None when the tables could not be read."""
        if self._known is None:
            return None
        still = self._known_ports()
        return None if still is None else self._known & still

    def _known_ports(self) -> set[AddressPort] | None:
        """Return the scanned ports that the tables list as listening; None over UDP, or when they cannot be read."""
        if self.protocol == "udp" or not self.addresses:
            return None
        listeners = _tcp_listeners()
        if listeners is None:
            return None
        canary_ports = {port for _, port in self._canaries}
        return set(_covered(listeners, self.addresses, self._scanned_ports - canary_ports))


def is_local(address: ScannedAddress) -> bool:
    """Whether this machine has the address: it can be bound, and it would be the source of a packet to it.

    The second because ``net.ipv4.ip_nonlocal_bind`` allows binding to any address (ip(7)); connecting a datagram
    socket sends nothing (udp(7)).
    """
    try:
        with _socket(address, socket.SOCK_DGRAM) as bound:
            bound.bind(socket_address(address.address, 0, address.zone))
        if reach_of(address.address) == "loopback":
            return True
        with _socket(address, socket.SOCK_DGRAM) as connected:
            connected.connect(socket_address(address.address, 9, address.zone))  # RFC 863: discard
            return split_zone(connected.getsockname()[0])[0] == address.address
    except OSError:
        return False


def answer_datagrams(canaries: Sequence[socket.socket], most: int = MOST_REPLIES) -> None:
    """Answer datagrams of this machine itself to the canaries, at most ``most``, until they are closed."""
    from selectors import EVENT_READ, DefaultSelector

    # No descriptor is left for the selector; a closed socket has none.
    with contextlib.suppress(OSError, ValueError), DefaultSelector() as selector:
        for canary in canaries:
            selector.register(canary, EVENT_READ)
        while most > 0 and canaries[0].fileno() >= 0:
            for key, _ in selector.select(timeout=0.1):
                most -= _answer(key.fileobj)  # type: ignore[arg-type]


def _answer(canary: socket.socket) -> int:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        _, sender = canary.recvfrom(2048)
        if reach_of(sender[0]) == "loopback" or sender[0] == canary.getsockname()[0]:
            canary.sendto(b"canary", sender)
            return 1
    return 0


# --- opening -------------------------------------------------------------------------------------------------------


def _addresses(spans: Iterable[Span]) -> Iterator[ScannedAddress]:
    for span in spans:
        for address in span.addresses():
            yield ScannedAddress(span.target, address, span.zone)


def _open_canaries(
    protocol: Protocol, addresses: Sequence[ScannedAddress], scanned_ports: frozenset[int]
) -> Iterator[tuple[socket.socket, Probe]]:
    """Open a few canaries on each of the first addresses. Having none is no error: the report counts them."""
    each = max(1, min(MOST_EACH, MOST_CANARIES // (len(addresses) or 1)))
    for address in addresses[: MOST_CANARIES // each]:
        for _ in range(each):
            try:
                canary = _open_canary(protocol, address, scanned_ports)
            except OSError:  # no descriptor or no port is left
                return
            yield canary, Probe(address.target, address.address, canary.getsockname()[1], address.zone)


def _open_canary(protocol: Protocol, address: ScannedAddress, scanned_ports: frozenset[int]) -> socket.socket:
    """Open a canary, on a port that is not scanned if the system chooses one within MOST_TRIES."""
    tries = 0
    while True:
        tries += 1
        canary = _socket(address, TYPES[protocol])
        try:
            canary.bind(socket_address(address.address, 0, address.zone))
            if canary.getsockname()[1] not in scanned_ports or tries >= MOST_TRIES:
                canary.setblocking(False)
                if protocol == "tcp":
                    canary.listen(16)
                return canary
        except OSError:
            canary.close()
            raise
        canary.close()


def _socket(address: ScannedAddress, kind: socket.SocketKind) -> socket.socket:
    return socket.socket(family_of(address.address), kind)


# --- the tables of this machine ------------------------------------------------------------------------------------


def _tcp_listeners() -> Sequence[Socket] | None:
    """Return the TCP listeners of this machine; None when the tables cannot be read."""
    from portbook import inventory, query
    from portbook.errors import SourceError

    try:
        return inventory.select(query.parse("state:listen protocol:tcp"))[1]
    except SourceError:
        return None


def _covered(
    listeners: Iterable[Socket], addresses: Sequence[ScannedAddress], ports: frozenset[int]
) -> Iterator[AddressPort]:
    """Yield address and port of every listener that the scan probes."""
    for listener in listeners:
        if listener.local_port not in ports or listener.interface is not None:
            continue
        for address in addresses:
            if reaches(address, listener):
                yield address.address, listener.local_port


def reaches(address: ScannedAddress, listener: Socket) -> bool:
    """Whether a connect to an address of this machine reaches a listener on its port."""
    if listener.local_address == "::" and listener.v6only is False:
        return True
    if listener.reach == "any":
        return (":" in address.address) == (listener.family == "ipv6")
    return address.address == listener.local_address and address.zone in (None, listener.zone)
