"""``portbook man``: the manual page, generated from the definitions of the commands."""

from __future__ import annotations

import sys
from inspect import cleandoc

import click

from portbook.cli import base, exits


@base.command("man")
def command() -> int:
    """Print the manual page.

    \b
    Examples:
      portbook man | man -l -
      portbook man > /usr/local/share/man/man1/portbook.1
    """
    from portbook.cli import portbook

    sys.stdout.write(page(portbook))
    sys.stdout.flush()
    return exits.YES


def page(group: click.Group) -> str:
    """The manual page of the whole program, in the man macros (man(7))."""
    from portbook import __version__

    root = click.Context(group, info_name=group.name, **group.context_settings)
    parts = [
        f'.TH PORTBOOK 1 "" "portbook {__version__}" "User Commands"',
        ".SH NAME\nportbook \\- show and manage which processes hold TCP and UDP ports",
        ".SH SYNOPSIS\n.B portbook\n[\\fICOMMAND\\fR] [\\fIOPTIONS\\fR]",
        ".SH DESCRIPTION",
        _prose(group.help or ""),
        ".SH COMMANDS",
        *(_command(name, group, root) for name in group.list_commands(root)),
        ".SH ENVIRONMENT\n.TP\nNO_COLOR\nIf set, the output has no colours.\n.TP\nCOLUMNS\nThe width of the terminal.",
        ".SH SEE ALSO\nss(8), lsof(8), netstat(8)",
    ]
    return "\n".join(parts) + "\n"


def _command(name: str, group: click.Group, root: click.Context) -> str:
    command = group.get_command(root, name)
    assert command is not None  # noqa: S101  the name came from the group
    ctx = click.Context(command, info_name=name, parent=root, **command.context_settings)
    usage = " ".join(command.collect_usage_pieces(ctx))
    parts = [f".SS {ctx.command_path} {_escape(usage)}", _prose(command.help or "")]
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record and record[1]:
            spelling, text = record
            parts.append(f".TP\n\\fB{_escape(spelling)}\\fR\n{_escape(text)}")
    if isinstance(command, click.Group):
        parts += [_command(each, command, ctx) for each in command.list_commands(ctx)]
    return "\n".join(parts)


def _prose(text: str) -> str:
    """The paragraphs of a help text; one that is marked with \\b, as for click, keeps its lines."""
    parts = []
    for paragraph in cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            parts.append(".PP\n.nf\n" + _escape(paragraph[1:].strip("\n")) + "\n.fi")
        else:
            parts.append(".PP\n" + _escape(" ".join(paragraph.split())))
    return "\n".join(parts)


def _escape(text: str) -> str:
    """Escape hyphens, backslashes, and dots and quotes at the start of a line (groff_man_style(7))."""
    lines: list[str] = []
    for line in text.replace("…", "...").replace("\\", "\\e").replace("-", "\\-").split("\n"):
        if line.startswith((".", "'")):
            lines.append(f"\\&{line}")
        else:
            lines.append(line)
    return "\n".join(lines)
