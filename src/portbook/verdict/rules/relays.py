"""Holders that forward connections: which program is behind the port."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.managers.relay import Relay, behind
from portbook.records import Owner, Socket
from portbook.verdict import description
from portbook.verdict.conflict import WAITING
from portbook.verdict.findings import Finding
from portbook.verdict.situation import Situation


def relays(situation: Situation) -> Iterator[Finding]:
    """docker-proxy, ssh -L, kubectl port-forward, inetd and the like, each once."""
    reported = set()
    for s in situation.sockets:
        if s.state not in WAITING:
            continue
        for owner in s.owners:
            relay = behind(owner, situation.port, situation.protocol, situation.publications)
            if relay is not None and (relay.program, relay.to) not in reported:
                reported.add((relay.program, relay.to))
                yield _finding(s, owner, relay)


def _finding(s: Socket, owner: Owner, relay: Relay) -> Finding:
    container = relay.container
    target = relay.to
    if container and container.partition(":")[2] not in target:
        target += f" ({container})"
    text = f"{relay.program} (pid {owner.pid}) forwards {description.format_local(s)} to {target}"
    if relay.kind == "super-server":
        text = f"{relay.program} (pid {owner.pid}) holds {description.format_local(s)} for {target}"
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
    return Finding("relay", "shadows", text, relay.remedy, known)
