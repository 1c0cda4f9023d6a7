"""The output of ``nft -j list ruleset`` as steps: libnftables-json(5). Pure; raises ValueError for any other text.

Chain names are chosen by the users who make them: here they are text and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import msgspec

from portbook.netconfig.facts import NatFamily
from portbook.netconfig.linux.steps import NAT_HOOKS, Step, Table, hook_name
from portbook.numerals import UINT16
from portbook.records import PortRange

FAMILIES: dict[str, NatFamily] = {"ip": "ipv4", "ip6": "ipv6", "inet": "both"}
Sets = dict[tuple[str, str, str], list[Any]]  # family, table, name: elements


def parse(text: bytes) -> list[Step]:
    """Parse a ruleset."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    entries = _members(document).get("nftables")
    if not isinstance(entries, list):
        raise ValueError("no list called nftables")  # noqa: TRY004  the text is wrong, not our call
    objects = [_members(entry) for entry in entries]
    sets = _sets(objects)
    steps: list[Step] = []
    for entry in objects:
        steps += _base(_members(entry.get("chain")))
        steps += _rule(_members(entry.get("rule")), sets)
    return steps


def _members(value: Any) -> dict[str, Any]:
    """The members of a JSON object; none for any other value."""
    if isinstance(value, dict):
        return value
    return {}


