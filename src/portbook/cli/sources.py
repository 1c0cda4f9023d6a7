"""``portbook sources``: the ways to read this machine."""

from __future__ import annotations

import sys

from portbook.cli import base, exits, output


@base.command("sources")
@output.json_option
def command(as_json: bool) -> int:
    """Show the ways to read this machine: available or why not, what each sees and needs.

    The first one that is available is used; --source NAME asks for another one.

    \b
    Examples:
      portbook sources
      portbook list --source psutil
    """
    from portbook import sources

    rows = [(name, sources.missing(name), sources.load(name)) for name in sources.SOURCES]
    if as_json:
        from portbook.render.machine import ENCODER

        output.write_bytes(
            ENCODER.encode(
                {
                    "name": name,
                    "available": reason is None,
                    "why_not": reason,
                    "sees": source.sees,
                    "needs": source.needs,
                    "capabilities": sorted(source.capabilities),
                }
            )
            + b"\n"
            for name, reason, source in rows
        )
    else:
        for name, reason, source in rows:
            sys.stdout.write(f"{name}: {'available' if reason is None else f'not here: {reason}'}\n")
            sys.stdout.write(f"  sees   {source.sees}\n  needs  {source.needs}\n")
    return exits.YES
