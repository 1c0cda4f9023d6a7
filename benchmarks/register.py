"""How fast and how big the register is, beside what people use today, in one run.

    python benchmarks/register.py                                     everything (root, about 10 minutes)
    python benchmarks/register.py --sizes small,medium --repeat 5     a look
    python benchmarks/register.py --write docs/benchmarks.md          put the tables into the page

For each size of population.py: whole processes, then calls inside one process, round after round in turns, so
that what else the machine does hits all of them alike. What is measured is a wheel of this tree, installed
with its dependencies and nothing else in a virtual environment that is removed afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
from typing import Any, NamedTuple

import population

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEGIN, END = "<!-- register.py writes from here -->", "<!-- to here -->"
SLOWEST_S = 120.0  # one run is given up after this
QUIET_S = 0.5  # that long the machine has to be idle before a round, with --patience
BUDGET_S = 60.0  # a contestant that has run this long in total is not repeated any more: lsof


# --- what is measured ----------------------------------------------------------------------------------------------

BARE, SS = "python -c pass", "ss -tunap"
SS_PORT = f"ss -tnlp sport = :{population.HELD}"
JSON, JSONL = "portbook list --all --json", "portbook list --all --jsonl"
# name: arguments. The first word is looked up in the virtual environment, then in PATH.
COMMANDS: dict[str, list[str]] = {
    BARE: ["python", "-c", "pass"],
    "portbook --version": ["portbook", "--version"],
    JSON: ["portbook", "list", "--all", "--json"],
    JSONL: ["portbook", "list", "--all", "--jsonl"],
    "portbook list --all": ["portbook", "list", "--all"],
    "portbook": ["portbook"],
    f"portbook who {population.HELD}": ["portbook", "who", str(population.HELD)],
    SS: ["ss", "-tunap"],
    SS_PORT: ["ss", "-tnlp", "sport", "=", f":{population.HELD}"],
    "lsof -nP -i": ["lsof", "-nP", "-i"],
}
TAKE, PSUTIL, NOBODY, SOMEBODY = "portbook.take()", 'psutil.net_connections("inet")', "who(free)", "who(held)"
CALLS = {
    TAKE: "portbook.take()",
    PSUTIL: 'psutil.net_connections("inet")',
    NOBODY: f"portbook.who({population.FREE})",
    SOMEBODY: f"portbook.who({population.HELD})",
}


class Target(NamedTuple):
    """What issues 2 and 5 ask for: a figure of ``name``, over that of ``of`` if there is one, is at most ``most``."""

    sizes: tuple[str, ...]
    name: str
    most: float
    of: str | None = None
    unit: str = "s"  # "s", or "MB" of peak memory


ALL = tuple(population.SIZES)
AS_ROOT = tuple(name for name, size in population.SIZES.items() if size.privileged)
TARGETS = (
    Target(("small",), "portbook --version", 4, BARE),
    Target(("small",), JSON, 8, BARE),
    Target(("medium",), JSON, 2, SS),
    Target(("fds",), JSON, 0.35, SS),
    Target(("fds-user",), JSON, 1, SS),
    Target(("large",), JSON, 0.35, SS),
    Target(("large",), JSONL, 0.2, SS),
    Target(("large",), JSONL, 200, unit="MB"),
    Target(AS_ROOT, TAKE, 1 / 3, PSUTIL),
    Target(("medium",), TAKE, 0.6, SS),
    Target(ALL, NOBODY, 0.005),
    Target(("fds",), SOMEBODY, 0.1, SS_PORT),
)


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


# --- measuring: inside the namespace, with the interpreter of the virtual environment ------------------------------


def measure(repeat: int, patience_s: float) -> dict[str, Any]:
    """Run every command, then every call, in turns. Kept small in memory: see ``_run``."""
    commands = {name: _resolved(arguments) for name, arguments in COMMANDS.items()}
    floor = _run(["/bin/true"]).peak_mb
    neighbours = Neighbours(patience_s)
    runs = _in_turns({name: _runner(found) for name, found in commands.items() if found}, repeat, neighbours)
    me = [sys.executable, os.path.abspath(__file__), "--calls", "--repeat", str(repeat), "--patience", str(patience_s)]
    calls = json.loads(subprocess.run(me, check=True, stdout=subprocess.PIPE).stdout)
    others = (neighbours.others_s + calls["others_s"]) / (neighbours.wall_s + calls["wall_s"])
    return {
        "commands": runs,
        "calls": calls["runs"],
        "source": calls["source"],
        "floor_mb": floor,
        "others": max(0.0, others),
    }


class Neighbours:
    """What other programs do: waits for an idle moment, and counts what others use while we measure."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.wall_s = self.others_s = 0.0

    def await_idle(self) -> None:
        """Wait until nobody else needs the machine, as long as patience lasts."""
        while self.patience_s > 0:
            busy = _busy_s()
            time.sleep(QUIET_S)
            self.patience_s -= QUIET_S
            if _busy_s() - busy < QUIET_S / 5:
                return

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        began, busy, own = time.monotonic(), _busy_s(), _cpu_s()
        yield
        self.wall_s += time.monotonic() - began
        self.others_s += _busy_s() - busy - (_cpu_s() - own)


