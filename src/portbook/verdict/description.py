"""Sockets and their owners in words and as data, and the remedy that frees the port. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from portbook.addresses import format_endpoint
from portbook.managers.supervisor import stop_instruction
from portbook.numerals import join_words
from portbook.records import Owner, Socket
from portbook.verdict.situation import Situation

MOST_AS_DATA = 16  # sockets and owners as data
MOST_PARENTS = 3  # in words
MOST_COMMAND = 80  # characters of a command line, in words
MOST_ARGUMENTS = 64  # as data

OTHER_PORT = "or use another port: portbook free"


# --- in words ------------------------------------------------------------------------------------------------------


def owners_of(sockets: Iterable[Socket]) -> list[Owner]:
    """Distinct owners, in the order of the sockets."""
    return list({owner.pid: owner for s in sockets for owner in s.owners}.values())


def format_local(s: Socket) -> str:
    """``0.0.0.0:80``, ``[::]:80``."""
    return format_endpoint(s.local_address, s.local_port, s.zone)


def locals_of(sockets: Iterable[Socket]) -> list[str]:
    """The distinct local addresses with port, in the order of the sockets."""
    return list(dict.fromkeys(map(format_local, sockets)))


def format_locals(sockets: Iterable[Socket]) -> str:
    """``0.0.0.0:80 and [::]:80``: each local address once."""
    return join_words(locals_of(sockets))


def describe_holders(situation: Situation, sockets: Sequence[Socket], one: str, several: str) -> str:
    """A sentence: who holds the sockets, what they do (in the singular and plural), and where they come from.

    ``nginx (pid 7, user root) listens on 0.0.0.0:80; command: nginx -g daemon; service: nginx.service``
    """
    owners = owners_of(sockets)
    if not owners:
        return f"{_unknown_holder(situation, sockets[0])} {one}"
    verb = one if len(owners) == 1 else several
    return f"{join_words([_owner_in_words(owner) for owner in owners])} {verb}{_origin(situation, owners[0])}"


def _owner_in_words(owner: Owner) -> str:
    user = f", user {owner.user}" if owner.user else ""
    return f"{owner.name or 'unknown program'} (pid {owner.pid}{user})"


def _origin(situation: Situation, owner: Owner) -> str:
    parts: list[str] = []
    command = " ".join(owner.command_line or ())
    if command:
        if len(command) > MOST_COMMAND:
            command = f"{command[:MOST_COMMAND]}..."
        parts.append(f"command: {command}")
    if owner.service:
        parts.append(f"service: {owner.service}")
    if owner.container:
        parts.append(f"container: {owner.container}")
    parents = situation.parents.get(owner.pid, ())[:MOST_PARENTS]
    if parents:
        names = [f"{parent.name or 'unknown program'} (pid {parent.pid})" for parent in parents]
        parts.append(f"parents: {', '.join(names)}")
    return "".join(f"; {part}" for part in parts)


def _unknown_holder(situation: Situation, s: Socket) -> str:
    """No owner is visible; the uid and the creator's cgroup are, or the kernel itself has it."""
    if s.kernel is not None:
        return f"the kernel ({s.kernel})"
    creator = s.container or s.service
    created_in = f" in {creator}" if creator else ""
    if situation.caller.uid == 0 and not situation.caller.in_user_namespace:  # it sees all of its PID namespace
        return f"the kernel or a process of another PID namespace{created_in}"
    if situation.platform == "windows":  # every user sees the pid of a creator, but it may have ended
        return "an unknown process"
    user = f" of user {s.user or s.uid}" if s.uid is not None else ""
    if situation.caller.in_user_namespace:
        return f"an unknown process{user}{created_in}, outside this user namespace"
    return f"an unknown process{user}{created_in} (needs root)"


# --- as data -------------------------------------------------------------------------------------------------------


def as_dict(situation: Situation, sockets: Sequence[Socket]) -> dict[str, Any]:
    """Sockets and owners as evidence of a finding."""
    return {
        "sockets": [_socket_as_dict(s) for s in sockets[:MOST_AS_DATA]],
        "owners": [_owner_as_dict(situation, owner) for owner in owners_of(sockets)[:MOST_AS_DATA]],
        "count": len(sockets),
    }


