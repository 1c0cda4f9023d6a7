"""The rules, in the order in which their findings are reported: who blocks the bind, then what, then warnings."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.verdict.findings import Finding, Rule
from portbook.verdict.rules import addresses, holders, linux, macos, relays, windows
from portbook.verdict.situation import Situation

EVERY = ("linux", "windows", "macos")
# Rule: the systems it is for.
RULES: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (linux.privileged, ("linux",)),
    (windows.excluded, ("windows",)),
    (addresses.not_local, EVERY),
    (addresses.not_unicast, EVERY),
    (addresses.tentative, EVERY),
    (addresses.no_ipv6, EVERY),
    (holders.listeners, EVERY),
    (holders.udp_sockets, EVERY),
    (holders.bound_only, EVERY),
    (holders.connections, EVERY),
    (holders.orphans, ("linux",)),
    (holders.time_wait, EVERY),
    (windows.http, ("windows",)),
    (windows.proxies, ("windows",)),
    (macos.airplay, ("macos",)),
    (relays.relays, EVERY),
    (linux.nat, ("linux",)),
    (linux.transparent_proxies, ("linux",)),
    (linux.load_balancers, ("linux",)),
    (linux.socket_lookups, ("linux",)),
    (linux.devices, ("linux",)),
    (linux.vrfs, ("linux",)),
    (addresses.wildcards, EVERY),
    (addresses.dual_stack, EVERY),
    (addresses.other_addresses, EVERY),
    (linux.ephemeral, ("linux", "macos")),
    (windows.dynamic, ("windows",)),
    (linux.reserved, ("linux",)),
)


def apply_rules(situation: Situation) -> Iterator[Finding]:
    """The findings of every rule of the system."""
    for rule, platforms in RULES:
        if situation.platform in platforms:
            yield from rule(situation)
