"""Free ports in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.addresses import format_endpoint
from portbook.bind.free import Free
from portbook.numerals import join_words
from portbook.render.machine import ENCODER

# What a bind error means for the ports that met it, by its POSIX name; any other error is shown by its name.
REFUSED = {
    "EADDRINUSE": "{} in use",
    "EACCES": "permission denied for {}",
    "EADDRNOTAVAIL": "this machine does not have the address",
    "EAFNOSUPPORT": "this machine does not have the address family",
}
SKIPPED = {
    "registered": "they have a service name",
    "reserved": "the administrator reserved them",
    "ephemeral": "outgoing connections may get them",
    "redirected": "NAT rules send their packets elsewhere",
}


def json(answer: Free) -> Iterator[bytes]:
    """One object on one line."""
    yield ENCODER.encode(answer) + b"\n"


def caution(answer: Free) -> str:
    """That the ports are not reserved."""
    addresses = " and ".join(map(format_endpoint, answer.addresses))
    protocols = " and ".join(answer.protocols)
    return f"free a moment ago ({protocols} on {addresses}), but not reserved: use portbook lease to hold a port"


def redirections(answer: Free) -> str:
    """That packets to some of the ports go elsewhere; empty if they do not."""
    if not answer.redirected:
        return ""
    ports = join_words([str(port) for port in answer.redirected])
    return f"NAT rules send packets to {ports} elsewhere: portbook why {answer.redirected[0]} shows where"


def shortage(answer: Free) -> str:
    """How many ports were found, and what happened to the other numbers."""
    reasons: list[str] = []
    for name, count in answer.refused.items():
        meaning = REFUSED.get(name.removeprefix("WSA"), "{} refused").format(count)
        reasons.append(f"{meaning} ({name})")
    for reason, count in answer.passed_over.items():
        reasons.append(f"{count} skipped because {SKIPPED[reason]}")
    why = ", ".join(reasons) or "there are no more numbers"
    return f"found {len(answer.ports)} of {answer.count}: {why}"
