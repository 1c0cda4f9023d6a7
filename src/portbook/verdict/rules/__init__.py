"""The rules, in the order in which their findings are told: who is in the way, then what, then what may come."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.verdict.evidence import Evidence
from portbook.verdict.findings import Finding, Rule
from portbook.verdict.rules import addresses, holders, linux, macos, relays, windows

EVERY = ("linux", "windows", "macos")
# Rule: the systems it is for.
RULES: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (linux.privileged, ("linux",)),
    (windows.excluded, ("windows",)),
    (addresses.foreign, EVERY),
    (addresses.tentative, EVERY),
    (addresses.no_ipv6, EVERY),
    (holders.listeners, EVERY),
    (holders.udp_sockets, EVERY),
    (holders.bound, EVERY),
    (holders.connections, EVERY),
    (holders.orphans, ("linux",)),
    (holders.time_wait, EVERY),
    (windows.http, ("windows",)),
    (windows.proxies, ("windows",)),
    (macos.airplay, ("macos",)),
    (relays.relays, EVERY),
    (linux.nat, ("linux",)),
    (linux.devices, ("linux",)),
    (linux.vrfs, ("linux",)),
    (addresses.wildcards, EVERY),
    (addresses.dual_stack, EVERY),
    (addresses.elsewhere, EVERY),
    (linux.ephemeral, ("linux", "macos")),
    (windows.dynamic, ("windows",)),
    (linux.reserved, ("linux",)),
)


def findings(evidence: Evidence) -> Iterator[Finding]:
    """What every rule of the system has to say."""
    for rule, platforms in RULES:
        if evidence.platform in platforms:
            yield from rule(evidence)
