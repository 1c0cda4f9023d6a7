"""What every benchmark here needs: contestants in turns, their figures, an environment to run in, a page to write.

    runs = in_turns({"ss": runner(["ss"]), "lsof": runner(["lsof"])}, repeat=11, neighbours=Neighbours(patience_s=60))
    rows(runs)["ss"].wall_s

Round after round, each begun by another contestant, so that what else the machine does hits all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SLOWEST_S = 120.0  # one run is given up after this
QUIET_S = 0.5  # that long the machine has to be idle before a round, with --patience
BUDGET_S = 60.0  # a contestant that has run this long in total is not repeated: lsof
# What the environment sets for Python (unbuffered output, no bytecode) is not what a user has.
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Run(NamedTuple):
    """One run of one command or call."""

    wall_s: float
    cpu_s: float = 0.0  # user and system, forked children included
    peak_mb: float = 0.0  # of its biggest process


Runs = dict[str, list[Run]]


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class Neighbours:
    """What other programs do: waits for an idle moment, and counts what others use while we measure."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.wall_s = self.others_s = 0.0

    def await_idle(self) -> None:
        """Wait until nobody else needs the machine, as long as patience lasts."""
        while self.patience_s > 0:
            busy = busy_s()
            time.sleep(QUIET_S)
            self.patience_s -= QUIET_S
            if busy_s() - busy < QUIET_S / 5:
                return

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        began, busy, own = time.monotonic(), busy_s(), cpu_s()
        yield
        self.wall_s += time.monotonic() - began
        self.others_s += busy_s() - busy - (cpu_s() - own)


def in_turns(
    contestants: dict[str, Callable[[], Run]], repeat: int, neighbours: Neighbours, budget_s: float = BUDGET_S
) -> Runs:
    """One warm-up each, then rounds; each round begins with another contestant."""
    runs: Runs = {name: [] for name in contestants}
    spent = dict.fromkeys(contestants, 0.0)
    names = list(contestants)
    for number in range(-1, repeat):
        neighbours.await_idle()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if spent[name] > budget_s:
                continue
            with neighbours.watched():
                run = contestants[name]()
            spent[name] += run.wall_s
            if number >= 0 or spent[name] > budget_s / 2:  # a slow one is not run for nothing
                runs[name].append(run)
    return runs


def resolved(arguments: list[str], beside: str = sys.executable) -> list[str] | None:
    """With the full path of the program: beside an interpreter, or in PATH; None if it is not installed."""
    near = os.path.join(os.path.dirname(beside), arguments[0])
    path = near if os.path.exists(near) else shutil.which(arguments[0])
    return [path, *arguments[1:]] if path else None


def runner(arguments: list[str], may_fail: Sequence[int] = ()) -> Callable[[], Run]:
    """A contestant: a command whose output nobody reads."""
    return lambda: run(arguments, may_fail=may_fail)


