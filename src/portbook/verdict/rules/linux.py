"""What Linux itself does with ports: privilege, ranges, devices, NAT.

Sources: ip(7), socket(7), capabilities(7); Documentation/networking/ip-sysctl.rst (ip_unprivileged_port_start,
ip_local_port_range, ip_local_reserved_ports) and vrf.rst; nft(8), iptables-extensions(8).
"""

from __future__ import annotations

from collections.abc import Iterator

from portbook.managers.supervisor import container_stop_command
from portbook.netconfig.facts import NatRule, Publication
from portbook.records import Confidence
from portbook.verdict import naming
from portbook.verdict.conflict import elsewhere, stopped
from portbook.verdict.evidence import Evidence
from portbook.verdict.findings import Finding

SETTING = "net.ipv4.ip_unprivileged_port_start"
PROT_SOCK = 1024  # where the setting is hidden, or is not known yet (Linux 4.11): ip(7)


def privileged(evidence: Evidence) -> Iterator[Finding]:
    """Below ip_unprivileged_port_start a bind needs CAP_NET_BIND_SERVICE. The one setting is for IPv6 too."""
    limit = PROT_SOCK if evidence.privileged_below is None else evidence.privileged_below
    if evidence.port >= limit or evidence.caller.may_bind_low is not False:
        return
    text = f"ports below {limit} need CAP_NET_BIND_SERVICE, which uid {evidence.caller.uid} here does not have"
    facts = {SETTING: limit, "uid": evidence.caller.uid, "CAP_NET_BIND_SERVICE": False}
    names = tuple(map(str, evidence.endpoints))
    yield Finding("privileged-port", "blocks", text, privilege_remedy(evidence.port), facts, names)


def privilege_remedy(port: int) -> str:
    """What would allow it, the narrowest first."""
    return (
        f"a unit with AmbientCapabilities=CAP_NET_BIND_SERVICE or a .socket unit; setcap cap_net_bind_service=+ep "
        f"PROGRAM; sysctl {SETTING}={port} (for everybody); or a port from 1024 on behind a proxy"
    )


def ephemeral(evidence: Evidence) -> Iterator[Finding]:
    """A port of the range may be the local end of anybody's connection just when the server wants to start."""
    if evidence.ephemeral is None or any(low <= evidence.port <= high for low, high in evidence.reserved):
        return
    low, high = evidence.ephemeral
    if low <= evidence.port <= high:
        text = f"{evidence.port} lies in {low} to {high}, from which outgoing connections get their ports"
        facts = {"first": low, "last": high}
        yield Finding("ephemeral-port", "warns", text, _outside(evidence), facts)


def _outside(evidence: Evidence) -> str:
    if evidence.platform != "linux":
        return "take a port outside of it"
    return f"take a port outside of it, or sysctl net.ipv4.ip_local_reserved_ports={_reservation(evidence)}"


def _reservation(evidence: Evidence) -> str:
    """The whole list, because writing it replaces what was reserved before."""
    kept = [f"{low}-{high}" if low != high else str(low) for low, high in evidence.reserved]
    return ",".join((*kept, str(evidence.port)))


def reserved(evidence: Evidence) -> Iterator[Finding]:
    """No obstacle: who asks by number gets it. Only automatic choice passes it over."""
    for low, high in evidence.reserved:
        if low <= evidence.port <= high:
            text = "net.ipv4.ip_local_reserved_ports keeps it from being given to outgoing connections"
            yield Finding("reserved-port", "warns", text, None, {"first": low, "last": high})


def devices(evidence: Evidence) -> Iterator[Finding]:
    """A holder that takes packets of one interface alone keeps the port from everybody who asks for all of them."""
    seen = set()
    for s in evidence.sockets:
        if not s.interface or s.interface in seen:
            continue
        hit = stopped(evidence, [s])
        if hit.endpoints:
            seen.add(s.interface)
            text = f"{naming.where(s)} takes packets of {s.interface} only (SO_BINDTODEVICE), and is in the way of all"
            remedy = f"bind to another interface with SO_BINDTODEVICE: both can be had then; {s.interface} is taken"
            facts = {**naming.told(evidence, [s]), "interface": s.interface}
            yield Finding("device-bound", "shadows", text, remedy, facts, hit.endpoints)


def vrfs(evidence: Evidence) -> Iterator[Finding]:
    """TCP ports of a VRF are a table of their own, unless tcp_l3mdev_accept is set (vrf.rst)."""
    seen = set()
    for s in evidence.sockets:
        device = s.interface or s.zone
        link = next((link for link in evidence.links if link.name == device and link.vrf), None)
        if link is not None and link.vrf not in seen:
            seen.add(link.vrf)
            apart = all(elsewhere(evidence, s, e) for e in evidence.endpoints)
            consequence = "not in the way here" if apart else "in the way here"
            text = f"{naming.where(s)} is bound in the VRF {link.vrf} (by {device}), {consequence}"
            facts = {"vrf": link.vrf, "interface": device, "tcp_l3mdev_accept": int(evidence.vrf_accepts_all)}
            remedy = f"ip vrf exec {link.vrf} portbook why {evidence.port} asks inside of it"
            yield Finding("vrf", "warns" if apart else "shadows", text, remedy, facts)


def nat(evidence: Evidence) -> Iterator[Finding]:
    """Published container ports without a process: packets are redirected, and a server here would hear nothing."""
    groups: dict[tuple[str | None, int | None], list[NatRule]] = {}
    for rule in evidence.nat:
        groups.setdefault((rule.to_address, rule.to_port), []).append(rule)
    for (address, port), rules in groups.items():
        published = _published(evidence, address)
        name = f", {published.container}" if published else ""
        target = f"{address or 'this machine'} port {port or evidence.port}{name}"
        who = _who(rules)
        text = f"{who} to port {evidence.port} are redirected to {target} ({rules[0].tool}: chain {rules[0].chain})"
        facts = {"to_address": address, "to_port": port or evidence.port, "rules": [_rule(r) for r in rules[:16]]}
        if published:
            facts["container"] = published.container
        yield Finding("nat-rule", "shadows", text, _nat_remedy(published), facts, confidence=_surely(rules))


WHO = {"output": "packets of this machine", "prerouting": "packets from other machines"}


def _who(rules: list[NatRule]) -> str:
    hooks = {rule.hook for rule in rules}
    packets = WHO.get("".join(hooks), "packets from other machines and of this one")
    if all(rule.conditions for rule in rules):
        packets = f"some {packets}"
    return packets


def _surely(rules: list[NatRule]) -> Confidence:
    return "certain" if any(not rule.conditions for rule in rules) else "likely"


def _rule(rule: NatRule) -> dict[str, object]:
    from msgspec import to_builtins

    built: dict[str, object] = to_builtins(rule)
    return built


def _published(evidence: Evidence, address: str | None) -> Publication | None:
    return next((p for p in evidence.publications if address in p.container_addresses), None)


def _nat_remedy(published: Publication | None) -> str:
    command = container_stop_command(published.container) if published else None
    if command:
        return f"{command}, or take another port"
    return "take another port; or remove the publication where it was made: container runtime, CNI portmap, firewall"
