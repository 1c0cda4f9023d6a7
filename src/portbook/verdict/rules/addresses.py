"""Which addresses of the port are free and which are in use, and addresses that cannot be bound at all."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.addresses import Endpoint, is_link_local, is_mapped, reach_of
from portbook.records import Reach, Socket
from portbook.verdict import description
from portbook.verdict.conflict import WAITING, conflict, in_another_vrf, joins_group
from portbook.verdict.findings import Finding, FindingCode, Severity
from portbook.verdict.overlap import ANY, Claim, claim_of_endpoint, claim_of_socket
from portbook.verdict.situation import Situation

MOST_ADDRESSES = 64  # that are examined: a router may have thousands
MOST_FREE = 4  # in words


# --- one address against every address, IPv6 against IPv4 ----------------------------------------------------------


def wildcards(situation: Situation) -> Iterator[Finding]:
    """``0.0.0.0`` against ``127.0.0.1``: each blocks the other."""
    for endpoint in situation.endpoints:
        wide: list[Socket] = []
        narrow: list[Socket] = []
        for s in _conflicts_at_other_address(situation, endpoint):
            if _differ_in_family(s, endpoint):
                continue  # dual_stack reports it
            if ANY in claim_of_socket(s):
                wide.append(s)
            else:
                narrow.append(s)
        if wide:
            text = f"{_are_in_use(wide, 'is', 'are')} bound to every address, which includes {endpoint}"
            yield _shadow(situation, "wildcard-shadow", text, endpoint, wide)
        if narrow:
            family = "IPv6" if _is_ipv6(endpoint.address) else "IPv4"
            text = f"{endpoint} means every {family} address, but {_are_in_use(narrow, 'is', 'are')} in use"
            yield _shadow(situation, "wildcard-shadow", text, endpoint, narrow)


def dual_stack(situation: Situation) -> Iterator[Finding]:
    """An IPv6 socket without IPV6_V6ONLY takes the IPv4 port too (RFC 3493 section 5.3)."""
    for endpoint in situation.endpoints:
        across = [s for s in _conflicts_at_other_address(situation, endpoint) if _differ_in_family(s, endpoint)]
        sockets = [s for s in across if not _has_certain_cause(situation, s, endpoint)]
        if sockets:
            yield _shadow(situation, "dual-stack-shadow", _dual_stack_text(sockets, endpoint), endpoint, sockets)


def _are_in_use(sockets: list[Socket], one: str, several: str) -> str:
    """``127.0.0.1:80 is``, ``127.0.0.1:80 and 127.0.0.2:80 are``."""
    verb = one if len(description.locals_of(sockets)) == 1 else several
    return f"{description.format_locals(sockets)} {verb}"


def _dual_stack_text(sockets: list[Socket], endpoint: Endpoint) -> str:
    if sockets[0].family == "ipv4":
        return f"a dual-stack {endpoint} also needs the IPv4 port, but {_are_in_use(sockets, 'is', 'are')} in use"
    takes = _are_in_use(sockets, "also takes", "also take")
    if sockets[0].v6only is None:
        return f"{takes} the IPv4 port unless IPV6_V6ONLY is set, which this system does not show"
    return f"{takes} the IPv4 port: IPV6_V6ONLY is not set"


def _has_certain_cause(situation: Situation, s: Socket, endpoint: Endpoint) -> bool:
    """Whether another socket certainly blocks IPv4, and this one only may: servers often have one socket of each."""
    unknown_v6only = s.family == "ipv6" and s.v6only is None
    return unknown_v6only and any(conflict(situation, other, endpoint) == "certain" for other in situation.sockets)


def _conflicts_at_other_address(situation: Situation, endpoint: Endpoint) -> list[Socket]:
    """Sockets that block the endpoint from another address, each address once."""
    sockets: dict[tuple[str, bool | None], Socket] = {}
    for s in situation.sockets:
        if s.state in WAITING and _differ(s, endpoint) and conflict(situation, s, endpoint):
            sockets[s.local_address, s.v6only] = s
    return list(sockets.values())


def _differ(s: Socket, endpoint: Endpoint) -> bool:
    """Whether a socket's address and the endpoint's are not the same."""
    if _differ_in_family(s, endpoint):
        return True
    taken, requested = claim_of_socket(s), claim_of_endpoint(endpoint)
    same_v4 = taken.v4 is not None and taken.v4 == requested.v4
    same_v6 = taken.v6 is not None and taken.v6 == requested.v6
    return not (same_v4 or same_v6)


def _differ_in_family(s: Socket, endpoint: Endpoint) -> bool:
    """Whether they could not conflict if every IPv6 socket had IPV6_V6ONLY."""
    return _is_ipv6(s.local_address) != _is_ipv6(endpoint.address)


def _is_ipv6(address: str) -> bool:
    return ":" in address and not is_mapped(address)


def _shadow(situation: Situation, code: FindingCode, text: str, endpoint: Endpoint, sockets: list[Socket]) -> Finding:
    free, taken = _free_and_taken(situation, claim_of_endpoint(endpoint))
    remedy = None
    if free:
        remedy = f"bind one address that looks free: {', '.join(free[:MOST_FREE])}; check it with --address"
    holders = [description.format_local(s) for s in sockets]
    evidence = {"asked": str(endpoint), "holders": holders, "free": free, "taken": taken}
    return Finding(code, "shadows", text, remedy, evidence, (str(endpoint),))


def _free_and_taken(situation: Situation, requested: Claim) -> tuple[list[str], list[str]]:
    """The addresses of this machine that could be bound one by one, and those that could not."""
    free: list[str] = []
    taken: list[str] = []
    waiting = [s for s in situation.sockets if s.state in WAITING]
    for address in _candidates(situation, requested)[:MOST_ADDRESSES]:
        endpoint = Endpoint(address)
        if any(conflict(situation, s, endpoint) for s in waiting):
            taken.append(str(endpoint))
        else:
            free.append(str(endpoint))
    return free, taken


def _candidates(situation: Situation, requested: Claim) -> list[str]:
    """For a wildcard, itself and the machine's addresses of its family; for a single address, that address."""
    wildcards: list[str] = []
    single: list[str] = []
    for wildcard, address in (("0.0.0.0", requested.v4), ("::", requested.v6)):  # noqa: S104  compared
        if address == ANY:
            wildcards.append(wildcard)
        elif address is not None:
            single.append(address)
    families = {_is_ipv6(wildcard) for wildcard in wildcards}
    own: dict[str, None] = {}
    for local in situation.addresses or ():
        usable = not is_link_local(local.address) and not local.tentative
        if usable and (":" in local.address) in families:
            own[local.address] = None
    return [*wildcards, *single, *own]


