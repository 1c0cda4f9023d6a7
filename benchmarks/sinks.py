"""What an event costs in the sinks: CPU time of this process, from the pipeline to the file, socket or disk.

python benchmarks/sinks.py           best of some rounds: other programs on the machine make each round slower

The receiver of syslog is a local socket whose reader is another process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from portbook.events import Event
from portbook.watching.sinks.configuration import parse_table
from portbook.watching.sinks.dispatch import open_sinks

EVENTS, PORTION, ROUNDS = 10_000, 100, 5
SETS = (("text",), ("jsonl",), ("syslog",), ("text", "jsonl", "syslog"))
LIMIT_S = 120.0


def events() -> list[Event]:
    """As the loop makes them for listeners of a service."""
    return [
        Event(
            at=datetime.now(UTC), event="opened", protocol="tcp", family="ipv4", local_address="127.0.0.1",
            local_port=1024 + n % 60_000, state="LISTEN", reach="loopback", pid=n, name="nginx", exe="/usr/sbin/nginx",
            command_line=("nginx", "-g", "daemon off;"), uid=0, user="root", parents=("systemd(1)",),
            service="nginx.service", cgroup="/system.slice/nginx.service", netns=4026531840, pids=(n,), cookie=n,
            identity=f"tcp/{n} loopback /usr/sbin/nginx nginx.service", feed="bpf", boot_id="0" * 36,
            monotonic_ns=time.monotonic_ns(),
        )
        for n in range(EVENTS)
    ]  # fmt: skip


def cost_us(kinds: tuple[str, ...], place: Path) -> tuple[float, float]:
    """Microseconds of CPU time, and of time, for one event; the best of some rounds."""
    targets = {"text": place / "text", "jsonl": place / "jsonl", "syslog": f"unix:{place}/log"}
    made = events()
    best_cpu = best_time = float("inf")
    for _ in range(ROUNDS):
        sinks = open_sinks([parse_table({"type": kind, "target": str(targets[kind])}, "benchmark") for kind in kinds])
        sinks.start()
        cpu, started = time.process_time(), time.perf_counter()
        for at in range(0, EVENTS, PORTION):
            sinks.write(made[at : at + PORTION])
        assert sinks.flush(LIMIT_S)
        best_cpu = min(best_cpu, (time.process_time() - cpu) / EVENTS * 1e6)
        best_time = min(best_time, (time.perf_counter() - started) / EVENTS * 1e6)
        assert not sinks.close()
    return best_cpu, best_time


def serve(path: Path) -> int:
    """A process that reads what comes; its pid."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(path))
    pid = os.fork()
    if pid:
        server.close()
        return pid
    while True:
        server.recv(1 << 16)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        reader = serve(place / "log")
        try:
            for kinds in SETS:
                cpu, elapsed = cost_us(kinds, place)
                sys.stdout.write(f"{' + '.join(kinds):24} {cpu:6.1f} us of CPU time, {elapsed:6.1f} us, per event\n")
        finally:
            os.kill(reader, signal.SIGKILL)
            os.waitpid(reader, 0)


if __name__ == "__main__":
    main()
