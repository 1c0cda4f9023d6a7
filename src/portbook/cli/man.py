"""``portbook man``: the manual page, made from the definitions of the commands."""

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
    """The manual page of the whole program in the man macros (man(7))."""
    from portbook import __version__

    root = click.Context(group, info_name=group.name, **group.context_settings)
    parts = [
        f'.TH PORTBOOK 1 "" "portbook {__version__}" "User Commands"',
        ".SH NAME\nportbook \\- who holds every TCP and UDP port",
        ".SH SYNOPSIS\n.B portbook\n[\\fICOMMAND\\fR] [\\fIOPTIONS\\fR]",
        ".SH DESCRIPTION",
        _prose(group.help or ""),
        ".SH COMMANDS",
        *(_command(name, group, root) for name in group.list_commands(root)),
        ".SH ENVIRONMENT\n.TP\nNO_COLOR\nwhen set, no colour is used.\n.TP\nCOLUMNS\nwidth of the terminal.",
        ".SH SEE ALSO\nss(8), lsof(8), netstat(8)",
    ]
    return "\n".join(parts) + "\n"


def _command(name: str, group: click.Group, root: click.Context) -> str:
    found = group.get_command(root, name)
    assert found is not None  # noqa: S101  the name came from the group
    ctx = click.Context(found, info_name=name, parent=root, **found.context_settings)
    usage = " ".join(found.collect_usage_pieces(ctx))
    options = [record for p in found.get_params(ctx) if (record := p.get_help_record(ctx)) and record[1]]
    entries = [f".TP\n\\fB{_escape(spelling)}\\fR\n{_escape(text)}" for spelling, text in options]
    return "\n".join([f".SS portbook {name} {_escape(usage)}", _prose(found.help or ""), *entries])


def _prose(text: str) -> str:
    """Paragraphs; one that click is told to leave alone (\\b) keeps its lines."""
    parts = []
    for paragraph in cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            parts.append(".PP\n.nf\n" + _escape(paragraph[1:].strip("\n")) + "\n.fi")
        else:
            parts.append(".PP\n" + _escape(" ".join(paragraph.split())))
    return "\n".join(parts)


def _escape(text: str) -> str:
    """Keep roff from reading hyphens, backslashes and leading dots or quotes (groff_man_style(7))."""
    lines = text.replace("…", "...").replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in lines)
