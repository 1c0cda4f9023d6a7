"""What ``iptables-save -t nat`` prints, as steps: iptables-save(8), iptables-extensions(8). Pure; never raises."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from portbook.netconfig.facts import NatTool
from portbook.netconfig.linux.steps import NAT_HOOKS, PortRanges, Step, Table, hook_name
from portbook.numerals import UINT16, number_or_none
from portbook.records import Family

TOOL: NatTool = "iptables-save"
MOST_RULES = 200_000
# Options that ask what is true of packets here anyway, or nothing: how many values to pass over.
PASSED: dict[str, int] = {"-m": 1, "--match": 1, "--comment": 1, "--dst-type": 1, "--random": 0, "--persistent": 0}
VERDICTS = frozenset(("ACCEPT", "DROP", "RETURN", "MASQUERADE", "SNAT", "LOG", "MARK", "NETMAP"))


def parse(text: bytes, family: Family) -> list[Step]:
    """Read the rules of one family; lines that are none are passed over."""
    table = (TOOL, family, "nat")
    steps = [Step(table, hook_name(hook), "jump", hook.upper()) for hook in NAT_HOOKS]
    for line in text.decode("utf-8", "replace").split("\n")[:MOST_RULES]:
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
    step = Step(table, words[1] if len(words) > 1 else "", "jump")
    negated = False
    rest = iter(words[2:])
    for word in rest:
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            yield from _action(step, next(rest, ""), list(rest))
            return
        if word in PASSED and not negated:
            for _ in range(PASSED[word]):
                next(rest, None)
        else:
            step = _match(step, word, next(rest, ""), negated)
        negated = False


def _match(step: Step, option: str, value: str, negated: bool) -> Step:
    """Narrow a step by what it asks; what is not understood stays as a condition."""
    if not negated:
        if option == "-p":
            return step._replace(protocols=frozenset((value,)))
        if option in ("--dport", "--dports", "--destination-port") and (ports := _ports(value)):
            return step._replace(ports=ports)
        if option == "-d":
            return step._replace(destination=value)
    if negated and option == "-i":
        return step  # "not from the container's own bridge": from anywhere else
    return step._replace(conditions=(*step.conditions, f"{'! ' if negated else ''}{option} {value}"[:200]))


def _ports(text: str) -> PortRanges | None:
    """``8080``, ``8080:8090``, ``80,443,8000:8010``."""
    found = []
    for part in text.split(","):
        low, _, high = part.partition(":")
        numbers = number_or_none(low, UINT16), number_or_none(high or low, UINT16)
        if numbers[0] is None or numbers[1] is None:
            return None
        found.append((numbers[0], numbers[1]))
    return tuple(found)


def _action(step: Step, target: str, rest: list[str]) -> Iterator[Step]:
    if target == "DNAT":
        address, port = _destination(_value(rest, "--to-destination"))
        yield step._replace(kind="dnat", target=address, port=port)
    elif target == "REDIRECT":
        yield step._replace(kind="redirect", port=number_or_none(_value(rest, "--to-ports").partition("-")[0], UINT16))
    elif target and target not in VERDICTS:
        yield step._replace(kind="jump", target=target)


def _value(words: list[str], option: str) -> str:
    at = words.index(option) + 1 if option in words else len(words)
    return words[at] if at < len(words) else ""


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
