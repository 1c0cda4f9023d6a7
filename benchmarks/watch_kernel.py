"""What the feed bpf costs: the processes that open sockets, and the one that watches.

    python benchmarks/watch_kernel.py [--rounds 9] [--seconds 10]        root, gcc; about two minutes

With and without the feed in turns, in one run. The feed is open in a process of its own, which makes changes of
all records as the watch does, and does nothing else with them. What a load costs is its processor time, which counts
what the kernel does for it, the programs of the feed included, and does not count what else the machine does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from portbook.watching.feeds.base import FeedSettings
from portbook.watching.feeds.bpf import FEED

SOURCE = Path(__file__).with_name("socket_load.c")
COUNTS = {"listen": 20_000, "udp": 20_000, "fail": 20_000, "connect": 10_000}
LIMIT_S = 300


def compile_load(directory: str) -> str:
    """The load, as a program in a directory."""
    program = os.path.join(directory, "socket_load")
    subprocess.run(["gcc", "-O2", "-Wno-unused-result", "-o", program, str(SOURCE)], check=True, timeout=60)
    return program


def load(program: str, mode: str, count: int, *more: int) -> tuple[int, int]:
    """Run a load; nanoseconds for one of it, by the clock and of processor time."""
    command = [program, mode, str(count), "0", *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    wall, cpu = done.stdout.split()[-2:]
    return int(wall), int(cpu)


# --- the process that watches --------------------------------------------------------------------------------------


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def watch(orders: Connection) -> None:
    """Read the feed until there is an order, and answer with what came."""
    feed = FEED.open(FeedSettings())
    orders.send("open")
    while True:
        began, cpu = time.monotonic(), cpu_s()
        changes = lost = 0
        latencies: list[int] = []
        while not orders.poll():
            now_changes = feed.read(0.5)
            now = time.monotonic_ns()
            changes += len(now_changes)
            for change in now_changes:
                if change.kind == "lost":
                    lost += change.count
                elif len(latencies) < 1_000_000:
                    latencies.append(now - change.at_ns)
        order = orders.recv()
        if order == "stop":
            break
        spent, lasted = cpu_s() - cpu, time.monotonic() - began
        orders.send({"changes": changes, "lost": lost, "cpu_s": spent, "lasted_s": lasted, "latencies_ns": latencies})
    feed.close()


class Watch:
    """A process with the feed open."""

    def __init__(self, orders: Connection) -> None:
        self.orders = orders

    def report(self) -> dict[str, Any]:
        """What came since the last report."""
        time.sleep(0.6)  # so that everything has come
        self.orders.send("report")
        answer: dict[str, Any] = self.orders.recv()
        return answer


@contextmanager
def watching() -> Iterator[Watch]:
    """While the block runs, the feed is open."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=watch, args=(theirs,))
    process.start()
    try:
        assert ours.recv() == "open"
        yield Watch(ours)
        ours.send("stop")
    finally:
        process.join(10)
        process.kill()


# --- what is measured ----------------------------------------------------------------------------------------------


def overhead(program: str, mode: str, rounds: int) -> tuple[float, float]:
    """Nanoseconds of processor time for one socket or connection, without and with the feed: medians of the rounds."""
    without, with_feed = [], []
    for _ in range(rounds):
        without.append(load(program, mode, COUNTS[mode])[1])
        with watching():
            with_feed.append(load(program, mode, COUNTS[mode])[1])
    return statistics.median(without), statistics.median(with_feed)


def steady(program: str, listeners: int, seconds: float) -> float:
    """Processor time of the watch, in percent, while so many listeners are open and nothing happens."""
    with (
        watching() as watch_process,
        subprocess.Popen(
            [program, "hold", str(listeners), "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder,
    ):
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        watch_process.report()
        time.sleep(seconds)
        answer = watch_process.report()
        holder.stdin.close()
    return 100 * answer["cpu_s"] / answer["lasted_s"]


def sustained(program: str, rate: int, seconds: float, processes: int = 0) -> dict[str, Any]:
    """So many listeners a second: processor time of the watch in percent, what it got and lost, latencies in ms.

    :param processes: each opens its part and ends; 0: one process
    """
    count = int(rate * seconds)
    with watching() as watch_process:
        watch_process.report()
        began = time.monotonic()
        load(program, "listen", count, processes, rate)
        lasted = time.monotonic() - began
        answer = watch_process.report()
    latencies = sorted(answer.pop("latencies_ns"))
    answer["percent"] = 100 * answer["cpu_s"] / lasted
    answer["rate"] = count / lasted
    answer["median_ms"] = latencies[len(latencies) // 2] / 1e6
    answer["p99_ms"] = latencies[len(latencies) * 99 // 100] / 1e6
    answer["missed"] = max(0, 3 * count - answer["changes"])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    if (reason := FEED.missing()) is not None:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as directory:
        program = compile_load(directory)
        for mode in COUNTS:
            without, with_feed = overhead(program, mode, options.rounds)
            change = 100 * (with_feed / without - 1)
            print(f"{mode:8} without {without / 1000:7.2f} us, with {with_feed / 1000:7.2f} us: {change:+.1f} %")
            if mode == "connect":
                percent = (with_feed - without) * 20_000 / 1e9 * 100
                print(f"         at 20,000 connections a second {percent:.2f} % of a core")
        print(f"10,000 listeners and nothing happens: {steady(program, 10_000, options.seconds):.3f} % of a core")
        for rate, processes in ((10, 0), (5_000, 0), (5_000, int(options.seconds) * 50)):
            seconds = min(options.seconds, 3) if rate < 100 else options.seconds
            found = sustained(program, rate, seconds, processes)
            print(
                f"{found['rate']:.0f} listeners a second of {processes or 1} processes: "
                f"{found['percent']:.1f} % of a core, missed {found['missed']}, lost {found['lost']}, "
                f"median {found['median_ms']:.2f} ms, 99 of 100 within {found['p99_ms']:.2f} ms"
            )


if __name__ == "__main__":
    main()
