"""What macOS does with ports.

Source: "Use AirPlay Receiver" on support.apple.com; ControlCenter holds 5000 and 7000 since macOS 12.
"""

from __future__ import annotations

from collections.abc import Iterator

from portbook.records import Owner
from portbook.verdict import naming
from portbook.verdict.conflict import stopped
from portbook.verdict.evidence import Evidence
from portbook.verdict.findings import Finding

AIRPLAY_PORTS = (5000, 7000)
AIRPLAY_OWNERS = ("ControlCenter", "ControlCe")  # lsof cuts names at nine characters


def airplay(evidence: Evidence) -> Iterator[Finding]:
    """The most asked question about port 5000."""
    if evidence.port not in AIRPLAY_PORTS or evidence.protocol != "tcp":
        return
    found = [s for s in evidence.sockets if s.state == "LISTEN" and _may_be_airplay(s.owners)]
    if found:
        sure = all(s.owners for s in found)
        text = f"AirPlay Receiver {'has' if sure else 'probably has'} the port: {naming.named(evidence, found)}"
        remedy = "System Settings, General, AirDrop & Handoff: switch AirPlay Receiver off; or take another port"
        hit = stopped(evidence, found)
        facts = naming.told(evidence, found)
        yield Finding("airplay", "shadows", text, remedy, facts, hit.endpoints, "certain" if sure else "likely")


def _may_be_airplay(owners: tuple[Owner, ...]) -> bool:
    """Without root nobody sees that ControlCenter of the own user; then the port number speaks."""
    return not owners or any(o.name in AIRPLAY_OWNERS for o in owners)
