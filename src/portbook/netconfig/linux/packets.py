"""The way of a packet through the rules: which packets to a port reach something else than its sockets. Pure.

Chains of a hook are entered by their priority. ``accept`` ends one base chain and the next one is entered, ``drop``
ends all, a jump returns and a goto does not. Chains of type nat are entered together, at the priority of destination
NAT, and the first that changes the packet ends them. What this machine sends to itself passes through output, and then
through prerouting without NAT, because the connection has had its chance.

A flow is a share of the packets in question: its conditions are what a packet must be to belong to it, as far as that
is not known. A flow without conditions is all of them.

Sources: nft(8), "CHAINS" and "VERDICT STATEMENT"; nf_nat_inet_fn() and nf_nat_l4proto_unique_tuple() in
net/netfilter/nf_nat_core.c, nf_nat_redirect.c, nft_tproxy.c and xt_TPROXY.c; iptables(8), iptables-extensions(8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from itertools import chain, product

from msgspec import Struct
from msgspec.structs import replace

from portbook.addresses import is_link_local, unmapped
from portbook.netconfig.facts import Diversion, DiversionKind, LocalAddress, NatHook, NatRule, NatTarget
from portbook.netconfig.linux.ruleset import (
    ActionKind,
    BaseChain,
    ChainKey,
    Hook,
    NewDestination,
    Packet,
    PacketAction,
    PacketMap,
    PacketRule,
    PacketTest,
    PacketValue,
    Ruleset,
    ValueRange,
    contains,
    intervals_of,
    is_inside,
    number_of,
)
from portbook.records import Family, Protocol

MOST_STEPS = 200_000  # rules that are looked at: Kubernetes makes thousands of chains
MOST_DEPTH = 64  # jumps within jumps; the kernel allows 16
MOST_CONDITIONS = 8  # that are kept of a flow
TRACKED_FROM = -200  # NF_IP_PRI_CONNTRACK: what is not to be tracked must be said before
NAT_PRIORITY = -100  # NF_IP_PRI_NAT_DST
WILDCARDS: dict[str, Family] = {"0.0.0.0": "ipv4", "::": "ipv6"}  # noqa: S104  compared
LOOPBACK: dict[Family, str] = {"ipv4": "127.0.0.1", "ipv6": "::1"}
UNKNOWN_ADDRESS = ""
TIE = "the order of chains of the same priority"

KINDS: dict[ActionKind, DiversionKind] = {"nat": "nat", "tproxy": "tproxy", "rewrite": "rewrite"}

Conditions = tuple[str, ...]
Flow = Conditions | None  # None: no packet


class Machine(Struct, frozen=True):
    """The addresses in question, and what this machine has."""

    requested: tuple[str, ...]  # where the socket is bound; wildcards too
    local: tuple[LocalAddress, ...] = ()
    interfaces: tuple[str, ...] = ()  # without loopback


class Survey(Struct, frozen=True):
    """What happens to packets to a port."""

    diversions: tuple[Diversion, ...] = ()
    complete: bool = True  # False: there are more than MOST_STEPS
    unknown: tuple[str, ...] = ()  # actions that packets to the port meet and that are not understood


def survey(ruleset: Ruleset, port: int, protocol: Protocol, machine: Machine) -> Survey:
    """Follow packets to the port, from this machine and from others, to each address and through each interface."""
    applicable = ruleset.for_port(protocol, port)
    if not _has_effect(applicable):
        return Survey()
    budget = _Budget()
    fates: dict[_Class, _Fate] = {}
    for kind in _classes(applicable, machine):
        fates[kind] = _fate(applicable, Packet(protocol, port, kind.family), kind, machine, budget)
    unknown = dict.fromkeys(text for fate in fates.values() for text in fate.unknown)
    return Survey(tuple(_diversions(fates, complete=budget.left > 0)), budget.left > 0, tuple(unknown))


def _has_effect(ruleset: Ruleset) -> bool:
    """Whether any rule may send a packet elsewhere."""
    for statement in ruleset.statements():
        actions: Iterable[PacketAction] = ()
        if isinstance(statement, PacketAction):
            actions = (statement,)
        elif isinstance(statement, PacketMap):
            actions = (action for _, action in statement.entries)
        if any(action.target is not None or action.kind == "unknown" for action in actions):
            return True
    return False


class _Budget:
    """How many rules may still be looked at."""

    def __init__(self) -> None:
        self.left = MOST_STEPS


# --- the packets in question ---------------------------------------------------------------------------------------


class _Class(Struct, frozen=True):
    """Packets that the rules treat alike."""

    hook: NatHook  # prerouting: from other machines; output: from this one
    family: Family
    addresses: tuple[str, ...]  # to these
    interfaces: tuple[str, ...] = ("",)  # through these


def _classes(ruleset: Ruleset, machine: Machine) -> Iterator[_Class]:
    for family in LOOPBACK:
        local = list(_addresses(family, machine))
        outside = [address for address in local if not ip_address(address).is_loopback]
        if local and not machine.local:
            outside = [UNKNOWN_ADDRESS]
        by_address = intervals_of(ruleset, "address")
        by_interface = intervals_of(ruleset, "in")
        for addresses in _alike(local, by_address, _address_value):
            yield _Class("output", family, addresses)
        interfaces = machine.interfaces or ("",)
        for addresses in _alike(outside, by_address, _address_value):
            for names in _alike(interfaces, by_interface, str):
                yield _Class("prerouting", family, addresses, names)


def _addresses(family: Family, machine: Machine) -> Iterator[str]:
    """The requested addresses of a family; for a wildcard, those of this machine."""
    requested = {unmapped(address): None for address in machine.requested}
    for address in requested:
        if address not in WILDCARDS and _is_of(address, family):
            yield address
    if any(WILDCARDS.get(address) == family for address in requested):
        yield LOOPBACK[family]
        for row in machine.local:
            known = row.address in requested or row.address == LOOPBACK[family]
            if _is_of(row.address, family) and not known and not is_link_local(row.address):
                yield row.address


def _is_of(address: str, family: Family) -> bool:
    return (":" in address) == (family == "ipv6")


def _address_value(address: str) -> PacketValue:
    if address == UNKNOWN_ADDRESS:
        return None
    return number_of(ip_address(address))


def _alike(
    values: Sequence[str], intervals: Sequence[ValueRange], as_value: Callable[[str], PacketValue]
) -> Iterator[tuple[str, ...]]:
    """The values in groups, which no interval separates."""
    groups: dict[tuple[bool | None, ...], list[str]] = {}
    for value in dict.fromkeys(values):
        compared = as_value(value)
        groups.setdefault(tuple(contains(interval, compared) for interval in intervals), []).append(value)
    yield from map(tuple, groups.values())


# --- what becomes of them ------------------------------------------------------------------------------------------


class _Outcome(Struct, frozen=True):
    """One rule that sends packets elsewhere."""

    kind: DiversionKind
    target: NatTarget
    conditions: Conditions
    chain: ChainKey


class _Fate(Struct):
    """What becomes of the packets of a class."""

    outcomes: list[_Outcome]
    unknown: list[str]
    arrives: bool = False  # some of them reach the port, or may


def _fate(ruleset: Ruleset, packet: Packet, kind: _Class, machine: Machine, budget: _Budget) -> _Fate:
    address = _address_value(kind.addresses[0])
    fate = _Fate([], [])
    flow: Flow = ()
    if kind.hook == "output":
        packet = Packet(packet.protocol, packet.port, packet.family, address, "", "lo", "local")
        flow = _through_hook(ruleset, packet, "output", True, flow, fate, machine, budget)
        if flow is not None:
            packet = Packet(packet.protocol, packet.port, packet.family, address, "lo", "", "local")
            flow = _through_hook(ruleset, packet, "prerouting", False, flow, fate, machine, budget)
    else:
        interface = kind.interfaces[0] or None
        packet = Packet(packet.protocol, packet.port, packet.family, address, interface, "", "unicast")
        flow = _through_hook(ruleset, packet, "prerouting", True, flow, fate, machine, budget)
    fate.arrives |= flow is not None
    return fate


def _through_hook(
    ruleset: Ruleset,
    packet: Packet,
    hook: Hook,
    nat: bool,
    flow: Flow,
    fate: _Fate,
    machine: Machine,
    budget: _Budget,
) -> Flow:
    """Follow a flow through the chains of a hook; where their order is not defined, in both orders."""
    chains = [base for base in ruleset.bases if base.hook == hook and base.key[1] in ("both", packet.family)]
    if not nat:
        chains = [base for base in chains if base.kind != "nat"]
    orders = [sorted(chains, key=_order)]
    chains.reverse()
    reverse = sorted(chains, key=_order)
    if reverse != orders[0]:
        orders.append(reverse)
    results: list[tuple[list[_Outcome], Flow, bool]] = []
    for order in orders:
        walk = _Walk(ruleset, packet, machine, budget)
        rest = walk.through(order, flow)
        results.append((walk.outcomes, rest, walk.arrives))
        fate.unknown += walk.unknown
    first = results[0]
    if all(result == first for result in results):
        outcomes, rest, arrives = first
        fate.outcomes += outcomes
        fate.arrives |= arrives
        return rest
    fate.arrives |= any(arrives for _, _, arrives in results)
    same = all({o.target for o in outcomes} == {o.target for o in first[0]} for outcomes, _, _ in results)
    for outcomes, _, _ in results:
        for outcome in outcomes:
            conditions = outcome.conditions if same else (*outcome.conditions, TIE)
            fate.outcomes.append(_Outcome(outcome.kind, outcome.target, conditions, outcome.chain))
    rests = [rest for _, rest, _ in results if rest is not None]
    if not rests:
        return None
    return rests[0] or (TIE,)


def _order(base: BaseChain) -> tuple[int, int]:
    if base.kind == "nat":
        return NAT_PRIORITY, base.priority
    return base.priority, 0


class _Walk:
    """The way of a flow through the chains of one hook."""

    def __init__(self, ruleset: Ruleset, packet: Packet, machine: Machine, budget: _Budget) -> None:
        self.rules = ruleset.rules
        self.packet = packet
        self.machine = machine
        self.budget = budget
        self.outcomes: list[_Outcome] = []
        self.unknown: list[str] = []
        self.arrives = False
        self.accepted: list[Conditions] = []
        self.left = 0  # how often packets have left the chain: accepted, dropped or sent elsewhere
        self.tracked: Flow = ()  # the packets that NAT applies to
        self.priority = 0

    def through(self, chains: Sequence[BaseChain], flow: Flow) -> Flow:
        """Enter each base chain; what is left of the flow behind them."""
        for base in chains:
            if flow is None:
                break
            if base.kind == "nat" and self.tracked is None:
                continue
            if base.kind == "nat" and self.tracked:
                flow = _add(flow, *self.tracked)
                self.arrives = True  # what is not tracked
            flow = self._base(base, flow)
        return flow

    def _base(self, base: BaseChain, flow: Conditions) -> Flow:
        before = len(self.outcomes), self.left
        self.accepted = []
        self.priority = base.priority
        tracked = base.kind == "nat" or base.priority >= TRACKED_FROM
        self.packet = replace(self.packet, state="new" if tracked else None)
        rest = self.follow(base.key, flow, 0)
        if rest is not None and not base.accepts:
            self.left += 1
            rest = None
        if (len(self.outcomes), self.left - len(self.accepted)) == before:
            return flow  # all of them are accepted
        flows = self.accepted
        if rest is not None:
            flows = [*flows, rest]
        if not flows:
            return None
        return next((conditions for conditions in flows if conditions != flow), _add(flow, f"chain {base.key[3]}"))

    def follow(self, key: ChainKey, flow: Conditions, depth: int) -> Flow:
        """Follow a flow through a chain; what returns from it."""
        before = self.left
        returned: list[Conditions] = []
        rest: Flow = flow
        for rule in self.rules.get(key, ()):
            self.budget.left -= 1
            if depth > MOST_DEPTH:
                self.budget.left = 0
            if rest is None or self.budget.left <= 0:
                break
            rest = self._rule(rule, key, rest, returned, depth)
        if rest is not None:
            returned.append(rest)
        if self.left == before:
            return flow  # nothing was lost
        if not returned:
            return None
        return _most(returned)

    def _rule(self, rule: PacketRule, key: ChainKey, flow: Conditions, returned: list[Conditions], depth: int) -> Flow:
        """Apply a rule; what goes on to the next one."""
        before = self.left
        passed: list[Conditions] = []  # the shares that the rule does not concern, or no longer
        rest: Flow = flow
        for statement in rule:
            share = rest
            if share is None:
                break
            if isinstance(statement, PacketTest):
                rest = self._test(statement, share, passed)
            elif isinstance(statement, PacketMap):
                choices = self._choices(statement, share, passed)
                rest = _most([self._act(action, key, each, passed, returned, depth) for action, each in choices])
            else:
                rest = self._act(statement, key, share, passed, returned, depth)
        if rest is not None:
            passed.append(rest)
        if passed and self.left == before and not _returns(rule):
            return flow  # nothing was lost
        return _most(passed)

    def _test(self, test: PacketTest, flow: Conditions, passed: list[Conditions]) -> Flow:
        """The share that passes a test; the rest is passed on."""
        result = test.result(self.packet)
        if result:
            return flow
        if result is False:
            passed.append(flow)
            return None
        passed.append(_add(flow, f"not {test.text}"))
        return _add(flow, test.text)

    def _choices(
        self, choice: PacketMap, flow: Conditions, passed: list[Conditions]
    ) -> list[tuple[PacketAction, Conditions]]:
        """The actions that a map may lead to, each with its share; what matches no entry is passed on."""
        values = [self.packet.value(field) for field in choice.fields]
        shares: list[tuple[PacketAction, Conditions]] = []
        for element, action in choice.entries:
            inside = is_inside(values, element)
            if inside:
                if shares:
                    flow = _add(flow, f"no other entry of {choice.text}")
                return [*shares, (action, flow)]
            if inside is None:
                shares.append((action, _add(flow, choice.text)))
        if not choice.exhaustive or not shares:
            passed.append(_add(flow, f"no entry of {choice.text}") if shares else flow)
        return shares

    def _act(
        self,
        action: PacketAction,
        key: ChainKey,
        flow: Conditions,
        passed: list[Conditions],
        returned: list[Conditions],
        depth: int,
    ) -> Flow:
        """Apply an action to a flow; what goes on to the next statement. What returns from a jump goes on to the next
        rule.
        """
        if action.target is not None:
            return self._divert(action, action.target, key, flow)
        match action.kind:
            case "accept" | "drop" | "unknown":
                return self._leave(action, flow)
            case "return":
                returned.append(flow)
                return None
            case "jump" | "goto":
                back = self.follow((*key[:3], action.chain or ""), flow, depth + 1)
                if back is not None:
                    (passed if action.kind == "jump" else returned).append(back)
                return None
            case "notrack" if self.priority < TRACKED_FROM:
                if not flow:
                    self.tracked = None
                elif self.tracked is not None:
                    self.tracked = _add(self.tracked, f"not {flow[-1]}")
        return flow

    def _leave(self, action: PacketAction, flow: Conditions) -> Flow:
        """End the way of a flow through the base chain; after an action that is not known, some may go on."""
        self.left += 1
        if action.kind == "unknown":
            self.unknown.append(action.text)
            self.arrives = True  # for all that is known
            return _add(flow, f"not {action.text}")
        if action.kind == "accept":
            self.accepted.append(flow)
        return None

    def _divert(self, action: PacketAction, wanted: NewDestination, key: ChainKey, flow: Conditions) -> Flow:
        """Send a flow elsewhere. Whether the proxy of a tproxy action exists is asked later: verdict/linux.py."""
        self.left += 1
        target = _new_target(wanted, self.packet)
        kind = KINDS.get(action.kind, "nat")
        if kind != "tproxy" and self._reaches_port(target, wanted):
            self.arrives = True
        else:
            self.outcomes.append(_Outcome(kind, target, flow, key))
        return None

    def _reaches_port(self, target: NatTarget, wanted: NewDestination) -> bool:
        """Whether the new destination is the port itself."""
        packet = self.packet
        assert packet.family is not None  # noqa: S101
        if target.computed or (wanted.random and target.last_port is not None):
            return False
        if target.port is not None and not target.port <= packet.port <= (target.last_port or target.port):
            return False
        address = target.address
        if address is None:
            address = self._redirected_to(packet)
        requested = {unmapped(text) for text in self.machine.requested}
        if any(WILDCARDS.get(text) == packet.family for text in requested):
            return target.address is None or address in _own(self.machine)
        return address in requested

    def _redirected_to(self, packet: Packet) -> str | None:
        """The address that a redirect chooses: of the interface, or loopback for what was made here."""
        family = packet.family
        assert family is not None  # noqa: S101
        if not packet.interface:
            return LOOPBACK[family]
        for row in self.machine.local:
            if row.interface == packet.interface and _is_of(row.address, family) and not is_link_local(row.address):
                return row.address
        return None


def _returns(rule: PacketRule) -> bool:
    """Whether a rule may end the way through its chain without an end of the packets."""
    for statement in rule:
        if isinstance(statement, PacketAction) and statement.kind in ("return", "goto"):
            return True
        if isinstance(statement, PacketMap) and any(a.kind in ("return", "goto") for _, a in statement.entries):
            return True
    return False


def _own(machine: Machine) -> set[str]:
    return {row.address for row in machine.local} | set(LOOPBACK.values())


def _most(flows: Iterable[Flow]) -> Flow:
    """One of several flows, the one with the most conditions; None if there is none."""
    return max((flow for flow in flows if flow is not None), key=len, default=None)


def _add(flow: Conditions, *conditions: str) -> Conditions:
    return (*flow, *(text for text in conditions if text not in flow))[:MOST_CONDITIONS]


def _new_target(target: NewDestination, packet: Packet) -> NatTarget:
    """The new destination of this packet."""
    port, last = target.port, target.last_port
    if port is not None and last is not None:
        if target.shifted_from is not None:
            port = port + (packet.port - target.shifted_from) % (last - port + 1)
            last = None
        elif port <= packet.port <= last and not target.random:
            port = last = None  # it stays as it is
    address = target.address
    if address is not None and target.network and packet.address is not None:
        address = _mapped(address, packet.address)
    if last == port:
        last = None
    return NatTarget(address, port, last, target.computed)


def _mapped(text: str, address: tuple[int, int]) -> str:
    """The address in a network whose other bits are those of the present destination."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return text
    if network.version != address[0]:
        return text
    return str(network.network_address + (address[1] & int(network.hostmask)))


