"""Which process of this machine holds a port that a scan has found open."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from msgspec.structs import replace

from portbook.probe.outcome import Answer
from portbook.records import Owner, Protocol, Socket
from portbook.scanner.canary import ScannedAddress, reaches

MOST_READINGS = 5  # of the tables, when ports are found that were not in them
PAUSE_S = 1.0  # between two readings


class LocalHolders:
    """The holders of ports of this machine. The tables are read when the first such port is found."""

    def __init__(self, protocol: Protocol, addresses: Sequence[ScannedAddress]) -> None:
        self._protocol = protocol
        self._addresses = {(address.address, address.zone): address for address in addresses}
        self._sockets: dict[int, list[Socket]] = {}
        self._readings = 0
        self._read_at = 0.0

    def named(self, answer: Answer) -> Answer:
        """The answer with the process that holds its port, if the address is one of this machine."""
        address = self._addresses.get((answer.address or "", answer.zone))
        if address is None:
            return answer
        owner = self._owner(address, answer.port)
        if owner is None:
            return answer
        return replace(answer, pid=owner.pid, process=owner.name)

    def _owner(self, address: ScannedAddress, port: int) -> Owner | None:
        if port not in self._sockets and self._may_read():
            self._read()
        found = [socket for socket in self._sockets.get(port, ()) if reaches(address, socket)]
        # A socket that is bound to the address itself is preferred to one that is bound to all of them.
        found.sort(key=lambda socket: socket.local_address != address.address)
        owners = [owner for socket in found for owner in socket.owners]
        return owners[0] if owners else None

    def _may_read(self) -> bool:
        if self._readings == 0:
            return True
        return self._readings < MOST_READINGS and monotonic() - self._read_at >= PAUSE_S

    def _read(self) -> None:
        from portbook import inventory
        from portbook.errors import SourceError

        self._readings += 1
        try:
            sockets = inventory.take(f"state:listening protocol:{self._protocol}").sockets
        except SourceError:
            sockets = ()
        self._read_at = monotonic()
        self._sockets = {}
        for socket in sockets:
            self._sockets.setdefault(socket.local_port, []).append(socket)
