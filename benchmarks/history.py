"""What the history costs: appending, an answer about a moment, checking the chain, removing what is old.

    python benchmarks/history.py                     5,000,000 events: about 2.2 GB in a temporary directory
    python benchmarks/history.py --events 200000     a look

Times are processor time, because what others do on the machine would falsify them; that of `verify` is given as it was
waited for, too. The functions are for other benchmarks: each takes the path of a history and returns seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

import portbook
from portbook.events import Event
from portbook.store.sqlite import Writer

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BOOT = "0f0f0f0f-0000-0000-0000-000000000000"
BATCH = 1000  # events in one transaction
EVERY_US = 100_000  # an event
REPEAT = 5


def make_events(count: int) -> Iterator[Event]:
    """Servers on random ports that open and close: some after a moment, some after days."""
    choose = random.Random(1)
    servers: list[Event] = []
    yield Event(at=BEGIN, event="started", feed="bpf", boot_id=BOOT, monotonic_ns=0)
    for number in range(1, count):
        us = number * EVERY_US
        at = BEGIN + timedelta(microseconds=us)
        if servers and (len(servers) >= 10_000 or choose.random() < 0.5):
            at_random = choose.random() < 0.1
            server = servers.pop(choose.randrange(len(servers)) if at_random else -1)
            yield _event("closed", at, us, server.local_port or 0, server.pid or 0, server.cookie or 0)
        else:
            server = _event("opened", at, us, choose.randrange(1024, 65536), choose.randrange(2, 4_000_000), number)
            servers.append(server)
            yield server


def _event(kind: str, at: datetime, us: int, port: int, pid: int, cookie: int) -> Event:
    return Event(
        at=at,
        event=kind,  # type: ignore[arg-type]
        protocol="tcp",
        family="ipv4",
        local_address="0.0.0.0",
        local_port=port,
        state="LISTEN",
        reach="any",
        pid=pid,
        name="nginx",
        exe="/usr/sbin/nginx",
        command_line=("nginx", "-g", "daemon off;"),
        uid=0,
        user="root",
        process_started=at,
        parents=("systemd(1)",),
        service="nginx.service",
        cgroup="/system.slice/nginx.service",
        netns=4026531840,
        pids=(pid,),
        cookie=cookie,
        identity=f"tcp/{port} any /usr/sbin/nginx nginx.service",
        feed="bpf",
        boot_id=BOOT,
        monotonic_ns=us * 1000,
    )


def append(path: str, count: int) -> float:
    """Append as many events in batches; return the processor time of appending alone."""
    spent = 0.0
    events = make_events(count)
    with Writer(path) as writer:
        while batch := list(islice(events, BATCH)):
            begin = time.process_time()
            writer.append(batch)
            spent += time.process_time() - begin
    return spent


def ask(path: str, count: int, query: str = "") -> tuple[float, int]:
    """Ask what was held in the middle; return the processor time of the fastest of some calls, and how many it were."""
    at = BEGIN + timedelta(microseconds=count // 2 * EVERY_US)
    times: list[float] = []
    found = 0
    with portbook.History(path) as history:
        for _ in range(REPEAT):
            begin = time.process_time()
            found = len(list(history.intervals(query, at=at)))
            times.append(time.process_time() - begin)
    return min(times), found


def check(path: str) -> tuple[float, float]:
    """Verify; return the time that it took, and the processor time of the busier of its two processes."""
    before = _processor_times()
    begin = time.perf_counter()
    with portbook.History(path) as history:
        assert history.verify().whole
    waited = time.perf_counter() - begin
    return waited, max(after - earlier for earlier, after in zip(before, _processor_times(), strict=True))


def _processor_times() -> list[float]:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return [usage.ru_utime + usage.ru_stime for usage in usages]


def trim(path: str, count: int) -> tuple[float, float]:
    """Remove a tenth in steps; return the median and the longest processor time of a step."""
    now = BEGIN + timedelta(days=90, microseconds=count // 10 * EVERY_US)
    times: list[float] = []
    with Writer(path) as writer:
        more = True
        while more:
            begin = time.process_time()
            more = writer.trim(now, keep_s=90 * 86400.0)
            times.append(time.process_time() - begin)
    return sorted(times)[len(times) // 2], max(times)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5_000_000)
    count = parser.parse_args(arguments).events
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "history.db")
        spent = append(path, count)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        moment, found = ask(path, count)
        one, _ = ask(path, count, "port:8080")
        waited, busy = check(path)
        median, longest = trim(path, count)
        rows = (
            ("append, processor time for an event", f"{spent / count * 1e6:.1f} µs"),
            ("memory of the process that appends", f"{memory:.0f} MB"),
            ("size of the file, for an event", f"{os.path.getsize(path) / count:.0f} bytes"),
            (f"what was held at a moment: {found:,} intervals", f"{moment * 1000:.0f} ms"),
            ("who held one port at a moment", f"{one * 1000:.1f} ms"),
            ("verify; processor time of the busier of its two processes", f"{waited:.1f} s; {busy:.1f} s"),
            ("a step of retention, median and longest", f"{median * 1000:.1f} ms, {longest * 1000:.1f} ms"),
        )
    print(f"| {count:,} events | |\n|---|---|")
    for title, value in rows:
        print(f"| {title} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
