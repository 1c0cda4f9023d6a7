"""UDP sockets that also hear refusals: one connected socket for each port that is asked, per platform.

What comes back for a socket is a Signal: the bytes of a reply, or Evidence of a refusal. ``judge`` says what a refusal
means. Three ways:

- Linux tells everything: each ICMP message is put into the socket's error queue with its type, code and sender.
- BSD and macOS report an error number on a connected socket, without a sender.
- Windows does so as well, but reliably only to an overlapped receive that is under way, which is what the Proactor loop
  of asyncio has; a receive begun later may miss it.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from portbook.addresses import SocketAddress, family_of, socket_address, split_zone
from portbook.probe import error_queue
from portbook.probe.error_queue import Kept
from portbook.probe.outcome import Evidence, Outcome
from portbook.probe.request import Probe
from portbook.resilience import WINDOWS, classify

if TYPE_CHECKING:
    import asyncio

LONGEST_DATAGRAM = 65535

Signal = bytes | Evidence


class Heard(NamedTuple):
    """What came for a socket."""

    handle: int
    signal: Signal


class Wire(Protocol):
    """Sockets, known by handles. Every method may raise OSError, but ``hear``, ``close`` and ``shut``."""

    deaf_when_loose: bool  # a socket that takes answers from any port of the target hears no refusal

    def open(self, probe: Probe, loose: bool) -> int:
        """A socket for one port of one address; ``loose`` takes answers from every port of that address."""

    def send(self, handle: int, data: bytes) -> None:
        """Send one datagram to the port."""

    def hear(self, wait_s: float) -> list[Heard]:
        """What has come, after at most ``wait_s`` seconds of waiting."""

    def close(self, handle: int) -> None:
        """Close a socket."""

    def shut(self) -> None:
        """Close everything."""


def choose() -> Wire:
    """The way of this platform."""
    if sys.platform == "win32":
        import asyncio

        return LoopWire(asyncio.ProactorEventLoop())
    return SelectorWire()


# --- what refusals mean --------------------------------------------------------------------------------------------

# (version of IP, type, code) of ICMP: RFC 792, RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1; RFC 4443 section 3.
PORT_UNREACHABLE = {(4, 3, 3), (6, 1, 4)}
PROHIBITED = {
    (4, 3, 9),  # network administratively prohibited
    (4, 3, 10),  # host administratively prohibited
    (4, 3, 13),  # communication administratively prohibited
    (4, 3, 14),  # host precedence violation: a rule of a router, too
    (4, 3, 15),  # precedence cutoff in effect
    (6, 1, 1),  # communication administratively prohibited
    (6, 1, 5),  # source address failed ingress or egress policy
    (6, 1, 6),  # reject route
}
# A packet was too big, or came too fast: the path is asked again, smaller (the kernel sees to that) or later.
NO_ANSWER = {(4, 3, 4), (4, 4, 0), (6, 2, 0)}

# The same as error numbers, without a sender: POSIX names, and the Windows ones that mean the same. 1225 and 1234 come
# from overlapped receives, 10054 from blocking ones. EMSGSIZE: a datagram was too big, which says nothing of the port.
OUTCOMES: dict[str, Outcome | None] = {
    "ECONNREFUSED": "closed",
    "ECONNRESET": "closed",
    "ENETUNREACH": "unreachable",
    "EHOSTUNREACH": "unreachable",
    "ENETDOWN": "unreachable",
    "EHOSTDOWN": "unreachable",
    "ENOPROTOOPT": "unreachable",  # ICMP 3/2: the target does not know UDP
    "EMSGSIZE": None,
}
OUTCOMES |= {name: OUTCOMES[posix] for name, posix in WINDOWS.values() if posix in OUTCOMES}


def judge(evidence: Evidence, address: str) -> Outcome | None:
    """What a refusal says about a port of ``address``; None if nothing."""
    if evidence.kind != "icmp":
        return OUTCOMES.get(evidence.error or "", "error")
    key = (6 if ":" in address else 4, evidence.icmp_type or 0, evidence.icmp_code or 0)
    if key in NO_ANSWER:
        return None
    if key in PORT_UNREACHABLE:
        # Somebody on the way cannot know which ports the target has: it speaks for a rule of its own.
        return "closed" if evidence.sender == address else "filtered"
    return "filtered" if key in PROHIBITED else "unreachable"


def of_error(error: OSError) -> Evidence:
    """An error of the system as evidence; of Windows its own number."""
    number = getattr(error, "winerror", None) or error.errno
    return Evidence("errno", errno=number, error=classify(error).name, text=error.strerror or str(error))


def of_kept(kept: Kept) -> Evidence:
    """What Linux kept of an error as evidence."""
    name = errno.errorcode.get(kept.errno)
    if kept.version is None:
        return Evidence("errno", errno=kept.errno, error=name, text=os.strerror(kept.errno) if name else None)
    return Evidence("icmp", kept.errno, name, kept.type, kept.code, kept.sender)


# --- Linux, BSD, macOS ---------------------------------------------------------------------------------------------

NONBLOCKING = getattr(socket, "SOCK_NONBLOCK", 0)  # Linux, BSD: saves a call


class _Open(NamedTuple):
    socket: socket.socket
    address: str
    to: SocketAddress | None  # None: connected


class SelectorWire:
    """Non-blocking sockets and a selector; with an error queue where there is one."""

    def __init__(self, keeps_errors: bool = error_queue.PRESENT) -> None:
        from selectors import DefaultSelector

        self._selector = DefaultSelector()
        self._open: dict[int, _Open] = {}
        self._keeps_errors = keeps_errors
        self.deaf_when_loose = not keeps_errors

    def open(self, probe: Probe, loose: bool) -> int:
        """See Wire."""
        to = socket_address(probe.address, probe.port, probe.zone)
        made = self._make(to)
        try:
            if not loose:
                made = self._connected(made, to)
            self._selector.register(made, _readable())
        except BaseException:
            made.close()
            raise
        self._open[made.fileno()] = _Open(made, probe.address, to if loose else None)
        return made.fileno()

    def _make(self, to: SocketAddress) -> socket.socket:
        made = socket.socket(family_of(to[0]), socket.SOCK_DGRAM | NONBLOCKING)
        if not NONBLOCKING:
            made.setblocking(False)
        if self._keeps_errors:
            error_queue.wanted(made)
        return made

    def _connected(self, made: socket.socket, to: SocketAddress) -> socket.socket:
        """Connect. A socket that was given the very port that it asks would hear itself: then another is taken."""
        made.connect(to)
        if made.getsockname() != made.getpeername():
            return made
        with made:  # so that the other gets another port
            other = self._make(to)
            other.connect(to)
            return other

    def send(self, handle: int, data: bytes) -> None:
        """See Wire."""
        entry = self._open[handle]
        try:
            if entry.to is None:
                entry.socket.send(data)
            else:
                entry.socket.sendto(data, entry.to)
        except ConnectionRefusedError:
            if not self._keeps_errors:  # else the refusal of an earlier datagram, about to be heard in full
                raise

    def hear(self, wait_s: float) -> list[Heard]:
        """See Wire."""
        ready = self._selector.select(wait_s)
        return [Heard(key.fd, signal) for key, _ in ready for signal in self._receive(self._open[key.fd])]

    def _receive(self, entry: _Open) -> Iterable[Signal]:
        if self._keeps_errors:
            yield from map(of_kept, error_queue.drain(entry.socket))
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


def _readable() -> int:
    from selectors import EVENT_READ

    return EVENT_READ


# --- Windows -------------------------------------------------------------------------------------------------------


class LoopWire:
    """Datagram endpoints of an asyncio loop, which is run only while something is opened or waited for.

    Not usable from a coroutine: a thread has one running loop.
    """

    deaf_when_loose = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transports: dict[int, tuple[asyncio.DatagramTransport, tuple[str, int] | None]] = {}
        self._heard: list[Heard] = []
        self._wake: asyncio.Future[None] | None = None
        self._handles = count()

    def open(self, probe: Probe, loose: bool) -> int:
        """See Wire."""
        handle = next(self._handles)
        # asyncio takes a zone as part of the host only.
        peer = (f"{probe.address}%{probe.zone}" if probe.zone else probe.address, probe.port)
        anywhere = ("::" if ":" in probe.address else "0.0.0.0", 0)  # noqa: S104  a client's socket, as connect makes
        listener: Any = _Listener(self, handle, probe.address)
        transport = self._loop.run_until_complete(self._endpoint(listener, None if loose else peer, anywhere))
        if transport.get_extra_info("sockname") == transport.get_extra_info("peername"):  # it would hear itself
            other = self._loop.run_until_complete(self._endpoint(listener, peer, anywhere))
            transport.abort()
            transport = other
        self._transports[handle] = transport, peer if loose else None
        return handle

    async def _endpoint(self, listener: Any, peer: tuple[str, int] | None, anywhere: tuple[str, int]) -> Any:
        local = anywhere if peer is None else None
        transport, _ = await self._loop.create_datagram_endpoint(lambda: listener, remote_addr=peer, local_addr=local)
        return transport

    def send(self, handle: int, data: bytes) -> None:
        """See Wire."""
        transport, to = self._transports[handle]
        if data:
            transport.sendto(data, to)
        else:
            _send_nothing(transport, to)

    def hear(self, wait_s: float) -> list[Heard]:
        """See Wire."""
        if not self._heard:
            self._wake = self._loop.create_future()
            # A completion needs a few rounds of the loop to become a call, so that no wait is none.
            timer = self._loop.call_later(max(wait_s, 0.001), self.wake)
            self._loop.run_until_complete(self._wake)
            timer.cancel()
        heard, self._heard = self._heard, []
        return [h for h in heard if h.handle in self._transports]

    def say(self, heard: Heard) -> None:
        """A listener has heard something."""
        self._heard.append(heard)
        self.wake()

    def wake(self) -> None:
        """End the waiting."""
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
        self._loop.run_until_complete(self._settle())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _settle(self) -> None:
        """Transports close their sockets in the rounds that follow."""
        import asyncio

        for _ in range(3):
            await asyncio.sleep(0)


def _send_nothing(transport: asyncio.DatagramTransport, to: tuple[str, int] | None) -> None:
    """Send an empty datagram, which asyncio does not before Python 3.13."""
    with transport.get_extra_info("socket").dup() as twin:
        if to is None:
            twin.send(b"")
        else:
            twin.sendto(b"", to)


class _Listener:
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
        """A reply; without a sender it is from the peer of a connected socket."""
        if sender is None or split_zone(sender[0])[0] == self._address:
            self._wire.say(Heard(self._handle, data))

    def error_received(self, error: Exception) -> None:
        """A refusal."""
        if isinstance(error, OSError):
            self._wire.say(Heard(self._handle, of_error(error)))
