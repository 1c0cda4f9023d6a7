"""Holders that pass connections on: who is really behind the port."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.managers.relay import Relay, read
from portbook.managers.supervisor import container_stop_command
from portbook.records import Owner, Socket
from portbook.verdict import naming
from portbook.verdict.evidence import Evidence
from portbook.verdict.findings import Finding


def relays(evidence: Evidence) -> Iterator[Finding]:
    """docker-proxy, ssh -L, kubectl port-forward and the like, each once."""
    seen = set()
    waiting = [s for s in evidence.sockets if s.state in ("LISTEN", "BOUND", None)]
    for s in waiting:
        for owner in s.owners:
            found = read(owner.command_line, owner.name, owner.exe, evidence.port)
            if found is not None and (found.program, found.to) not in seen:
                seen.add((found.program, found.to))
                yield _finding(evidence, s, owner, found)


def _finding(evidence: Evidence, s: Socket, owner: Owner, relay: Relay) -> Finding:
    container = relay.container or _container(evidence, relay)
    to = f"{relay.to} ({container})" if container and container.partition(":")[2] not in relay.to else relay.to
    text = f"{relay.program} (pid {owner.pid}) on {naming.where(s)} is a relay: behind it is {to}"
    facts = {"pid": owner.pid, "program": relay.program, "to": relay.to, "address": relay.address, "port": relay.port}
    facts |= {"container": container, "command_line": list(owner.command_line or ())[: naming.MOST_ARGUMENTS]}
    remedy = _remedy(container) or relay.remedy
    return Finding("relay", "shadows", text, remedy, {k: v for k, v in facts.items() if v is not None})


def _container(evidence: Evidence, relay: Relay) -> str | None:
    """The container that has the address the relay connects to."""
    if relay.address is None:
        return None
    found = (p.container for p in evidence.publications if relay.address in p.container_addresses)
    return next(found, None)


def _remedy(container: str | None) -> str | None:
    command = container_stop_command(container) if container else None
    return f"{command} lets go of the port" if command else None
