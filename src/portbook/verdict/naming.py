"""Holders in words and as data: who they are, where they come from, and how to make them let go. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from portbook.managers.supervisor import stop_instruction
from portbook.records import Owner, Socket
from portbook.verdict.evidence import Evidence

MOST_NAMED = 4  # a server may have forked a hundred workers
MOST_TOLD = 16  # as data
MOST_PARENTS = 3  # in words
MOST_COMMAND = 80  # characters of a command line, in words
MOST_ARGUMENTS = 64  # as data


def owners_of(sockets: Iterable[Socket]) -> list[Owner]:
    """Distinct owners, in the order of the sockets."""
    return list({owner.pid: owner for s in sockets for owner in s.owners}.values())


def where(s: Socket) -> str:
    """``0.0.0.0:80``, ``[::]:80``."""
    zone = f"%{s.zone}" if s.zone else ""
    return f"[{s.local_address}{zone}]:{s.local_port}" if s.family == "ipv6" else f"{s.local_address}:{s.local_port}"


def places(sockets: Iterable[Socket]) -> str:
    """``0.0.0.0:80 and [::]:80``: each place once."""
    names = list(dict.fromkeys(map(where, sockets)))
    if len(names) > MOST_NAMED:
        return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def named(evidence: Evidence, sockets: Sequence[Socket]) -> str:
    """Who holds sockets: names, pids, users, parents, service, container."""
    owners = owners_of(sockets)
    if not owners:
        return _unseen(evidence, sockets[0]) if sockets else "nobody"
    names = [f"{o.name or '?'} (pid {o.pid}{f', user {o.user}' if o.user else ''})" for o in owners[:MOST_NAMED]]
    more = f" and {len(owners) - MOST_NAMED} more" if len(owners) > MOST_NAMED else ""
    return ", ".join(names) + more + _origin(evidence, owners[0])


def _origin(evidence: Evidence, owner: Owner) -> str:
    parents = evidence.parents.get(owner.pid, ())[:MOST_PARENTS]
    command = " ".join(owner.command_line or ())
    facts = (
        ("running ", command[:MOST_COMMAND] + ("..." if len(command) > MOST_COMMAND else "")),
        ("service ", owner.service or ""),
        ("container ", owner.container or ""),
        ("started by ", " < ".join(f"{p.name or '?'} ({p.pid})" for p in parents)),
    )
    return "".join(f", {word}{fact}" for word, fact in facts if fact)


def _unseen(evidence: Evidence, s: Socket) -> str:
    """No owner is visible; the uid and the creator's cgroup are."""
    made = s.container or s.service
    inside = f", made in {made}" if made else ""
    if evidence.caller.uid == 0:  # who may see everything that there is to see here
        return f"no process of this pid namespace: the kernel's own, or another namespace's{inside}"
    user = f" of user {s.user or s.uid}" if s.uid is not None else ""
    return f"a process{user} that is not visible{inside}"


def told(evidence: Evidence, sockets: Sequence[Socket]) -> dict[str, Any]:
    """Sockets and holders as data."""
    return {
        "sockets": [_socket(s) for s in sockets[:MOST_TOLD]],
        "owners": [_owner(evidence, owner) for owner in owners_of(sockets)[:MOST_TOLD]],
        "count": len(sockets),
    }


def _socket(s: Socket) -> dict[str, Any]:
    facts = {
        "local": where(s),
        "state": s.state,
        "remote": None if s.remote_address is None else f"{s.remote_address} {s.remote_port}",
        "uid": s.uid,
        "v6only": s.v6only,
        "interface": s.interface,
        "inode": s.inode,
        "ends_in_ms": s.ends_in_ms,
        "service": s.service,
        "container": s.container,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _owner(evidence: Evidence, owner: Owner) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "pid": owner.pid,
        "name": owner.name,
        "user": owner.user,
        "exe": owner.exe,
        "command_line": None if owner.command_line is None else list(owner.command_line[:MOST_ARGUMENTS]),
        "service": owner.service,
        "container": owner.container,
        "parents": [{"pid": p.pid, "name": p.name} for p in evidence.parents.get(owner.pid, ())],
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def remedy(evidence: Evidence, sockets: Sequence[Socket]) -> str | None:
    """How to make the holder let go, by whoever would start it again; None where another finding says it."""
    owners = owners_of(sockets)
    if evidence.platform == "windows" and (_is_kernel(owners) or _is_proxied(evidence)):
        return None
    other = "or take another port: portbook free"
    for owner in owners:
        found = evidence.supervisors.get(owner.pid)
        if found and (command := stop_instruction(found)):
            return f"{command.replace('publish=PORT', f'publish={evidence.port}')}, {other}"
    asked = f"{evidence.port}/udp" if evidence.protocol == "udp" else str(evidence.port)
    return f"portbook stop {asked} ends the holder, {other}" if owners else _sight(evidence)


def _sight(evidence: Evidence) -> str:
    """What would show the holder: who looked for owners has said it."""
    hint = next((gap.hint for gap in evidence.gaps if gap.what == "owner" and gap.hint), None)
    return (
        f"to see the holder: {hint}; or take another port: portbook free"
        if hint
        else "take another port: portbook free"
    )


def _is_kernel(owners: Iterable[Owner]) -> bool:
    """Pid 4 of Windows: http.sys."""
    return any(owner.pid == 4 for owner in owners)


def _is_proxied(evidence: Evidence) -> bool:
    """The service behind a portproxy does much else."""
    return any(proxy.listen_port == evidence.port for proxy in evidence.proxies)
