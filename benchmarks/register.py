"""How fast and how big the register is, beside what people use today, in one run.

    python benchmarks/register.py                                     everything (root, about 10 minutes)
    python benchmarks/register.py --sizes small,medium --repeat 5     a look
    python benchmarks/register.py --write docs/benchmarks.md          put the tables into the page
    python benchmarks/register.py --before ../earlier                 beside an earlier tree, in the same rounds

For each size of population.py: whole processes, then calls inside one process, round after round in turns, so
that what else the machine does hits all of them alike. What is measured is a wheel of this tree, installed
with its dependencies and nothing else in a virtual environment that is removed afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import contest
import population
from contest import PLAIN, Neighbours, Row, Run, cpu_s, in_turns, ms, ratio, rows

# --- what is measured ----------------------------------------------------------------------------------------------

BARE, SS = "python -c pass", "ss -tunap"
SS_PORT = f"ss -tnlp sport = :{population.HELD}"
JSON, JSONL, LIST = "portbook list --all --json", "portbook list --all --jsonl", "portbook list --all"
WHY, WHO = f"portbook why {population.FREE}", f"portbook who {population.HELD}"
BEFORE = "before: "  # of names of contestants
COMPLETE = "completion of portbook --al"
# What a shell's completion script runs: click, "Shell Completion".
COMPLETION_VARIABLES = ["_PORTBOOK_COMPLETE=bash_complete", "COMP_LINE=portbook --al"]
# name: arguments. The first word is looked up in the virtual environment, then in PATH.
COMMANDS: dict[str, list[str]] = {
    BARE: ["python", "-c", "pass"],
    "portbook --version": ["portbook", "--version"],
    JSON: ["portbook", "list", "--all", "--json"],
    JSONL: ["portbook", "list", "--all", "--jsonl"],
    LIST: ["portbook", "list", "--all"],
    "portbook": ["portbook"],
    WHY: ["portbook", "why", str(population.FREE)],
    WHO: ["portbook", "who", str(population.HELD)],
    COMPLETE: ["env", *COMPLETION_VARIABLES, os.path.join(os.path.dirname(sys.executable), "portbook")],
    SS: ["ss", "-tunap"],
    SS_PORT: ["ss", "-tnlp", "sport", "=", f":{population.HELD}"],
    "lsof -nP -i": ["lsof", "-nP", "-i"],
}
TAKE, PSUTIL, NOBODY, SOMEBODY = "portbook.take()", 'psutil.net_connections("inet")', "who(free)", "who(held)"
CAN_HAVE, CANNOT = "why(free)", "why(held)"
WITHOUT_TUNNEL, EVERYWHERE = "take() without the tunnel", "take() of every namespace"
CALLS = {
    TAKE: "portbook.take()",
    PSUTIL: 'psutil.net_connections("inet")',
    NOBODY: f"portbook.who({population.FREE})",
    SOMEBODY: f"portbook.who({population.HELD})",
    CAN_HAVE: f"portbook.why({population.FREE})",
    CANNOT: f"portbook.why({population.HELD})",
    WITHOUT_TUNNEL: "portbook.take()",  # while the vxlan device is down
    EVERYWHERE: 'portbook.take("netns:all")',
}
SHOWN = {**CALLS, WITHOUT_TUNNEL: "portbook.take(), without the vxlan socket"}
NODE_ONLY = (WITHOUT_TUNNEL, EVERYWHERE)


class Target(NamedTuple):
    """A target of the project: a figure of ``name``, over that of ``of`` if there is one, is at most ``most``."""

    sizes: tuple[str, ...]
    name: str
    most: float
    of: str | None = None
    unit: str = "s"  # "s", or "MB" of peak memory
    above: str | None = None  # the figure is the difference to that of this one


ALL = tuple(population.SIZES)
NAMESPACES = population.SIZES["node"].containers
EACH_NAMESPACE_S = 0.0005
AS_ROOT = tuple(name for name, size in population.SIZES.items() if size.privileged)
TARGETS = (
    Target(("small",), "portbook --version", 4, BARE),
    Target(("small",), COMPLETE, 4, BARE),
    *(Target(("small",), name, 4.5, BARE) for name in (JSON, "portbook", WHO, WHY)),
    Target(("medium",), JSON, 2, SS),
    Target(("fds",), JSON, 0.35, SS),
    Target(("fds-user",), JSON, 1, SS),
    Target(("large",), JSON, 0.35, SS),
    Target(("large",), JSON, 220, unit="MB"),
    Target(("large",), JSONL, 0.2, SS),
    Target(("large",), JSONL, 200, unit="MB"),
    Target(AS_ROOT, TAKE, 1 / 3, PSUTIL),
    Target(("medium",), TAKE, 0.6, SS),
    Target(("fds",), SOMEBODY, 0.1, SS_PORT),
    Target(tuple(size for size in ALL if size != "node"), NOBODY, 0.005),
    Target(("large",), LIST, 1.3, JSONL),
    Target(("busy",), JSONL, 1, SS),
    Target(("busy",), TAKE, 0.5, SS),
    Target(("node",), TAKE, 1.15, WITHOUT_TUNNEL),
    Target(("node",), EVERYWHERE, EACH_NAMESPACE_S * NAMESPACES, above=TAKE),
    Target(("node",), NOBODY, EACH_NAMESPACE_S * NAMESPACES),
    Target(("node",), SOMEBODY, EACH_NAMESPACE_S * NAMESPACES),
    Target(("medium",), CAN_HAVE, 0.005),
)


# --- measuring: inside the namespace, with the interpreter of the virtual environment ------------------------------


def measure(size: str, repeat: int, patience_s: float, before: str | None) -> dict[str, Any]:
    """Run every command, then every call, in turns. Kept small in memory: see ``contest.run``.

    :param before: the interpreter of another environment, whose portbook takes its turn too
    """
    floor = contest.floor_mb()
    neighbours = Neighbours(patience_s)
    found = {name: contest.resolved(arguments) for name, arguments in COMMANDS.items()}
    if before is not None:
        ours = {name: arguments for name, arguments in COMMANDS.items() if name.startswith("portbook")}
        found.update((BEFORE + name, contest.resolved(arguments, before)) for name, arguments in ours.items())
    # who and why answer 1 for what is held or free, lsof whenever anything could not be read
    runners = {
        name: contest.runner(command, [1] if "lsof" in name or "who" in name or "why" in name else [])
        for name, command in found.items()
        if command
    }
    runs = in_turns(runners, repeat, neighbours)
    with contextlib.ExitStack() as opened:
        worker = opened.enter_context(Worker(sys.executable))
        callers = _callers(size, worker)
        if before is not None:
            earlier = opened.enter_context(Worker(before))
            ours_too = {BEFORE + name: call for name, call in _callers(size, earlier).items() if name != PSUTIL}
            callers.update(ours_too)
        calls = in_turns(callers, repeat, neighbours)
        source = worker.source()
    busy = contest.others(neighbours.wall_s, neighbours.others_s)
    return {"commands": runs, "calls": calls, "source": source, "floor_mb": floor, "others": busy}


def _callers(size: str, worker: Worker) -> dict[str, Callable[[], Run]]:
    names = [name for name in CALLS if size == "node" or name not in NODE_ONLY]
    callers: dict[str, Callable[[], Run]] = {name: functools.partial(worker.run, name) for name in names}
    if WITHOUT_TUNNEL in callers:
        callers[WITHOUT_TUNNEL] = functools.partial(_without_tunnel, callers[WITHOUT_TUNNEL])
    return callers


def _without_tunnel(call: Callable[[], Run]) -> Run:
    population.set_vxlan("down")
    try:
        return call()
    finally:
        population.set_vxlan("up")


class Worker:
    """A process that has imported everything and makes one call after the other; a context manager."""

    def __init__(self, python: str) -> None:
        command = [python, os.path.abspath(__file__), "--calls"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def run(self, name: str) -> Run:
        return Run(*self._ask(name))

    def source(self) -> str:
        return str(self._ask("source"))

    def _ask(self, name: str) -> Any:
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("a worker without pipes")
        stdin.write(f"{name}\n")
        return json.loads(stdout.readline())


def answer_calls() -> None:
    """Be a worker: read names of calls, and write what each took."""
    import psutil

    import portbook

    expected = len(portbook.take().sockets)
    held, free = portbook.who(population.HELD).held, portbook.who(population.FREE).held
    if not held or free or not expected:
        raise RuntimeError(f"{expected} sockets; port {population.HELD} held: {held}, {population.FREE}: {free}")
    names = {"portbook": portbook, "psutil": psutil}
    callers = {name: _caller(compile(text, name, "eval"), names) for name, text in CALLS.items()}
    for line in sys.stdin:
        name = line.strip()
        if name == "source":
            answer: object = portbook.take("state:listen").source
        else:
            answer = callers[name]()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _caller(code: Any, names: dict[str, Any]) -> Callable[[], Run]:
    def call() -> Run:
        cpu, began = cpu_s(), time.perf_counter()
        answer = eval(code, names)
        wall = time.perf_counter() - began
        del answer
        return Run(wall, cpu_s() - cpu)

    return call


# --- the report ----------------------------------------------------------------------------------------------------


def report(size: str, measured: dict[str, Any]) -> list[str]:
    """One section: two tables."""
    commands, calls = rows(measured["commands"]), rows(measured["calls"])
    has_before = any(name.startswith(BEFORE) for name in calls)
    more, more_rule = (" before | / before |", "--:|--:|") if has_before else ("", "")
    lines = [f"### {_title(size)}", ""]
    lines += [
        "| whole process | runs | median | fastest | CPU | peak memory | / bare Python | / ss | target | |" + more
    ]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|---|---|" + more_rule]
    for name, row in _now(commands).items():
        figures = contest.figures(name, row, measured["floor_mb"])
        figures += [ratio(row, commands.get(BARE)), ratio(row, commands.get(SS)), *_verdict(size, name, commands)]
        figures += _before(name, commands) if has_before else []
        lines.append(f"| {' | '.join(figures)} |")
    lines += ["", "| inside one process | runs | median | fastest | CPU | / psutil | target | |" + more]
    lines += ["|---|--:|--:|--:|--:|--:|---|---|" + more_rule]
    for name, row in _now(calls).items():
        figures = [f"`{SHOWN[name]}`", str(row.runs), ms(row.wall_s), ms(row.fastest_s), ms(row.cpu_s)]
        figures += [ratio(row, calls[PSUTIL]), *_verdict(size, name, {**commands, **calls})]
        figures += _before(name, calls) if has_before else []
        lines.append(f"| {' | '.join(figures)} |")
    lines += ["", f"`portbook` read with the source `{measured['source']}`."]
    return [*lines, "", measured["others"], ""]


def _title(size: str) -> str:
    shape = population.SIZES[size]
    parts = [f"{shape.processes} processes, {shape.sockets:,} sockets"]
    if shape.plain:
        parts.append(f"{shape.processes * shape.plain:,} other descriptors")
    if shape.time_wait:
        parts.append(f"{shape.time_wait:,} connections in TIME_WAIT")
    if shape.idle:
        parts.append(f"{shape.idle} processes without sockets")
    if shape.vxlan:
        parts.append("a vxlan socket")
    if shape.containers:
        parts.append(f"{shape.containers} more network namespaces with a process and a listener")
    return f"{size}: {', '.join(parts)}"


def _now(table: dict[str, Row]) -> dict[str, Row]:
    return {name: row for name, row in table.items() if not name.startswith(BEFORE)}


def _before(name: str, table: dict[str, Row]) -> list[str]:
    """The median of the other tree, and ours divided by it."""
    earlier = table.get(BEFORE + name)
    if earlier is None:
        return ["", ""]
    return [ms(earlier.wall_s), ratio(table[name], earlier)]


def _verdict(size: str, name: str, table: dict[str, Row]) -> tuple[str, str]:
    """Target and whether it is met, both cells empty where there is no target."""
    needed = [t for t in TARGETS if size in t.sizes and t.name == name]
    asked = [t for t in needed if {t.of, t.above} - {None} <= table.keys()]
    texts, verdicts = [], []
    for target in asked:
        got = table[name].peak_mb if target.unit == "MB" else table[name].wall_s
        got /= table[target.of].wall_s if target.of else 1
        got -= table[target.above].wall_s if target.above else 0
        texts.append(_target(target))
        verdicts.append("met" if got <= target.most else "**not met**")
    return ", ".join(texts), ", ".join(verdicts)


def _target(target: Target) -> str:
    if target.above is not None:
        return f"≤ {target.most * 1000:g} ms more than `{SHOWN[target.above]}`"
    if target.of is None:
        return f"≤ {target.most:g} MB" if target.unit == "MB" else f"≤ {target.most * 1000:g} ms"
    if target.most < 1 and target.of == PSUTIL:
        return f"≤ 1/{round(1 / target.most)} of psutil"
    return f"≤ {target.most:g} times {'bare Python' if target.of == BARE else f'`{SHOWN.get(target.of, target.of)}`'}"


# --- the command ---------------------------------------------------------------------------------------------------


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = contest.parser((__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(ALL), help="of %(default)s")
    parser.add_argument("--before", metavar="TREE", help="also measure portbook of another tree, in the same rounds")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)  # how this program calls itself
    parser.add_argument("--before-python", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--calls", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.sizes.split(",")) - set(ALL)
    if unknown:
        parser.error(f"unknown size {', '.join(unknown)}")
    return options


def _tools() -> list[tuple[str, str]]:
    revisions = [line.split()[-1] for line in contest.output_of("lsof", "-v").splitlines() if "revision:" in line]
    return [("ss", contest.output_of("ss", "-V").rpartition(" ")[2]), ("lsof", next(iter(revisions), "none"))]


def _measured(python: str, before: str | None, size: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="portbook-bench-") as directory:
        answer = f"{directory}/answer.json"
        me = [python, os.path.abspath(__file__), "--measure", answer, "--repeat", str(options.repeat)]
        me += ["--patience", str(options.patience), "--sizes", size]
        me += ["--before-python", before] if before else []
        command = population.command(size, me)
        subprocess.run(command, check=True, env=PLAIN, preexec_fn=population.end_with_parent)
        with open(answer) as file:
            found: dict[str, Any] = json.load(file)
    return found


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if options.calls:
        answer_calls()
        return 0
    if options.measure:
        with open(options.measure, "w") as file:
            json.dump(measure(options.sizes, options.repeat, options.patience, options.before_python), file)
        return 0
    if os.geteuid() != 0:
        raise SystemExit("register.py makes namespaces: run it as root")
    lines: list[str] = []
    everything: dict[str, Any] = {}
    with contextlib.ExitStack() as opened:
        python = opened.enter_context(contest.environment(options.python))
        before = None
        if options.before:
            before = opened.enter_context(contest.environment(options.python, options.before))
        lines += [contest.machine(python, *_tools()), ""]
        for size in options.sizes.split(","):
            everything[size] = _measured(python, before, size, options)
            lines += report(size, everything[size])
    print("\n".join(lines))
    if options.write:
        contest.write(options.write, "register.py", lines)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(everything, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
