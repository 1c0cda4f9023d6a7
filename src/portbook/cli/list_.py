"""``portbook list``: what is waiting on this machine, and who holds it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from portbook import query
from portbook.cli import base, exits, output
from portbook.cli.base import option
from portbook.errors import UsageError
from portbook.query import Query
from portbook.records import Socket

# option: (field of the query, value when it is a flag, what it takes)
FLAGS = {
    "--tcp": ("protocol", "tcp", "TCP only"),
    "--udp": ("protocol", "udp", "UDP only"),
    "--ipv4": ("family", "ipv4", "IPv4 only"),
    "--ipv6": ("family", "ipv6", "IPv6 only"),
}
SHORT = {"--tcp": "-t", "--udp": "-u", "--ipv4": "-4", "--ipv6": "-6", "--port": "-p", "--state": "-s"}
FILTERS = {
    "--port": ("port", "PORTS", "local port: 80, or 80,8000-8100"),
    "--state": ("state", "STATE", "listen, established, time_wait, …, or listening, connected, all"),
    "--remote-port": ("remote-port", "PORTS", "port of the peer"),
    "--address": ("address", "ADDRESS", "local address or network; * is every wildcard"),
    "--remote-address": ("remote-address", "ADDRESS", "address or network of the peer"),
    "--reach": ("reach", "REACH", "loopback, address or any: from where the port can be reached"),
    "--pid": ("pid", "PID", "process id of an owner"),
    "--process": ("process", "PATTERN", "part of a process name, or a pattern such as 'node*'"),
    "--user": ("user", "USER", "user name or id"),
    "--service": ("service", "PATTERN", "systemd unit or Windows service"),
    "--container": ("container", "PATTERN", "container"),
    "--netns": ("netns", "NAME", "network namespace: all, its name or container, or its inode (Linux, root)"),
}
SORTS: dict[str, Callable[[Socket], Any]] = {
    "port": lambda s: (s.local_port, s.protocol, s.local_address),
    "protocol": lambda s: s.protocol,
    "address": lambda s: s.local_address,
    "remote-port": lambda s: s.remote_port or 0,
    "remote-address": lambda s: s.remote_address or "",
    "state": lambda s: s.state or "",
    "reach": lambda s: s.reach,
    "pid": lambda s: min((o.pid for o in s.owners), default=0),
    "process": lambda s: min((o.name or "" for o in s.owners), default=""),
    "user": lambda s: min((o.user or "" for o in s.owners), default=""),
    "service": lambda s: min((o.container or o.service or "" for o in s.owners), default=""),
    "inode": lambda s: s.inode or 0,
    "netns": lambda s: (s.netns_name or "", s.netns or 0),
}


def _filters(command: Callable[..., int]) -> Callable[..., int]:
    for name, (_, metavar, text) in reversed(FILTERS.items()):
        command = option(*_spelling(name), multiple=True, metavar=metavar, help=text)(command)
    for name, (_, _, text) in reversed(FLAGS.items()):
        command = option(*_spelling(name), is_flag=True, help=text)(command)
    return command


def _spelling(option: str) -> list[str]:
    return [o for o in (SHORT.get(option), option) if o]


NEGATED_TERM = r"-[a-z-]+:"  # "-reach:loopback": a term of the query, though it begins like an option


class QueryCommand(base.Command):
    """Takes excluding terms of a query as arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move excluding terms behind "--", where nothing is read as an option."""
        end = args.index("--") if "--" in args else len(args)
        terms = [a for a in args[:end] if re.match(NEGATED_TERM, a)]
        options = [a for a in args[:end] if not re.match(NEGATED_TERM, a)]
        return super().parse_args(ctx, [*options, "--", *terms, *args[end + 1 :]] if terms else args)


@base.command("list", cls=QueryCommand)
@click.argument("query", nargs=-1, metavar="[QUERY]...")
@option("-a", "--all", "every", is_flag=True, help="every state, not only what is waiting")
@_filters
@option("-w", "--wide", is_flag=True, help="executable, command line, every pid, inode, queues, creation time")
@output.format_options
@option("--sort", metavar="FIELD", help=f"{', '.join(SORTS)}; a - in front turns it round")
@option("--source", metavar="NAME", help="the way to read the machine: see portbook sources")
@output.strict_option
def command(
    query: tuple[str, ...], every: bool, wide: bool, form: str | None, sort: str | None, source: str | None,
    strict: bool, **filters: Any,
) -> int:  # fmt: skip
    """List ports and who holds them.

    Shown are listening and bound TCP sockets and unconnected UDP sockets; --all adds every other state. QUERY
    selects as the options do: field:value, ranges, lists, a - in front excludes, a bare number is a port and a bare
    word a process. SERVICE is a systemd unit, a Windows service or a container; REACH says from where the port can
    be reached: this machine, one address of it, or every network.

    \b
    Examples:
      portbook list --tcp -p 8000-8100
      portbook list 'state:listen -reach:loopback process:node'
      portbook list --all --user postgres --json
    """
    from portbook.inventory import take

    asked = build(query, every, filters)
    key = _sort_key(sort)
    listing = take(asked, source=source)
    if form is not None:
        output.write_machine(listing, form, key)
    else:
        output.write_people(listing, wide, key or (SORTS["port"], False), asked.everywhere())
        output.write_elsewhere(listing)
    return exits.GAPS if strict and listing.gaps else exits.YES


def build(texts: tuple[str, ...], every: bool, filters: dict[str, Any]) -> Query:
    """The query that options and text ask for together."""
    asked = query.parse(" ".join(texts))
    for name, (field, value, _) in FLAGS.items():
        if filters[_parameter(name)]:
            asked &= Query((query.term(field, [value]),))
    for name, (field, _, _) in FILTERS.items():
        for text in filters[_parameter(name)]:
            asked &= Query((query.term(field, text.split(",")),))
    return asked if every else asked.with_default_state()


def _parameter(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _sort_key(text: str | None) -> tuple[Callable[[Socket], Any], bool] | None:
    if text is None:
        return None
    name = text.removeprefix("-")
    if name not in SORTS:
        raise UsageError(f"unknown field {name!r} to sort by", f"valid are {', '.join(SORTS)}")
    return SORTS[name], text.startswith("-")
