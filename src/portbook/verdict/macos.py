"""macOS: everything the rules may look at. Written from documentation; never run there."""

from __future__ import annotations

import os

from msgspec.structs import replace

from portbook.netconfig import ephemeral
from portbook.netconfig.facts import Caller
from portbook.verdict import occupants
from portbook.verdict.evidence import Asked, Evidence


def gather(asked: Asked) -> Evidence:
    """Fill the evidence."""
    found = occupants.evidence(asked)
    automatic = ephemeral.take()
    return replace(
        found,
        caller=Caller(os.geteuid() if hasattr(os, "geteuid") else None),
        ephemeral=(automatic.low, automatic.high),
        reserved=automatic.reserved,
        gaps=(*found.gaps, *automatic.gaps, *automatic.reserved_gaps),
    )
