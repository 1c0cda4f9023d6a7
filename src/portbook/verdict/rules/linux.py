"""What Linux itself does with ports: privileges, ranges, devices, NAT.

Sources: ip(7), socket(7), capabilities(7); Documentation/networking/ip-sysctl.rst (ip_unprivileged_port_start,
ip_local_port_range, ip_local_reserved_ports) and vrf.rst; nft(8), iptables-extensions(8).
"""

from __future__ import annotations

from collections.abc import Iterator

from portbook.addresses import format_endpoint
from portbook.managers.supervisor import container_stop_command
from portbook.netconfig.facts import NatRule, Publication
from portbook.records import Confidence
from portbook.verdict import description
from portbook.verdict.conflict import blocked, in_another_vrf
from portbook.verdict.findings import Finding, Severity
from portbook.verdict.situation import Situation

SETTING = "net.ipv4.ip_unprivileged_port_start"
PROT_SOCK = 1024  # where the setting is hidden, or the kernel does not have it (before Linux 4.11): ip(7)
MOST_RULES = 16  # of NAT, as data


# --- privileges and ranges -----------------------------------------------------------------------------------------


def privileged(situation: Situation) -> Iterator[Finding]:
    """Below ip_unprivileged_port_start a bind needs CAP_NET_BIND_SERVICE. The setting applies to IPv6 too."""
    limit = PROT_SOCK if situation.privileged_below is None else situation.privileged_below
    if situation.port >= limit or situation.caller.may_bind_low is not False:
        return
    uid = situation.caller.uid
    text = f"ports below {limit} need the capability CAP_NET_BIND_SERVICE, which this process (uid {uid}) does not have"
    evidence = {SETTING: limit, "uid": uid, "CAP_NET_BIND_SERVICE": False}
    names = tuple(map(str, situation.endpoints))
    yield Finding("privileged-port", "blocks", text, privilege_remedy(situation.port), evidence, names)


def privilege_remedy(port: int) -> str:
    """What would allow the bind, the narrowest first."""
    return (
        "run the server as a systemd service with AmbientCapabilities=CAP_NET_BIND_SERVICE or with a socket unit; or "
        f"setcap cap_net_bind_service=+ep PROGRAM; or, for all users, sysctl {SETTING}={port}; "
        "or use a port from 1024 on behind a proxy"
    )


def ephemeral(situation: Situation) -> Iterator[Finding]:
    """The system may give a port of this range to a connection just before the server starts."""
    if situation.ephemeral is None or any(low <= situation.port <= high for low, high in situation.reserved):
        return
    low, high = situation.ephemeral
    if low <= situation.port <= high:
        text = f"{situation.port} is in the ephemeral range {low}-{high}: any outgoing connection may get it"
        remedy = "use a port outside this range"
        if situation.platform == "linux":
            remedy += f", or sysctl net.ipv4.ip_local_reserved_ports={_reservation(situation)}"
        yield Finding("ephemeral-port", "warns", text, remedy, {"first": low, "last": high})


def _reservation(situation: Situation) -> str:
    """The whole list, because writing it replaces what was reserved before."""
    reserved_ports: list[str] = []
    for low, high in situation.reserved:
        if low == high:
            reserved_ports.append(str(low))
        else:
            reserved_ports.append(f"{low}-{high}")
    return ",".join((*reserved_ports, str(situation.port)))


def reserved(situation: Situation) -> Iterator[Finding]:
    """Does not block: a bind that names the port gets it. Only automatic choice skips it."""
    for low, high in situation.reserved:
        if low <= situation.port <= high:
            text = f"net.ipv4.ip_local_reserved_ports contains {situation.port}: no outgoing connection gets it"
            yield Finding("reserved-port", "warns", text, None, {"first": low, "last": high})


# --- devices -------------------------------------------------------------------------------------------------------


