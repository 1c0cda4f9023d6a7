"""The psutil source on Windows."""

from __future__ import annotations

import os
import socket

from portbook.records import Owner
from portbook.sources import psutil_
from portbook.sources.base import Wanted
from tests.windows.conftest import lacks
from tests.windows.test_iphlpapi import touch


def test_it_finds_sockets_and_their_owner():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        datagram.bind(("127.0.0.1", 0))
        ports = {("tcp", touch(listener).getsockname()[1]), ("udp", touch(datagram).getsockname()[1])}
        sockets = psutil_.parse(psutil_.read(Wanted())).sockets
    found = {(s.protocol, s.local_port): s for s in sockets if (s.protocol, s.local_port) in ports}
    assert found.keys() == ports
    for (protocol, _), row in found.items():
        assert row.owners == (Owner(os.getpid(), how="psutil"),)
        assert (row.state, row.reach) == ("LISTEN" if protocol == "tcp" else None, "loopback")


@lacks("lists only sockets of its own processes, none in TIME_WAIT", since=10)
def test_an_owner_that_is_not_known_is_none():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            port = client.getsockname()[1]
        server.close()
        sockets = psutil_.parse(psutil_.read(Wanted())).sockets
    (waiting,) = [s for s in sockets if s.local_port == port]
    assert (waiting.state, waiting.owners) == ("TIME_WAIT", ())
