"""What a watch sees and misses, and what it costs, beside what others use, in one run.

    .venv/bin/python benchmarks/watch.py                          everything (root; about half an hour)
    .venv/bin/python benchmarks/watch.py --rows missed,latency    some of the rows
    .venv/bin/python benchmarks/watch.py --write docs/benchmarks.md

What is measured is a wheel of this tree, as in register.py, in a network namespace of its own. Beside portbook's feeds
run bpftrace, auditd and a loop around ss, where they are installed. `openings.py` is the load, `watchers.py` those who
watch. A figure of processor time is that of the program alone; what the kernel does for it in the process that opens a
socket is in the row "overhead".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import contest
import watchers
from contest import PLAIN, median
from watchers import Seen, Watcher

HERE = os.path.dirname(os.path.abspath(__file__))
FEEDS = ("bpf", "tracefs", "destroy", "poll")
LISTENERS = 10_000


class Scene(NamedTuple):
    """Sockets of one kind, of which each watcher reports what it has seen."""

    title: str
    kind: str
    count: int
    first: int
    elsewhere: bool = False  # in another network namespace
    failed: bool = False


SCENES = (
    Scene("TCP listener, under 1 ms, of a process that ends at once", "brief-tcp", 1000, 10_000),
    Scene("the same in another namespace", "brief-tcp", 1000, 12_000, elsewhere=True),
    Scene("UDP bind, under 1 ms, of a process that ends at once", "brief-udp", 1000, 14_000),
    Scene("the same in another namespace", "brief-udp", 1000, 16_000, elsewhere=True),
    Scene("TCP listener of 200 ms", "tcp-200ms", 50, 18_000),
    Scene("TCP listener of 3 s", "tcp-3s", 4, 19_000),
    Scene("bind that failed", "refused", 1000, 20_000, failed=True),
)


class Goal(NamedTuple):
    """A target of the project."""

    text: str
    most: float


class Bench:
    """What the rows share."""

    def __init__(self, program: str, options: argparse.Namespace) -> None:
        self.program = program
        self.repeat: int = options.repeat
        self.seconds: float = options.seconds
        self.record: dict[str, Any] = {}

    def portbook(self, feed: str, *options: str) -> Watcher:
        return watchers.portbook(self.program, feed, *options)

    def feeds(self) -> list[str]:
        """Those that work here."""
        working = []
        for feed in FEEDS:
            done = subprocess.run(
                [self.program, "watch", "--feed", feed, "--no-store", "--once", "--jsonl"],
                check=False, capture_output=True, env=PLAIN,
            )  # fmt: skip
            if done.returncode == 0:
                working.append(feed)
        return working


def load(*words: object, elsewhere: bool = False) -> str:
    """Run openings.py to its end, perhaps in a namespace of its own, and return its output."""
    command = [sys.executable, f"{HERE}/openings.py", *map(str, words)]
    if elsewhere:
        command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', *command]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextlib.contextmanager
def standing(count: int) -> Iterator[None]:
    """So many sockets that stay."""
    command = [sys.executable, f"{HERE}/openings.py", "hold", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[Watcher]:
    watcher.start()
    try:
        yield watcher
    finally:
        watcher.stop()


# --- who missed what -----------------------------------------------------------------------------------------------


def missed(bench: Bench) -> list[str]:
    """Every scene before every watcher, which runs alone."""
    contestants = [bench.portbook(feed) for feed in bench.feeds()] + watchers.others()
    found: dict[str, list[str]] = {}
    for watcher in contestants:
        truth: list[set[tuple[str, int]]] = []
        watcher.start()
        time.sleep(1.5)
        for scene in SCENES:
            lines = load(scene.kind, scene.count, scene.first, elsewhere=scene.elsewhere).splitlines()
            truth.append({(row["protocol"], row["port"]) for row in map(json.loads, lines)})
        time.sleep(2.5)
        found[watcher.name] = _cells(watcher.stop(), truth)
    lines = ["| of | " + " | ".join(found) + " |", "|---|" + "--:|" * len(found)]
    for number, scene in enumerate(SCENES):
        cells = " | ".join(each[number] for each in found.values())
        lines.append(f"| {scene.count:,}: {scene.title} | {cells} |")
    return ["How many each has missed:", "", *lines, ""]


def _cells(seen: Seen, truth: Sequence[set[tuple[str, int]]]) -> list[str]:
    cells = []
    for scene, expected in zip(SCENES, truth, strict=True):
        of_kind = seen.failed if scene.failed else seen.opened
        missing = [place for place in expected if place not in of_kind and ("any", place[1]) not in of_kind]
        cells.append(f"{len(missing):,}" if missing else "0")
    return cells


# --- cost ----------------------------------------------------------------------------------------------------------


STEADY = {"bpf": 0.2, "poll": 2.0}  # percent of a core


def steady(bench: Bench) -> list[str]:
    """Processor time while nothing changes."""
    lines = [
        f"| {LISTENERS:,} sockets, nothing changes | of a core | peak memory | target | |",
        "|---|--:|--:|---|---|",
    ]
    with standing(LISTENERS):
        for watcher in map(bench.portbook, bench.feeds()):
            with watching(watcher):
                time.sleep(5)
                before, began = watcher.cpu_s(), time.monotonic()
                time.sleep(bench.seconds)
                percent = 100 * (watcher.cpu_s() - before) / (time.monotonic() - began)
                memory = watcher.peak_mb()
            most = STEADY.get(watcher.name.rpartition(" ")[2])
            goal = _judged(percent, most, f"≤ {most} %")
            lines.append(f"| {watcher.name} | {percent:.2f} % | {memory:.0f} MB | {goal} |")
    return [*lines, ""]


def _judged(value: float, most: float | None, text: str) -> str:
    if most is None:
        return "|"
    return f"{text} | {'met' if value <= most else '**not met**'}"


def latency(bench: Bench) -> list[str]:
    """From the kernel's stamp to the line that a reader of standard output gets, 200 listeners a second."""
    command = [bench.program, "watch", "--jsonl", "--no-store", "--feed", "bpf"]
    delays_ms: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=PLAIN) as process:
        assert process.stdout is not None
        generator = None
        for line in process.stdout:
            now_ns = time.monotonic_ns()
            event = json.loads(line)
            if event["event"] == "started":
                generator = subprocess.Popen(
                    [sys.executable, f"{HERE}/openings.py", "paced", "200", "20"], stdout=subprocess.DEVNULL
                )
            if event["event"] in ("opened", "restarted") and event["protocol"] == "tcp":
                delays_ms.append((now_ns - event["monotonic_ns"]) / 1e6)
            if generator is not None and generator.poll() is not None:
                process.send_signal(signal.SIGTERM)
                generator = None
            if len(delays_ms) >= 4000:
                process.send_signal(signal.SIGTERM)
    delays_ms.sort()
    middle, late = median(delays_ms), delays_ms[int(len(delays_ms) * 0.99)]
    return [
        "| from the kernel to a reader of `--jsonl` | | target | |",
        "|---|--:|---|---|",
        f"| median of {len(delays_ms):,} | {middle:.2f} ms | {_judged(middle, 1.0, '< 1 ms')} |",
        f"| 99 of 100 within | {late:.2f} ms | {_judged(late, 20.0, '< 20 ms')} |",
        "",
    ]


