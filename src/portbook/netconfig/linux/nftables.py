"""The output of ``nft -j list ruleset`` as a ruleset: libnftables-json(5). Pure; raises ValueError for any other text.

Chain names are chosen by the users who make them: here they are text and nothing else. A statement that is not known
makes what follows in its rule unknown; a match that is not known is one whose result is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard, cast

import msgspec

from portbook.netconfig.facts import NatFamily
from portbook.netconfig.linux import ruleset as forms
from portbook.netconfig.linux.ruleset import (
    MOST_TEXT,
    ActionKind,
    BaseChain,
    ChainKey,
    Element,
    Hook,
    NewDestination,
    PacketAction,
    PacketField,
    PacketMap,
    PacketRule,
    PacketTest,
    Ruleset,
    Statement,
    ValueRange,
)
from portbook.numerals import UINT16

FAMILIES: dict[str, NatFamily] = {"ip": "ipv4", "ip6": "ipv6", "inet": "both"}
HOOKS: tuple[Hook, ...] = ("prerouting", "output")
# The tables that iptables makes on top of nf_tables: its own program prints them whole.
OF_IPTABLES = frozenset(("raw", "mangle", "nat", "filter", "security"))
TRANSPORTS = frozenset(("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmpv6"))
NETWORKS = {"ip": "ipv4", "ip6": "ipv6"}
# Statements after which a packet goes on as before.
WITHOUT_EFFECT = frozenset(
    ("counter", "log", "last", "set", "map", "ct helper", "ct timeout", "ct expectation", "secmark", "dup", "flow",
     "continue", "comment")
)  # fmt: skip
# Statements that match some packets: which ones is not known.
LIMITS = frozenset(("limit", "quota", "ct count", "meter"))
EVERYTHING: Element = ()


def parse(text: bytes, without: frozenset[str] = frozenset()) -> Ruleset:
    """Parse a ruleset.

    :param without: tables of the families ip and ip6 that are read otherwise
    """
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    entries = _members(document).get("nftables")
    if not isinstance(entries, list):
        raise ValueError("no list called nftables")  # noqa: TRY004  the text is wrong, not our call
    objects = [_members(entry) for entry in entries]
    sets = _Sets(objects)
    dormant = _dormant(objects)
    parsed = Ruleset([], {})
    for entry in objects:
        kind, value = next(((kind, _members(entry.get(kind))) for kind in ("chain", "rule") if kind in entry), ("", {}))
        name = str(value.get("table"))
        table = str(value.get("family")), name
        if not kind or table in dormant or (table[0] in NETWORKS and name in without):
            continue
        if kind == "chain":
            parsed.bases += _base(value)
        else:
            _add_rule(parsed, value, sets)
    return parsed


def _members(value: Any) -> dict[str, Any]:
    """The members of a JSON object; none for any other value."""
    if isinstance(value, dict):
        return value
    return {}


def _is_pair(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == 2


def _key(entry: dict[str, Any], chain: str) -> ChainKey | None:
    family = FAMILIES.get(str(entry.get("family")))
    if family is None:
        return None
    return "nft", family, str(entry.get("table")), chain


def _dormant(entries: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Tables that are switched off. nft 1.0.6 prints the flag as its first letter."""
    tables: set[tuple[str, str]] = set()
    for entry in entries:
        table = _members(entry.get("table"))
        flags = table.get("flags")
        if isinstance(flags, str):
            flags = [flags]
        if isinstance(flags, list) and any(flag in ("dormant", "d") for flag in flags):
            tables.add((str(table.get("family")), str(table.get("name"))))
    return tables


def _base(chain: dict[str, Any]) -> Iterator[BaseChain]:
    key = _key(chain, str(chain.get("name")))
    hook = chain.get("hook")
    priority = chain.get("prio")
    if key is None or hook not in HOOKS:
        return
    if not isinstance(priority, int):
        priority = 0
    kind = chain.get("type")
    yield BaseChain(key, hook, "nat" if kind == "nat" else "filter", priority, accepts=chain.get("policy") != "drop")


def _add_rule(parsed: Ruleset, rule: dict[str, Any], sets: _Sets) -> None:
    key = _key(rule, str(rule.get("chain")))
    expressions = rule.get("expr")
    if key is None or not isinstance(expressions, list):
        return
    reader = _Reader(sets, str(rule.get("family")), str(rule.get("table")))
    parsed.rules.setdefault(key, []).append(reader.rule(expressions))


