"""Free ports in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.bind.free import Free
from portbook.render.machine import ENCODER

# What an error says about ports that somebody wants; any other is called by its name.
REFUSED = {
    "EADDRINUSE": "{} in use",
    "EACCES": "{} not allowed to this user",
    "EADDRNOTAVAIL": "the address is not one of this machine",
    "EAFNOSUPPORT": "this machine does not have the address family",
}
PASSED_OVER = {
    "registered": "have a well-known name",
    "reserved": "are reserved by the administrator",
    "ephemeral": "may be taken by outgoing connections",
}


def json(found: Free) -> Iterator[bytes]:
    """One object on one line."""
    yield ENCODER.encode(found) + b"\n"


def caution(found: Free) -> str:
    """What the numbers are worth."""
    them, have = ("them", "portbook lease holds one") if len(found.ports) > 1 else ("it", "portbook lease holds it")
    where = " and ".join(f"[{a}]" if ":" in a else a for a in found.addresses)
    return f"bindable a moment ago, {' and '.join(found.protocols)} on {where}; nothing reserves {them}: {have}"


def shortage(found: Free) -> str:
    """How many were found, and what became of the other numbers."""
    refused = [
        f"{REFUSED.get(name.removeprefix('WSA'), '{} refused').format(n)} ({name})" for name, n in found.refused.items()
    ]
    passed = [f"{n} not tried, as they {PASSED_OVER[reason]}" for reason, n in found.passed_over.items()]
    return f"found {len(found.ports)} of {found.count}: {', '.join(refused + passed) or 'there are no more numbers'}"