def overhead(bench: Bench) -> list[str]:
    """What the programs in the kernel add to what opens a socket, in turns with and without."""
    loops: dict[bool, list[float]] = {True: [], False: []}
    connections: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * bench.repeat):
        on = bool(number % 2)
        with watching(bench.portbook("bpf")) if on else contextlib.nullcontext():
            # What watches is not what is measured: it reads while the load runs on the other core.
            loops[on].append(json.loads(load("loop", 20_000))["ns"])
        with watching(bench.portbook("bpf")) if on else contextlib.nullcontext() as watcher:
            before = watcher.cpu_s() if watcher else 0.0
            result = json.loads(load("connections", 100_000, 20_000))
            own = watcher.cpu_s() - before if watcher else 0.0
            connections[on].append(100 * (result["cpu_s"] + own) / (result["count"] / 20_000))
    more = 100 * (median(loops[True]) / median(loops[False]) - 1)
    added = median(connections[True]) - median(connections[False])
    return [
        "| with the feed bpf and without | without | with | difference | target | |",
        "|---|--:|--:|--:|---|---|",
        f"| bind, listen, close | {median(loops[False]) / 1000:.2f} µs | {median(loops[True]) / 1000:.2f} µs "
        f"| {more:.1f} % | {_judged(more, 10.0, '≤ 10 %')} |",
        f"| 20,000 connections a second, of a core | {median(connections[False]):.1f} % "
        f"| {median(connections[True]):.1f} % | {added:.1f} % | {_judged(added, 1.0, '≤ 1 %')} |",
        "",
    ]


CONFIG = """\
[[sink]]
type = "text"
target = "{directory}/events.log"
[[sink]]
type = "jsonl"
target = "{directory}/events.jsonl"
[[sink]]
type = "syslog"
target = "udp://127.0.0.1:5514"
[[sink]]
type = "webhook"
target = "http://127.0.0.1:8088/"
batch = 1000
spool = "{directory}/spool"
spool_bytes = 1073741824
"""
RATE, RATE_S = 5_000, 60
MEMORY_MB = 60.0


