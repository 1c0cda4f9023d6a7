"""The sockets of UDP ports: opened for an attempt, and while there are enough kept for late replies until the retry."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.scanner.udp.state import UdpPort
from portbook.scanner.udp.wire import Signal, Wire


class Sockets:
    """Which port has which socket. ``window`` is how many may be open."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._ports: dict[int, UdpPort] = {}  # by handle
        self._idle: dict[UdpPort, None] = {}  # of ports that await a retry; the oldest first

    @property
    def any_idle(self) -> bool:
        """Whether some are open only for late replies."""
        return bool(self._idle)

    def connect(self, port: UdpPort, window: int) -> int:
        """Return the handle of a socket that hears the replies to the requests of a port.

        When the window is full, the oldest idle socket is closed. Raises OSError when no socket can be opened.
        """
        self._idle.pop(port, None)
        unconnected = self._needs_unconnected(port)
        if port.handle is not None and port.is_unconnected != unconnected:
            self.close(port)
        if port.handle is not None:
            return port.handle
        if len(self._ports) >= window and self._idle:
            self.close(next(iter(self._idle)))
        port.handle = self._wire.open(port.probe, unconnected)
        port.is_unconnected = unconnected
        self._ports[port.handle] = port
        return port.handle

    def _needs_unconnected(self, port: UdpPort) -> bool:
        """Where an unconnected socket misses refusals, the first attempt uses a connected one."""
        if not any(payload.from_other_port for payload in port.requests):
            return False
        return port.attempts > 0 or not self._wire.misses_icmp_when_unconnected

    def send(self, handle: int, data: bytes) -> None:
        """Send one datagram; raises OSError."""
        self._wire.send(handle, data)

    def receive(self, wait_s: float) -> Iterator[tuple[UdpPort, Signal]]:
        """Yield what has arrived after at most ``wait_s`` seconds; nothing of sockets that are closed meanwhile."""
        for handle, signal in self._wire.receive(wait_s):
            port = self._ports.get(handle)
            if port is not None:
                yield port, signal

    def release(self, port: UdpPort, window: int) -> None:
        """Take back the socket of a port whose attempt has ended.

        It stays open for a late reply if the port awaits a retry and at most half of the window is open.
        """
        if port.handle is None:
            return
        if port.is_finished or len(self._ports) > window // 2:
            self.close(port)
        else:
            self._idle[port] = None

    def close(self, port: UdpPort) -> None:
        """Close the socket of a port, if it has one."""
        self._idle.pop(port, None)
        if port.handle is not None:
            del self._ports[port.handle]
            self._wire.close(port.handle)
            port.handle = None

    def close_idle(self) -> None:
        """Close the sockets of ports that await a retry."""
        for port in list(self._idle):
            self.close(port)

    def shut(self) -> None:
        """Close everything."""
        self._wire.shut()
