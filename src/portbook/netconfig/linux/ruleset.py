"""Rules of nftables and of iptables in one form: what a packet must be, and what then happens to it. Pure.

What a rule tests is a value of the packet (its port, an address, an interface) and intervals of such values. A value or
an interval that is not known makes the answer unknown, never yes or no.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Literal

from msgspec import Struct

from portbook.netconfig.facts import NatFamily, NatTool
from portbook.numerals import UINT16, number_or_none
from portbook.records import Family, Protocol

# What of a packet is known, at least sometimes. Everything else that a rule may test is None.
PacketField = Literal["family", "protocol", "port", "address", "in", "out", "type", "source type", "state", "direction"]
# A value: a port, a word, or (4, address as a number). An interval includes both ends; None: not known.
PacketValue = Any
ValueRange = tuple[PacketValue, PacketValue] | None
Element = tuple[ValueRange, ...]  # one interval for each field
LAST = "\U0010ffff"  # sorts after every character: the end of an interval of names
MOST_TEXT = 200  # characters of a condition

Hook = Literal["prerouting", "output"]
ChainKind = Literal["nat", "filter"]
ActionKind = Literal[
    "accept", "drop", "return", "jump", "goto", "nat", "tproxy", "rewrite", "notrack", "continue", "unknown"
]
ChainKey = tuple[NatTool, NatFamily, str, str]  # tool, family, table, name


class Packet(Struct, frozen=True):
    """The first packet of a connection to the port, as far as it is known."""

    protocol: Protocol
    port: int
    family: Family | None = None
    address: tuple[int, int] | None = None  # destination: version and number
    interface: str | None = None  # through which it came in; empty: it was made here
    out: str | None = None  # through which it goes out; empty: it came in
    source_type: str | None = None
    state: str | None = None  # of the connection: nothing before connection tracking has seen the packet

    def value(self, field: PacketField | None) -> PacketValue:
        """The value of a field; None: not known."""
        if field is None:
            return None
        getter = GETTERS.get(field)
        if getter is not None:
            return getattr(self, getter)
        return CONSTANTS[field]


GETTERS: dict[str, str] = {
    "family": "family",
    "protocol": "protocol",
    "port": "port",
    "address": "address",
    "in": "interface",
    "out": "out",
    "source type": "source_type",
    "state": "state",
}
# The packet in question begins a connection to an address of this machine.
CONSTANTS: dict[str, PacketValue] = {"type": "local", "direction": "original"}


class PacketTest(Struct, frozen=True):
    """What a packet must be: the fields' values are in one of the elements; negated: in none of them."""

    fields: tuple[PacketField | None, ...]
    elements: Sequence[Element]
    text: str
    negated: bool = False

    def result(self, packet: Packet) -> bool | None:
        """Whether a packet passes; None: not known."""
        values = [packet.value(field) for field in self.fields]
        unknown = False
        for element in self.elements:
            inside = is_inside(values, element)
            if inside:
                return not self.negated
            unknown |= inside is None
        if unknown:
            return None
        return self.negated


class NewDestination(Struct, frozen=True):
    """A new destination."""

    address: str | None = None  # an address, or a range such as 10.0.0.5-10.0.0.9; None: this machine, by a redirect
    port: int | None = None  # None: the same
    last_port: int | None = None  # of a range
    shifted_from: int | None = None  # the first port of the range that is mapped to this one, one by one
    random: bool = False  # any port of the range, even if the present one is among them
    network: bool = False  # the address is a network: only that part of the destination changes
    computed: bool = False  # by an expression that is not read


class PacketAction(Struct, frozen=True):
    """What happens to a packet."""

    kind: ActionKind
    chain: str | None = None  # of jump and goto
    target: NewDestination | None = None
    text: str = ""


class PacketMap(Struct, frozen=True):
    """An action by the values of a packet: a map. Without a matching entry the rule does not apply."""

    fields: tuple[PacketField | None, ...]
    entries: Sequence[tuple[Element, PacketAction]]
    text: str
    exhaustive: bool = False  # one of the entries is taken, which one is not known


Statement = PacketTest | PacketAction | PacketMap
PacketRule = tuple[Statement, ...]


class BaseChain(Struct, frozen=True):
    """Where packets enter the rules."""

    key: ChainKey
    hook: Hook
    kind: ChainKind
    priority: int
    accepts: bool = True  # the policy


