"""``portbook help``: the help text of a command."""

from __future__ import annotations

import click

from portbook.cli import base, exits


@base.command("help")
@click.argument("name", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def command(ctx: click.Context, name: tuple[str, ...]) -> int:
    """Show the help text of a command, or of portbook.

    \b
    Examples:
      portbook help
      portbook help stop
    """
    from portbook.cli import mistakes, portbook

    assert ctx.parent is not None  # noqa: S101  it runs as a command of portbook
    if not name:
        click.echo(ctx.parent.get_help())
        return exits.YES
    context = ctx.parent
    group: click.Group = portbook
    for at, word in enumerate(name):
        found = group.get_command(context, word)
        if found is None:
            topic = " ".join([*name[:at], word])
            raise click.UsageError(mistakes.unknown_topic(topic, group.list_commands(context)), ctx.parent)
        context = click.Context(found, info_name=word, parent=context)
        if not isinstance(found, click.Group):
            break
        group = found
    click.echo(context.command.get_help(context))
    return exits.YES
