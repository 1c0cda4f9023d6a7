"""What a probe of a port found out: values, never exceptions, and the evidence each rests on.

Outcomes use nmap's words where they exist, because they are the field's. Silence is never "closed".
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from portbook.records import Protocol

Outcome = Literal[
    "open",  # TCP: the handshake completed; UDP: an answer came
    "closed",  # TCP: RST; UDP: ICMP port unreachable from the target itself
    "filtered",  # somebody on the way forbids it and says so, or (TCP) nothing at all was heard
    "open|filtered",  # UDP: nothing was heard
    "unreachable",  # no route, or ICMP host or network unreachable
    "timeout",  # the time limit of one dial passed in silence: it says less than "filtered", which was asked again
    "name-not-found",  # the name has no address
    "error",  # this machine could not ask: no descriptors, no permission, address not usable from here
]
EvidenceKind = Literal["syn-ack", "rst", "icmp", "reply", "silence", "resolver", "errno", "self-connect"]


class Evidence(Struct, frozen=True, gc=False):
    """What was seen on the wire, or said by the system, that the outcome rests on."""

    kind: EvidenceKind
    errno: int | None = None  # errno, or winerror on Windows
    error: str | None = None  # its name: "ECONNREFUSED"
    icmp_type: int | None = None
    icmp_code: int | None = None
    sender: str | None = None  # who sent the ICMP message: the address of a router or of the target
    text: str | None = None  # in words: what was recognised in a reply, or what the system said


class Answer(Struct, frozen=True, gc=False):
    """One port of one address, asked."""

    target: str  # as the user wrote it
    address: str | None  # None: the name has none
    zone: str | None  # interface name or index of a link-local IPv6 address
    port: int
    protocol: Protocol
    outcome: Outcome
    evidence: Evidence
    rtt_ms: float | None = None  # of the attempt that was answered
    attempts: int = 1
    service: str | None = None  # registered for the port, or recognised in a UDP reply


SILENCE = Evidence("silence")


def in_words(evidence: Evidence) -> str:
    """The evidence as a person reads it: "RST", "ICMP 3/13 from 10.0.0.1", "no answer"."""
    if evidence.kind == "icmp":
        sender = f" from {evidence.sender}" if evidence.sender else ""
        return f"ICMP {evidence.icmp_type}/{evidence.icmp_code}{sender}"
    words = {"syn-ack": "SYN/ACK", "rst": "RST", "silence": "no answer", "self-connect": "connected to itself"}
    word = words.get(evidence.kind, "")
    return ": ".join(part for part in (word, evidence.error, evidence.text) if part)
