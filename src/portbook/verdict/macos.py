"""macOS: read everything that the rules may look at. Written from documentation; never run there."""

from __future__ import annotations

import os

from msgspec.structs import replace

from portbook.netconfig import ephemeral
from portbook.netconfig.facts import Caller
from portbook.verdict import holders
from portbook.verdict.situation import BindRequest, Situation


def gather(request: BindRequest) -> Situation:
    """Read the situation."""
    situation = holders.read(request)
    automatic = ephemeral.take()
    uid = os.geteuid() if hasattr(os, "geteuid") else None
    return replace(
        situation,
        caller=Caller(uid),
        ephemeral=(automatic.low, automatic.high),
        reserved=automatic.reserved,
        gaps=(*situation.gaps, *automatic.gaps, *automatic.reserved_gaps),
    )
