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
JSON, JSONL = "portbook list --all --json", "portbook list --all --jsonl"
WHY, WHO = f"portbook why {population.FREE}", f"portbook who {population.HELD}"
COMPLETE = "completion of portbook --al"
# What a shell's completion script runs: click, "Shell Completion".
COMPLETION_VARIABLES = ["_PORTBOOK_COMPLETE=bash_complete", "COMP_LINE=portbook --al"]
# name: arguments. The first word is looked up in the virtual environment, then in PATH.
COMMANDS: dict[str, list[str]] = {
    BARE: ["python", "-c", "pass"],
    "portbook --version": ["portbook", "--version"],
    JSON: ["portbook", "list", "--all", "--json"],
    JSONL: ["portbook", "list", "--all", "--jsonl"],
    "portbook list --all": ["portbook", "list", "--all"],
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
CALLS = {
    TAKE: "portbook.take()",
    PSUTIL: 'psutil.net_connections("inet")',
    NOBODY: f"portbook.who({population.FREE})",
    SOMEBODY: f"portbook.who({population.HELD})",
    CAN_HAVE: f"portbook.why({population.FREE})",
    CANNOT: f"portbook.why({population.HELD})",
}


class Target(NamedTuple):
    """A target of the project: a figure of ``name``, over that of ``of`` if there is one, is at most ``most``."""

    sizes: tuple[str, ...]
    name: str
    most: float
    of: str | None = None
    unit: str = "s"  # "s", or "MB" of peak memory


ALL = tuple(population.SIZES)
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
    Target(ALL, NOBODY, 0.005),
    Target(("medium",), CAN_HAVE, 0.005),
)


# --- measuring: inside the namespace, with the interpreter of the virtual environment ------------------------------


def measure(repeat: int, patience_s: float) -> dict[str, Any]:
    """Run every command, then every call, in turns. Kept small in memory: see ``contest.run``."""
    commands = {name: contest.resolved(arguments) for name, arguments in COMMANDS.items()}
    floor = contest.floor_mb()
    neighbours = Neighbours(patience_s)
    # lsof answers 1 whenever anything could not be read
    runners = {name: contest.runner(found, [1] if "lsof" in name else []) for name, found in commands.items() if found}
    runs = in_turns(runners, repeat, neighbours)
    me = [sys.executable, os.path.abspath(__file__), "--calls", "--repeat", str(repeat), "--patience", str(patience_s)]
    calls = json.loads(subprocess.run(me, check=True, stdout=subprocess.PIPE).stdout)
    busy = contest.others(neighbours.wall_s + calls["wall_s"], neighbours.others_s + calls["others_s"])
    return {"commands": runs, "calls": calls["runs"], "source": calls["source"], "floor_mb": floor, "others": busy}


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
    runs = in_turns(callers, repeat, neighbours)
    source = portbook.take("state:listen").source
    return {"runs": runs, "wall_s": neighbours.wall_s, "others_s": neighbours.others_s, "source": source}


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
    shape = population.SIZES[size]
    plain = f" and {shape.processes * shape.plain:,} other descriptors" if shape.plain else ""
    commands, calls = rows(measured["commands"]), rows(measured["calls"])
    lines = [f"### {size}: {shape.processes} processes, {shape.sockets:,} sockets{plain}", ""]
    lines += ["| whole process | runs | median | fastest | CPU | peak memory | / bare Python | / ss | target | |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|---|---|"]
    for name, row in commands.items():
        figures = contest.figures(name, row, measured["floor_mb"])
        figures += [ratio(row, commands.get(BARE)), ratio(row, commands.get(SS)), *_verdict(size, name, commands)]
        lines.append(f"| {' | '.join(figures)} |")
    lines += ["", "| inside one process | runs | median | fastest | CPU | / psutil | target | |"]
    lines += ["|---|--:|--:|--:|--:|--:|---|---|"]
    for name, row in calls.items():
        figures = [f"`{CALLS[name]}`", str(row.runs), ms(row.wall_s), ms(row.fastest_s), ms(row.cpu_s)]
        figures += [ratio(row, calls[PSUTIL]), *_verdict(size, name, {**commands, **calls})]
        lines.append(f"| {' | '.join(figures)} |")
    lines += ["", f"`portbook` read with the source `{measured['source']}`."]
    return [*lines, "", measured["others"], ""]


def _verdict(size: str, name: str, table: dict[str, Row]) -> tuple[str, str]:
    """Target and whether it is met, both cells empty where there is no target."""
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


# --- the command ---------------------------------------------------------------------------------------------------


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = contest.parser((__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(ALL), help="of %(default)s")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)  # how this program calls itself
    parser.add_argument("--calls", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.sizes.split(",")) - set(ALL)
    if unknown:
        parser.error(f"unknown size {', '.join(unknown)}")
    return options


def _tools() -> list[tuple[str, str]]:
    revisions = [line.split()[-1] for line in contest.output_of("lsof", "-v").splitlines() if "revision:" in line]
    return [("ss", contest.output_of("ss", "-V").rpartition(" ")[2]), ("lsof", next(iter(revisions), "none"))]


def _measured(python: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="portbook-bench-") as directory:
        answer = f"{directory}/answer.json"
        me = [python, os.path.abspath(__file__), "--measure", answer, "--repeat", str(options.repeat)]
        me += ["--patience", str(options.patience)]
        command = population.command(size, me)
        subprocess.run(command, check=True, env=PLAIN, preexec_fn=population.end_with_parent)
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
    with contest.environment(options.python) as python:
        lines += [contest.machine(python, *_tools()), ""]
        for size in options.sizes.split(","):
            everything[size] = _measured(python, size, options)
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
