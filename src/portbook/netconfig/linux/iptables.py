"""The output of ``iptables-save`` as a ruleset: iptables-save(8), iptables-extensions(8). Pure; never raises."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise

from portbook.netconfig.facts import NatTool
from portbook.netconfig.linux import ruleset as forms
from portbook.netconfig.linux.ruleset import (
    MOST_TEXT,
    BaseChain,
    ChainKey,
    ChainKind,
    Element,
    Hook,
    NewDestination,
    PacketAction,
    PacketField,
    PacketRule,
    PacketTest,
    Ruleset,
    Statement,
    ValueRange,
)
from portbook.numerals import UINT16, number_or_none
from portbook.records import Family

TOOL: NatTool = "iptables-save"
# Tables in which packets pass prerouting or output, and their priorities: nf_ip_hook_priorities in netfilter_ipv4.h.
TABLES: dict[str, tuple[ChainKind, int]] = {
    "raw": ("filter", -300),
    "mangle": ("filter", -150),
    "nat": ("nat", -100),
    "filter": ("filter", 0),
    "security": ("filter", 50),
}
HOOKS: dict[str, Hook] = {"PREROUTING": "prerouting", "OUTPUT": "output"}
# Options whose value may look like an option, and the number of their values. All others end before the next option.
VALUES: dict[str, int] = {"-m": 1, "--match": 1, "--comment": 1, "--string": 1, "--hex-string": 1}
WITHOUT_TEST = frozenset(("-m", "--match", "--comment"))
# Targets after which a packet goes on as before. SNAT and MASQUERADE change its source.
WITHOUT_EFFECT = frozenset(
    ("LOG", "NFLOG", "ULOG", "TRACE", "MARK", "CONNMARK", "SECMARK", "CONNSECMARK", "TCPMSS", "TOS", "DSCP", "CLASSIFY",
     "SET", "CHECKSUM", "AUDIT", "TTL", "HL", "IDLETIMER", "RATEEST", "HMARK", "LED", "TEE", "ECN", "TCPOPTSTRIP",
     "MASQUERADE", "SNAT", "SYNPROXY")
)  # fmt: skip


def parse(text: bytes, family: Family) -> Ruleset:
    """Parse the tables of one family; lines that are none of theirs are skipped."""
    parsed = Ruleset([], {})
    table = "nat"
    lines = text.decode("utf-8", "replace").split("\n")
    policies = _policies(lines)
    chains = _chains(lines)
    for line in lines:
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith("-A "):
            _add_rule(parsed, _split(line), (TOOL, family, table), chains.get(table, set()))
    for table_name in chains:
        if table_name in TABLES:
            kind, priority = TABLES[table_name]
            for chain, hook in HOOKS.items():
                accepts = policies.get((table_name, chain)) != "DROP"
                parsed.bases.append(BaseChain((TOOL, family, table_name, chain), hook, kind, priority, accepts))
    return parsed


def _policies(lines: list[str]) -> dict[tuple[str, str], str]:
    """``:PREROUTING ACCEPT [0:0]``."""
    policies: dict[tuple[str, str], str] = {}
    table = "nat"
    for line in lines:
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, _, rest = line[1:].partition(" ")
            policies[table, name] = rest.partition(" ")[0]
    return policies


def _chains(lines: list[str]) -> dict[str, set[str]]:
    """The chains of each table: those that are declared, or have a rule."""
    chains: dict[str, set[str]] = {}
    table = "nat"
    for line in lines:
        if line.startswith("*"):
            table = line[1:].strip()
            chains.setdefault(table, set())
        elif line.startswith((":", "-A ")):
            words = line.removeprefix(":").removeprefix("-A ").split(None, 1)
            chains.setdefault(table, set()).update(words[:1])
    return chains


def _split(line: str) -> list[str]:
    """Only comments are quoted."""
    if '"' not in line:
        return line.split()
    try:
        return shlex.split(line)
    except ValueError:
        return []


def _add_rule(parsed: Ruleset, words: list[str], table: tuple[NatTool, Family, str], chains: set[str]) -> None:
    if len(words) < 2:
        return
    key: ChainKey = (*table, words[1])
    rule = _rule(words[2:], chains)
    if rule:
        parsed.rules.setdefault(key, []).append(rule)


def _rule(words: list[str], chains: set[str]) -> PacketRule:
    statements: list[Statement] = []
    negated = False
    at = 0
    while at < len(words):
        option = words[at]
        at += 1
        if option == "!":
            negated = True
            continue
        if option in ("-j", "-g"):
            target = words[at] if at < len(words) else ""
            return (*statements, *_action(option, target, words[at + 1 :], chains))
        end = at + VALUES.get(option, 0)
        if option not in VALUES:
            while end < len(words) and words[end] != "!" and not words[end].startswith("-"):
                end += 1
        if option not in WITHOUT_TEST:
            statements.append(_test(option, words[at:end], negated))
        at = end
        negated = False
    return ()


def _test(option: str, values: list[str], negated: bool) -> PacketTest:
    text = " ".join((*("!" if negated else "",), option, *values)).strip()[:MOST_TEXT]
    field, read = TESTS.get(option, (None, _unknown))
    elements = read(values[0] if values else "")
    if option == "--tcp-flags" and values[1:] == ["SYN"] and "SYN" in values[0].split(","):
        return PacketTest(
            ("protocol",), ((forms.word("tcp"),),), text, negated
        )  # the packet in question begins a connection
    return PacketTest((field,), elements, text, negated)


def _unknown(_: str) -> tuple[Element, ...]:
    return ((None,),)


def _ports(text: str) -> tuple[Element, ...]:
    """``8080``, ``8080:8090``, ``80,443,8000:8010``."""
    return tuple((_port_interval(part),) for part in text.split(","))


def _any_ports(text: str) -> tuple[Element, ...]:
    """Ports of the source or of the destination."""
    return (*_ports(text), (None,))


def _port_interval(text: str) -> ValueRange:
    low, colon, high = text.partition(":")
    first = number_or_none(low or "0", UINT16)
    last = number_or_none(high or ("65535" if colon else low), UINT16)
    if first is None or last is None:
        return None
    return first, last


def _protocol(text: str) -> tuple[Element, ...]:
    if text in ("all", "0"):
        return ((),)
    return ((forms.protocol(text),),)


def _networks(text: str) -> tuple[Element, ...]:
    return tuple((forms.network(part),) for part in text.split(","))


def _address_range(text: str) -> tuple[Element, ...]:
    first, _, last = text.partition("-")
    return ((forms.address_range(first, last or first),),)


def _interface(text: str) -> tuple[Element, ...]:
    return ((forms.interface(text, "+"),),)


def _types(text: str) -> tuple[Element, ...]:
    return tuple((forms.word(part.lower()),) for part in text.split(","))


TESTS: dict[str, tuple[PacketField | None, Callable[[str], tuple[Element, ...]]]] = {
    "-p": ("protocol", _protocol),
    "-d": ("address", _networks),
    "-i": ("in", _interface),
    "-o": ("out", _interface),
    "--dport": ("port", _ports),
    "--dports": ("port", _ports),
    "--destination-port": ("port", _ports),
    "--ports": ("port", _any_ports),
    "--dst-range": ("address", _address_range),
    "--dst-type": ("type", _types),
    "--src-type": ("source type", _types),
    "--ctstate": ("state", _types),
    "--state": ("state", _types),
    "--ctdir": ("direction", _types),
}


def _action(option: str, name: str, rest: list[str], chains: set[str]) -> Iterator[PacketAction]:
    if name in chains and name not in HOOKS:
        yield PacketAction("goto" if option == "-g" else "jump", name)
    elif name in TARGETS:
        yield TARGETS[name](rest)
    elif name == "CT":
        if "--notrack" in rest:
            yield PacketAction("notrack")
    elif name not in WITHOUT_EFFECT:
        yield PacketAction("unknown", text=f"-j {name}"[:MOST_TEXT])


def _dnat(rest: list[str]) -> PacketAction:
    target = _destination(_value(rest, "--to-destination"))
    if "--random" in rest:
        target = NewDestination(target.address, target.port, target.last_port, random=True)
    return PacketAction("nat", target=target)


def _redirect(rest: list[str]) -> PacketAction:
    low, _, high = _value(rest, "--to-ports").partition("-")
    first = number_or_none(low, UINT16)
    return PacketAction(
        "nat", target=NewDestination(None, first, number_or_none(high or low, UINT16), random="--random" in rest)
    )


def _netmap(rest: list[str]) -> PacketAction:
    return PacketAction("nat", target=NewDestination(_value(rest, "--to"), network=True))


def _tproxy(rest: list[str]) -> PacketAction:
    address: str | None = _value(rest, "--on-ip")
    if address in ("", "0.0.0.0", "::"):  # noqa: S104  compared
        address = None
    port = number_or_none(_value(rest, "--on-port"), UINT16)
    return PacketAction("tproxy", target=NewDestination(address, port or None))


TARGETS: dict[str, Callable[[list[str]], PacketAction]] = {
    "ACCEPT": lambda _: PacketAction("accept"),
    "DROP": lambda _: PacketAction("drop"),
    "REJECT": lambda _: PacketAction("drop"),
    "RETURN": lambda _: PacketAction("return"),
    "NOTRACK": lambda _: PacketAction("notrack"),
    "DNAT": _dnat,
    "REDIRECT": _redirect,
    "NETMAP": _netmap,
    "TPROXY": _tproxy,
}


def _value(words: list[str], option: str) -> str:
    """The word after an option; empty when there is none."""
    for word, following in pairwise(words):
        if word == option:
            return following
    return ""


def _destination(text: str) -> NewDestination:
    """``10.0.0.2``, ``10.0.0.2:80``, ``10.0.0.2-10.0.0.9:80-90``, ``10.0.0.2:80-90/5000``, ``[fd00::2]:80``."""
    if text.startswith("["):
        address, _, ports = text[1:].partition("]")
        ports = ports.removeprefix(":")
    elif text.count(":") > 1:
        address, ports = text, ""
    else:
        address, _, ports = text.partition(":")
    span, _, base = ports.partition("/")
    low, _, high = span.partition("-")
    first = number_or_none(low, UINT16)
    last = number_or_none(high or low, UINT16)
    return NewDestination(address or None, first, last, shifted_from=number_or_none(base, UINT16))
