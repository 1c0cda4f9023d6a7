"""The output of ``nft -j list ruleset`` as steps: libnftables-json(5). Pure; raises ValueError for any other text.

Whoever may make a chain chooses its name: names are nothing but text here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from portbook.netconfig.facts import NatFamily
from portbook.netconfig.linux.steps import NAT_HOOKS, PortRanges, Step, Table, hook_name
from portbook.numerals import UINT16

FAMILIES: dict[str, NatFamily] = {"ip": "ipv4", "ip6": "ipv6", "inet": "both"}
Sets = dict[tuple[str, str, str], list[Any]]  # family, table, name: elements


def parse(text: bytes) -> list[Step]:
    """Parse a ruleset."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    entries = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("no list called nftables")  # noqa: TRY004  the text is wrong, not our call
    entries = [e for e in entries if isinstance(e, dict)]
    sets = _sets(entries)
    steps: list[Step] = []
    for entry in entries:
        steps += _base(entry.get("chain"))
        steps += _rule(entry.get("rule"), sets)
    return steps


def _table(entry: dict[str, Any]) -> Table | None:
    family = FAMILIES.get(str(entry.get("family")))
    return ("nft", family, str(entry.get("table"))) if family else None


def _base(chain: Any) -> Iterator[Step]:
    if isinstance(chain, dict) and chain.get("type") == "nat" and chain.get("hook") in NAT_HOOKS:
        table = _table(chain)
        if table is not None:
            yield Step(table, hook_name(str(chain["hook"])), "jump", str(chain.get("name")))


def _sets(entries: list[dict[str, Any]]) -> Sets:
    sets: Sets = {}
    for entry in entries:
        for kind in ("set", "map"):
            declared = entry.get(kind)
            if isinstance(declared, dict) and isinstance(declared.get("elem"), list):
                key = str(declared.get("family")), str(declared.get("table")), str(declared.get("name"))
                sets[key] = declared["elem"]
    return sets


def _rule(rule: Any, sets: Sets) -> Iterator[Step]:
    if not isinstance(rule, dict) or not isinstance(rule.get("expr"), list):
        return
    table = _table(rule)
    if table is None:
        return
    step = Step(table, str(rule.get("chain")), "jump")
    named_sets = _NamedSets(sets, str(rule.get("family")), str(rule.get("table")))
    for expression in rule["expr"]:
        if isinstance(expression, dict):
            for key, value in expression.items():
                if key == "match":
                    step = _match(step, value, named_sets)
                elif key in ACTIONS:
                    yield from ACTIONS[key](step, value, named_sets)


class _NamedSets:
    """The sets and maps of the table that a rule is in."""

    def __init__(self, sets: Sets, family: str, table: str) -> None:
        self.sets, self.family, self.table = sets, family, table

    def elements(self, value: Any) -> list[Any] | None:
        """The elements of ``{"set": [...]}`` or ``"@name"``; None for anything else."""
        if isinstance(value, dict) and isinstance(value.get("set"), list):
            elements: list[Any] = value["set"]
            return elements
        if isinstance(value, str) and value.startswith("@"):
            return self.sets.get((self.family, self.table, value[1:]))
        return None


# --- matches -------------------------------------------------------------------------------------------------------


def _match(step: Step, match: Any, named_sets: _NamedSets) -> Step:
    """Narrow a step by a match; one that is not known becomes a condition in words."""
    if not isinstance(match, dict):
        return step
    left, right = match.get("left"), match.get("right")
    field = _field(left)
    if field == "local":
        return step  # "an address of this machine": the addresses in question are
    if field == "dport":
        step = _protocols(step, frozenset((str(_payload(left).get("protocol")),)))
    narrowed: Step | None = None
    if match.get("op") in ("==", "in", None):
        narrowed = _narrow(step, field, right, named_sets)
    return narrowed or _conditional(step, match)


def _narrow(step: Step, field: str | None, right: Any, named_sets: _NamedSets) -> Step | None:
    """Narrow a step to the values of a field; None where they are not known."""
    if field == "dport":
        ports = _ports(right, named_sets)
        return None if ports is None else step._replace(ports=ports)
    if field == "protocol":
        protocols = _words(right, named_sets)
        return None if protocols is None else _protocols(step, protocols)
    if field == "daddr":
        address = _address(right)
        return None if address is None else step._replace(destination=address)
    return None


def _field(left: Any) -> str | None:
    if not isinstance(left, dict):
        return None
    payload, meta = _payload(left), left.get("meta")
    if payload.get("field") == "dport":
        return "dport"
    if payload.get("field") == "daddr":
        return "daddr"
    if payload.get("field") in ("protocol", "nexthdr") or (isinstance(meta, dict) and meta.get("key") == "l4proto"):
        return "protocol"
    fib = left.get("fib")
    if isinstance(fib, dict) and fib.get("result") == "type":
        return "local"
    return None