def other_addresses(situation: Situation) -> Iterator[Finding]:
    """Sockets that wait on the port at an address that was not requested: clients may mean that one."""
    reported = set()
    for s in situation.sockets:
        if s.state not in WAITING or s.protocol != situation.protocol or _place(s) in reported:
            continue
        if any(_concerns(situation, s, endpoint) for endpoint in situation.endpoints):
            continue
        reported.add(_place(s))
        holds = f"{description.format_local(s)}, another address of the port"
        text = description.describe_holders(situation, [s], f"holds {holds}", f"hold {holds}")
        yield Finding("other-address", "shadows", text, None, description.as_dict(situation, [s]))


def _concerns(situation: Situation, s: Socket, endpoint: Endpoint) -> bool:
    """Whether another rule reports what this socket means for the endpoint."""
    if in_another_vrf(situation, s, endpoint) or joins_group(situation, s, endpoint):
        return True
    return conflict(situation, s, endpoint) is not None


def _place(s: Socket) -> str:
    """The address and interface, the same for all sockets that share them."""
    return f"{description.format_local(s)} {s.interface}"


# --- addresses that cannot be bound --------------------------------------------------------------------------------


def not_local(situation: Situation) -> Iterator[Finding]:
    """An address that no interface has. Linux can allow the bind: IP_FREEBIND and ip_nonlocal_bind, ip(7)."""
    for endpoint in situation.endpoints:
        if _lacks_interface(situation, endpoint):
            yield _without_interface(situation, endpoint)
        elif endpoint.address in situation.foreign:
            yield _not_local(situation, endpoint)


def _not_local(situation: Situation, endpoint: Endpoint) -> Finding:
    family = "ipv6" if ":" in endpoint.address else "ipv4"
    setting = f"net.{family}.ip_nonlocal_bind"
    allowed = family in situation.nonlocal_bind
    text = f"{endpoint} is not an address of this machine"
    remedy: str | None = "use an address of this machine, or 0.0.0.0 or [::]"
    severity: Severity = "blocks"
    if allowed:
        text += f"; {setting}=1 allows the bind, but no packets arrive until the address exists"
        remedy = None
        severity = "warns"
    elif situation.platform == "linux":
        remedy = (
            "use an address that ip address shows, or 0.0.0.0 or [::]; "
            f"to bind an address before it exists: {description.setting_remedy(situation, f'{setting}=1')}, "
            "or IP_FREEBIND in the server"
        )
    own = [local.address for local in situation.addresses or ()]
    evidence = {"address": endpoint.address, "mine": own, setting: int(allowed)}
    return Finding("address-not-local", severity, text, remedy, evidence, (str(endpoint),))