def devices(situation: Situation) -> Iterator[Finding]:
    """A socket that is bound to one interface blocks a bind to all interfaces."""
    reported = set()
    for s in situation.sockets:
        if not s.interface or s.interface in reported:
            continue
        hit = blocked(situation, [s])
        if hit.endpoints:
            reported.add(s.interface)
            text = (
                f"{description.format_local(s)} is bound to the interface {s.interface} (SO_BINDTODEVICE) "
                "and conflicts with a bind to all interfaces"
            )
            remedy = f"bind to another interface than {s.interface} with SO_BINDTODEVICE; both binds succeed then"
            evidence = {**description.as_dict(situation, [s]), "interface": s.interface}
            yield Finding("device-bound", "shadows", text, remedy, evidence, hit.endpoints)


def vrfs(situation: Situation) -> Iterator[Finding]:
    """TCP ports of a VRF are a table of their own, unless tcp_l3mdev_accept is set (vrf.rst)."""
    reported = set()
    for s in situation.sockets:
        device = s.interface or s.zone
        link = next((link for link in situation.links if link.name == device and link.vrf), None)
        if link is None or link.vrf in reported:
            continue
        reported.add(link.vrf)
        separate = all(in_another_vrf(situation, s, endpoint) for endpoint in situation.endpoints)
        severity: Severity = "shadows"
        effect = "conflicts with this bind"
        if separate:
            severity = "warns"
            effect = "does not conflict with this bind"
        text = (
            f"{description.format_local(s)} is bound in the VRF {link.vrf} (interface {device}), which has its own "
            f"table of TCP ports unless net.ipv4.tcp_l3mdev_accept is set; it {effect}"
        )
        remedy = f"to check the port inside the VRF: ip vrf exec {link.vrf} portbook why {situation.port}"
        evidence = {"vrf": link.vrf, "interface": device, "tcp_l3mdev_accept": int(situation.vrf_accepts_all)}
        yield Finding("vrf", severity, text, remedy, evidence)


# --- NAT -----------------------------------------------------------------------------------------------------------

PACKETS = {"output": "packets from this machine", "prerouting": "packets from other machines"}  # by hook


def nat(situation: Situation) -> Iterator[Finding]:
    """Published container ports without a process: packets are redirected, and a server here receives none."""
    rules_by_target: dict[tuple[str | None, int | None], list[NatRule]] = {}
    for rule in situation.nat:
        rules_by_target.setdefault((rule.to_address, rule.to_port), []).append(rule)
    for (address, port), rules in rules_by_target.items():
        yield _nat_rule(situation, address, port or situation.port, rules)


def _nat_rule(situation: Situation, address: str | None, port: int, rules: list[NatRule]) -> Finding:
    publication = _publication(situation, address)
    target = _nat_target(address, port)
    if publication:
        target += f" (container {publication.container})"
    source = f"{rules[0].tool}, chain {rules[0].chain}"
    text = f"NAT redirects {_packets(rules)} for port {situation.port} to {target}; rule: {source}"
    evidence: dict[str, object] = {"to_address": address, "to_port": port}
    evidence["rules"] = [_rule_as_dict(rule) for rule in rules[:MOST_RULES]]
    if publication:
        evidence["container"] = publication.container
    unconditional = any(not rule.conditions for rule in rules)
    confidence: Confidence = "certain" if unconditional else "likely"
    return Finding("nat-rule", "shadows", text, _nat_remedy(publication), evidence, confidence=confidence)


def _nat_target(address: str | None, port: int) -> str:
    if address is None:
        return f"port {port} of this machine"
    return format_endpoint(address, port)


def _packets(rules: list[NatRule]) -> str:
    hooks = {rule.hook for rule in rules}
    packets = "packets from this and other machines"
    if len(hooks) == 1:
        packets = PACKETS.get(hooks.pop(), packets)
    if all(rule.conditions for rule in rules):
        return f"some {packets}"
    return packets


def _rule_as_dict(rule: NatRule) -> dict[str, object]:
    from msgspec import to_builtins

    fields: dict[str, object] = to_builtins(rule)
    return fields


def _publication(situation: Situation, address: str | None) -> Publication | None:
    for publication in situation.publications:
        if address in publication.container_addresses:
            return publication
    return None


def _nat_remedy(publication: Publication | None) -> str:
    command = container_stop_command(publication.container) if publication else None
    if command:
        return f"{command}; {description.OTHER_PORT}"
    return (
        "use another port, or remove the rule with the tool that made it: container runtime, CNI portmap plugin or "
        "firewall"
    )
