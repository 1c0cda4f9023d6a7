"""Sockets on the port: who holds them, and in what state. Every system.

Sources: socket(7), ip(7), tcp(7); RFC 9293 sections 3.3.2 (states) and 3.6.1 (TIME_WAIT); sd_listen_fds(3),
launchd.plist(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from portbook.managers.supervisor import is_service_manager
from portbook.numerals import counted, join_words
from portbook.records import Owner, Socket
from portbook.verdict import description
from portbook.verdict.conflict import (
    Blocked,
    blocked,
    group_key,
    is_reuseport_group,
    joins_group,
    sets_reuse_address,
)
from portbook.verdict.description import format_local, format_locals
from portbook.verdict.findings import Finding, FindingCode
from portbook.verdict.situation import Situation

CONNECTED = frozenset(("ESTABLISHED", "SYN_SENT", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING"))
# TIME_WAIT lasts twice the maximum segment lifetime: 60 s on Linux (TCP_TIMEWAIT_LEN), 30 s on macOS, and
# TcpTimedWaitDelay on Windows.
TIME_WAIT = frozenset(("TIME_WAIT",))


# --- sockets that wait ---------------------------------------------------------------------------------------------


def listeners(situation: Situation) -> Iterator[Finding]:
    """Sockets that listen: one finding for each holder, service manager and SO_REUSEPORT group."""
    groups: list[list[Socket]] = []
    for group in _blocking_groups(situation, ("LISTEN",)):
        manager = _service_manager(group)
        if manager is not None:
            yield _socket_activation(situation, group, manager)
        elif is_reuseport_group(situation, group[0]):
            yield _reuseport_group(situation, group)
        else:
            groups.append(group)
    for sockets in _by_owner(groups):
        where = format_locals(sockets)
        yield _holder(situation, "listener", sockets, f"listens on {where}", f"listen on {where}")
    for group in _groups(situation, ("LISTEN",)):
        if not blocked(situation, group[:1]).endpoints:
            yield from _joinable_group(situation, group)


def udp_sockets(situation: Situation) -> Iterator[Finding]:
    """A UDP socket has its port as soon as it is bound, connected or not (RFC 768)."""
    if situation.protocol != "udp":
        return
    groups: list[list[Socket]] = []
    for group in _blocking_groups(situation, (None, "ESTABLISHED")):
        manager = _service_manager(group)
        if manager is not None:
            yield _socket_activation(situation, group, manager)
        else:
            groups.append(group)
    for sockets in _by_owner(groups):
        where = f"{format_locals(sockets)}/udp"
        finding = _holder(situation, "udp-socket", sockets, f"is bound to {where}", f"are bound to {where}")
        yield _shared(situation, finding)


# Ports that several programs of a machine share on purpose, each with SO_REUSEADDR: what is sent to the multicast group
# reaches all of them. RFC 6762 section 15.1, UPnP Device Architecture section 1, RFC 4795 section 2, WS-Discovery.
SHARED_PORTS = {5353: "mDNS", 1900: "SSDP", 5355: "LLMNR", 3702: "WS-Discovery"}


def _shared(situation: Situation, finding: Finding) -> Finding:
    """A UDP port whose sockets allow sharing: joining them is a remedy, and for multicast services the remedy."""
    wanted = {*finding.endpoints, *finding.perhaps}
    if not wanted or not wanted <= set(situation.sharing):
        return finding
    text = f"{finding.text}; its socket allows sharing: a bind with SO_REUSEADDR succeeds"
    service = SHARED_PORTS.get(situation.port)
    if service:
        remedy = f"set SO_REUSEADDR and join the group, as every {service} program does; nothing needs to be ended"
    else:
        remedy = (
            "set SO_REUSEADDR to share the port: multicast and broadcasts then reach every socket, other datagrams "
            f"the last one; else {finding.remedy}"
        )
    return replace(finding, text=text, remedy=remedy, evidence={**finding.evidence, "allows_sharing": True})


def bound_only(situation: Situation) -> Iterator[Finding]:
    """TCP sockets that are bound and do not listen, which most tools do not show."""
    for sockets in _by_owner(_blocking_groups(situation, ("BOUND",))):
        where = format_locals(sockets)
        one = f"is bound to {where} and does not listen"
        several = f"are bound to {where} and do not listen"
        finding = _holder(situation, "bound-only", sockets, one, several)
        if not sets_reuse_address(situation):
            remedy = f"set SO_REUSEADDR, which helps if the holder has set it too; else {finding.remedy}"
            finding = replace(finding, remedy=remedy)
        yield finding


def _holder(situation: Situation, code: FindingCode, sockets: list[Socket], one: str, several: str) -> Finding:
    """A finding about the sockets of one holder that block the bind."""
    text = description.describe_holders(situation, sockets, one, several)
    gone = [s for s in sockets if s.reach == "none" and s.state != "BOUND"]
    if gone:
        text += f"; no interface has {join_words(list(dict.fromkeys(s.local_address for s in gone)))} any longer"
    remedy = description.release_remedy(situation, sockets)
    return _blocks(code, text, remedy, description.as_dict(situation, sockets), blocked(situation, sockets))


def _blocks(code: FindingCode, text: str, remedy: str | None, evidence: dict[str, object], hit: Blocked) -> Finding:
    return Finding(code, "blocks", text, remedy, evidence, hit.endpoints, hit.confidence, hit.perhaps)


# --- sockets that share the port -----------------------------------------------------------------------------------


def _reuseport_group(situation: Situation, group: list[Socket]) -> Finding:
    # Windows has no SO_REUSEPORT: there SO_REUSEADDR lets sockets share, and which one gets a connection is undefined.
    option = "SO_REUSEADDR" if situation.platform == "windows" else "SO_REUSEPORT"
    sockets = f"{len(group)} listening sockets on {format_local(group[0])} with {option}"
    text = description.describe_holders(situation, group, f"has {sockets}", f"have {sockets}")
    remedy = description.release_remedy(situation, group)
    if option == "SO_REUSEPORT":
        users = " or ".join(sorted({str(s.user or s.uid) for s in group}))
        remedy = f"to share the port, set SO_REUSEPORT and run as user {users}; else {remedy}"
    return _blocks("reuseport-group", text, remedy, description.as_dict(situation, group), blocked(situation, group))


def _joinable_group(situation: Situation, group: list[Socket]) -> Iterator[Finding]:
    names = tuple(str(endpoint) for endpoint in situation.endpoints if joins_group(situation, group[0], endpoint))
    if names:
        sockets = (
            f"{len(group)} listening sockets on {format_local(group[0])} with SO_REUSEPORT; "
            "the kernel would distribute connections among them and yours"
        )
        text = description.describe_holders(situation, group, f"has {sockets}", f"have {sockets}")
        yield Finding("reuseport-group", "shadows", text, None, description.as_dict(situation, group), names)


# --- sockets of service managers -----------------------------------------------------------------------------------


def _socket_activation(situation: Situation, group: list[Socket], manager: Owner) -> Finding:
    """Ending the service does not free the port: the manager keeps the socket and starts the service again."""
    unit = next((situation.activated[s.inode] for s in group if s.inode in situation.activated), None)
    text = f"{manager.name} (pid {manager.pid}) holds {format_local(group[0])} for {unit or 'a service'}"
    if unit and unit.endswith(".service"):
        text += ", in its file descriptor store"
    services = [f"{o.name or '?'} (pid {o.pid})" for o in description.owners_of(group) if o.pid != manager.pid]
    if services:
        text += f" and has passed it to {join_words(services)}"
    evidence = {**description.as_dict(situation, group), "unit": unit, "manager": manager.pid}
    remedy = _deactivation(manager, unit)
    return _blocks("socket-activation", text, remedy, evidence, blocked(situation, group))


def _deactivation(manager: Owner, unit: str | None) -> str:
    if manager.name == "launchd":
        return "launchctl print system shows the job that owns the port; launchctl bootout stops it"
    user = "" if manager.pid == 1 else " --user"
    if unit is None:
        shown = f"systemctl{user} list-sockets shows the socket unit: stop that unit, not the service"
        return f"{shown}; if it shows none, a service keeps the socket in its store: stop that service"
    if unit.endswith(".service"):  # systemd.service(5), FileDescriptorStoreMax=
        return f"systemctl{user} stop {unit} frees the port"
    return f"systemctl{user} stop {unit}; stopping only the service does not free the port"


def _service_manager(group: list[Socket]) -> Owner | None:
    """The owner that is systemd, of the system or of a user, or launchd. In a container, pid 1 is mostly a server."""
    for owner in description.owners_of(group):
        is_launchd = owner.pid == 1 and owner.name == "launchd"
        if is_launchd or is_service_manager(owner):
            return owner
    return None


# --- connections ---------------------------------------------------------------------------------------------------


def connections(situation: Situation) -> Iterator[Finding]:
    """Connections that keep the port after their listener has ended, or that got it as an ephemeral port."""
    sockets = [s for s in _without_listener(situation, CONNECTED) if s.inode != 0]
    hit = blocked(situation, sockets)
    if not hit.endpoints:
        return
    local = f"{counted(len(sockets), 'connection')} with local address {format_locals(sockets)}"
    meaning = _meaning(sockets, OWNED)
    text = description.describe_holders(situation, sockets, f"has {local}{meaning}", f"have {local}{meaning}")
    yield _blocks(
        "connection", text, _connection_remedy(situation, sockets), description.as_dict(situation, sockets), hit
    )


# What a state means for the port, of connections that a process has (RFC 9293 section 3.3.2). Those that wait for the
# network end by themselves; CLOSE_WAIT waits for the process, and there is no limit.
OWNED: dict[str, str] = {
    "CLOSE_WAIT": "{peer} closed, the process has not",
    "FIN_WAIT1": "the process has shut down its side, which {peer} not confirmed",
    "FIN_WAIT2": "the process has shut down its side, {peer} not closed",
    "SYN_SENT": "{peer} not answered",
}
# And of connections without a process.
ORPHANED: dict[str, str] = {
    "FIN_WAIT1": "{peer} not confirmed the end",
    "FIN_WAIT2": "{peer} not closed",
    "CLOSING": "{peer} not confirmed the end",
    "LAST_ACK": "{peer} not confirmed the end",
    "CLOSE_WAIT": "{peer} closed",
}


def _meaning(sockets: list[Socket], meanings: dict[str, str]) -> str:
    """``, in CLOSE_WAIT: its peer has closed, the process has not``; empty where the state says nothing."""
    states = list(dict.fromkeys(str(s.state) for s in sockets))
    peer = "its peer has" if len(sockets) == 1 else "their peers have"
    texts = [f"in {state}: {meanings[state].format(peer=peer)}" for state in states if state in meanings]
    return "".join(f", {text}" for text in texts)


def _connection_remedy(situation: Situation, sockets: list[Socket]) -> str:
    if all(s.state == "CLOSE_WAIT" for s in sockets):
        program = description.owners_of(sockets)
        name = f"pid {program[0].pid}" if program else "its process"
        return f"only the process can end it: waiting does not help; end {name}, which does not close what its peer has"
    remedy = "wait until the connection is closed, or end its process"
    if situation.platform == "linux":
        remedy += "; net.ipv4.ip_local_reserved_ports keeps connections from getting the port by chance"
    return remedy


def orphans(situation: Situation) -> Iterator[Finding]:
    """Linux: connections that their process has closed and the kernel keeps until the peer answers (tcp(7))."""
    sockets = [s for s in _without_listener(situation, CONNECTED) if s.inode == 0]
    hit = blocked(situation, sockets)
    if not hit.endpoints:
        return
    text = _orphans_text(sockets)
    evidence = {**description.as_dict(situation, sockets), "longest_ms": _longest_ms(sockets)}
    yield _blocks("orphan", text, _wait_remedy(situation, sockets), evidence, hit)


def _orphans_text(sockets: list[Socket]) -> str:
    where = format_locals(sockets)
    meaning = _meaning(sockets, ORPHANED)
    if len(sockets) == 1:
        text = f"1 connection on {where} has no owner{meaning}; its process closed it"
    else:
        text = f"{len(sockets)} connections on {where} have no owner{meaning}; their processes closed them"
    longest = _longest_ms(sockets)
    if longest is not None and all(s.ends_in_ms is not None for s in sockets):
        last = "it" if len(sockets) == 1 else "the last"
        text += f"; the kernel ends {last} within {longest / 1000:.0f} s"
    return text


def time_wait(situation: Situation) -> Iterator[Finding]:
    """The side that closes first keeps the port in TIME_WAIT, so that late segments do not reach a new connection."""
    sockets = list(_without_listener(situation, TIME_WAIT))
    hit = blocked(situation, sockets)
    if not hit.endpoints:
        return
    verb = "is" if len(sockets) == 1 else "are"
    text = f"{counted(len(sockets), 'closed connection')} on {format_locals(sockets)} {verb} in TIME_WAIT"
    longest = _longest_ms(sockets)
    if longest is not None:
        text += f" for up to {longest / 1000:.0f} s"
    evidence = {**description.as_dict(situation, sockets), "longest_ms": longest}
    yield _blocks("time-wait", text, _wait_remedy(situation, sockets), evidence, hit)


def _longest_ms(sockets: list[Socket]) -> int | None:
    return max((s.ends_in_ms for s in sockets if s.ends_in_ms is not None), default=None)


def _wait_remedy(situation: Situation, sockets: list[Socket]) -> str:
    wait = "wait until it ends"
    closed = "the closed socket"
    if len(sockets) > 1:
        wait = "wait until they end"
        closed = "the closed sockets"
    if sets_reuse_address(situation):
        return f"{wait}; SO_REUSEADDR helps only if {closed} had set it too"
    return f"set SO_REUSEADDR before bind(), as most servers do, or {wait}"


# --- grouping ------------------------------------------------------------------------------------------------------


def _without_listener(situation: Situation, states: frozenset[str]) -> Iterator[Socket]:
    """Blocking sockets in these states, unless a listener blocks too: then they are its connections."""
    if situation.protocol != "tcp":
        return
    listening = [s for s in situation.sockets if s.state == "LISTEN"]
    if any(blocked(situation, [s]).endpoints for s in listening):
        return
    for s in situation.sockets:
        if s.state in states and blocked(situation, [s]).endpoints:
            yield s


def _blocking_groups(situation: Situation, states: Iterable[str | None]) -> list[list[Socket]]:
    """The groups of sockets in these states that block the bind."""
    return [group for group in _groups(situation, states) if blocked(situation, group[:1]).endpoints]


def _groups(situation: Situation, states: Iterable[str | None]) -> list[list[Socket]]:
    """The sockets in these states, those with the same address and interface together."""
    wanted = frozenset(states)
    groups: dict[tuple[str | None, ...], list[Socket]] = {}
    for s in situation.sockets:
        if s.state in wanted and s.protocol == situation.protocol:
            groups.setdefault(group_key(s), []).append(s)
    return list(groups.values())


def _by_owner(groups: Iterable[list[Socket]]) -> list[list[Socket]]:
    """Sockets of the same owners together: a server often has one for each family, or for each address."""
    merged: dict[tuple[object, ...], list[Socket]] = {}
    for group in groups:
        key: tuple[object, ...] = tuple(sorted(owner.pid for s in group for owner in s.owners))
        if not key:
            key = ("unknown", group[0].uid, group[0].service)
        merged.setdefault(key, []).extend(group)
    return list(merged.values())
