"""The command line: a table of commands, each imported when it is run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from portbook.cli import startup

startup.prepare()

import click  # noqa: E402  after what it need not import is deferred

from portbook.cli.base import VERSION, Group  # noqa: E402

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# name: module. A bare "portbook", or one that starts with an option or a query, is DEFAULT.
COMMANDS = {
    "list": "list_",
    "who": "who",
    "why": "why",
    "dial": "dial",
    "wait": "wait",
    "free": "free",
    "lease": "lease",
    "stop": "stop",
    "scan": "scan",
    "probe": "probe",
    "watch": "watch",
    "history": "history",
    "policy": "policy",
    "sources": "sources",
    "man": "man",
    "help": "help",
}
DEFAULT = "list"

CONTEXT = {"max_content_width": 100}


class Portbook(Group):
    """Finds a command by name in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"portbook.cli.{COMMANDS[cmd_name]}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put DEFAULT in front of an option or a term of a query; raise click.UsageError for other words."""
        if ctx.resilient_parsing and not args:
            return super().parse_args(ctx, args)  # completing the first word
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if not args:
            args = [DEFAULT]
        elif args[0] not in own and args[0] not in COMMANDS:
            args = [DEFAULT, *args] if ctx.resilient_parsing else _with_default(ctx, args)
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete commands, and options of DEFAULT, which may come first."""
        items = super().shell_complete(ctx, incomplete)
        default = self.get_command(ctx, DEFAULT)
        if incomplete.startswith("-") and default is not None:
            items += default.shell_complete(click.Context(default, info_name=DEFAULT, parent=ctx), incomplete)
        return items


def _with_default(ctx: click.Context, args: list[str]) -> list[str]:
    """DEFAULT and its arguments. A word that only a process may be called is more likely a command misspelt."""
    word = args[0]
    if word[:1] in "-0123456789" or ":" in word:
        return [DEFAULT, *args]
    from portbook.cli import mistakes

    if word.lower() not in mistakes.COMMAND_OF:
        from portbook.query.grammar import is_term

        if is_term(word):
            return [DEFAULT, *args]
    raise click.UsageError(mistakes.unknown_command(args, COMMANDS, DEFAULT), ctx)


@click.group(cls=Portbook, context_settings=CONTEXT, params=[VERSION])
def portbook() -> None:
    """The register of every TCP and UDP port of this machine.

    Without a command, portbook lists the sockets that listen, are bound, or are unconnected, and their owners. The
    options and the query of list may then be given alone; portbook list --help shows them.

    \b
    Examples:
      portbook                          list the ports and who holds them
      portbook -p 8000-8100 --all       every socket with one of these ports
      portbook 8080/tcp                 the sockets that wait on this port
      portbook list --help              show the options of list
      portbook who 8080                 show which processes hold this port
      portbook why 8080                 explain why it cannot be bound
      portbook stop 8080                end the processes that hold it

    \b
    Exit codes:
      0    yes, or done
      1    no
      2    wrong usage
      3    answered with gaps (only with --strict)
      4    a policy is violated
      5    could not find out
      130  interrupted
    """
