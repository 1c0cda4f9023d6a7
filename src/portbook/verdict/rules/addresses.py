"""Which address of the port is free and which is not, and addresses that cannot be bound at all."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.addresses import Endpoint, is_link_local, is_mapped
from portbook.records import Socket
from portbook.verdict import naming
from portbook.verdict.conflict import elsewhere as in_another_vrf
from portbook.verdict.conflict import joins, obstacle
from portbook.verdict.evidence import Evidence
from portbook.verdict.findings import Finding, FindingCode, Severity
from portbook.verdict.overlap import ANY, Claim, of_endpoint, of_socket

MOST_NAMED = 4  # addresses in words
MOST_ADDRESSES = 64  # that are looked at: a router may have thousands
WAITING = ("LISTEN", "BOUND", None)


def wildcards(evidence: Evidence) -> Iterator[Finding]:
    """``0.0.0.0`` against ``127.0.0.1``: neither may have what the other has."""
    for endpoint in evidence.endpoints:
        across = [s for s in _across(evidence, endpoint) if not _is_dual_matter(s, endpoint)]
        wide = [s for s in across if ANY in of_socket(s)]
        narrow = [s for s in across if ANY not in of_socket(s)]
        if wide:
            text = f"{naming.places(wide)} takes every address of the machine, {endpoint} too"
            yield _shadow(evidence, "wildcard-shadow", text, endpoint, wide)
        if narrow:
            are = "is one" if len(narrow) == 1 else "are some"
            text = f"{naming.places(narrow)} {are} of the addresses that {endpoint} asks for"
            yield _shadow(evidence, "wildcard-shadow", text, endpoint, narrow)


def dual_stack(evidence: Evidence) -> Iterator[Finding]:
    """An IPv6 socket without IPV6_V6ONLY has the port of IPv4 as well (RFC 3493 section 5.3)."""
    for endpoint in evidence.endpoints:
        dual = [s for s in _across(evidence, endpoint) if _is_dual_matter(s, endpoint)]
        found = [s for s in dual if not _is_explained(evidence, s, endpoint)]
        if found:
            yield _shadow(evidence, "dual-stack-shadow", _dual(found, endpoint), endpoint, found)


def _dual(found: list[Socket], endpoint: Endpoint) -> str:
    names = naming.places(found)
    if found[0].family == "ipv4":
        return f"a dual-stack {endpoint} asks for the port of IPv4 too, and {names} has it"
    if found[0].v6only is None:
        return f"{names} takes the port of IPv4 too, unless it has IPV6_V6ONLY, which is not told here"
    return f"{names} has no IPV6_V6ONLY, so that it takes the port of IPv4 too"


def _is_explained(evidence: Evidence, s: Socket, endpoint: Endpoint) -> bool:
    """Whether a socket that may take IPv4 stands beside one that surely does: a server often has one of each."""
    unsure = s.family == "ipv6" and s.v6only is None
    return unsure and any(obstacle(evidence, other, endpoint) == "certain" for other in evidence.sockets)


def _across(evidence: Evidence, endpoint: Endpoint) -> list[Socket]:
    """Sockets at another address than was asked that are in the way, each address once."""
    waiting = (s for s in evidence.sockets if s.state in WAITING and _differ(s, endpoint))
    found = {(s.local_address, s.v6only): s for s in waiting if obstacle(evidence, s, endpoint)}
    return list(found.values())


def _differ(s: Socket, endpoint: Endpoint) -> bool:
    """Whether they meet, and not by being the same address."""
    if _is_dual_matter(s, endpoint):
        return True
    has, asked = of_socket(s), of_endpoint(endpoint)
    return not any(mine is not None and mine == other for mine, other in zip(has, asked, strict=True))


def _is_dual_matter(s: Socket, endpoint: Endpoint) -> bool:
    """Whether they would not meet if every IPv6 socket were IPv6 alone."""
    return _is_ipv6(s.local_address) != _is_ipv6(endpoint.address)


def _is_ipv6(address: str) -> bool:
    return ":" in address and not is_mapped(address)


def _shadow(evidence: Evidence, code: FindingCode, text: str, endpoint: Endpoint, found: list[Socket]) -> Finding:
    free, taken = _by_address(evidence, of_endpoint(endpoint))
    remedy = f"free, as far as the tables show: {_some(free)}; ask with --address" if free else None
    facts = {"asked": str(endpoint), "holders": [naming.where(s) for s in found], "free": free, "taken": taken}
    return Finding(code, "shadows", text, remedy, facts, (str(endpoint),))


def _by_address(evidence: Evidence, asked: Claim) -> tuple[list[str], list[str]]:
    """Addresses of this machine that could be had one by one, and those that could not."""
    free: list[str] = []
    taken: list[str] = []
    waiting = [s for s in evidence.sockets if s.state in WAITING]
    for address in _candidates(evidence, asked)[:MOST_ADDRESSES]:
        one = Endpoint(address)
        hit = any(obstacle(evidence, s, one) for s in waiting)
        (taken if hit else free).append(str(one))
    return free, taken


def _candidates(evidence: Evidence, asked: Claim) -> list[str]:
    """The wildcards and addresses of the machine that a wildcard stands for; for a single address, that one."""
    wildcards = [a for a, claimed in (("0.0.0.0", asked.v4), ("::", asked.v6)) if claimed == ANY]  # noqa: S104
    mine = [a.address for a in evidence.addresses or () if not is_link_local(a.address) and not a.tentative]
    families = [":" in wildcard for wildcard in wildcards]
    single = [a for a in (asked.v4, asked.v6) if a not in (None, ANY) and a is not None]
    return [*wildcards, *single, *(a for a in dict.fromkeys(mine) if (":" in a) in families)]


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def elsewhere(evidence: Evidence) -> Iterator[Finding]:
    """Who waits on the port at an address that was not asked for: clients may mean that one."""
    seen = set()
    for s in evidence.sockets:
        waits = s.state in WAITING and s.protocol == evidence.protocol
        if any(in_another_vrf(evidence, s, e) or joins(evidence, s, e) for e in evidence.endpoints):
            continue
        if waits and place_of(s) not in seen and not any(obstacle(evidence, s, e) for e in evidence.endpoints):
            seen.add(place_of(s))
            text = f"{naming.where(s)} is held, another address than was asked: {naming.named(evidence, [s])}"
            yield Finding("other-address", "shadows", text, None, naming.told(evidence, [s]))


def place_of(s: Socket) -> str:
    """The address, once for all sockets that share it."""
    return f"{naming.where(s)} {s.interface}"


def foreign(evidence: Evidence) -> Iterator[Finding]:
    """An address that no interface has. Linux may let it be bound: IP_FREEBIND and ip_nonlocal_bind, ip(7)."""
    for endpoint in evidence.endpoints:
        family = "ipv6" if ":" in endpoint.address else "ipv4"
        if _lacks_interface(evidence, endpoint):
            yield _nowhere(evidence, endpoint)
            continue
        if endpoint.address in evidence.foreign:
            allowed = family in evidence.nonlocal_bind
            setting = f"net.{family}.ip_nonlocal_bind"
            text = f"no interface of this machine has {endpoint}"
            remedy = "use an address of this machine (ip address), or 0.0.0.0 or [::]"
            if evidence.platform == "linux":
                remedy += f"; for an address that comes later: sysctl {setting}=1, or IP_FREEBIND in the server"
            if allowed:
                text, remedy = f"{text}; {setting} is set, so it can be bound, and nothing arrives yet", ""
            facts = {"address": endpoint.address, "mine": _mine(evidence), setting: int(allowed)}
            severity: Severity = "warns" if allowed else "blocks"
            yield Finding("address-not-local", severity, text, remedy or None, facts, (str(endpoint),))


def _lacks_interface(evidence: Evidence, endpoint: Endpoint) -> bool:
    return evidence.platform == "linux" and is_link_local(endpoint.address) and endpoint.zone is None


def _nowhere(evidence: Evidence, endpoint: Endpoint) -> Finding:
    """A link-local address is one of an interface, and there may be the same on each: RFC 4007 section 6."""
    having = [a.interface for a in evidence.addresses or () if a.address == endpoint.address]
    text = f"{endpoint} is a link-local address, and of which interface is not said"
    remedy = f"write {endpoint.address}%{having[0] if having else 'INTERFACE'}"
    facts = {"address": endpoint.address, "interfaces": having}
    return Finding("address-not-local", "blocks", text, remedy, facts, (str(endpoint),))


def _mine(evidence: Evidence) -> list[str]:
    return [a.address for a in evidence.addresses or ()]


def tentative(evidence: Evidence) -> Iterator[Finding]:
    """RFC 4862 section 5.4: until duplicate address detection is done the address is not used."""
    waiting = {a.address: a for a in evidence.addresses or () if a.tentative}
    for endpoint in evidence.endpoints:
        if (found := waiting.get(endpoint.address)) is not None:
            text = f"{endpoint} is tentative on {found.interface}: IPv6 still asks whether a neighbour has it"
            remedy = "wait a second or two; if it stays so a neighbour has it: ip -6 address"
            facts = {"address": found.address, "interface": found.interface}
            yield Finding("address-tentative", "blocks", text, remedy, facts, (str(endpoint),))


def no_ipv6(evidence: Evidence) -> Iterator[Finding]:
    """No IPv6 at all, or none that could arrive (disable_ipv6 in Documentation/networking/ip-sysctl.rst)."""
    asked = [e for e in evidence.endpoints if ":" in e.address]
    if evidence.ipv6 not in ("disabled", "absent") or not asked:
        return
    names = tuple(str(e) for e in asked)
    if evidence.ipv6 == "absent":
        alone = len(asked) == len(evidence.endpoints)
        text = "this machine does not speak IPv6 (the kernel has none, or ipv6.disable=1)"
        severity: Severity = "blocks" if alone else "warns"
        yield Finding("ipv6-disabled", severity, text, "use an IPv4 address", {"ipv6": "absent"}, names)
        return
    text = "IPv6 is switched off (net.ipv6.conf.all.disable_ipv6): [::] can be bound, and nobody can reach it"
    remedy = "sysctl net.ipv6.conf.all.disable_ipv6=0, if IPv6 is wanted"
    yield Finding("ipv6-disabled", "warns", text, remedy, {"ipv6": "disabled"}, names)