def _payload(left: Any) -> dict[str, Any]:
    payload = left.get("payload") if isinstance(left, dict) else None
    return payload if isinstance(payload, dict) else {}


def _protocols(step: Step, words: frozenset[str]) -> Step:
    if words & {"th"}:
        return step
    return step._replace(protocols=words if step.protocols is None else step.protocols & words)


def _words(right: Any, named_sets: _NamedSets) -> frozenset[str] | None:
    elements = named_sets.elements(right)
    words = [right] if elements is None else elements
    known = {6: "tcp", 17: "udp", "6": "tcp", "17": "udp"}
    return frozenset(str(known.get(w, w)) for w in words if isinstance(w, str | int)) or None


def _ports(right: Any, named_sets: _NamedSets) -> PortRanges | None:
    elements = named_sets.elements(right)
    ranges: list[tuple[int, int]] = []
    for value in [right] if elements is None else elements:
        limits = _range(value)
        if limits is None:
            return None
        ranges.append(limits)
    return tuple(ranges)


def _range(value: Any) -> tuple[int, int] | None:
    if isinstance(value, dict) and isinstance(value.get("elem"), dict):
        value = value["elem"].get("val")
    if isinstance(value, int):
        return value, value
    limits = value.get("range") if isinstance(value, dict) else None
    if isinstance(limits, list) and len(limits) == 2 and all(isinstance(n, int) for n in limits):
        return limits[0], limits[1]
    return None


def _address(right: Any) -> str | None:
    if isinstance(right, str) and not right.startswith("@"):
        return right
    prefix = right.get("prefix") if isinstance(right, dict) else None
    if isinstance(prefix, dict):
        return f"{prefix.get('addr')}/{prefix.get('len')}"
    return None


def _describe(match: Any) -> str:
    return msgspec.json.encode(match).decode("utf-8", "replace")[:200]


# --- actions -------------------------------------------------------------------------------------------------------


def _jump(step: Step, value: Any, named_sets: _NamedSets) -> Iterator[Step]:
    if isinstance(value, dict) and "target" in value:
        yield step._replace(kind="jump", target=str(value["target"]))


def _vmap(step: Step, value: Any, named_sets: _NamedSets) -> Iterator[Step]:
    """``tcp dport vmap { 8080 : jump web }``."""
    if not isinstance(value, dict) or not isinstance(value.get("key"), dict):
        return
    by_port = _field(value["key"]) == "dport"
    if by_port:
        step = _protocols(step, frozenset((str(_payload(value["key"]).get("protocol")),)))
    for pair in named_sets.elements(value.get("data")) or ():
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict):
            ports = _range(pair[0]) if by_port else None
            narrowed = step._replace(ports=(ports,)) if ports else _conditional(step, value["key"])
            for kind in ("jump", "goto"):
                yield from _jump(narrowed, pair[1].get(kind), named_sets)


def _conditional(step: Step, expression: Any) -> Step:
    return step._replace(conditions=(*step.conditions, _describe(expression)))


def _dnat(step: Step, value: Any, named_sets: _NamedSets) -> Iterator[Step]:
    """To an address, a port, or the value of a map by port."""
    target = value if isinstance(value, dict) else {}
    address, port = target.get("addr"), _port(target.get("port"))
    by_map = address.get("map") if isinstance(address, dict) else None
    if not isinstance(by_map, dict):
        yield step._replace(kind="dnat", target=address if isinstance(address, str) else None, port=port)
        return
    by_port = _field(by_map.get("key")) == "dport"
    for pair in named_sets.elements(by_map.get("data")) or ():
        if isinstance(pair, list) and len(pair) == 2:
            ports = _range(pair[0]) if by_port else None
            narrowed = step._replace(ports=(ports,)) if ports else _conditional(step, by_map.get("key"))
            yield narrowed._replace(kind="dnat", target=_mapped(pair[1]), port=port or _mapped_port(pair[1]))


def _port(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value <= UINT16 else None


def _mapped(value: Any) -> str | None:
    """An address, or ``{"concat": [address, port]}``."""
    if isinstance(value, dict) and isinstance(value.get("concat"), list) and value["concat"]:
        value = value["concat"][0]
    return value if isinstance(value, str) else None


def _mapped_port(value: Any) -> int | None:
    parts = value.get("concat") if isinstance(value, dict) else None
    if isinstance(parts, list) and len(parts) == 2:
        return _port(parts[1])
    return None


def _redirect(step: Step, value: Any, named_sets: _NamedSets) -> Iterator[Step]:
    port = value.get("port") if isinstance(value, dict) else None
    yield step._replace(kind="redirect", port=_port(port))


ACTIONS: dict[str, Callable[[Step, Any, _NamedSets], Iterator[Step]]] = {
    "jump": _jump,
    "goto": _jump,
    "vmap": _vmap,
    "dnat": _dnat,
    "redirect": _redirect,
}
