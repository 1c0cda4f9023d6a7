"""What packets to a port really reach, seen by peers, beside what the rules of the machine are said to do."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import threading
from collections.abc import Iterable, Iterator

from portbook.netconfig.facts import Diversion
from portbook.netconfig.linux import nat
from tests import netlab

WAIT_S = 0.5  # for a connection within this machine: what goes nowhere is silent
EVERYWHERE = ("0.0.0.0", "::")
# Each connection has a source port of its own: NAT keeps to what it did to an earlier one with the same ports.
SOURCE_PORTS = itertools.cycle(range(10_000, 60_000))


class Listeners:
    """A server on each of many ports that sends its own number, on every address; in the background."""

    def __init__(self, ports: Iterable[int], transparent: Iterable[int] = ()) -> None:
        self.selector = selectors.DefaultSelector()
        self.stop, wake = socket.socketpair()
        self.selector.register(wake, selectors.EVENT_READ)
        self.wake = wake
        self.sockets = [self._listen(port, port in set(transparent), kind) for port in ports for kind in (False, True)]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _listen(self, port: int, transparent: bool, udp: bool) -> socket.socket:
        one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if transparent:
            one.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
        one.bind(("::", port))
        if not udp:
            one.listen(256)
        one.setblocking(False)
        self.selector.register(one, selectors.EVENT_READ, port)
        return one

    def _serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    if key.fileobj.type == socket.SOCK_DGRAM:
                        _, peer = key.fileobj.recvfrom(16)
                        key.fileobj.sendto(b"%d" % key.data, peer)
                        continue
                    connection, _ = key.fileobj.accept()
                    with connection:
                        connection.sendall(b"%d" % key.data)

    def close(self) -> None:
        self.stop.send(b"x")
        self.thread.join(10)
        for one in (*self.sockets, self.stop, self.wake):
            one.close()
        self.selector.close()


def reached(address: str, port: int, *, udp: bool = False) -> int | None:
    """The number of the server that answers; None: nobody does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as one:
        one.settimeout(WAIT_S)
        try:
            one.bind(("", next(SOURCE_PORTS)))
            one.connect((address, port))
            if udp:
                one.send(b"?")
            return int(one.recv(16))
        except (OSError, ValueError):
            return None


@contextlib.contextmanager
def machine(ports: Iterable[int], transparent: Iterable[int] = ()) -> Iterator[netlab.Lab]:
    """A target on which a server listens on each port, and a client with a link to it."""
    with netlab.pair() as lab:
        with lab.target:
            servers = Listeners(ports, transparent)
        try:
            yield lab
        finally:
            servers.close()


def said(lab: netlab.Lab, port: int, protocol: str = "tcp", requested: tuple[str, ...] = EVERYWHERE):
    """What the product says about a port of the target."""
    with lab.target:
        diversions, gaps = nat.take(port, protocol, requested)
    assert gaps == [], gaps
    return diversions


def contradiction(
    diversions: tuple[Diversion, ...], hook: str, family: str, address: str, port: int, server: int | None
) -> str | None:
    """Where what is said is not what a peer has seen; None: it is."""
    mine = [
        one
        for one in diversions
        if any(
            r.hook == hook
            and r.family == family
            and r.destination in (None, address)
            and r.interface in (None, "link0")
            for r in one.rules
        )
    ]
    certain = [one for one in mine if one.certain]
    if server == port and certain:
        return f"{address} {port}: certain {certain}, but the port itself answers"
    if server not in (port, None):
        targets = {
            number
            for one in mine
            for target in one.targets
            for number in range(target.port or port, (target.last_port or target.port or port) + 1)
        }
        if server not in targets:
            return f"{address} {port}: {mine}, but {server} answers"
    return None