# --- from packets to findings --------------------------------------------------------------------------------------


_Group = tuple[DiversionKind, tuple[NatTarget, ...], bool]
_Place = tuple[str, str]  # an address, and the interface through which packets to it come in


def _diversions(fates: dict[_Class, _Fate], complete: bool) -> Iterator[Diversion]:
    """The diversions: packets with the same targets together."""
    groups: dict[_Group, dict[tuple[NatHook, Family, _Outcome], set[_Place]]] = {}
    everywhere: dict[tuple[NatHook, Family], set[_Place]] = {}
    for kind, fate in fates.items():
        places = set(product(kind.addresses, kind.interfaces))
        everywhere.setdefault((kind.hook, kind.family), set()).update(places)
        if fate.outcomes:
            targets = tuple(sorted({outcome.target for outcome in fate.outcomes}, key=str))
            group = fate.outcomes[0].kind, targets, complete and not fate.arrives
            for outcome in fate.outcomes:
                rules = groups.setdefault(group, {})
                rules.setdefault((kind.hook, kind.family, outcome), set()).update(places)
    for (how, targets, certain), rules in groups.items():
        records = [_nat_rules(rule, places, everywhere[rule[:2]]) for rule, places in rules.items()]
        yield Diversion(how, targets, certain, tuple(chain.from_iterable(records)))


def _nat_rules(
    rule: tuple[NatHook, Family, _Outcome], places: set[_Place], everywhere: set[_Place]
) -> Iterator[NatRule]:
    """A record for each address and interface that the rule is limited to, if it is."""
    hook, family, outcome = rule
    all_addresses = {address for address, _ in everywhere}
    all_interfaces = {interface for _, interface in everywhere}
    limits: Iterable[tuple[str | None, str | None]] = sorted(places)
    if places == everywhere:
        limits = ((None, None),)
    else:
        addresses = {address for address, _ in places}
        interfaces = {interface for _, interface in places}
        if places == set(product(addresses, all_interfaces)):
            limits = ((address, None) for address in sorted(addresses))
        elif places == set(product(all_addresses, interfaces)):
            limits = ((None, interface) for interface in sorted(interfaces))
    tool, _, _, name = outcome.chain
    for destination, interface in limits:
        yield NatRule(
            family,
            hook,
            outcome.target.address,
            outcome.target.port,
            destination,
            outcome.conditions,
            name,
            tool,
            outcome.kind,
            outcome.target.last_port,
            interface,
        )
