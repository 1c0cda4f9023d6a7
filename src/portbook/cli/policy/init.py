"""``portbook policy init``: a policy that allows what listens now."""

from __future__ import annotations

import sys

import click

from portbook.cli import base, exits, output
from portbook.cli.policy import files


@base.command("init")
@files.file_argument
@base.option(
    "-o", "--output", "output_path", metavar="FILE", help="write the policy to this file (default: to standard output)"
)
@base.option("--force", is_flag=True, help="replace an existing file")
@base.option("--source", metavar="NAME", help="read this data source; see portbook sources")
def command(file: str | None, output_path: str | None, force: bool, source: str | None) -> int:
    """Write a policy that allows what listens now.

    Each rule has a comment that says who held the ports, and since when. Rules name executables, users, services and
    containers; a process name stands alone only where nothing better is known. Run it as root: other users do not see
    the processes of others.

    \b
    Examples:
      portbook policy init
      portbook policy init -o policy.toml
    """
    from portbook.render.text import note
    from portbook.watching.policy import learning

    if file is not None and output_path is not None:
        raise click.UsageError("the file is given twice")
    path = file or output_path
    proposal = learning.from_now(source)
    if path is None or path == "-":
        sys.stdout.write(proposal.text)
        sys.stdout.flush()
    else:
        files.write(path, proposal.text, is_new=not force)
        sys.stderr.write(note(f"wrote {path}: {proposal.summary}; check it with portbook policy check {path}"))
    output.write_gaps(proposal.gaps)
    return exits.YES