@contextlib.contextmanager
def receiving() -> Iterator[dict[str, int]]:
    """The receivers of events; what they have counted is there at the end."""
    counts: dict[str, int] = {}
    command = [sys.executable, f"{HERE}/receivers.py", "5514", "8088"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        yield counts
        process.stdin.close()
        counts.update(json.loads(process.stdout.readline()))


def rate(bench: Bench) -> list[str]:
    """Many opens a second for a minute, with a history and with sinks; --grace 0, so that no event is a quiet one."""
    with tempfile.TemporaryDirectory(prefix="portbook-bench-") as directory, receiving() as received:
        config, store = f"{directory}/watch.toml", f"{directory}/history.db"
        with open(config, "w") as file:
            file.write(CONFIG.format(directory=directory))
        options = ["--config", config, "--store", store, "--grace", "0"]
        watcher = watchers.portbook(bench.program, "bpf", *options, store=None)
        with watching(watcher):
            before = watcher.cpu_s()
            made = json.loads(load("paced", RATE, RATE_S))
            time.sleep(5)
            percent = 100 * (watcher.cpu_s() - before) / made["seconds"]
            memory = watcher.peak_mb()
        kept = count_of(f"{directory}/events.jsonl")
        history = subprocess.run(
            [bench.program, "history", "--db", store, "event:opened,restarted", "--jsonl"],
            check=True, stdout=subprocess.PIPE, text=True, env=PLAIN,
        )  # fmt: skip
        with open(f"{directory}/history.jsonl", "w") as file:
            file.write(history.stdout)
        found = {
            "standard output": count_of_text(watcher.text()),
            "JSON lines": kept,
            "history": count_of(f"{directory}/history.jsonl"),
        }
    found |= {"syslog, UDP": received.get("syslog", 0), "webhook": received.get("webhook", 0)}
    lines = [
        f"| {made['count']:,} listeners in {made['seconds']:.1f} s ({percent:.0f} % of a core, {memory:.0f} MB) "
        "| arrived | |",
        "|---|--:|---|",
    ]
    for name, count in found.items():
        lines.append(f"| {name} | {count:,} | {'all' if count >= made['count'] else '**not all**'} |")
    return [*lines, ""]


def count_of(path: str) -> int:
    with open(path) as file:
        return count_of_text(file.read())


def count_of_text(text: str) -> int:
    """How many listeners of the load have opened: each once, though events may be delivered twice."""
    seen = set()
    for line in text.splitlines():
        if '"local_port":1' in line or '"local_port":2' in line:
            event = json.loads(line)
            if event["event"] in ("opened", "restarted"):
                seen.add(event["cookie"])
    return len(seen)


def memory(bench: Bench) -> list[str]:
    """100 changes a second for five minutes."""
    seconds = 300 if bench.seconds >= 60 else bench.seconds
    with tempfile.TemporaryDirectory(prefix="portbook-bench-") as directory:
        watcher = watchers.portbook(bench.program, "bpf", "--store", f"{directory}/history.db", store=None)
        with watching(watcher):
            time.sleep(5)
            at_start = watcher.peak_mb()
            load("paced", 50, seconds)  # each opens and ends
            peak = watcher.peak_mb()
    return [
        "| 100 changes a second | after 5 s | peak | target | |",
        "|---|--:|--:|---|---|",
        f"| {seconds:.0f} s | {at_start:.0f} MB | {peak:.0f} MB | {_judged(peak, MEMORY_MB, '≤ 60 MB')} |",
        "",
    ]


ROWS: dict[str, Callable[[Bench], list[str]]] = {
    "missed": missed,
    "steady": steady,
    "latency": latency,
    "overhead": overhead,
    "rate": rate,
    "memory": memory,
}


# --- the command ---------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> int:
    """Inside the namespace."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    bench = Bench(os.path.join(os.path.dirname(options.measure), "portbook"), options)
    lines: list[str] = []
    for name in options.rows.split(","):
        lines += ROWS[name](bench)
        print("\n".join(lines[-20:]), file=sys.stderr)
    with open(options.lines, "w") as file:
        file.write("\n".join(lines))
    return 0


def main(arguments: list[str]) -> int:
    parser = contest.parser((__doc__ or "").partition("\n")[0], repeat=5)
    parser.add_argument("--rows", default=",".join(ROWS), help="of %(default)s")
    parser.add_argument("--seconds", type=float, default=60, help="of a row that watches processor time")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)  # how this program calls itself
    parser.add_argument("--lines", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--installed", metavar="PYTHON", help="measure what is installed beside this interpreter")
    options = parser.parse_args(arguments)
    if unknown := set(options.rows.split(",")) - set(ROWS):
        parser.error(f"unknown row {', '.join(unknown)}")
    if options.measure:
        return measure(options)
    if os.geteuid() != 0:
        raise SystemExit("watch.py makes namespaces: run it as root")
    with contextlib.ExitStack() as opened:
        python = os.path.abspath(options.installed or opened.enter_context(contest.environment(options.python)))
        directory = opened.enter_context(tempfile.TemporaryDirectory(prefix="portbook-bench-"))
        written = f"{directory}/lines"
        command = ["unshare", "-n", "-m", sys.executable, os.path.abspath(__file__), *arguments]
        command += ["--measure", python, "--lines", written]
        neighbours = contest.Neighbours(options.patience)
        neighbours.await_idle()
        with neighbours.watched():
            subprocess.run(command, check=True, env=os.environ | {"OUTSIDE": str(os.getpid())})
        with open(written) as file:
            lines = [contest.machine(python), "", *file.read().splitlines()]
        lines += [contest.others(neighbours.wall_s, neighbours.others_s), ""]
    print("\n".join(lines))
    if options.write:
        contest.write(options.write, "watch.py", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
