"""macOS: everything the rules may look at. Written from documentation; never run there."""

from __future__ import annotations

import os

from portbook.bind import ephemeral, occupants
from portbook.bind.evidence import Asked, Caller, Evidence


def gather(asked: Asked) -> Evidence:
    """Fill the evidence."""
    sockets, gaps = occupants.on_port(asked)
    automatic = ephemeral.take()
    return Evidence(
        platform="macos",
        port=asked.port,
        protocol=asked.protocol,
        endpoints=asked.endpoints,
        options=asked.options,
        caller=Caller(os.geteuid() if hasattr(os, "geteuid") else None),
        sockets=sockets,
        parents=occupants.parents_of(sockets),
        ephemeral=(automatic.low, automatic.high),
        reserved=automatic.reserved,
        gaps=(*gaps, *automatic.gaps, *automatic.reserved_gaps),
    )
