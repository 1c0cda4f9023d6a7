"""The sockets of UDP ports: opened when a port is asked, kept for a late reply as long as there are enough."""

from __future__ import annotations

from portbook.scanner.udp.payloads import Payload
from portbook.scanner.udp.state import Port
from portbook.scanner.udp.wire import Wire

LEAST = 2  # a silent port and its control


class Sockets:
    """Which port has which socket, and how many there may be."""

    def __init__(self, wire: Wire, most: int) -> None:
        self.most = max(most, LEAST)
        self._wire = wire
        self._ports: dict[int, Port] = {}  # by handle
        self._kept: dict[Port, None] = {}  # silent ones, to be asked again; the oldest first

    def port(self, handle: int) -> Port | None:
        """Whose socket it is."""
        return self._ports.get(handle)

    def connect(self, port: Port, questions: tuple[Payload, ...]) -> int:
        """A socket of the kind that hears the answers to these questions; OSError when there is none."""
        loose = any(q.elsewhere for q in questions) and (port.attempts > 0 or not self._wire.deaf_when_loose)
        if port.handle is not None and port.is_loose != loose:
            self.disconnect(port)
        if port.handle is None:
            if len(self._ports) >= self.most and self._kept:
                self.disconnect(next(iter(self._kept)))
            port.handle = self._wire.open(port.probe, loose)
            port.is_loose = loose
            self._ports[port.handle] = port
        return port.handle

    def disconnect(self, port: Port) -> None:
        """Close the socket of a port, if it has one."""
        self._kept.pop(port, None)
        if port.handle is not None:
            del self._ports[port.handle]
            self._wire.close(port.handle)
            port.handle = None

    def keep(self, port: Port) -> None:
        """The port will be asked again: its socket stays open meanwhile, or is closed when others need one."""
        if port.handle is None:
            return
        if len(self._ports) > self.most // 2:
            self.disconnect(port)
        else:
            self._kept[port] = None

    def keeps(self, port: Port) -> bool:
        """Whether the socket of a port stayed open."""
        return port in self._kept

    def resume(self, port: Port) -> None:
        """The port is asked again, or answered."""
        self._kept.pop(port, None)

    @property
    def can_spare(self) -> bool:
        """Whether some are open that nobody waits for."""
        return bool(self._kept)

    def have_fewer(self, in_use: int) -> bool:
        """No descriptor is left: close what can be spared; True when from here on there may be fewer."""
        for kept in list(self._kept):
            self.disconnect(kept)
        if not LEAST <= in_use < self.most:
            return False
        self.most = in_use
        return True
