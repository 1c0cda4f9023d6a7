"""The program itself, with pipes, as another program would start it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

from tests.windows.test_iphlpapi import touch

START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from portbook.__main__ import main; main()"


def portbook(*arguments: str) -> bytes:
    source = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "src"))
    command = [sys.executable, "-c", START, source, *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60).stdout


def test_a_listing_as_json_and_as_text():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = touch(listener).getsockname()[1]
        listing = json.loads(portbook("list", "--json"))
        text = portbook("list")
    (found,) = [s for s in listing["sockets"] if s["local_port"] == port]
    assert (listing["source"], listing["platform"]) == ("iphlpapi", "windows")
    assert found["owners"][0]["pid"] == os.getpid()
    (line,) = [line for line in text.splitlines() if str(port).encode() in line]
    assert b"python.exe" in line
