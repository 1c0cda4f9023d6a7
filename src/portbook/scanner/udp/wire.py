"""UDP sockets that also hear refusals: one socket for each port that is probed, per platform.

What arrives for a socket is a Signal: the bytes of a reply, or Evidence of a refusal. There are three cases:

- Linux reports everything: each ICMP message is put into the socket's error queue with its type, code and sender.
- BSD and macOS report an error number on a connected socket, without a sender.
- Windows does so as well, but reliably only to an overlapped receive that is already pending, as asyncio's Proactor
  loop has it; a receive that begins later may miss it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from portbook.addresses import SocketAddress, family_of, socket_address, split_zone
from portbook.probe import error_queue
from portbook.probe.outcome import Evidence
from portbook.probe.request import Probe
from portbook.scanner.udp.refusals import of_error, of_queued

if TYPE_CHECKING:
    import asyncio

LONGEST_DATAGRAM = 65535

Signal = bytes | Evidence


class Received(NamedTuple):
    """What arrived for a socket."""

    handle: int
    signal: Signal


class Wire(Protocol):
    """Sockets, known by handles. ``open`` and ``send`` may raise OSError."""

    misses_icmp_when_unconnected: bool  # an unconnected socket, which hears every port of the target, hears no refusal

    def open(self, probe: Probe, unconnected: bool) -> int:
        """Open a socket for one port of one address; an unconnected one hears every port of that address."""

    def send(self, handle: int, data: bytes) -> None:
        """Send one datagram to the port."""

    def receive(self, wait_s: float) -> list[Received]:
        """Wait at most ``wait_s`` seconds until something arrives; return it."""

    def close(self, handle: int) -> None:
        """Close a socket."""

    def shut(self) -> None:
        """Close everything."""


def choose() -> Wire:
    """Return the wire of this platform."""
    if sys.platform == "win32":
        import asyncio

        return LoopWire(asyncio.ProactorEventLoop())
    return SelectorWire()


# --- Linux, BSD, macOS ---------------------------------------------------------------------------------------------

NONBLOCKING = getattr(socket, "SOCK_NONBLOCK", 0)  # Linux, BSD: saves a call


class _OpenSocket(NamedTuple):
    socket: socket.socket
    address: str
    destination: SocketAddress | None  # None: connected


class SelectorWire:
    """Non-blocking sockets and a selector; with the error queue where there is one."""

    def __init__(self, keeps_errors: bool = error_queue.PRESENT) -> None:
        from selectors import EVENT_READ, DefaultSelector

        self._selector = DefaultSelector()
        self._readable = EVENT_READ
        self._open: dict[int, _OpenSocket] = {}
        self._keeps_errors = keeps_errors
        self.misses_icmp_when_unconnected = not keeps_errors

    def open(self, probe: Probe, unconnected: bool) -> int:
        """See Wire."""
        destination = socket_address(probe.address, probe.port, probe.zone)
        sock = self._create(destination)
        try:
            if not unconnected:
                sock = self._connect(sock, destination)
            self._selector.register(sock, self._readable)
        except BaseException:
            sock.close()
            raise
        handle = sock.fileno()
        self._open[handle] = _OpenSocket(sock, probe.address, destination if unconnected else None)
        return handle

    def _create(self, destination: SocketAddress) -> socket.socket:
        sock = socket.socket(family_of(destination[0]), socket.SOCK_DGRAM | NONBLOCKING)
        if not NONBLOCKING:
            sock.setblocking(False)
        if self._keeps_errors:
            error_queue.enable(sock)
        return sock

    def _connect(self, sock: socket.socket, destination: SocketAddress) -> socket.socket:
        """Connect. A socket whose local port is the port that it probes would hear itself; another replaces it."""
        sock.connect(destination)
        if sock.getsockname() != sock.getpeername():
            return sock
        with sock:  # open meanwhile, so that the other gets another port
            other = self._create(destination)
            other.connect(destination)
            return other

    def send(self, handle: int, data: bytes) -> None:
        """See Wire."""
        entry = self._open[handle]
        try:
            if entry.destination is None:
                entry.socket.send(data)
            else:
                entry.socket.sendto(data, entry.destination)
        except ConnectionRefusedError:
            if not self._keeps_errors:  # else the error queue has the refusal of an earlier datagram
                raise

    def receive(self, wait_s: float) -> list[Received]:
        """See Wire."""
        arrivals: list[Received] = []
        for key, _ in self._selector.select(wait_s):
            signals = self._signals(self._open[key.fd])
            arrivals.extend(Received(key.fd, signal) for signal in signals)
        return arrivals

    def _signals(self, entry: _OpenSocket) -> Iterator[Signal]:
        if self._keeps_errors:
            for queued in error_queue.drain(entry.socket):
                yield of_queued(queued)
        try:
            data, sender = entry.socket.recvfrom(LONGEST_DATAGRAM)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            yield of_error(error)
            return
        if split_zone(sender[0])[0] == entry.address:
            yield data

    def close(self, handle: int) -> None:
        """See Wire."""
        entry = self._open.pop(handle)
        self._selector.unregister(entry.socket)
        entry.socket.close()

    def shut(self) -> None:
        """See Wire."""
        for handle in list(self._open):
            self.close(handle)
        self._selector.close()


# --- Windows -------------------------------------------------------------------------------------------------------


class LoopWire:
    """Datagram endpoints of an asyncio loop, which runs only while something is opened or waited for.

    Not usable from a coroutine: a thread has one running loop.
    """

    misses_icmp_when_unconnected = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transports: dict[int, tuple[asyncio.DatagramTransport, tuple[str, int] | None]] = {}
        self._arrivals: list[Received] = []
        self._wake: asyncio.Future[None] | None = None
        self._handles = count()

    def open(self, probe: Probe, unconnected: bool) -> int:
        """See Wire."""
        handle = next(self._handles)
        # asyncio takes a zone only as part of the host.
        peer = (f"{probe.address}%{probe.zone}" if probe.zone else probe.address, probe.port)
        wildcard = ("::" if ":" in probe.address else "0.0.0.0", 0)  # noqa: S104  a client's socket, as connect makes
        protocol: Any = _DatagramProtocol(self, handle, probe.address)
        if unconnected:
            transport = self._create(protocol, None, wildcard)
        else:
            transport = self._create(protocol, peer, None)
            if transport.get_extra_info("sockname") == transport.get_extra_info("peername"):  # it would hear itself
                other = self._create(protocol, peer, None)
                transport.abort()
                transport = other
        self._transports[handle] = transport, peer if unconnected else None
        return handle

    def _create(self, protocol: Any, peer: tuple[str, int] | None, local: tuple[str, int] | None) -> Any:
        creation = self._loop.create_datagram_endpoint(lambda: protocol, remote_addr=peer, local_addr=local)
        transport, _ = self._loop.run_until_complete(creation)
        return transport

    def send(self, handle: int, data: bytes) -> None:
        """See Wire."""
        transport, destination = self._transports[handle]
        if data:
            transport.sendto(data, destination)
        else:
            _send_empty(transport, destination)

    def receive(self, wait_s: float) -> list[Received]:
        """See Wire."""
        if not self._arrivals:
            self._wake = self._loop.create_future()
            # A completion takes a few rounds of the loop to become a call: a wait of zero would see nothing.
            timer = self._loop.call_later(max(wait_s, 0.001), self.wake)
            self._loop.run_until_complete(self._wake)
            timer.cancel()
        arrivals, self._arrivals = self._arrivals, []
        return [received for received in arrivals if received.handle in self._transports]

    def add(self, received: Received) -> None:
        """Take an arrival, from a protocol."""
        self._arrivals.append(received)
        self.wake()

    def wake(self) -> None:
        """End the wait."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def close(self, handle: int) -> None:
        """See Wire."""
        transport, _ = self._transports.pop(handle)
        transport.abort()

    def shut(self) -> None:
        """See Wire."""
        for handle in list(self._transports):
            self.close(handle)
        self._loop.run_until_complete(self._close_sockets())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _close_sockets(self) -> None:
        """Run the loop until the aborted transports have closed their sockets."""
        import asyncio

        for _ in range(3):
            await asyncio.sleep(0)


def _send_empty(transport: asyncio.DatagramTransport, destination: tuple[str, int] | None) -> None:
    """Send an empty datagram, which asyncio does not do before Python 3.13."""
    with transport.get_extra_info("socket").dup() as duplicate:
        if destination is None:
            duplicate.send(b"")
        else:
            duplicate.sendto(b"", destination)


class _DatagramProtocol:
    """An asyncio.DatagramProtocol, without importing asyncio where it is not used."""

    def __init__(self, wire: LoopWire, handle: int, address: str) -> None:
        self._wire = wire
        self._handle = handle
        self._address = address

    def connection_made(self, transport: object) -> None:
        """Nothing to do."""

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing to do."""

    def datagram_received(self, data: bytes, sender: tuple[str, int] | None) -> None:
        """Take a reply; without a sender it is from the peer of a connected socket."""
        if sender is None or split_zone(sender[0])[0] == self._address:
            self._wire.add(Received(self._handle, data))

    def error_received(self, error: Exception) -> None:
        """Take a refusal."""
        if isinstance(error, OSError):
            self._wire.add(Received(self._handle, of_error(error)))
