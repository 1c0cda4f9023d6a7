"""Holders that forward connections: which program is behind the port."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.managers.relay import Relay, identify
from portbook.managers.supervisor import container_stop_command
from portbook.records import Owner, Socket
from portbook.verdict import description
from portbook.verdict.conflict import WAITING
from portbook.verdict.findings import Finding
from portbook.verdict.situation import Situation


def relays(situation: Situation) -> Iterator[Finding]:
    """docker-proxy, ssh -L, kubectl port-forward and the like, each once."""
    reported = set()
    for s in situation.sockets:
        if s.state not in WAITING:
            continue
        for owner in s.owners:
            relay = identify(owner.command_line, owner.name, owner.exe, situation.port)
            if relay is not None and (relay.program, relay.to) not in reported:
                reported.add((relay.program, relay.to))
                yield _finding(situation, s, owner, relay)


def _finding(situation: Situation, s: Socket, owner: Owner, relay: Relay) -> Finding:
    container = relay.container or _container(situation, relay)
    target = relay.to
    if container and container.partition(":")[2] not in target:
        target += f" ({container})"
    text = f"{relay.program} (pid {owner.pid}) forwards {description.format_local(s)} to {target}"
    evidence = {
        "pid": owner.pid,
        "program": relay.program,
        "to": relay.to,
        "address": relay.address,
        "port": relay.port,
        "container": container,
        "command_line": list(owner.command_line or ())[: description.MOST_ARGUMENTS],
    }
    known = {name: fact for name, fact in evidence.items() if fact is not None}
    return Finding("relay", "shadows", text, _container_remedy(container) or relay.remedy, known)


def _container(situation: Situation, relay: Relay) -> str | None:
    """The container that has the address the relay connects to."""
    if relay.address is None:
        return None
    return next((p.container for p in situation.publications if relay.address in p.container_addresses), None)


def _container_remedy(container: str | None) -> str | None:
    command = container_stop_command(container) if container else None
    if command is None:
        return None
    return f"{command} frees the port"