def _lacks_interface(situation: Situation, endpoint: Endpoint) -> bool:
    needs = is_link_local(endpoint.address) or _is_multicast_of_link(endpoint.address)
    return situation.platform == "linux" and needs and endpoint.zone is None


def _is_multicast_of_link(address: str) -> bool:
    """Multicast of an interface or a link: RFC 4291 section 2.7."""
    return reach_of(address) == "multicast" and address.startswith("ff") and address[3:4] in ("1", "2")


def _without_interface(situation: Situation, endpoint: Endpoint) -> Finding:
    """A link-local address belongs to an interface, and several interfaces may have the same: RFC 4007 section 6."""
    interfaces = [local.interface for local in situation.addresses or () if local.address == endpoint.address]
    kind = "link-local" if is_link_local(endpoint.address) else "link-local multicast"
    text = f"{endpoint} is a {kind} address and needs an interface"
    remedy = f"write {endpoint.address}%{interfaces[0] if interfaces else 'INTERFACE'}"
    evidence = {"address": endpoint.address, "interfaces": interfaces}
    return Finding("address-not-local", "blocks", text, remedy, evidence, (str(endpoint),))


def not_unicast(situation: Situation) -> Iterator[Finding]:
    """Multicast and broadcast addresses: IPv4 lets a TCP socket have one, and no client can connect to it (RFC 9293
    section 3.9.2.3, RFC 1122 section 4.2.3.10); IPv6 refuses that. UDP receives what is sent to all of them.
    """
    for endpoint in situation.endpoints:
        kind: Reach = reach_of(endpoint.address)
        if endpoint.address in situation.broadcast:
            kind = "broadcast"
        if kind not in ("multicast", "broadcast"):
            continue
        evidence = {"address": endpoint.address, "kind": kind}
        names = (str(endpoint),)
        if situation.protocol == "tcp":
            refused = _is_ipv6(endpoint.address)
            text = f"{endpoint} is a {kind} address: TCP has no connections to it"
            remedy = "bind an address of this machine, or 0.0.0.0 or [::]"
            yield Finding("not-unicast", "blocks" if refused else "warns", text, remedy, evidence, names)
        elif kind == "multicast":
            text = f"{endpoint} is a multicast address: a socket there gets only what is sent to this group"
            remedy = "join the group on an interface (IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP)"
            yield Finding("not-unicast", "warns", text, remedy, evidence, names)
        else:
            text = f"{endpoint} is a broadcast address: a socket there gets only broadcasts, and cannot send from it"
            yield Finding("not-unicast", "warns", text, "bind 0.0.0.0 to get both", evidence, names)


def tentative(situation: Situation) -> Iterator[Finding]:
    """RFC 4862 section 5.4: an address is not used until duplicate address detection has finished."""
    tentative_addresses = {local.address: local for local in situation.addresses or () if local.tentative}
    for endpoint in situation.endpoints:
        local = tentative_addresses.get(endpoint.address)
        if local is not None:
            text = f"{endpoint} is tentative on {local.interface}: IPv6 duplicate address detection has not finished"
            remedy = "retry in 1 or 2 seconds; if ip -6 address still shows tentative, another machine has the address"
            evidence = {"address": local.address, "interface": local.interface}
            yield Finding("address-tentative", "blocks", text, remedy, evidence, (str(endpoint),))


def no_ipv6(situation: Situation) -> Iterator[Finding]:
    """No IPv6 in the kernel, or no IPv6 address (disable_ipv6 in Documentation/networking/ip-sysctl.rst)."""
    names = tuple(str(endpoint) for endpoint in situation.endpoints if ":" in endpoint.address)
    if not names:
        return
    if situation.ipv6 == "absent":
        severity: Severity = "blocks" if len(names) == len(situation.endpoints) else "warns"
        text = "the kernel of this machine has no IPv6 (not built in, or ipv6.disable=1)"
        yield Finding("ipv6-disabled", severity, text, "use an IPv4 address", {"ipv6": "absent"}, names)
    elif situation.ipv6 == "disabled":
        text = "IPv6 is disabled (net.ipv6.conf.all.disable_ipv6=1): [::] can be bound, but no client can reach it"
        remedy = f"to use IPv6: {description.setting_remedy(situation, 'net.ipv6.conf.all.disable_ipv6=0')}"
        yield Finding("ipv6-disabled", "warns", text, remedy, {"ipv6": "disabled"}, names)
