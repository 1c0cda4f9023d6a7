"""``portbook policy explain``: which rule decides about a port, and why."""

from __future__ import annotations

import sys

import click

from portbook.cli import base, exits, output
from portbook.cli.policy import files


@base.command("explain")
@click.argument("query", nargs=-1, required=True, metavar="PORT|QUERY...")
@files.policy_option
@base.option("--source", metavar="NAME", help="read this data source; see portbook sources")
@output.json_option
def command(query: tuple[str, ...], path: str | None, source: str | None, as_json: bool) -> int:
    """Show which rule decides about a port, and why.

    Each socket that waits on the port is shown with the rule that decides, and every rule about the port with what
    it says about this socket. Without a socket, the rules are shown that would decide. QUERY selects sockets as in
    portbook list.

    \b
    Examples:
      portbook policy explain 8080
      portbook policy explain 53/udp --policy policy.toml
      portbook policy explain process:nginx
    """
    from portbook.query import parse

    wanted = parse(" ".join(query))
    policy = files.read(path)

    from portbook.render import policy_explanation as render
    from portbook.watching.policy import explanation

    answer = explanation.explain(policy, wanted, source=source)
    if as_json:
        output.write_bytes(render.json(answer))
        return exits.YES
    from portbook.render.text import style_of

    sys.stdout.write("".join(f"{line}\n" for line in render.lines(answer, style_of(sys.stdout))))
    sys.stdout.flush()
    output.write_gaps(answer.gaps)
    return exits.YES