def _in_turns(contestants: dict[str, Callable[[], Run]], repeat: int, neighbours: Neighbours) -> Runs:
    """One warm-up each, then rounds; each round begins with another contestant."""
    runs: Runs = {name: [] for name in contestants}
    spent = dict.fromkeys(contestants, 0.0)
    names = list(contestants)
    for number in range(-1, repeat):
        neighbours.await_idle()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if spent[name] > BUDGET_S:
                continue
            with neighbours.watched():
                run = contestants[name]()
            spent[name] += run.wall_s
            if number >= 0 or spent[name] > BUDGET_S / 2:  # a slow one is not run for nothing
                runs[name].append(run)
    return runs


def _resolved(arguments: list[str]) -> list[str] | None:
    """With the full path of the program; None if it is not installed."""
    beside = os.path.join(os.path.dirname(sys.executable), arguments[0])
    path = beside if os.path.exists(beside) else shutil.which(arguments[0])
    return [path, *arguments[1:]] if path else None


def _runner(arguments: list[str]) -> Callable[[], Run]:
    return lambda: _run(arguments)


def _run(arguments: list[str]) -> Run:
    """Everyone's output goes to /dev/null.

    The kernel counts what a process was before exec into its peak memory, and that is a copy of us: nothing below
    our own size can be seen. ``floor_mb`` says how much that is.
    """
    null = os.open(os.devnull, os.O_RDWR)
    quiet = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
    began = time.perf_counter()
    pid = os.posix_spawn(arguments[0], arguments, os.environ, file_actions=quiet)
    with _ended_after(pid, SLOWEST_S):
        _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    os.close(null)
    code = os.waitstatus_to_exitcode(status)
    # lsof answers 1 whenever anything could not be read
    if code != 0 and not (code == 1 and arguments[0].endswith("lsof")):
        raise RuntimeError(f"{' '.join(arguments)} ended with {code} after {wall:.1f} s")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


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


def measure_calls(repeat: int, patience_s: float) -> dict[str, Any]:
    """Calls inside one process that has imported everything and done each once."""
    import psutil

    import portbook

    expected = len(portbook.take().sockets)
    held, free = portbook.who(population.HELD).held, portbook.who(population.FREE).held
    if not held or free or not expected:
        raise RuntimeError(f"{expected} sockets; port {population.HELD} held: {held}, {population.FREE}: {free}")
    names = {"portbook": portbook, "psutil": psutil}
    callers = {name: _caller(compile(text, name, "eval"), names) for name, text in CALLS.items()}
    neighbours = Neighbours(patience_s)
    runs = _in_turns(callers, repeat, neighbours)
    source = portbook.take("state:listen").source
    return {"runs": runs, "wall_s": neighbours.wall_s, "others_s": neighbours.others_s, "source": source}


def _caller(code: Any, names: dict[str, Any]) -> Callable[[], Run]:
    def call() -> Run:
        cpu, began = _cpu_s(), time.perf_counter()
        answer = eval(code, names)
        wall = time.perf_counter() - began
        del answer
        return Run(wall, _cpu_s() - cpu)

    return call


def _cpu_s() -> float:
    """What this process and its ended children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _busy_s() -> float:
    """What all processes of the machine have used: proc_stat(5), without idle, iowait and what counts twice."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# --- the environment -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def environment(python: str) -> Iterator[str]:
    """A virtual environment with portbook as a user installs it; gives the path of its interpreter."""
    with tempfile.TemporaryDirectory(prefix="portbook-bench-") as directory:
        _quietly(python, "-m", "venv", f"{directory}/venv")
        own = f"{directory}/venv/bin/python"
        _quietly(own, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", directory, ROOT)
        wheel = next(name for name in os.listdir(directory) if name.endswith(".whl"))
        _quietly(own, "-m", "pip", "install", "--compile", f"{directory}/{wheel}")
        if not subprocess.run([own, "-c", "import typing_extensions"], check=False, capture_output=True).returncode:
            raise RuntimeError("typing_extensions came with the base dependencies: msgspec imports slowly with it")
        yield own


def _quietly(*arguments: str) -> None:
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def machine(python: str) -> str:
    """What it was measured on."""
    versions = "import platform, psutil; print(platform.python_version(), psutil.__version__)"
    python_version, psutil_version = _output(python, "-c", versions).split()
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(": ")[2].strip() for line in file if line.startswith("model name")), "?")
    facts = {
        "CPU": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": python_version,
        "psutil": psutil_version,
        "ss": _output("ss", "-V").rpartition(" ")[2],
        "lsof": next((line.split()[-1] for line in _output("lsof", "-v").splitlines() if "revision:" in line), "none"),
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    return "; ".join(f"{name} {fact}" if name != "CPU" else fact for name, fact in facts.items()) + "."


def _output(*arguments: str) -> str:
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


def report(size: str, measured: dict[str, Any]) -> list[str]:
    """One section: two tables."""
    shape = population.SIZES[size]
    plain = f" and {shape.processes * shape.plain:,} other descriptors" if shape.plain else ""
    commands, calls = rows(measured["commands"]), rows(measured["calls"])
    lines = [f"### {size}: {shape.processes} processes, {shape.sockets:,} sockets{plain}", ""]
    lines += ["| whole process | runs | median | fastest | CPU | peak memory | / bare Python | / ss | target | |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|---|---|"]
    for name, row in commands.items():
        memory = f"{row.peak_mb:.0f} MB" if row.peak_mb > measured["floor_mb"] + 0.5 else f"≤ {row.peak_mb:.0f} MB"
        figures = [f"`{name}`", str(row.runs), _ms(row.wall_s), _ms(row.fastest_s), _ms(row.cpu_s), memory]
        figures += [_ratio(row, commands.get(BARE)), _ratio(row, commands.get(SS)), *_verdict(size, name, commands)]
        lines.append(f"| {' | '.join(figures)} |")
    lines += ["", "| inside one process | runs | median | fastest | CPU | / psutil | target | |"]
    lines += ["|---|--:|--:|--:|--:|--:|---|---|"]
    for name, row in calls.items():
        figures = [f"`{CALLS[name]}`", str(row.runs), _ms(row.wall_s), _ms(row.fastest_s), _ms(row.cpu_s)]
        figures += [_ratio(row, calls[PSUTIL]), *_verdict(size, name, {**commands, **calls})]
        lines.append(f"| {' | '.join(figures)} |")
    lines += ["", f"`portbook` read with the source `{measured['source']}`."]
    return [*lines, "", f"Meanwhile other programs kept {measured['others']:.2f} of the machine's cores busy.", ""]


def _ms(seconds: float) -> str:
    ms = seconds * 1000
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:,.0f} ms"