class _Sets:
    """The named sets and maps of a ruleset."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.elements: dict[tuple[str, str, str], list[Any]] = {}
        self.parsed: dict[tuple[str, str, str, str], Any] = {}  # as a set, or as a map
        for entry in entries:
            for kind in ("set", "map"):
                declared = _members(entry.get(kind))
                if declared:
                    elements = declared.get("elem")
                    key = str(declared.get("family")), str(declared.get("table")), str(declared.get("name"))
                    self.elements[key] = elements if isinstance(elements, list) else []


class _Reader:
    """Reads the expressions of one rule."""

    def __init__(self, sets: _Sets, family: str, table: str) -> None:
        self.sets = sets
        self.family = family
        self.table = table

    def rule(self, expressions: list[Any]) -> PacketRule:
        statements: list[Statement] = []
        for expression in expressions:
            for name, value in _members(expression).items():
                statements += self._statement(str(name), value)
        return tuple(statements)

    def _statement(self, name: str, value: Any) -> Iterator[Statement]:
        if name in WITHOUT_EFFECT:
            return
        if name in LIMITS:
            yield _unknown_test(_describe({name: value}))
        elif name in SIMPLE:
            yield PacketAction(SIMPLE[name])
        elif name in READERS:
            yield from READERS[name](self, value)
        else:
            yield PacketAction("unknown", text=f"{name} in the table {self.table}"[:MOST_TEXT])

    # --- matches

    def match(self, value: Any) -> Iterator[Statement]:
        match = _members(value)
        left, right, op = match.get("left"), match.get("right"), match.get("op")
        yield from _implied(left)
        fields = _fields(left)
        text = _describe(match)
        elements = self._elements(right, fields, op)
        yield PacketTest(fields, elements, text, negated=op == "!=")

    def _elements(self, right: Any, fields: tuple[PacketField | None, ...], op: Any) -> Sequence[Element]:
        """What a match compares with, as elements."""
        if op in ("<", ">", "<=", ">="):
            return ((_half_open(fields[0], op, right),),)
        if op not in ("==", "!=", "in", None):
            return ((None,),)
        if isinstance(right, str) and right.startswith("@"):
            return self._named(right[1:], fields)
        values = _members(right).get("set", right)
        if not isinstance(values, list):
            values = [values]
        return [_element(each, fields) for each in values]

    def _named(self, name: str, fields: tuple[PacketField | None, ...]) -> Sequence[Element]:
        """The elements of a named set; something unknown for a set that is not there."""
        key = self.family, self.table, name
        if key not in self.sets.elements:
            return ((None,),)
        if all(field is None for field in fields):
            return ((None,),)  # a list of sources may have 100,000
        cached = self.sets.parsed.get((*key, str(fields)))
        if cached is None:
            cached = [_element(each, fields) for each in self.sets.elements[key]]
            self.sets.parsed[*key, str(fields)] = cached
        return cast("Sequence[Element]", cached)

    # --- actions

    def jump(self, value: Any) -> Iterator[Statement]:
        yield PacketAction("jump", str(_members(value).get("target")))

    def goto(self, value: Any) -> Iterator[Statement]:
        yield PacketAction("goto", str(_members(value).get("target")))

    def vmap(self, value: Any) -> Iterator[Statement]:
        """``tcp dport vmap { 8080 : jump web }``."""
        yield from self._choice(_members(value), self._verdict)

    def _verdict(self, verdict: Any) -> PacketAction:
        for name, value in _members(verdict).items():
            if name in JUMPS:
                return PacketAction(JUMPS[name], str(_members(value).get("target")))
            if name in SIMPLE:
                return PacketAction(SIMPLE[name])
            if name == "continue":
                return PacketAction("continue")
        return PacketAction("unknown", text=_describe(verdict))

    def _choice(self, mapping: dict[str, Any], as_action: Callable[[Any], PacketAction]) -> Iterator[Statement]:
        key = mapping.get("key")
        yield from _implied(key)
        fields = _fields(key)
        data = mapping.get("data")
        if isinstance(data, str) and data.startswith("@"):
            pairs = self.sets.elements.get((self.family, self.table, data[1:]))
        else:
            pairs = _members(data).get("set")
        if not isinstance(pairs, list):
            yield _unknown_test(_describe(key))
            yield as_action(None)
            return
        entries = [(_element(pair[0], fields), as_action(_value_of(pair[1]))) for pair in pairs if _is_pair(pair)]
        yield PacketMap(fields, entries, _describe(key), _is_exhaustive(key, pairs))

    def dnat(self, value: Any) -> Iterator[Statement]:
        """To an address, a port, or the value of a map."""
        wanted = _members(value)
        address, port = wanted.get("addr"), wanted.get("port")
        yield from _of_family(wanted.get("family"))
        random = "random" in str(wanted.get("flags"))
        by_address = _members(address).get("map")
        by_port = _members(port).get("map")
        if isinstance(by_address, dict):
            yield from self._choice(
                by_address, lambda mapped: PacketAction("nat", target=_target(mapped, port, random))
            )
        elif isinstance(by_port, dict):
            yield from self._choice(
                by_port, lambda mapped: PacketAction("nat", target=_target(address, mapped, random))
            )
        else:
            yield PacketAction("nat", target=_target(address, port, random))

    def tproxy(self, value: Any) -> Iterator[Statement]:
        wanted = _members(value)
        yield from _of_family(wanted.get("family"))
        yield PacketAction("tproxy", target=_target(wanted.get("addr"), wanted.get("port"), random=False))

    def mangle(self, value: Any) -> Iterator[Statement]:
        """Only a new destination matters."""
        mangled = _members(value)
        field = _payload(mangled.get("key")).get("field")
        if field == "dport":
            yield PacketAction("rewrite", target=_target(None, mangled.get("value"), random=False))
        elif field == "daddr":
            yield PacketAction("rewrite", target=_target(mangled.get("value"), None, random=False))

    def xt(self, value: Any) -> Iterator[Statement]:
        """A match or a target of iptables, which nft does not print."""
        extension = _members(value)
        text = f"{extension.get('name') or 'an extension'} of iptables"[:MOST_TEXT]
        if extension.get("type") == "match":
            yield _unknown_test(text)
        else:
            yield PacketAction("unknown", text=text)


JUMPS: dict[str, ActionKind] = {"jump": "jump", "goto": "goto"}
SIMPLE: dict[str, ActionKind] = {
    "accept": "accept",
    "drop": "drop",
    "return": "return",
    "reject": "drop",
    "notrack": "notrack",
}
READERS: dict[str, Callable[[_Reader, Any], Iterator[Statement]]] = {
    "match": _Reader.match,
    "jump": _Reader.jump,
    "goto": _Reader.goto,
    "vmap": _Reader.vmap,
    "dnat": _Reader.dnat,
    "redirect": _Reader.dnat,
    "tproxy": _Reader.tproxy,
    "mangle": _Reader.mangle,
    "xt": _Reader.xt,
}


def _unknown_test(text: str) -> PacketTest:
    return PacketTest((None,), ((None,),), text)


def _of_family(name: Any) -> Iterator[PacketTest]:
    """``dnat ip to``: nft adds a match of the family to the rule."""
    family = NETWORKS.get(str(name))
    if family is not None:
        yield PacketTest(("family",), ((forms.word(family),),), str(name))


# --- fields --------------------------------------------------------------------------------------------------------


def _payload(left: Any) -> dict[str, Any]:
    return _members(_members(left).get("payload"))


def _parts(left: Any) -> list[Any]:
    """The parts of a concatenation, or the one expression."""
    parts = _members(left).get("concat")
    if isinstance(parts, list) and parts:
        return parts
    return [left]


def _fields(left: Any) -> tuple[PacketField | None, ...]:
    return tuple(_field(part) for part in _parts(left))


def _implied(left: Any) -> Iterator[PacketTest]:
    """What nft tests before it reads a part of a packet: ``tcp dport`` is of TCP alone, ``ip daddr`` of IPv4."""
    for part in _parts(left):
        inner = _members(part).get("&")
        if isinstance(inner, list) and inner:
            part = inner[0]  # noqa: PLW2901
        protocol = str(_payload(part).get("protocol"))
        if protocol in TRANSPORTS:
            yield PacketTest(
                ("protocol",), ((forms.protocol("ipv6-icmp" if protocol == "icmpv6" else protocol),),), protocol
            )
        elif protocol in NETWORKS:
            yield PacketTest(("family",), ((forms.word(NETWORKS[protocol]),),), protocol)


META: dict[str, PacketField] = {
    "l4proto": "protocol",
    "nfproto": "family",
    "protocol": "family",
    "iifname": "in",
    "iif": "in",
    "oifname": "out",
    "oif": "out",
}
PAYLOAD: dict[str, PacketField] = {"dport": "port", "daddr": "address", "protocol": "protocol", "nexthdr": "protocol"}
CT: dict[str, PacketField] = {"state": "state", "direction": "direction"}


def _field(left: Any) -> PacketField | None:
    expression = _members(left)
    payload = _payload(left)
    if payload:
        known = payload.get("protocol") in (*TRANSPORTS, *NETWORKS, "th")
        return PAYLOAD.get(str(payload.get("field"))) if known else None
    for name, fields in (("meta", META), ("ct", CT)):
        if name in expression:
            return fields.get(str(_members(expression[name]).get("key")))
    fib = _members(expression.get("fib"))
    if fib.get("result") == "type":
        flags = fib.get("flags")
        if flags in ("daddr", ["daddr"]):
            return "type"
        if flags in ("saddr", ["saddr"]):
            return "source type"
    return None


def _is_exhaustive(key: Any, pairs: list[Any]) -> bool:
    """Whether a random number or a hash always leads to an entry."""
    for name in ("numgen", "jhash", "symhash"):
        generator = _members(_members(key).get(name))
        most, offset = generator.get("mod"), generator.get("offset", 0)
        if isinstance(most, int) and isinstance(offset, int):
            limits = [_span(_value_of(pair[0])) for pair in pairs if _is_pair(pair)]
            covered = sum(high - low + 1 for low, high in filter(None, limits))
            return covered >= most
    return False


# --- values --------------------------------------------------------------------------------------------------------


def _value_of(value: Any) -> Any:
    """A value without what is noted beside it: ``{"elem": {"val": ..., "comment": ...}}``."""
    element = _members(value).get("elem")
    if isinstance(element, dict):
        return element.get("val")
    return value


def _element(value: Any, fields: tuple[PacketField | None, ...]) -> Element:
    value = _value_of(value)
    if value == "*":
        return EVERYTHING
    parts = _members(value).get("concat")
    if not isinstance(parts, list):
        parts = [value]
    if len(parts) != len(fields):
        return (None,) * len(fields)
    return tuple(_interval(part, field) for part, field in zip(parts, fields, strict=True))


def _interval(value: Any, field: PacketField | None) -> ValueRange:
    value = _value_of(value)
    if field is None:
        return None
    if field == "address":
        return _addresses(value)
    if field == "port":
        limits = _span(value)
        return None if limits is None else forms.port_range(*limits)
    if field == "protocol":
        return forms.protocol(value) if isinstance(value, str | int) else None
    if not isinstance(value, str):
        return None
    if field in ("in", "out"):
        return forms.interface(value, "*")
    return forms.word(NETWORKS.get(value, value) if field == "family" else value)


def _span(value: Any) -> tuple[int, int] | None:
    """``80``, or ``{"range": [80, 90]}``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    limits = _members(value).get("range")
    if _is_pair(limits) and all(isinstance(limit, int) for limit in limits):
        return limits[0], limits[1]
    return None


