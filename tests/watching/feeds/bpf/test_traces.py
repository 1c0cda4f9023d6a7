"""What stays in the system: nothing, whatever ends the process. The kernel is asked for its objects."""

from __future__ import annotations

import glob
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from portbook.system import bpf

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("works")]
LIMIT_S = 10.0
GET_FD_BY_ID = {"prog": 13, "map": 14, "link": 30}  # BPF_*_GET_FD_BY_ID
WATCH = """
import sys
from portbook.watching.feeds.base import FeedSettings
from portbook.watching.feeds.bpf import FEED
feed = FEED.open(FeedSettings())
print("open", flush=True)
while True:
    feed.read(60)
"""


def objects_of(pid: int) -> dict[str, set[int]]:
    """The programs, maps and links that a process has, by its descriptors."""
    found: dict[str, set[int]] = {kind: set() for kind in GET_FD_BY_ID}
    for path in glob.glob(f"/proc/{pid}/fdinfo/*"):
        with open(path, encoding="ascii") as file:
            for kind, number in re.findall(r"^(prog|map|link)_id:\s*(\d+)$", file.read(), re.MULTILINE):
                found[kind].add(int(number))
    return found


def exists(kind: str, number: int) -> bool:
    try:
        os.close(bpf.call(GET_FD_BY_ID[kind], bytearray(struct.pack("=III", number, 0, 0))))
    except FileNotFoundError:
        return False
    return True


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_after_the_process(ending: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", WATCH], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "open\n"
        objects = objects_of(watch.pid)
        assert {kind: len(numbers) for kind, numbers in objects.items()} == {"prog": 9, "map": 2, "link": 8}
        assert all(exists(kind, number) for kind, numbers in objects.items() for number in numbers)
        watch.send_signal(ending)
    left = {(kind, number) for kind, numbers in objects.items() for number in numbers}
    until = time.monotonic() + LIMIT_S
    while left and time.monotonic() < until:
        left = {(kind, number) for kind, number in left if exists(kind, number)}
    assert left == set()
    with socket.create_server(("127.0.0.1", 0)):  # and nothing refuses
        pass