class Ruleset(Struct):
    """The chains that packets pass through before routing."""

    bases: list[BaseChain]
    rules: dict[ChainKey, list[PacketRule]]

    def merge(self, other: Ruleset) -> None:
        """Add the chains of another tool."""
        self.bases += other.bases
        self.rules.update(other.rules)

    def statements(self) -> Iterator[Statement]:
        """Every statement of every rule."""
        for rules in self.rules.values():
            for rule in rules:
                yield from rule

    def for_port(self, protocol: Protocol, port: int) -> Ruleset:
        """Without the rules and entries that a packet to the port never matches."""
        packet = Packet(protocol, port)
        rules: dict[ChainKey, list[PacketRule]] = {}
        for key, all_rules in self.rules.items():
            applicable = [narrowed for rule in all_rules if (narrowed := _narrow(rule, packet)) is not None]
            if applicable:
                rules[key] = applicable
        return Ruleset(self.bases, rules)

    def port_limits(self) -> list[int]:
        """The ports at which the answer may change, ascending: all ports between two of them are treated alike."""
        limits: set[int] = set()
        for interval in intervals_of(self, "port"):
            if interval is not None:
                low, high = interval
                limits |= {low, high + 1}
        for target in _targets(self):
            if target.port is not None:
                limits |= {target.port, (target.last_port or target.port) + 1}
        return sorted(limits)


def _narrow(rule: PacketRule, packet: Packet) -> PacketRule | None:
    """A rule without the entries that a packet never matches, up to the first test that it fails; None if nothing is
    done before that.
    """
    narrowed: list[Statement] = []
    for statement in rule:
        if isinstance(statement, PacketTest):
            if statement.result(packet) is False:
                break
            narrowed.append(statement)
        elif isinstance(statement, PacketMap):
            values = [packet.value(field) for field in statement.fields]
            entries = [entry for entry in statement.entries if is_inside(values, entry[0]) is not False]
            narrowed.append(PacketMap(statement.fields, entries, statement.text, statement.exhaustive))
        else:
            narrowed.append(statement)
    if all(isinstance(statement, PacketTest) for statement in narrowed):
        return None
    return tuple(narrowed)


def _tested(ruleset: Ruleset) -> Iterator[tuple[tuple[PacketField | None, ...], Sequence[Element]]]:
    """The fields and elements of every test and choice."""
    for statement in ruleset.statements():
        if isinstance(statement, PacketTest):
            yield statement.fields, statement.elements
        elif isinstance(statement, PacketMap):
            yield statement.fields, [element for element, _ in statement.entries]


def _targets(ruleset: Ruleset) -> Iterator[NewDestination]:
    for statement in ruleset.statements():
        if isinstance(statement, PacketAction) and statement.target is not None:
            yield statement.target
        elif isinstance(statement, PacketMap):
            yield from (action.target for _, action in statement.entries if action.target is not None)


def intervals_of(ruleset: Ruleset, wanted: PacketField) -> list[ValueRange]:
    """The different intervals with which the rules compare a field."""
    intervals: dict[ValueRange, None] = {}
    for fields, elements in _tested(ruleset):
        for at, field in enumerate(fields):
            if field == wanted:
                intervals.update(dict.fromkeys(element[at] for element in elements if at < len(element)))
    return list(intervals)


def is_inside(values: Sequence[PacketValue], element: Element) -> bool | None:
    """Whether each value is in the element's interval; None: not known. An empty element contains everything."""
    unknown = False
    for value, interval in zip(values, element, strict=False):
        inside = contains(interval, value)
        if inside is False:
            return False
        unknown |= inside is None
    if unknown:
        return None
    return True


def contains(interval: ValueRange, value: PacketValue) -> bool | None:
    """Whether a value is in an interval; None: not known."""
    if interval is None or value is None:
        return None
    low, high = interval
    if type(low) is not type(value):
        return None
    return bool(low <= value <= high)


# --- values as intervals -------------------------------------------------------------------------------------------

NUMBERED = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "ipv6-icmp", 132: "sctp", 136: "udplite"}  # IANA


def word(text: str) -> ValueRange:
    """One word."""
    return text, text


def protocol(value: object) -> ValueRange:
    """A transport protocol by its name or number."""
    if isinstance(value, str) and (number := number_or_none(value, 255)) is not None:
        value = number
    if isinstance(value, int):
        value = NUMBERED.get(value, f"protocol {value}")
    return word(str(value))


def port_range(low: int, high: int) -> ValueRange:
    """Ports; None for numbers that are none."""
    if 0 <= low <= UINT16 and 0 <= high <= UINT16:
        return low, high
    return None


def interface(pattern: str, wildcard: str) -> ValueRange:
    """The name of an interface, or the beginning of one and the tool's wildcard: eth*, eth+."""
    if pattern.endswith(wildcard):
        prefix = pattern.removesuffix(wildcard)
        return prefix, prefix + LAST
    return word(pattern)


def number_of(address: IPv4Address | IPv6Address) -> tuple[int, int]:
    """An address as a value."""
    return address.version, int(address)


def address_range(first: str, last: str) -> ValueRange:
    """Addresses from the first to the last; None for other texts."""
    try:
        low, high = ip_address(first), ip_address(last)
    except ValueError:
        return None
    if low.version != high.version:
        return None
    return number_of(low), number_of(high)


def network(text: str) -> ValueRange:
    """An address, or a network such as 10.0.0.0/8 or 10.0.0.0/255.0.0.0; None for other texts."""
    try:
        addresses = ip_network(text, strict=False)
    except ValueError:
        return None
    return number_of(addresses.network_address), number_of(addresses.broadcast_address)