def run(
    arguments: list[str], output: str = os.devnull, limit_s: float = SLOWEST_S, may_fail: Sequence[int] = ()
) -> Run:
    """Run a command to its end, with its output in a file; one that fails in a way that it may not is an error.

    The kernel counts what a process was before exec into its peak memory, and that is a copy of us: nothing below
    our own size can be seen. ``floor_mb`` says how much that is.
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    out = (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    began = time.perf_counter()
    pid = os.posix_spawn(arguments[0], arguments, PLAIN, file_actions=[null, out, (os.POSIX_SPAWN_DUP2, 1, 2)])
    with _ended_after(pid, limit_s):
        _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    code = os.waitstatus_to_exitcode(status)
    if code != 0 and code not in may_fail:
        raise RuntimeError(f"{' '.join(arguments)} ended with {code} after {wall:.1f} s")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def floor_mb() -> float:
    """The least peak memory that can be measured: our own."""
    return run([shutil.which("true") or "/bin/true"]).peak_mb


@contextlib.contextmanager
def _ended_after(pid: int, limit_s: float) -> Iterator[None]:
    def end(*_: object) -> None:
        os.kill(pid, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def cpu_s() -> float:
    """What this process and its ended children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def busy_s() -> float:
    """What all processes of the machine have used: proc_stat(5), without idle, iowait and what counts twice."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# --- the environment -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def environment(python: str, tree: str = ROOT) -> Iterator[str]:
    """A virtual environment with portbook of a tree as a user installs it; gives the path of its interpreter."""
    with tempfile.TemporaryDirectory(prefix="portbook-bench-") as directory:
        _quietly(python, "-m", "venv", f"{directory}/venv")
        own = f"{directory}/venv/bin/python"
        _quietly(own, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", directory, os.path.abspath(tree))
        wheel = next(name for name in os.listdir(directory) if name.endswith(".whl"))
        _quietly(own, "-m", "pip", "install", "--compile", f"{directory}/{wheel}")
        if not subprocess.run([own, "-c", "import typing_extensions"], check=False, capture_output=True).returncode:
            raise RuntimeError("typing_extensions came with the base dependencies: msgspec imports slowly with it")
        yield own


def _quietly(*arguments: str) -> None:
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def machine(python: str, *tools: tuple[str, str]) -> str:
    """What it was measured on; each tool is a name and its version."""
    versions = "import platform, psutil; print(platform.python_version(), psutil.__version__)"
    python_version, psutil_version = output_of(python, "-c", versions).split()
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(": ")[2].strip() for line in file if line.startswith("model name")), "?")
    cpu = f"{model}, {len(os.sched_getaffinity(0))} cores"
    facts = [("kernel", f"{platform.system()} {platform.release()}"), ("Python", python_version)]
    facts += [("psutil", psutil_version), *tools, ("day", time.strftime("%Y-%m-%d", time.gmtime()))]
    return "; ".join([cpu, *(f"{name} {fact}" for name, fact in facts)]) + "."


def output_of(*arguments: str) -> str:
    """What a command printed; nothing when it is not installed."""
    if shutil.which(arguments[0]) is None:
        return ""
    done = subprocess.run(arguments, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip()


# --- the report ----------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """The medians of one contestant."""

    wall_s: float
    fastest_s: float
    cpu_s: float
    peak_mb: float
    runs: int


def rows(runs: Runs) -> dict[str, Row]:
    made = {}
    for name, each in runs.items():
        walls, cpus, peaks = zip(*each, strict=True)
        made[name] = Row(median(walls), min(walls), median(cpus), max(peaks), len(each))
    return made


def ms(seconds: float) -> str:
    ms = seconds * 1000
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:,.0f} ms"


def ratio(row: Row, other: Row | None) -> str:
    return f"{row.wall_s / other.wall_s:.2f}" if other else ""


def figures(name: str, row: Row, floor: float) -> list[str]:
    """The first cells of a contestant's line."""
    memory = f"{row.peak_mb:.0f} MB" if row.peak_mb > floor + 0.5 else f"≤ {row.peak_mb:.0f} MB"
    return [f"`{name}`", str(row.runs), ms(row.wall_s), ms(row.fastest_s), ms(row.cpu_s), memory]


def others(wall_s: float, others_s: float) -> str:
    return f"Meanwhile other programs kept {max(0.0, others_s / wall_s):.2f} of the machine's cores busy."


def markers(program: str) -> tuple[str, str]:
    """The parts of a page before and after the part that a program writes."""
    return f"<!-- {program} writes from here -->", "<!-- to here -->"


def write(path: str, program: str, lines: list[str]) -> None:
    """Put the tables between the program's markers on a page; what other programs wrote there stays."""
    begin, end = markers(program)
    with open(path, encoding="utf-8") as file:
        before, found, rest = file.read().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{path} lacks {begin!r} or {end!r}")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([before + begin, "", *lines, end + after]))


# --- the command ---------------------------------------------------------------------------------------------------


def parser(description: str, repeat: int = 11) -> argparse.ArgumentParser:
    """The switches that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--repeat", type=_positive, default=repeat, help="rounds (default: %(default)s)")
    made.add_argument("--patience", type=float, default=0, metavar="S", help="wait up to S for an idle machine")
    made.add_argument("--python", default=sys.executable, help="the interpreter to measure with (default: this one)")
    made.add_argument("--write", metavar="PAGE", help="also put the tables between the markers of this page")
    made.add_argument("--json", metavar="FILE", help="also write every single run here")
    return made


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number
