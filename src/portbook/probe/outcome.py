"""What a probe of a port found out: values, never exceptions, each with its evidence.

Outcomes use nmap's words where they exist, because they are the field's standard terms. Silence is never "closed".
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from portbook.records import Protocol

Outcome = Literal[
    "open",  # TCP: the handshake completed; UDP: an answer came
    "closed",  # TCP: RST; UDP: ICMP port unreachable from the target itself
    "filtered",  # a host on the path forbids it and reports that, or (TCP) no answer came
    "open|filtered",  # UDP: no answer came
    "unreachable",  # no route, or ICMP host or network unreachable
    "timeout",  # no answer to one dial within its time limit: weaker than "filtered", which follows repeated attempts
    "name-not-found",  # the name has no address
    "error",  # this machine could not send a probe: no descriptors, no permission, address not usable from here
]
EvidenceKind = Literal["syn-ack", "rst", "icmp", "reply", "silence", "resolver", "errno", "self-connect"]


class Evidence(Struct, frozen=True, gc=False):
    """What was seen on the network, or reported by the system, that the outcome is based on."""

    kind: EvidenceKind
    errno: int | None = None  # errno, or winerror on Windows
    error: str | None = None  # its name: "ECONNREFUSED"
    icmp_type: int | None = None
    icmp_code: int | None = None
    sender: str | None = None  # address that sent the ICMP message: of a router or of the target
    text: str | None = None  # what was recognised in a reply, or the system's error text


class Answer(Struct, frozen=True, gc=False):
    """The outcome of a probe: one port of one address."""

    target: str  # as the user wrote it
    address: str | None  # None: the name has no address
    zone: str | None  # interface name or index of a link-local IPv6 address
    port: int
    protocol: Protocol
    outcome: Outcome
    evidence: Evidence
    rtt_ms: float | None = None  # round trip of the attempt that was answered
    attempts: int = 1
    service: str | None = None  # registered for the port, or recognised in a UDP reply


SILENCE = Evidence("silence")


def describe(evidence: Evidence) -> str:
    """Describe evidence for people: "RST", "ICMP 3/13 from 10.0.0.1", "no answer"."""
    if evidence.kind == "icmp":
        sender = f" from {evidence.sender}" if evidence.sender else ""
        return f"ICMP {evidence.icmp_type}/{evidence.icmp_code}{sender}"
    words = {"syn-ack": "SYN/ACK", "rst": "RST", "silence": "no answer", "self-connect": "connected to itself"}
    word = words.get(evidence.kind, "")
    return ": ".join(part for part in (word, evidence.error, evidence.text) if part)
