"""``portbook sources``: the data sources of this machine."""

from __future__ import annotations

import sys

from portbook.cli import base, exits, output


@base.command("sources")
@output.json_option
def command(as_json: bool) -> int:
    """Show the data sources of this machine.

    Each is shown with what it sees, what it needs, and whether it is available. The commands use the first source
    that is available; --source NAME selects another one.

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
        from portbook.escaping import safe
        from portbook.render.text import style_of, wrap

        style = style_of(sys.stdout)
        indent = " " * len("  sees   ")
        for name, reason, source in rows:
            state = "available" if reason is None else f"not available: {reason.removeprefix(f'{name}: ')}"
            lines = wrap(f"{name}: {safe(state)}", style, "", indent)
            lines += wrap(source.sees, style, "  sees   ", indent)
            lines += wrap(source.needs, style, "  needs  ", indent)
            sys.stdout.write("".join(f"{line}\n" for line in lines))
    return exits.YES
