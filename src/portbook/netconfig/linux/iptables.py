"""The output of ``iptables-save -t nat`` as steps: iptables-save(8), iptables-extensions(8). Pure; never raises."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import pairwise

from portbook.netconfig.facts import NatTool
from portbook.netconfig.linux.steps import NAT_HOOKS, Step, Table, hook_name
from portbook.numerals import UINT16, number_or_none
from portbook.records import Family, PortRange

TOOL: NatTool = "iptables-save"
# Options that are true of the packets in question, or test nothing: the number of their values.
IGNORED: dict[str, int] = {"-m": 1, "--match": 1, "--comment": 1, "--dst-type": 1, "--random": 0, "--persistent": 0}
PORT_OPTIONS = frozenset(("--dport", "--dports", "--destination-port"))
MOST_SHOWN = 200  # characters of a condition
VERDICTS = frozenset(("ACCEPT", "DROP", "RETURN", "MASQUERADE", "SNAT", "LOG", "MARK", "NETMAP"))


def parse(text: bytes, family: Family) -> list[Step]:
    """Parse the rules of one family; other lines are skipped."""
    table = (TOOL, family, "nat")
    steps = [Step(table, hook_name(hook), "jump", hook.upper()) for hook in NAT_HOOKS]
    for line in text.decode("utf-8", "replace").split("\n"):
        if line.startswith("-A "):
            steps += _rule(_split(line), table)
    return steps


def _split(line: str) -> list[str]:
    """Only comments are quoted."""
    if '"' not in line:
        return line.split()
    try:
        return shlex.split(line)
    except ValueError:
        return []


def _rule(words: list[str], table: Table) -> Iterator[Step]:
    if len(words) < 2:
        return
    _, chain, *options = words
    step = Step(table, chain, "jump")
    negated = False
    rest = iter(options)
    for word in rest:
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            yield from _action(step, next(rest, ""), list(rest))
            return
        if word in IGNORED and not negated:
            for _ in range(IGNORED[word]):
                next(rest, None)
        else:
            step = _match(step, word, next(rest, ""), negated)
        negated = False


def _match(step: Step, option: str, value: str, negated: bool) -> Step:
    """Narrow a step by an option; one that is not known becomes a condition in words."""
    condition = f"{option} {value}"
    if negated:
        if option == "-i":
            return step  # "not from the container's own bridge": from anywhere else
        condition = f"! {condition}"
    elif option == "-p":
        return step._replace(protocols=frozenset((value,)))
    elif option == "-d":
        return step._replace(destination=value)
    elif option in PORT_OPTIONS:
        ports = _ports(value)
        if ports:
            return step._replace(ports=ports)
    return step._replace(conditions=(*step.conditions, condition[:MOST_SHOWN]))


def _ports(text: str) -> tuple[PortRange, ...] | None:
    """``8080``, ``8080:8090``, ``80,443,8000:8010``."""
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        low, _, high = part.partition(":")
        first = number_or_none(low, UINT16)
        last = number_or_none(high or low, UINT16)
        if first is None or last is None:
            return None
        ranges.append((first, last))
    return tuple(ranges)


def _action(step: Step, target: str, rest: list[str]) -> Iterator[Step]:
    if target == "DNAT":
        address, port = _destination(_value(rest, "--to-destination"))
        yield step._replace(kind="dnat", target=address, port=port)
    elif target == "REDIRECT":
        yield step._replace(kind="redirect", port=number_or_none(_value(rest, "--to-ports").partition("-")[0], UINT16))
    elif target and target not in VERDICTS:
        yield step._replace(kind="jump", target=target)


def _value(words: list[str], option: str) -> str:
    """The word after an option; empty when there is none."""
    for word, following in pairwise(words):
        if word == option:
            return following
    return ""


def _destination(text: str) -> tuple[str | None, int | None]:
    """``10.0.0.2``, ``10.0.0.2:80``, ``10.0.0.2-10.0.0.9:80-90``, ``[fd00::2]:80``."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") > 1:
        address, port = text, ""
    else:
        address, _, port = text.partition(":")
    return address.partition("-")[0] or None, number_or_none(port.partition("-")[0], UINT16)
