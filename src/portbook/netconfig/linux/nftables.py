"""What ``nft -j list ruleset`` prints, as steps: libnftables-json(5). Pure; raises ValueError for what is no ruleset.

Chains may be named by anyone who may make them: every name is taken as text and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from portbook.netconfig.facts import NatFamily
from portbook.netconfig.linux.steps import NAT_HOOKS, PortRanges, Step, Table, hook_name

FAMILIES: dict[str, NatFamily] = {"ip": "ipv4", "ip6": "ipv6", "inet": "both"}
Sets = dict[tuple[str, str, str], list[Any]]  # family, table, name: elements


def parse(text: bytes) -> list[Step]:
    """Read a ruleset."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    entries = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("no list called nftables")  # noqa: TRY004  the text is wrong, not our call
    entries = [e for e in entries if isinstance(e, dict)]
    sets = _sets(entries)
    return [step for entry in entries for step in (*_base(entry.get("chain")), *_rule(entry.get("rule"), sets))]


def _table(entry: dict[str, Any]) -> Table | None:
    family = FAMILIES.get(str(entry.get("family")))
    return ("nft", family, str(entry.get("table"))) if family else None


def _base(chain: Any) -> Iterator[Step]:
    if isinstance(chain, dict) and chain.get("type") == "nat" and chain.get("hook") in NAT_HOOKS:
        table = _table(chain)
        if table is not None:
            yield Step(table, hook_name(str(chain["hook"])), "jump", str(chain.get("name")))


def _sets(entries: list[dict[str, Any]]) -> Sets:
    found: Sets = {}
    for entry in entries:
        for kind in ("set", "map"):
            one = entry.get(kind)
            if isinstance(one, dict) and isinstance(one.get("elem"), list):
                found[str(one.get("family")), str(one.get("table")), str(one.get("name"))] = one["elem"]
    return found


def _rule(rule: Any, sets: Sets) -> Iterator[Step]:
    if not isinstance(rule, dict) or not isinstance(rule.get("expr"), list):
        return
    table = _table(rule)
    if table is None:
        return
    step = Step(table, str(rule.get("chain")), "jump")
    named = _Named(sets, str(rule.get("family")), str(rule.get("table")))
    for expression in rule["expr"]:
        if isinstance(expression, dict):
            for key, value in expression.items():
                if key == "match":
                    step = _match(step, value, named)
                elif key in ACTIONS:
                    yield from ACTIONS[key](step, value, named)


class _Named:
    """The sets and maps that a rule can name."""

    def __init__(self, sets: Sets, family: str, table: str) -> None:
        self.sets, self.family, self.table = sets, family, table

    def elements(self, value: Any) -> list[Any] | None:
        """Of ``{"set": [...]}`` and of ``"@name"``; None for anything else."""
        if isinstance(value, dict) and isinstance(value.get("set"), list):
            listed: list[Any] = value["set"]
            return listed
        if isinstance(value, str) and value.startswith("@"):
            return self.sets.get((self.family, self.table, value[1:]))
        return None


# --- matches -------------------------------------------------------------------------------------------------------


def _match(step: Step, match: Any, named: _Named) -> Step:
    """Narrow a step by what it asks; what is not understood stays as a condition in words."""
    if not isinstance(match, dict):
        return step
    left, right, positive = match.get("left"), match.get("right"), match.get("op") in ("==", "in", None)
    field = _field(left)
    if field == "dport":
        step = _protocols(step, frozenset((str(_payload(left).get("protocol")),)))
    if positive and field == "dport" and (ports := _ports(right, named)) is not None:
        return step._replace(ports=ports)
    if positive and field == "protocol" and (words := _words(right, named)) is not None:
        return _protocols(step, words)
    if positive and field == "daddr" and (address := _address(right)) is not None:
        return step._replace(destination=address)
    if field == "local":
        return step  # an address of this machine: what is asked about is one
    return step._replace(conditions=(*step.conditions, _in_words(match)))


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
    return "local" if isinstance(left.get("fib"), dict) and left["fib"].get("result") == "type" else None


