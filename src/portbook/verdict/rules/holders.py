"""Sockets on the port: who has it, and in what state. Every system.

Sources: socket(7), ip(7), tcp(7); RFC 9293 sections 3.3.2 (states) and 3.6.1 (TIME_WAIT); sd_listen_fds(3),
launchd.plist(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from portbook.records import Owner, Socket
from portbook.verdict import naming
from portbook.verdict.conflict import is_group, joins, place, reuses, stopped
from portbook.verdict.evidence import Evidence
from portbook.verdict.findings import Finding, FindingCode

CONNECTED = frozenset(("ESTABLISHED", "SYN_SENT", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING"))
# A TIME_WAIT lasts twice the longest life of a segment: 60 s on Linux (TCP_TIMEWAIT_LEN), 30 s on macOS, and what
# TcpTimedWaitDelay says on Windows.
REUSE = "set SO_REUSEADDR"


def listeners(evidence: Evidence) -> Iterator[Finding]:
    """Sockets that listen, each place once."""
    alone: list[list[Socket]] = []
    for group in _places(evidence, ("LISTEN",)):
        if manager := _manager(group):
            yield _activated(evidence, group, manager)
        elif is_group(evidence, group[0]):
            yield _group(evidence, group)
        else:
            alone.append(group)
    for sockets in _by_owner(alone):
        verb = "listens" if len(sockets) == 1 else "listen"
        yield _finding(evidence, "listener", sockets, f"{naming.places(sockets)} {verb}")
    for group in _groups(evidence, ("LISTEN",)):
        if not stopped(evidence, group[:1]).endpoints:
            yield from _joined(evidence, group)


def _finding(evidence: Evidence, code: FindingCode, sockets: list[Socket], what: str) -> Finding:
    """Sockets of one holder that are all in the way."""
    text = f"{what}: {naming.named(evidence, sockets)}"
    facts, remedy = naming.told(evidence, sockets), naming.remedy(evidence, sockets)
    return Finding(code, "blocks", text, remedy, facts, *stopped(evidence, sockets))


def _group(evidence: Evidence, group: list[Socket]) -> Finding:
    option, join = SHARING_OPTION.get(evidence.platform, ("SO_REUSEPORT", _joining(group)))
    text = f"{len(group)} sockets share {naming.where(group[0])} ({option}): {naming.named(evidence, group)}"
    remedy = join + (naming.remedy(evidence, group) or "")
    facts = naming.told(evidence, group)
    return Finding("reuseport-group", "blocks", text, remedy or None, facts, *stopped(evidence, group))


# Windows has no SO_REUSEPORT: there SO_REUSEADDR lets anybody share, and who gets a connection is not defined.
SHARING_OPTION = {"windows": ("SO_REUSEADDR", "")}


def _joining(group: list[Socket]) -> str:
    users = " or ".join(sorted({str(s.user or s.uid) for s in group}))
    return f"a process of user {users} joins them with SO_REUSEPORT; else "


def _joined(evidence: Evidence, group: list[Socket]) -> Iterator[Finding]:
    """No obstacle, and not alone: the kernel spreads connections over all sockets that share a port (socket(7))."""
    names = tuple(str(e) for e in evidence.endpoints if joins(evidence, group[0], e))
    if names:
        some = f"{len(group)} sockets share {naming.where(group[0])} (SO_REUSEPORT)"
        text = f"{some}, this would be one more, with its part of the connections: {naming.named(evidence, group)}"
        yield Finding("reuseport-group", "shadows", text, None, naming.told(evidence, group), names)


def _activated(evidence: Evidence, group: list[Socket], manager: Owner) -> Finding:
    """Ending the service is of no use: the manager keeps the socket, and starts it again."""
    unit = next((evidence.activated[s.inode] for s in group if s.inode in evidence.activated), None)
    others = [f"{o.name or '?'} (pid {o.pid})" for o in naming.owners_of(group) if o.pid != manager.pid]
    has = f"; {', '.join(others[:4])} was given it" if others else ""
    text = f"{manager.name} (pid {manager.pid}) holds {naming.where(group[0])} for {unit or 'a service'}{has}"
    facts = {**naming.told(evidence, group), "unit": unit, "manager": manager.pid}
    remedy = _deactivation(manager, unit)
    return Finding("socket-activation", "blocks", text, remedy, facts, *stopped(evidence, group))


def _deactivation(manager: Owner, unit: str | None) -> str:
    if manager.name == "launchd":
        return "launchctl print system tells whose it is; launchctl bootout ends it"
    user = "" if manager.pid == 1 else " --user"
    if unit is None:
        return f"systemctl{user} list-sockets names its unit; stop that, not the service"
    return f"systemctl{user} stop {unit}: to stop the service alone does not free the port"


def _manager(group: list[Socket]) -> Owner | None:
    """systemd, the machine's or a user's, and launchd. Inside a container pid 1 is mostly a server."""
    return next((o for o in naming.owners_of(group) if _is_manager(o)), None)


def _is_manager(owner: Owner) -> bool:
    if owner.name == "launchd":
        return owner.pid == 1
    # The cgroup in which systemd keeps itself: https://systemd.io/CGROUP_DELEGATION.
    return owner.name == "systemd" and (owner.pid == 1 or (owner.cgroup or "").endswith("/init.scope"))


def udp_sockets(evidence: Evidence) -> Iterator[Finding]:
    """UDP has no listening: who is bound has the port, connected or not (RFC 768)."""
    if evidence.protocol != "udp":
        return
    alone: list[list[Socket]] = []
    for group in _places(evidence, (None, "ESTABLISHED")):
        if manager := _manager(group):
            yield _activated(evidence, group, manager)
        else:
            alone.append(group)
    for sockets in _by_owner(alone):
        verb = "is bound" if len(sockets) == 1 else "are bound"
        yield _finding(evidence, "udp-socket", sockets, f"{naming.places(sockets)}/udp {verb}")


def bound(evidence: Evidence) -> Iterator[Finding]:
    """TCP sockets that took the port and never listened, which most tools do not show."""
    for sockets in _by_owner(_places(evidence, ("BOUND",))):
        verb = "is bound and does not listen" if len(sockets) == 1 else "are bound and do not listen"
        found = _finding(evidence, "bound-only", sockets, f"{naming.places(sockets)} {verb}")
        if not reuses(evidence):
            helps = f"{REUSE}, which helps if the holder has it too; else {found.remedy}"
            found = replace(found, remedy=helps)
        yield found


def connections(evidence: Evidence) -> Iterator[Finding]:
    """Connections that keep the port after their listener has ended, or that chose it by chance."""
    found = [s for s in _left_over(evidence, CONNECTED) if s.inode != 0]
    hit = stopped(evidence, found)
    if not hit.endpoints:
        return
    some = "1 connection has" if len(found) == 1 else f"{len(found)} connections have"
    text = f"{some} {naming.where(found[0])} as its own end: {naming.named(evidence, found)}"
    remedy = "wait until it is closed, or end its process; net.ipv4.ip_local_reserved_ports keeps chance away"
    if evidence.platform != "linux":
        remedy = "wait until it is closed, or end its process"
    facts = naming.told(evidence, found)
    yield Finding("connection", "blocks", text, remedy, facts, *hit)


def orphans(evidence: Evidence) -> Iterator[Finding]:
    """Linux: closed by their process, kept by the kernel until the peer has answered or time is up (tcp(7))."""
    found = [s for s in _left_over(evidence, CONNECTED) if s.inode == 0]
    hit = stopped(evidence, found)
    if not hit.endpoints:
        return
    states = "/".join(dict.fromkeys(str(s.state) for s in found))
    rest = [s.ends_in_ms for s in found if s.ends_in_ms is not None]
    until = f"; the last ends in {max(rest) / 1000:.0f} s" if len(rest) == len(found) else ""
    some = "1 connection" if len(found) == 1 else f"{len(found)} connections"
    text = f"nobody owns {some} on {naming.where(found[0])} in {states}: closed, and the peer has not answered{until}"
    remedy = _waiting(evidence, found)
    facts = {**naming.told(evidence, found), "longest_ms": max(rest, default=None)}
    yield Finding("orphan", "blocks", text, remedy, facts, *hit)


def time_wait(evidence: Evidence) -> Iterator[Finding]:
    """The side that closes first keeps the port for a while, so that late segments meet nobody else."""
    found = list(_left_over(evidence, ("TIME_WAIT",)))
    hit = stopped(evidence, found)
    if not hit.endpoints:
        return
    rest = [s.ends_in_ms for s in found if s.ends_in_ms is not None]
    some = "1 closed connection is" if len(found) == 1 else f"{len(found)} closed connections are"
    until = f"; the last ends in {max(rest) / 1000:.0f} s" if rest else ""
    text = f"{some} in TIME_WAIT on {naming.where(found[0])}{until}"
    facts = {**naming.told(evidence, found), "longest_ms": max(rest, default=None)}
    yield Finding("time-wait", "blocks", text, _waiting(evidence, found), facts, *hit)


def _waiting(evidence: Evidence, found: list[Socket]) -> str:
    what = "it" if len(found) == 1 else "them"
    if reuses(evidence):
        return f"wait for {what}; SO_REUSEADDR helps only if the socket that was closed had it too"
    return f"{REUSE} before the bind, as servers do, or wait for {what}"


def _left_over(evidence: Evidence, states: Iterable[str]) -> Iterator[Socket]:
    """Sockets in these states that no listener explains: of a running server they are the consequence."""
    if evidence.protocol != "tcp":
        return
    served = any(s.state == "LISTEN" and stopped(evidence, [s]).endpoints for s in evidence.sockets)
    if not served:
        wanted = frozenset(states)
        yield from (s for s in evidence.sockets if s.state in wanted and stopped(evidence, [s]).endpoints)


def _places(evidence: Evidence, states: Iterable[str | None]) -> list[list[Socket]]:
    """Those of the groups that are in the way."""
    return [group for group in _groups(evidence, states) if stopped(evidence, group[:1]).endpoints]


def _groups(evidence: Evidence, states: Iterable[str | None]) -> list[list[Socket]]:
    """The sockets in these states, those of one place together."""
    wanted = frozenset(states)
    groups: dict[tuple[str | None, ...], list[Socket]] = {}
    for s in evidence.sockets:
        if s.state in wanted and s.protocol == evidence.protocol:
            groups.setdefault(place(s), []).append(s)
    return list(groups.values())


def _by_owner(groups: Iterable[list[Socket]]) -> list[list[Socket]]:
    """Sockets of the same holders together: a server mostly has one for each family, or for each address."""
    merged: dict[tuple[object, ...], list[Socket]] = {}
    for group in groups:
        holder = (*sorted(o.pid for s in group for o in s.owners),) or ("not seen", group[0].uid, group[0].service)
        merged.setdefault(holder, []).extend(group)
    return list(merged.values())