def _ratio(row: Row, other: Row | None) -> str:
    return f"{row.wall_s / other.wall_s:.2f}" if other else ""


def _verdict(size: str, name: str, table: dict[str, Row]) -> tuple[str, str]:
    """Target and whether it is met, both cells empty where nothing is asked."""
    asked = [t for t in TARGETS if size in t.sizes and t.name == name and (t.of is None or t.of in table)]
    texts, verdicts = [], []
    for target in asked:
        got = table[name].peak_mb if target.unit == "MB" else table[name].wall_s
        got /= table[target.of].wall_s if target.of else 1
        texts.append(_target(target))
        verdicts.append("met" if got <= target.most else "**not met**")
    return ", ".join(texts), ", ".join(verdicts)


def _target(target: Target) -> str:
    if target.of is None:
        return f"≤ {target.most:g} MB" if target.unit == "MB" else f"≤ {target.most * 1000:g} ms"
    if target.most < 1 and target.of == PSUTIL:
        return f"≤ 1/{round(1 / target.most)} of psutil"
    return f"≤ {target.most:g} times {'bare Python' if target.of == BARE else f'`{target.of}`'}"


def write(path: str, lines: list[str]) -> None:
    """Put the tables between the markers of a page."""
    with open(path, encoding="utf-8") as file:
        before, begin, rest = file.read().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} lacks {BEGIN!r} or {END!r}")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([before + BEGIN, "", *lines, END + after]))


# --- the command ---------------------------------------------------------------------------------------------------


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(ALL), help="of %(default)s")
    parser.add_argument("--repeat", type=int, default=11, help="rounds (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=0, metavar="S", help="wait up to S for an idle machine")
    parser.add_argument("--python", default=sys.executable, help="the interpreter to measure with (default: this one)")
    parser.add_argument("--write", metavar="PAGE", help="also put the tables between the markers of this page")
    parser.add_argument("--json", metavar="FILE", help="also write every single run here")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)  # how this program calls itself
    parser.add_argument("--calls", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.sizes.split(",")) - set(ALL)
    if unknown or options.repeat < 1:
        parser.error(f"unknown size {', '.join(unknown)}" if unknown else "--repeat is at least 1")
    return options


def _measured(python: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="portbook-bench-") as directory:
        answer = f"{directory}/answer.json"
        me = [python, os.path.abspath(__file__), "--measure", answer, "--repeat", str(options.repeat)]
        me += ["--patience", str(options.patience)]
        command = population.command(size, me)
        # What the environment says to Python (unbuffered output, no bytecode) is not what a user has.
        plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        subprocess.run(command, check=True, env=plain, preexec_fn=population.end_with_parent)
        with open(answer) as file:
            found: dict[str, Any] = json.load(file)
    return found


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if options.calls:
        json.dump(measure_calls(options.repeat, options.patience), sys.stdout)
        return 0
    if options.measure:
        with open(options.measure, "w") as file:
            json.dump(measure(options.repeat, options.patience), file)
        return 0
    if os.geteuid() != 0:
        raise SystemExit("register.py makes namespaces: run it as root")
    lines: list[str] = []
    everything: dict[str, Any] = {}
    with environment(options.python) as python:
        lines += [machine(python), ""]
        for size in options.sizes.split(","):
            everything[size] = _measured(python, size, options)
            lines += report(size, everything[size])
    print("\n".join(lines))
    if options.write:
        write(options.write, lines)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(everything, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
