"""``portbook policy``: what may listen, and what must. A table of commands, each imported when it is run."""

from __future__ import annotations

from importlib import import_module

import click

from portbook.cli import base

# name: module, and the first sentence of its help text, which completion shows without importing it.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "Write a policy that allows what listens now."),
    "learn": ("learn", "Add what the history has seen to a policy."),
    "check": ("check", "Judge what listens now."),
    "explain": ("explain", "Show which rule decides about a port, and why."),
    "diff": ("diff", "Compare two policies."),
}

OPTIONAL_COMMAND = "[COMMAND] [ARGS]..."  # click 8.1 writes it as if it were required


class PolicyGroup(base.Group):
    """Finds a command by name in SUBCOMMANDS."""

    @property
    def summaries(self) -> dict[str, str]:
        """What completion says about each command."""
        return {name: text for name, (_, text) in SUBCOMMANDS.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the table."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in SUBCOMMANDS:
            return None
        found: click.Command = import_module(f"portbook.cli.policy.{SUBCOMMANDS[cmd_name][0]}").command
        return found


@click.group("policy", cls=PolicyGroup, invoke_without_command=True, subcommand_metavar=OPTIONAL_COMMAND)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Say what may listen on this machine, and check it.

    A policy is a TOML file with rules that allow, deny or require ports, by port, reach, executable, user, service,
    container and more. docs/policy.md describes it. Without --policy, the file is /etc/portbook/policy.toml for root,
    and portbook/policy.toml in the directory for settings for other users.

    \b
    Examples:
      portbook policy init -o policy.toml     write one that allows what listens now
      portbook policy check policy.toml       judge what listens now
      portbook policy explain 8080            show which rule decides about a port
      portbook policy diff old.toml new.toml  compare two policies
    """
    if ctx.invoked_subcommand is None:
        raise click.UsageError(f"missing command; valid commands are {', '.join(SUBCOMMANDS)}", ctx)