def _socket_as_dict(s: Socket) -> dict[str, Any]:
    facts = {
        "local": format_local(s),
        "state": s.state,
        "remote": None if s.remote_address is None else f"{s.remote_address} {s.remote_port}",
        "uid": s.uid,
        "v6only": s.v6only,
        "interface": s.interface,
        "inode": s.inode,
        "ends_in_ms": s.ends_in_ms,
        "service": s.service,
        "container": s.container,
        "kernel": s.kernel,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _owner_as_dict(situation: Situation, owner: Owner) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "pid": owner.pid,
        "name": owner.name,
        "user": owner.user,
        "exe": owner.exe,
        "command_line": None if owner.command_line is None else list(owner.command_line[:MOST_ARGUMENTS]),
        "service": owner.service,
        "container": owner.container,
        "parents": [{"pid": p.pid, "name": p.name} for p in situation.parents.get(owner.pid, ())],
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


# --- the remedy ----------------------------------------------------------------------------------------------------


def release_remedy(situation: Situation, sockets: Sequence[Socket]) -> str | None:
    """How to free the port, by its supervisor if it has one; None where another finding has the remedy."""
    owners = owners_of(sockets)
    if situation.platform == "windows" and (_is_kernel(owners) or _is_proxied(situation)):
        return None
    for owner in owners:
        supervisor = situation.supervisors.get(owner.pid)
        command = stop_instruction(supervisor) if supervisor else None
        if command:
            return f"{command.replace('publish=PORT', f'publish={situation.port}')}; {OTHER_PORT}"
    if not owners and sockets[0].kernel is not None:
        return f"{kernel_remedy(sockets[0].kernel, situation.port)}; {OTHER_PORT}"
    if not owners:
        return _visibility_remedy(situation)
    port = str(situation.port)
    if situation.protocol == "udp":
        port += "/udp"
    return f"end the holder: portbook stop {port}; {OTHER_PORT}"


# What takes a part of the kernel off its port, by the first word of its name: ip-link(8), ip-fou(8), ip-l2tp(8),
# rpc.nfsd(8).
KERNEL_REMEDIES = {
    **dict.fromkeys(("vxlan", "geneve", "bareudp", "amt", "gtp", "pfcp", "wireguard"), "ip link delete {}"),
    "fou": "ip fou del port PORT",
    "l2tp": "ip l2tp del tunnel",
    "nfsd": "systemctl stop nfs-server",
}


def kernel_remedy(kernel: str, port: int) -> str:
    """How to take a part of the kernel off its port: ``vxlan vx0`` is an interface that can be deleted."""
    kind, _, name = kernel.partition(" ")
    command = KERNEL_REMEDIES.get(kind)
    # The name of an interface is anybody's text.
    is_plain = name.isascii() and not name.startswith("-") and all(c.isalnum() or c in "-_. " for c in name)
    if command is None or not is_plain:
        return "end it where it is configured"
    return f"end it where it is configured: {command.format(name)}".replace("PORT", str(port))


def setting_remedy(situation: Situation, setting: str) -> str:
    """How to change a setting of the network, such as ``net.ipv4.ip_nonlocal_bind=1``, where it can be changed."""
    if situation.caller.settings == "outside":
        return f"{setting} set from outside this container (docker and podman run --sysctl {setting})"
    return f"sysctl {setting}"


def _visibility_remedy(situation: Situation) -> str:
    """What would show the holder, according to the gaps of the search for owners."""
    hint = next((gap.hint for gap in situation.gaps if gap.what == "owner" and gap.hint), None)
    if hint:
        return f"to see the holder: {hint}; {OTHER_PORT}"
    return OTHER_PORT.removeprefix("or ")


def _is_kernel(owners: Iterable[Owner]) -> bool:
    """Pid 4 of Windows: http.sys."""
    return any(owner.pid == 4 for owner in owners)


def _is_proxied(situation: Situation) -> bool:
    """Whether it is a portproxy, whose service does other work too."""
    return any(proxy.listen_port == situation.port for proxy in situation.proxies)
