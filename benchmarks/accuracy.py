"""How right the answers are: many runs against what was set up, and port by port beside nmap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import networks
from answers import Place, Score, States
from contest import Row, ms
from tests import netlab

LOSSY_RUNS = 20
EPHEMERAL_RUNS = 50


def repeated(results: dict[str, tuple[Row, Sequence[Score]]], load: networks.Load) -> Iterator[str]:
    """One line for each contestant, all runs together."""
    opened = sum(state == "open" for state in load.truth.values())
    yield "| | runs | open ports found | missed | false | other answers wrong | runs without a mistake | median time |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for name, (row, scores) in results.items():
        found, missed, false, wrong = (sum(column) for column in zip(*scores, strict=True))
        right = sum(score.is_right for score in scores)
        cells = [f"`{name}`", len(scores), f"{found:,} of {opened * len(scores):,}", missed, false, wrong, right]
        yield f"| {' | '.join(map(str, cells))} | {ms(row.wall_s)} |"
    yield ""


# --- port by port --------------------------------------------------------------------------------------------------

ADDRESS = netlab.TARGET
COMMANDS = {
    "tcp": (
        "portbook scan -p {ports} {address}",
        "nmap -sT -Pn -n -p {ports} {address}",
        "nmap -sS -Pn -n -p {ports} {address}",
    ),
    "udp": ("portbook scan --udp -p {ports} {address}", "nmap -sU -Pn -n -p {ports} {address}"),
}
Scanner = Callable[[networks.Load, str], States]


def ruled(scan: Scanner) -> Iterator[str]:
    """What each rule makes of the ports behind it, in the words of each program."""
    ports = f"{networks.RULES['no rule'].ports[0]}-{networks.RULES['over 100 a second: drop'].ports[-1]}"
    for protocol, commands in COMMANDS.items():
        with networks.ruled(networks.RULES, protocol) as load:
            made = [command.format(ports=ports, address=ADDRESS) for command in commands]
            yield from _compared(protocol, load.truth, {each: scan(load, each) for each in made})


def _compared(protocol: str, truth: States, said: dict[str, States]) -> Iterator[str]:
    yield f"| {protocol}: rule | set up | {' | '.join(f'`{command}`' for command in said)} |"
    yield f"|---|---|{'---|' * len(said)}"
    for name, rule in networks.RULES.items():
        places = [(ADDRESS, port) for port in rule.ports]
        cells = [_counted(truth, places), *(_counted(states, places, truth) for states in said.values())]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    right = {command: sum(states.get(p) == state for p, state in truth.items()) for command, states in said.items()}
    yield "As set up: " + ", ".join(f"`{c.split(' -p')[0]}` {n} of {len(truth)}" for c, n in right.items()) + "."
    yield ""


def _counted(states: States, places: Sequence[Place], truth: States | None = None) -> str:
    """How many of each state; bold when one is not what was set up."""
    counts = Counter(states.get(place, "no answer") for place in places)
    text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())).replace("|", "\\|")  # of a table
    right = truth is None or all(states.get(place) == truth[place] for place in places)
    return text if right else f"**{text}**"
