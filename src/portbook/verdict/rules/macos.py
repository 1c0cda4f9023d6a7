"""What macOS does with ports.

Source: "Use AirPlay Receiver" on support.apple.com; ControlCenter holds 5000 and 7000 since macOS 12.
"""

from __future__ import annotations

from collections.abc import Iterator

from portbook.records import Confidence, Owner
from portbook.verdict import description
from portbook.verdict.conflict import blocked
from portbook.verdict.findings import Finding
from portbook.verdict.situation import Situation

AIRPLAY_PORTS = (5000, 7000)
AIRPLAY_OWNERS = ("ControlCenter", "ControlCe")  # lsof cuts names at nine characters


def airplay(situation: Situation) -> Iterator[Finding]:
    """AirPlay Receiver, the most common holder of port 5000."""
    if situation.port not in AIRPLAY_PORTS or situation.protocol != "tcp":
        return
    sockets = [s for s in situation.sockets if s.state == "LISTEN" and _may_be_airplay(s.owners)]
    if not sockets:
        return
    known = all(s.owners for s in sockets)
    confidence: Confidence = "certain"
    holds = "holds"
    if not known:
        confidence = "likely"
        holds = "probably holds"
    text = f"AirPlay Receiver of macOS {holds} {description.format_locals(sockets)}"
    remedy = "turn off AirPlay Receiver in System Settings, General, AirDrop & Handoff; " + description.OTHER_PORT
    evidence = description.as_dict(situation, sockets)
    yield Finding("airplay", "shadows", text, remedy, evidence, blocked(situation, sockets).endpoints, confidence)


def _may_be_airplay(owners: tuple[Owner, ...]) -> bool:
    """Without root the system hides ControlCenter even from its own user; then the port number decides."""
    return not owners or any(owner.name in AIRPLAY_OWNERS for owner in owners)
