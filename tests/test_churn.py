"""A hundred processes that come and go, with a thousand sockets that they open and close, while listings are taken."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from portbook import sources, take, who
from portbook.testing import child
from tests.rounds import rounds

if sys.platform != "linux":
    pytest.skip("every process has a loopback address of its own, as Linux lets it", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("own_network")

PROCESSES, LISTINGS = 100, 120

# Worker number n is called pb-churn-n, like all that it forks, and opens sockets on 127.101.n.1 only: so that every row
# tells who must have made it. It never leaves a connection in TIME_WAIT (linger 0 resets), and ends with its parent.
CHURN = """
import ctypes, random, signal, struct, time
libc = ctypes.CDLL(None)

def die_with_parent():
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG

def bound(kind, n):
    one = socket.socket(socket.AF_INET, kind)
    while True:
        try:
            one.bind((f"127.101.{n}.1", random.randint(10000, 29999)))  # not among the ports that others get
            return one
        except OSError:
            continue

def opened(n):
    listeners = [bound(socket.SOCK_STREAM, n) for _ in range(5)]
    for one in listeners:
        one.listen()
    datagrams = [bound(socket.SOCK_DGRAM, n) for _ in range(3)]
    client = bound(socket.SOCK_STREAM, n)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.connect(listeners[0].getsockname())
    return [*listeners, *datagrams, client, listeners[0].accept()[0]]

def work(n):
    die_with_parent()
    libc.prctl(15, f"pb-churn-{n}".encode(), 0, 0, 0)  # PR_SET_NAME
    random.seed()
    for _ in range(random.randint(2, 8)):
        sockets = opened(n)
        if random.random() < 0.1 and os.fork() == 0:
            die_with_parent()
            time.sleep(random.uniform(0.01, 0.1))
            os._exit(0)
        time.sleep(random.uniform(0.1, 0.5))
        for one in reversed(sockets):
            one.close()
    os._exit(0)

def start(n):
    pid = os.fork()
    if pid == 0:
        try:
            work(n)
        finally:
            os._exit(1)
    return pid

signal.signal(signal.SIGCHLD, signal.SIG_DFL)
counter = int(sys.argv[2])
workers = {start(n): n for n in range(int(sys.argv[1]))}
say()
os.set_blocking(0, False)
started = failed = 0
while True:
    try:
        if os.read(0, 1) == b"":
            break
    except BlockingIOError:
        pass
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid == 0:
        time.sleep(0.01)
        continue
    failed += status != 0
    n = workers.pop(pid)
    workers[start(n)] = n
    started += 1
    os.pwrite(counter, b"%d" % started, 0)
for pid in workers:
    os.kill(pid, signal.SIGKILL)
for pid in workers:
    os.waitpid(pid, 0)
print(json.dumps(failed), flush=True)
"""


def number(address):
    """The worker whose address this is."""
    parts = address.split(".")
    return int(parts[2]) if parts[:2] == ["127", "101"] else None


def is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def test_no_listing_fails_and_no_owner_is_wrong(tmp_path):
    turns = [name for name in (None, None, "procfs", "psutil") if name is None or sources.missing(name) is None]
    seen, named, wrong, twice = Counter(), set(), [], []
    started = tmp_path / "started"
    started.write_text("0")

    def was_lively():
        return (
            int(started.read_text()) > PROCESSES
            and len(named) == PROCESSES
            and sum(seen.values()) > LISTINGS * PROCESSES * 3
            and {"LISTEN", "ESTABLISHED", None} <= seen.keys()
        )

    with (
        open(started, "r+b") as counter,
        child(CHURN, str(PROCESSES), str(counter.fileno()), pass_fds=[counter.fileno()]) as churn,
    ):
        for turn in rounds(was_lively, least=LISTINGS):
            listing = take(source=turns[turn % len(turns)])
            assert listing.sockets
            inodes = Counter(row.inode for row in listing.sockets if row.inode)
            twice += [(listing.source, inode, n) for inode, n in inodes.items() if n > 1]
            for row in listing.sockets:
                worker = number(row.local_address)
                if worker is None:
                    continue
                seen[row.state] += 1
                for owner in row.owners:
                    if owner.name is None:
                        assert not is_running(owner.pid), "only one that ended before its name was read has none"
                    elif owner.name == f"pb-churn-{worker}":
                        named.add(worker)
                    else:
                        wrong.append((row, owner))
            if turn % 10 == 0:
                port = next(row.local_port for row in listing.sockets if number(row.local_address) is not None)
                who(port)
        churn.process.stdin.close()
        failed = json.loads(churn.process.stdout.readline())
    assert wrong == []
    assert twice == []
    assert failed == 0
