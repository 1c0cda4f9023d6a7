"""How fast and how right dialing many ports is, beside nmap and a pool of threads, in one run.

    .venv/bin/python benchmarks/reach.py                                 everything (root; about half an hour)
    .venv/bin/python benchmarks/reach.py --rows loopback --repeat 3      a look at one row
    .venv/bin/python benchmarks/reach.py --write docs/benchmarks.md      put the tables into the page

Each row makes a network of its own (networks.py), has the contestants scan it in turns (contest.py), and compares
what each of them answered in each run with what was set up (answers.py). What is measured is a wheel of this tree, as
register.py does. This program itself needs what the tests need, for tests/netlab.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import accuracy
import answers
import contest
import memory
import networks
from answers import Reader, Score, States
from contest import Neighbours, Row, in_turns, ratio, rows
from tests import netlab

SLOWEST_S = 600.0  # one run
BUDGET_S = 60.0


class Contestant(NamedTuple):
    """A command line. ``{xml}`` becomes a file that it writes; ``python`` and ``portbook`` are those of the wheel."""

    command: str
    read: Reader = answers.of_xml
    name: str = ""

    @property
    def shown(self) -> str:
        return self.name or self.command


class Goal(NamedTuple):
    """A target of the project: the time of ``name`` is at most ``most`` times that of ``of``."""

    name: str
    most: float
    of: str
    text: str


class Bench:
    """What the rows share."""

    def __init__(self, python: str, repeat: int, patience_s: float, directory: str, whole_memory: bool = False) -> None:
        self.python = python
        self.repeat = repeat
        self.neighbours = Neighbours(patience_s)
        self.directory = directory
        self.whole_memory = whole_memory
        self.floor_mb = contest.floor_mb()
        self.record: dict[str, Any] = {}

    def compete(
        self, row: str, load: networks.Load, contestants: Sequence[Contestant], repeat: int, budget_s: float = BUDGET_S
    ) -> tuple[dict[str, Row], dict[str, list[Score]]]:
        """Times and scores of the same runs."""
        scores: dict[str, list[Score]] = {each.shown: [] for each in contestants}
        runners = {each.shown: self._runner(each, load, self._scorer(load, scores[each.shown])) for each in contestants}
        with load.space:
            runs = in_turns(runners, repeat, self.neighbours, budget_s)
        counted = {name: scores[name][-len(each) :] for name, each in runs.items()}
        self.record[row] = {"runs": runs, "scores": counted}
        return rows(runs), counted

    def _scorer(self, load: networks.Load, scores: list[Score]) -> Callable[[States], None]:
        return lambda states: scores.append(answers.compare(states, load.truth))

    def states(self, load: networks.Load, contestant: Contestant) -> States:
        """What one run answers."""
        heard: list[States] = []
        with load.space:
            self._runner(contestant, load, heard.append)()
        return heard[0]

    def _runner(
        self, contestant: Contestant, load: networks.Load, hear: Callable[[States], None]
    ) -> Callable[[], contest.Run]:
        xml, out = f"{self.directory}/answers.xml", f"{self.directory}/output"
        words = [word.format(xml=xml, peers=networks.PEERS) for word in contestant.command.split()]
        command = contest.resolved(words, self.python)
        if command is None:
            raise SystemExit(f"{words[0]} is not installed")
        said = xml if xml in words else out
        none_open = [] if "open" in load.truth.values() else [1]  # what portbook then ends with

        def call() -> contest.Run:
            done = contest.run(command, out, SLOWEST_S, none_open)
            with open(said, encoding="utf-8") as file:
                hear(contestant.read(file.read(), load.address))
            return done

        return call

    def table(
        self, row: str, load: networks.Load, contestants: Sequence[Contestant], goals: Sequence[Goal]
    ) -> list[str]:
        """The contestants of one row of the issue."""
        measured, scores = self.compete(row, load, contestants, self.repeat)
        first = measured[contestants[0].shown]
        lines = [
            "| | runs | median | fastest | CPU | peak memory | / first | found, missed, false | others | target | |"
        ]
        lines += ["|---|--:|--:|--:|--:|--:|--:|---|---|---|---|"]
        for name, figures in measured.items():
            cells = [
                *contest.figures(name, figures, self.floor_mb),
                ratio(figures, first),
                *_judged(scores[name], load),
            ]
            lines.append(f"| {' | '.join([*cells, *_verdict(name, measured, goals)])} |")
        return [*lines, ""]


def _judged(scores: Sequence[Score], load: networks.Load) -> tuple[str, str]:
    """Of all runs together."""
    found, missed, false, wrong = (sum(column) for column in zip(*scores, strict=True))
    others = sum(state != "open" for state in load.truth.values()) * len(scores)
    return f"{found:,}, {missed:,}, {false:,}", f"{others - wrong:,} of {others:,} right" if others else ""


def _verdict(name: str, measured: dict[str, Row], goals: Sequence[Goal]) -> tuple[str, str]:
    asked = [goal for goal in goals if goal.name == name]
    met = ["met" if measured[name].wall_s <= g.most * measured[g.of].wall_s else "**not met**" for g in asked]
    return ", ".join(goal.text for goal in asked), ", ".join(met)


# --- the rows ------------------------------------------------------------------------------------------------------

SCAN_ALL = "portbook scan 127.0.0.1 -p 1-65535"
NMAP_ALL = "nmap -sT -Pn -n -T5 --min-rate 20000 -p1-65535 127.0.0.1"
POOL = "python peers.py pool 127.0.0.1 1-65535 100"
FIFTY = [1000 + 1290 * number for number in range(50)]


def loopback(bench: Bench) -> Iterator[str]:
    yield "### 65,535 ports of loopback, 50 open"
    yield ""
    contestants = [
        Contestant(SCAN_ALL, answers.of_table),
        Contestant(NMAP_ALL, answers.of_table),
        Contestant(POOL.replace("peers.py", "{peers}"), answers.of_table, POOL),
    ]
    with networks.loopback(FIFTY) as load:
        yield from bench.table(
            "loopback",
            load,
            contestants,
            [Goal(SCAN_ALL, 1.0, NMAP_ALL, "≤ 1.0 of nmap"), Goal(SCAN_ALL, 1 / 5, POOL, "≤ 1/5 of the pool")],
        )


PORTS = f"-p {networks.FIREWALL[0]}-{networks.FIREWALL[-1]} {netlab.TARGET}"
SCAN, NMAP = f"portbook scan {PORTS}", f"nmap -sT -Pn -n {PORTS}"
SCAN_FAST = f"portbook scan --timeout 0.1 --retries 1 {PORTS}"
NMAP_FAST = f"nmap -sT -Pn -n -T5 --max-retries 1 --min-rate 20000 --max-rtt-timeout 100ms {PORTS}"
# Faster still, for less: half the time to wait, and no repetition.
NMAP_SHORT = f"nmap -sT -Pn -n -T5 --max-retries 1 --min-rate 100000 --max-rtt-timeout 50ms {PORTS}"
NMAP_ONCE = f"nmap -sT -Pn -n -T5 --max-retries 0 --min-rate 20000 --max-rtt-timeout 100ms {PORTS}"
FIREWALL = (SCAN, NMAP, SCAN_FAST, NMAP_FAST, NMAP_SHORT, NMAP_ONCE)


def xml_of(command: str) -> Contestant:
    """With the file that the answers are read from."""
    option = "--nmap-xml" if command.startswith("portbook") else "-oX"
    program, _, rest = command.partition(" ")
    if program == "portbook":
        subcommand, _, rest = rest.partition(" ")
        program = f"{program} {subcommand}"
    return Contestant(f"{program} {option} {{xml}} {rest}", name=command)


def firewall(bench: Bench) -> Iterator[str]:
    yield "### 1000 ports 20 ms away, 950 of them dropped by a firewall, 25 open, 25 closed"
    yield ""
    goals = [Goal(SCAN, 1.0, NMAP, "≤ 1.0 of nmap"), Goal(SCAN_FAST, 2.0, NMAP_FAST, "≤ 2.0 of nmap's fastest")]
    with networks.firewall() as load:
        yield from bench.table("firewall", load, [xml_of(each) for each in FIREWALL], goals)


UDP = f"-p 2000-2099 {netlab.TARGET}"
SCAN_UDP, NMAP_UDP = f"portbook scan --udp {UDP}", f"nmap -sU -Pn -n {UDP}"


def udp(bench: Bench) -> Iterator[str]:
    for limited in (False, True):
        what = "as often as Linux does by default" if limited else "as often as it is asked"
        yield f"### 100 UDP ports 20 ms away: 10 open, 60 closed, 15 dropped, 15 prohibited; the target refuses {what}"
        yield ""
        with networks.ruled(networks.MIXED, "udp", limited=limited) as load:
            rivals = [xml_of(SCAN_UDP), xml_of(NMAP_UDP)]
            yield from bench.table(
                f"udp, limited: {limited}", load, rivals, [Goal(SCAN_UDP, 1.0, NMAP_UDP, "≤ 1.0 of nmap")]
            )


HOSTS = f"-p 80,1000-1098 {networks.NETWORK}"
WITH, WITHOUT = f"portbook scan {HOSTS}", f"portbook scan --no-breaker {HOSTS}"
NMAP_HOSTS = f"nmap -sT -Pn -n -T4 {HOSTS}"


def hosts(bench: Bench) -> Iterator[str]:
    yield "### 256 hosts 20 ms away, 100 ports each; 250 hosts are dead"
    yield ""
    goals = [Goal(WITH, 1 / 3, WITHOUT, "≤ 1/3 of without breaker")]
    with networks.many_hosts() as load:
        yield from bench.table("hosts", load, [xml_of(each) for each in (WITH, WITHOUT, NMAP_HOSTS)], goals)


# --- accuracy: the same, often, and without a clock ----------------------------------------------------------------


def loss(bench: Bench) -> Iterator[str]:
    yield f"### 1000 ports 20 ms away, 100 open, and one packet in twenty is lost; {accuracy.LOSSY_RUNS} runs"
    yield ""
    with networks.lossy() as load:
        yield from _repeated(bench, "loss", load, [xml_of(SCAN), xml_of(NMAP)], accuracy.LOSSY_RUNS)


SCAN_EPHEMERAL = f"portbook scan {networks.LOOPBACK} -p 32768-60999"
NMAP_EPHEMERAL = f"nmap -sT -Pn -n -T5 --min-rate 20000 -p 32768-60999 {networks.LOOPBACK}"


def ephemeral(bench: Bench) -> Iterator[str]:
    yield f"### The ports that the kernel gives to clients, with nothing listening; {accuracy.EPHEMERAL_RUNS} runs"
    yield ""
    rivals = [Contestant(each, answers.of_table) for each in (SCAN_EPHEMERAL, NMAP_EPHEMERAL)]
    with networks.loopback([]) as load:
        yield from _repeated(bench, "ephemeral", load, rivals, accuracy.EPHEMERAL_RUNS)


def _repeated(
    bench: Bench, row: str, load: networks.Load, contestants: Sequence[Contestant], runs: int
) -> Iterator[str]:
    measured, scores = bench.compete(row, load, contestants, runs, budget_s=float("inf"))
    yield from accuracy.repeated({name: (measured[name], scores[name]) for name in measured}, load)


def rules(bench: Bench) -> Iterator[str]:
    yield "### What firewalls say: nftables on a target 20 ms away, port by port"
    yield ""
    yield from accuracy.ruled(lambda load, command: bench.states(load, xml_of(command)))


def held(bench: Bench) -> Iterator[str]:
    yield from memory.report(bench.python, bench.whole_memory)


Lines = Callable[[Bench], Iterator[str]]
SPEED: dict[str, Lines] = {"loopback": loopback, "firewall": firewall, "udp": udp, "hosts": hosts, "memory": held}
ACCURACY: dict[str, Lines] = {"loss": loss, "ephemeral": ephemeral, "rules": rules}
ROWS = SPEED | ACCURACY


# --- the command ---------------------------------------------------------------------------------------------------


def report(bench: Bench, chosen: Sequence[str]) -> Iterator[str]:
    yield contest.machine(bench.python, ("nmap", contest.output_of("nmap", "--version").split()[2]))
    yield ""
    for row in chosen:
        if row == next((each for each in chosen if each in ACCURACY), None):
            yield from ("## Accuracy", "")
        wall_s, others_s = bench.neighbours.wall_s, bench.neighbours.others_s
        yield from ROWS[row](bench)
        if bench.neighbours.wall_s > wall_s:
            yield contest.others(bench.neighbours.wall_s - wall_s, bench.neighbours.others_s - others_s)
        switch = " --whole-memory" if row == "memory" and bench.whole_memory else ""
        yield f"Again: `sudo .venv/bin/python benchmarks/reach.py --rows {row} --repeat {bench.repeat}{switch}`"
        yield ""


def main(arguments: list[str]) -> int:
    parser = contest.parser((__doc__ or "").partition("\n")[0], repeat=7)
    parser.add_argument("--rows", default=",".join(ROWS), help="of %(default)s")
    parser.add_argument("--whole-memory", action="store_true", help=memory.WHOLE)
    options = parser.parse_args(arguments)
    chosen = options.rows.split(",")
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"unknown row {', '.join(unknown)}")
    if os.geteuid() != 0:
        raise SystemExit("reach.py makes namespaces: run it as root")
    lines: list[str] = []
    with contest.environment(options.python) as python, contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="portbook-bench-"))
        bench = Bench(python, options.repeat, options.patience, directory, options.whole_memory)
        for line in report(bench, chosen):
            print(line, flush=True)
            lines.append(line)
    if options.write:
        contest.write(options.write, "reach.py", lines)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(bench.record, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
