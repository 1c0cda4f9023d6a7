"""The whole pipeline on Windows: source, process, service."""

from __future__ import annotations

import os
import socket

from portbook.inventory import take
from tests.windows.test_iphlpapi import touch


def test_a_listener_and_its_owner():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = touch(listener).getsockname()[1]
        listing = take(f"state:listening port:{port}")
    (found,) = listing.sockets
    (owner,) = found.owners
    assert (listing.platform, listing.source) == ("windows", "iphlpapi")
    assert (found.local_address, found.local_port, found.state) == ("127.0.0.1", port, "LISTEN")
    assert (owner.pid, owner.name.lower()) == (os.getpid(), "python.exe")
    assert owner.user
    assert owner.service is None
    assert listing.host == os.environ["COMPUTERNAME"]
