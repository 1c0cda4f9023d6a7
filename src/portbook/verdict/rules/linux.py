"""What Linux itself does with ports: privileges, ranges, devices, NAT.

Sources: ip(7), socket(7), capabilities(7); Documentation/networking/ip-sysctl.rst (ip_unprivileged_port_start,
ip_local_port_range, ip_local_reserved_ports) and vrf.rst; nft(8), iptables-extensions(8).
"""

from __future__ import annotations

from collections.abc import Iterator

from portbook.addresses import format_endpoint
from portbook.managers.supervisor import container_stop_command
from portbook.netconfig.facts import Diversion, LookupChoice, NatRule, NatTarget, Publication
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
    yield Finding("privileged-port", "blocks", text, privilege_remedy(situation), evidence, names)


def privilege_remedy(situation: Situation) -> str:
    """What would allow the bind, the narrowest first; only what has an effect where this process runs."""
    caller = situation.caller
    setting = f"{SETTING}={situation.port}"
    remedies: list[str] = []
    if caller.settings == "outside":
        if not caller.in_user_namespace:
            remedies.append("start the container with --cap-add NET_BIND_SERVICE")
    elif not caller.in_user_namespace:
        remedies.append(
            "run the server as a systemd service with AmbientCapabilities=CAP_NET_BIND_SERVICE or with a socket unit"
        )
        if caller.may_gain_low:
            remedies.append("setcap cap_net_bind_service=+ep PROGRAM")
    remedies.append(f"for all users, {description.setting_remedy(situation, setting)}")
    remedies.append("use a port from 1024 on behind a proxy")
    return "; or ".join(remedies).replace("or for all users", "or, for all users")


def ephemeral(situation: Situation) -> Iterator[Finding]:
    """The system may give a port of this range to a connection just before the server starts."""
    if situation.ephemeral is None or any(low <= situation.port <= high for low, high in situation.reserved):
        return
    low, high = situation.ephemeral
    if low <= situation.port <= high:
        text = f"{situation.port} is in the ephemeral range {low}-{high}: any outgoing connection may get it"
        remedy = "use a port outside this range"
        if situation.platform == "linux":
            setting = f"net.ipv4.ip_local_reserved_ports={_reservation(situation)}"
            remedy += f", or {description.setting_remedy(situation, setting)}"
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


# --- what takes packets before a socket does --------------------------------------------------------------------------


def nat(situation: Situation) -> Iterator[Finding]:
    """Published container ports without a process: packets are redirected, and a server here receives none."""
    for diversion in situation.nat:
        if diversion.kind != "tproxy":
            yield _diverted(situation, diversion)


def _diverted(situation: Situation, diversion: Diversion) -> Finding:
    from portbook.netconfig.diversion import describe

    publication = _publication(situation, diversion)
    note = f" (container {publication.container})" if publication else ""
    text = f"{describe(diversion, situation.port, note)}; rule: {_rule_place(diversion)}"
    evidence = _evidence(diversion)
    if publication:
        evidence["container"] = publication.container
    confidence: Confidence = "certain" if diversion.certain else "likely"
    return Finding("nat-rule", "shadows", text, _nat_remedy(publication), evidence, confidence=confidence)


def transparent_proxies(situation: Situation) -> Iterator[Finding]:
    """TPROXY: a proxy gets connections to the port, also if a server listens on it."""
    for diversion in situation.nat:
        if diversion.kind == "tproxy":
            yield _proxied(situation, diversion)


def _proxied(situation: Situation, diversion: Diversion) -> Finding:
    from portbook.netconfig.diversion import describe

    ports = {target.port or situation.port for target in diversion.targets}
    text = f"{describe(diversion, situation.port)}; rule: {_rule_place(diversion)}"
    severity: Severity = "shadows"
    confidence: Confidence = "certain" if diversion.certain else "likely"
    if not ports & situation.proxies_waiting:
        confidence = "likely"
        text += "; no socket waits there now"
        if diversion.rules[0].tool == "nft":  # that of iptables drops the packets then
            severity = "warns"
            text += ", so the packets pass"
    remedy = "use another port, or remove the rule with the tool that made it: service mesh, proxy or firewall"
    return Finding("tproxy", severity, text, remedy, _evidence(diversion), confidence=confidence)


def load_balancers(situation: Situation) -> Iterator[Finding]:
    """IPVS forwards packets to its virtual services before a socket receives them."""
    wildcards = {endpoint.address for endpoint in situation.endpoints} & {"0.0.0.0", "::"}  # noqa: S104  compared
    requested = {endpoint.address for endpoint in situation.endpoints}
    own = {local.address for local in situation.addresses or ()}
    for service in situation.ipvs:
        of_family = ("::" if ":" in service.address else "0.0.0.0") in wildcards  # noqa: S104  compared
        if service.address in requested or (of_family and (not own or service.address in own)):
            where = format_endpoint(service.address, service.port)
            text = (
                f"IPVS forwards packets to {where}/{service.protocol} to other servers (scheduler {service.scheduler})"
            )
            remedy = f"use another port or address; ipvsadm -L -n -t {where} shows the servers"
            if service.protocol == "udp":
                remedy = remedy.replace(" -t ", " -u ")
            evidence = {"address": service.address, "port": service.port, "scheduler": service.scheduler}
            yield Finding("ipvs", "shadows", text, remedy, evidence)


def socket_lookups(situation: Situation) -> Iterator[Finding]:
    """A BPF program of type sk_lookup decides about every port, also where no finding shows it."""
    own = {s.cookie for s in situation.sockets}
    for lookup in situation.lookups:
        program = f"a BPF program (sk_lookup {lookup.name or 'without a name'}, id {lookup.id})"
        taken = [choice for choice in lookup.choices if choice.dropped or choice.cookie not in (None, *own)]
        names = tuple(choice.endpoint for choice in taken)
        evidence = {"id": lookup.id, "name": lookup.name, "choices": [_as_dict(choice) for choice in lookup.choices]}
        remedy = f"bpftool prog show id {lookup.id} shows the program, bpftool link who attached it"
        if taken:
            does = "drops packets" if all(choice.dropped for choice in taken) else "gives packets to another socket"
            text = f"{program} {does} for port {situation.port}, as tried with a packet from this machine"
            yield Finding("sk-lookup", "shadows", text, remedy, evidence, names)
        elif not lookup.choices or all(choice.cookie is None for choice in lookup.choices):
            text = f"{program} may choose another socket for packets to any port"
            if lookup.choices:
                text += f"; a packet from this machine to port {situation.port} it leaves alone"
            yield Finding("sk-lookup", "warns", text, remedy, evidence, confidence="likely")


def _evidence(diversion: Diversion) -> dict[str, object]:
    first = diversion.targets[0]
    return {
        "kind": diversion.kind,
        "to_address": first.address,
        "to_port": first.port,
        "targets": [_as_dict(target) for target in diversion.targets[:MOST_RULES]],
        "rules": [_as_dict(rule) for rule in diversion.rules[:MOST_RULES]],
    }


def _as_dict(record: NatRule | NatTarget | LookupChoice) -> dict[str, object]:
    from msgspec import to_builtins

    fields: dict[str, object] = to_builtins(record)
    return fields


def _rule_place(diversion: Diversion) -> str:
    rule = diversion.rules[0]
    return f"{rule.tool}, chain {rule.chain}"


def _publication(situation: Situation, diversion: Diversion) -> Publication | None:
    addresses = {target.address for target in diversion.targets}
    for publication in situation.publications:
        if not addresses.isdisjoint(publication.container_addresses):
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