def _addresses(value: Any) -> ValueRange:
    if isinstance(value, str):
        return forms.network(value)
    prefix = _members(value).get("prefix")
    if isinstance(prefix, dict):
        return forms.network(f"{prefix.get('addr')}/{prefix.get('len')}")
    limits = _members(value).get("range")
    if _is_pair(limits):
        return forms.address_range(str(limits[0]), str(limits[1]))
    return None


def _half_open(field: PacketField | None, op: str, right: Any) -> ValueRange:
    """``tcp dport >= 1024``."""
    if field != "port" or not isinstance(right, int):
        return None
    if op.startswith(">"):
        return forms.port_range(right + (op == ">"), UINT16) or (UINT16 + 1, UINT16 + 1)
    return forms.port_range(0, right - (op == "<")) or (-1, -1)


def _target(address: Any, port: Any, random: bool) -> NewDestination:
    """A new destination, from what a rule or a map's entry has for it."""
    parts = _members(address).get("concat")
    if isinstance(parts, list) and parts:
        if len(parts) > 1:
            port = parts[1]
        address = parts[0]
    first = last = None
    limits = _span(port)
    if limits is not None and forms.port_range(*limits):
        first, last = limits
    elif port is not None:
        return NewDestination(_address_text(address), computed=True)
    text = _address_text(address)
    network = isinstance(_members(address).get("prefix"), dict)
    return NewDestination(
        text, first, last, random=random, network=network, computed=address is not None and text is None
    )


def _address_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    prefix = _members(value).get("prefix")
    if isinstance(prefix, dict):
        return f"{prefix.get('addr')}/{prefix.get('len')}"
    limits = _members(value).get("range")
    if _is_pair(limits):
        return f"{limits[0]}-{limits[1]}"
    return None


def _describe(match: Any) -> str:
    """A condition as a reader of nft knows it, as far as this is simple."""
    return msgspec.json.encode(match).decode("utf-8", "replace")[:MOST_TEXT]
