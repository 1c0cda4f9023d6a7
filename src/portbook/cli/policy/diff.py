"""``portbook policy diff``: what differs between two policies."""

from __future__ import annotations

import sys

import click

from portbook.cli import base, exits, output
from portbook.cli.policy import files


@base.command("diff")
@click.argument("old", metavar="OLD")
@click.argument("new", required=False, metavar="[NEW]")
@files.policy_option
@base.option("--now", is_flag=True, help="show which of the ports in use they judge differently, too")
@base.option("--source", metavar="NAME", help="read this data source; see portbook sources")
@output.json_option
def command(old: str, new: str | None, path: str | None, now: bool, source: str | None, as_json: bool) -> int:
    """Compare two policies.

    Rules are compared by what they say, not by their order or comments. With one file, it is compared with the policy
    in force. The exit code is 0 if they say the same, and 1 if not.

    \b
    Examples:
      portbook policy diff old.toml new.toml
      portbook policy diff new.toml --now
    """
    if new is None:
        first, second = files.read(path), files.read(old)
    else:
        if path is not None:
            raise click.UsageError("the policy is given twice")
        first, second = files.read(old), files.read(new)

    from portbook.render import policy_difference as render
    from portbook.watching.policy import difference

    answer = difference.compare_now(first, second, source=source) if now else difference.compare(first, second)
    if as_json:
        output.write_bytes(render.json(answer))
    else:
        from portbook.render.text import style_of

        sys.stdout.write("".join(f"{line}\n" for line in render.lines(answer, style_of(sys.stdout))))
        sys.stdout.flush()
        output.write_gaps(answer.gaps)
    return exits.YES if answer.same else exits.NO
