"""The program itself, with pipes, as another program would start it."""

from __future__ import annotations

import json
import os
import socket

from tests.listeners import portbook
from tests.windows.test_iphlpapi import touch


def test_a_listing_as_json_and_as_text():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = touch(listener).getsockname()[1]
        listing = json.loads(portbook("list", "--json").stdout)
        text = portbook("list").stdout
    (found,) = [s for s in listing["sockets"] if s["local_port"] == port]
    assert (listing["source"], listing["platform"]) == ("iphlpapi", "windows")
    assert found["owners"][0]["pid"] == os.getpid()
    (line,) = [line for line in text.splitlines() if str(port) in line]
    assert "python.exe" in line
