"""Kill a writer at many random instants; a process of its own, because a small one forks faster than pytest.

    python -m tests.store.kills FILE ROUNDS

It prints how many events were acknowledged. Every round begins with the file that the one before has left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import portbook
from portbook.store.sqlite import Writer
from tests.store.samples import socket_event

EVENTS = [socket_event(("opened", "closed")[n % 2], n, 8000 + n // 2, cookie=n // 2) for n in range(20)]


def write_until_killed(path: str, sender: int) -> None:
    """Append, and say after each batch what was returned as written."""
    with Writer(path) as writer:
        while True:
            written = writer.append(EVENTS)
            os.write(sender, b"%d\n" % (written[-1].sequence or 0))


def kill_one(path: str, delay_s: float, is_writing: bool) -> int:
    """Start a writer and kill it; return the last sequence that it has acknowledged, 0 if none."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(path, sender)
        finally:
            os._exit(1)
    os.close(sender)
    first = os.read(receiver, 1) if is_writing else b""
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with os.fdopen(receiver, "rb") as pipe:
        numbers = (first + pipe.read()).split()
    return int(numbers[-1]) if numbers else 0


def last_written(path: str) -> int:
    """The last row of the file; 0 where a writer was killed before it had made the tables."""
    try:
        with portbook.History(path) as history:
            return history.anchor().sequence
    except portbook.StoreError:
        return 0


def main(path: str, rounds: int) -> None:
    """Kill as many writers; raise AssertionError when something acknowledged is not there."""
    delays = random.Random(11)
    acknowledged = 0
    for number in range(rounds):  # every fifth is killed while it opens the file
        acknowledged = max(acknowledged, kill_one(path, delays.uniform(0, 0.005), number % 5 > 0))
        assert last_written(path) >= acknowledged, f"round {number}"
    sys.stdout.write(f"{acknowledged}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
