"""``portbook help``: the help text of a command."""

from __future__ import annotations

import click

from portbook.cli import base, exits


@base.command("help")
@click.argument("name", required=False, metavar="[COMMAND]")
@click.pass_context
def command(ctx: click.Context, name: str | None) -> int:
    """Show the help text of a command, or of portbook.

    \b
    Examples:
      portbook help
      portbook help stop
    """
    from portbook.cli import mistakes, portbook

    assert ctx.parent is not None  # noqa: S101  it runs as a command of portbook
    if name is None:
        click.echo(ctx.parent.get_help())
        return exits.YES
    found = portbook.get_command(ctx.parent, name)
    if found is None:
        raise click.UsageError(mistakes.unknown_topic(name, portbook.list_commands(ctx)), ctx.parent)
    with click.Context(found, info_name=name, parent=ctx.parent) as context:
        click.echo(found.get_help(context))
    return exits.YES
