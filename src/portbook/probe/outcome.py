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
    "timeout",  # a scan: no answer, and fewer attempts than planned: its host was given up, or the time was up
    "name-not-found",  # the resolver reports that the name has no address
    "error",  # this machine could not send a probe: no descriptors, no permission, address not usable from here
    "lookup-failed",  # the resolver gave no answer about the name, or could not find out at present
]
# Outcomes of a name, not of a port: it has no address that could be probed.
WITHOUT_ADDRESS: frozenset[Outcome] = frozenset(("name-not-found", "lookup-failed"))
ServiceOrigin = Literal[
    "registered",  # the name registered for the port: a guess, another service may answer there
    "reply",  # recognised in a UDP reply
    "banner",  # recognised in what the service said first
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
    service: str | None = None  # its name; ``service_origin`` says how far it can be trusted
    service_origin: ServiceOrigin | None = None
    pid: int | None = None  # of a process that holds the port, if the address is one of this machine
    process: str | None = None  # its name
    banner: str | None = None  # what the service said before it was asked, if that was requested


SILENCE = Evidence("silence")


def describe(evidence: Evidence) -> str:
    """Describe evidence for people: "RST", "ICMP 3/13 from 10.0.0.1", "no answer"."""
    if evidence.kind == "icmp":
        sender = f" from {evidence.sender}" if evidence.sender else ""
        return f"ICMP {evidence.icmp_type}/{evidence.icmp_code}{sender}"
    words = {"syn-ack": "SYN/ACK", "rst": "RST", "silence": "no answer", "self-connect": "connected to itself"}
    word = words.get(evidence.kind, "")
    return ": ".join(part for part in (word, evidence.error, evidence.text) if part)


# Why a port cannot be used, in a word: an outcome whose evidence is silence is "silent".
REASONS: dict[Outcome, str] = {
    "open": "open",
    "closed": "refused",
    "filtered": "filtered",
    "open|filtered": "silent",
    "unreachable": "unreachable",
    "timeout": "silent",
    "name-not-found": "name not found",
    "error": "could not be dialed",
    "lookup-failed": "name lookup failed",
}


def describe_reason(outcome: Outcome, evidence: Evidence) -> str:
    """Describe why a port cannot be used: "refused", "silent", "unreachable: ICMP 3/1 from 10.0.0.1"."""
    if evidence.kind == "silence":
        return "silent"
    if evidence.kind == "syn-ack" and evidence.text:
        return evidence.text
    if outcome in ("closed", "name-not-found"):
        return REASONS[outcome]
    return ": ".join(part for part in (REASONS[outcome], describe(evidence)) if part)