def _payload(left: Any) -> dict[str, Any]:
    payload = left.get("payload") if isinstance(left, dict) else None
    return payload if isinstance(payload, dict) else {}


def _protocols(step: Step, words: frozenset[str]) -> Step:
    if words & {"th"}:
        return step
    return step._replace(protocols=words if step.protocols is None else step.protocols & words)


def _words(right: Any, named: _Named) -> frozenset[str] | None:
    elements = named.elements(right)
    words = [right] if elements is None else elements
    known = {6: "tcp", 17: "udp", "6": "tcp", "17": "udp"}
    return frozenset(str(known.get(w, w)) for w in words if isinstance(w, str | int)) or None


def _ports(right: Any, named: _Named) -> PortRanges | None:
    elements = named.elements(right)
    found = [_range(value) for value in ([right] if elements is None else elements)]
    known = tuple(r for r in found if r is not None)
    return known if len(known) == len(found) else None


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
    return f"{prefix.get('addr')}/{prefix.get('len')}" if isinstance(prefix, dict) else None


def _in_words(match: Any) -> str:
    return msgspec.json.encode(match).decode("utf-8", "replace")[:200]


# --- actions -------------------------------------------------------------------------------------------------------


def _jump(step: Step, value: Any, named: _Named) -> Iterator[Step]:
    if isinstance(value, dict) and "target" in value:
        yield step._replace(kind="jump", target=str(value["target"]))


def _vmap(step: Step, value: Any, named: _Named) -> Iterator[Step]:
    """``tcp dport vmap { 8080 : jump web }``."""
    if not isinstance(value, dict) or not isinstance(value.get("key"), dict):
        return
    by_port = _field(value["key"]) == "dport"
    if by_port:
        step = _protocols(step, frozenset((str(_payload(value["key"]).get("protocol")),)))
    for pair in named.elements(value.get("data")) or ():
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict):
            ports = _range(pair[0]) if by_port else None
            narrowed = step._replace(ports=(ports,)) if ports else _conditional(step, value["key"])
            for kind in ("jump", "goto"):
                yield from _jump(narrowed, pair[1].get(kind), named)


def _conditional(step: Step, key: Any) -> Step:
    return step._replace(conditions=(*step.conditions, _in_words(key)))


def _dnat(step: Step, value: Any, named: _Named) -> Iterator[Step]:
    """To an address, a port, or what a map says of the port."""
    target = value if isinstance(value, dict) else {}
    port = target.get("port")
    inner = port if isinstance(port, int) and 0 < port < 65536 else None
    addr = target.get("addr")
    chosen = addr.get("map") if isinstance(addr, dict) else None
    if not isinstance(chosen, dict):
        yield step._replace(kind="dnat", target=addr if isinstance(addr, str) else None, port=inner)
        return
    by_port = _field(chosen.get("key")) == "dport"
    for pair in named.elements(chosen.get("data")) or ():
        if isinstance(pair, list) and len(pair) == 2:
            ports = _range(pair[0]) if by_port else None
            narrowed = step._replace(ports=(ports,)) if ports else _conditional(step, chosen.get("key"))
            yield narrowed._replace(kind="dnat", target=_mapped(pair[1]), port=inner or _mapped_port(pair[1]))


def _mapped(value: Any) -> str | None:
    """An address, or ``{"concat": [address, port]}``."""
    if isinstance(value, dict) and isinstance(value.get("concat"), list) and value["concat"]:
        value = value["concat"][0]
    return value if isinstance(value, str) else None


def _mapped_port(value: Any) -> int | None:
    parts = value.get("concat") if isinstance(value, dict) else None
    return parts[1] if isinstance(parts, list) and len(parts) == 2 and isinstance(parts[1], int) else None


def _redirect(step: Step, value: Any, named: _Named) -> Iterator[Step]:
    port = value.get("port") if isinstance(value, dict) else None
    yield step._replace(kind="redirect", port=port if isinstance(port, int) else None)


ACTIONS: dict[str, Callable[[Step, Any, _Named], Iterator[Step]]] = {
    "jump": _jump,
    "goto": _jump,
    "vmap": _vmap,
    "dnat": _dnat,
    "redirect": _redirect,
}