def _is_pair(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == 2


def _table(entry: dict[str, Any]) -> Table | None:
    family = FAMILIES.get(str(entry.get("family")))
    if family is None:
        return None
    return "nft", family, str(entry.get("table"))


def _base(chain: dict[str, Any]) -> Iterator[Step]:
    if chain.get("type") == "nat" and chain.get("hook") in NAT_HOOKS:
        table = _table(chain)
        if table is not None:
            yield Step(table, hook_name(str(chain["hook"])), "jump", str(chain.get("name")))


def _sets(entries: list[dict[str, Any]]) -> Sets:
    sets: Sets = {}
    for entry in entries:
        for kind in ("set", "map"):
            declared = _members(entry.get(kind))
            if isinstance(declared.get("elem"), list):
                key = str(declared.get("family")), str(declared.get("table")), str(declared.get("name"))
                sets[key] = declared["elem"]
    return sets


def _rule(rule: dict[str, Any], sets: Sets) -> Iterator[Step]:
    table = _table(rule)
    if table is None or not isinstance(rule.get("expr"), list):
        return
    step = Step(table, str(rule.get("chain")), "jump")
    named_sets = _NamedSets(sets, str(rule.get("family")), str(rule.get("table")))
    for expression in rule["expr"]:
        for key, value in _members(expression).items():
            if key == "match":
                step = _match(step, value, named_sets)
            elif key in ACTIONS:
                yield from ACTIONS[key](step, value, named_sets)


class _NamedSets:
    """The sets and maps of the table that a rule is in."""

    def __init__(self, sets: Sets, family: str, table: str) -> None:
        self.sets = sets
        self.family = family
        self.table = table

    def elements(self, value: Any) -> list[Any] | None:
        """The elements of ``{"set": [...]}`` or ``"@name"``; None for anything else."""
        elements = _members(value).get("set")
        if isinstance(elements, list):
            return elements
        if isinstance(value, str) and value.startswith("@"):
            return self.sets.get((self.family, self.table, value[1:]))
        return None

    def values(self, right: Any) -> list[Any]:
        """The values that a match allows: the elements of a set, or a single value."""
        elements = self.elements(right)
        if elements is None:
            return [right]
        return elements


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
        if ports is not None:
            return step._replace(ports=ports)
    elif field == "protocol":
        protocols = _words(right, named_sets)
        if protocols:
            return _protocols(step, protocols)
    elif field == "daddr":
        address = _address(right)
        if address is not None:
            return step._replace(destination=address)
    return None


def _field(left: Any) -> str | None:
    field = _payload(left).get("field")
    if field in ("dport", "daddr"):
        return str(field)
    if field in ("protocol", "nexthdr"):
        return "protocol"
    expression = _members(left)
    if _members(expression.get("meta")).get("key") == "l4proto":
        return "protocol"
    if _members(expression.get("fib")).get("result") == "type":
        return "local"
    return None


def _payload(left: Any) -> dict[str, Any]:
    return _members(_members(left).get("payload"))


def _protocols(step: Step, words: frozenset[str]) -> Step:
    if "th" in words:
        return step
    if step.protocols is not None:
        words &= step.protocols
    return step._replace(protocols=words)


PROTOCOLS = {6: "tcp", 17: "udp", "6": "tcp", "17": "udp"}


def _words(right: Any, named_sets: _NamedSets) -> frozenset[str]:
    words = [word for word in named_sets.values(right) if isinstance(word, str | int)]
    return frozenset(str(PROTOCOLS.get(word, word)) for word in words)


def _ports(right: Any, named_sets: _NamedSets) -> tuple[PortRange, ...] | None:
    ranges: list[tuple[int, int]] = []
    for value in named_sets.values(right):
        limits = _range(value)
        if limits is None:
            return None
        ranges.append(limits)
    return tuple(ranges)


def _range(value: Any) -> tuple[int, int] | None:
    """``80``, ``{"range": [80, 90]}``, or ``{"elem": {"val": ...}}`` around one of them."""
    element = _members(value).get("elem")
    if isinstance(element, dict):
        value = element.get("val")
    if isinstance(value, int):
        return value, value
    limits = _members(value).get("range")
    if _is_pair(limits) and all(isinstance(limit, int) for limit in limits):
        return limits[0], limits[1]
    return None


def _address(right: Any) -> str | None:
    if isinstance(right, str) and not right.startswith("@"):
        return right
    prefix = _members(right).get("prefix")
    if isinstance(prefix, dict):
        return f"{prefix.get('addr')}/{prefix.get('len')}"
    return None


def _describe(match: Any) -> str:
    return msgspec.json.encode(match).decode("utf-8", "replace")[:200]


# --- actions -------------------------------------------------------------------------------------------------------


def _jump(step: Step, value: Any, named_sets: _NamedSets) -> Iterator[Step]:
    target = _members(value)
    if "target" in target:
        yield step._replace(kind="jump", target=str(target["target"]))


def _vmap(step: Step, value: Any, named_sets: _NamedSets) -> Iterator[Step]:
    """``tcp dport vmap { 8080 : jump web }``."""
    vmap = _members(value)
    key = vmap.get("key")
    if not isinstance(key, dict):
        return
    if _field(key) == "dport":
        step = _protocols(step, frozenset((str(_payload(key).get("protocol")),)))
    for narrowed, verdict in _map_entries(step, key, vmap.get("data"), named_sets):
        for kind in ("jump", "goto"):
            yield from _jump(narrowed, _members(verdict).get(kind), named_sets)


def _map_entries(step: Step, key: Any, data: Any, named_sets: _NamedSets) -> Iterator[tuple[Step, Any]]:
    """The step of each entry of a map, narrowed to the entry's ports if those are the key; and the entry's value."""
    by_port = _field(key) == "dport"
    for entry in named_sets.elements(data) or ():
        if not _is_pair(entry):
            continue
        ports = _range(entry[0])
        if by_port and ports is not None:
            yield step._replace(ports=(ports,)), entry[1]
        else:
            yield _conditional(step, key), entry[1]


def _conditional(step: Step, expression: Any) -> Step:
    return step._replace(conditions=(*step.conditions, _describe(expression)))


def _dnat(step: Step, value: Any, named_sets: _NamedSets) -> Iterator[Step]:
    """To an address, a port, or the value of a map by port."""
    target = _members(value)
    address = target.get("addr")
    port = _port(target.get("port"))
    by_map = _members(address).get("map")
    if not isinstance(by_map, dict):
        yield step._replace(kind="dnat", target=_text(address), port=port)
        return
    for narrowed, mapped in _map_entries(step, by_map.get("key"), by_map.get("data"), named_sets):
        yield narrowed._replace(kind="dnat", target=_mapped(mapped), port=port or _mapped_port(mapped))


def _port(value: Any) -> int | None:
    if isinstance(value, int) and 0 < value <= UINT16:
        return value
    return None


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return None


def _mapped(value: Any) -> str | None:
    """An address, or ``{"concat": [address, port]}``."""
    parts = _members(value).get("concat")
    if isinstance(parts, list) and parts:
        return _text(parts[0])
    return _text(value)


def _mapped_port(value: Any) -> int | None:
    parts = _members(value).get("concat")
    if _is_pair(parts):
        return _port(parts[1])
    return None


def _redirect(step: Step, value: Any, named_sets: _NamedSets) -> Iterator[Step]:
    yield step._replace(kind="redirect", port=_port(_members(value).get("port")))


ACTIONS: dict[str, Callable[[Step, Any, _NamedSets], Iterator[Step]]] = {
    "jump": _jump,
    "goto": _jump,
    "vmap": _vmap,
    "dnat": _dnat,
    "redirect": _redirect,
}
