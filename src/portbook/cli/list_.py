"""``portbook list``: the sockets of this machine and their owners."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from portbook.cli import base, exits, output
from portbook.errors import UsageError

if TYPE_CHECKING:  # not needed to complete options
    from portbook.query import Query
    from portbook.records import Socket

# option: (field of the query, value of a flag or name of the value in help texts, help text)
FLAGS = {
    "--tcp": ("protocol", "tcp", "TCP only"),
    "--udp": ("protocol", "udp", "UDP only"),
    "--ipv4": ("family", "ipv4", "IPv4 only"),
    "--ipv6": ("family", "ipv6", "IPv6 only"),
}
SPELLINGS = {
    "--tcp": ("-t",),
    "--udp": ("-u",),
    "--ipv4": ("-4",),
    "--ipv6": ("-6",),
    "--port": ("-p", "--port", "--ports"),
    "--state": ("-s",),
}
FILTERS = {
    "--port": ("port", "PORTS", "local port: 80, 8000-8100, 53/udp, http"),
    "--state": ("state", "STATE", "listen, established, time_wait, …, or listening, connected, all"),
    "--remote-port": ("remote-port", "PORTS", "port of the peer"),
    "--address": ("address", "ADDRESS", "local address or network; * is every wildcard"),
    "--remote-address": ("remote-address", "ADDRESS", "address or network of the peer"),
    "--reach": ("reach", "REACH", "from where the port can be reached: loopback, address, any, none, …"),
    "--pid": ("pid", "PID", "process id of an owner"),
    "--process": ("process", "PATTERN", "part of a process name, or a pattern: 'node*'"),
    "--user": ("user", "USER", "user name or id"),
    "--service": ("service", "PATTERN", "systemd unit or Windows service"),
    "--container": ("container", "PATTERN", "container, by runtime and name: docker:web"),
    "--netns": ("netns", "NAME", "network namespace by name, container or inode, or all (Linux, as root)"),
}
# The key of a socket, or the fields that are compared.
SORTS: dict[str, Callable[[Socket], Any] | tuple[str, ...]] = {
    "port": ("local_port", "protocol", "family", "local_address"),
    "protocol": lambda s: s.protocol,
    "address": lambda s: (s.family, s.local_address),
    "remote-port": lambda s: s.remote_port or 0,
    "remote-address": lambda s: s.remote_address or "",
    "state": lambda s: s.state or "",
    "reach": lambda s: s.reach,
    "pid": lambda s: min((o.pid for o in s.owners), default=0),
    "process": lambda s: min((o.name or "" for o in s.owners), default=""),
    "user": lambda s: min((o.user or "" for o in s.owners), default=s.user or ""),
    "service": lambda s: min(o.container or o.service or "" for o in s.owners or (s,)),
    "inode": lambda s: s.inode or 0,
    "netns": lambda s: (s.netns_name or "", s.netns or 0),
}


def _filters(command: Callable[..., int]) -> Callable[..., int]:
    for option, (_, metavar, text) in reversed(FILTERS.items()):
        command = base.option(*_spelling(option), multiple=True, metavar=metavar, help=text)(command)
    for option, (_, _, text) in reversed(FLAGS.items()):
        command = base.option(*_spelling(option), is_flag=True, help=text)(command)
    return command


def _spelling(option: str) -> list[str]:
    return list(dict.fromkeys((*SPELLINGS.get(option, ()), option)))


# "-reach:loopback", "-8080", "-53/udp": terms of the query, although they begin like options. -4 and -6 are options.
NEGATED_TERM = r"-([a-z-]*:|(?![46]{1,2}$)\d)"


class QueryCommand(base.Command):
    """A command whose arguments may be negated terms of a query."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move negated terms behind "--", after which nothing is read as an option."""
        end = args.index("--") if "--" in args else len(args)
        terms = [a for a in args[:end] if re.match(NEGATED_TERM, a)]
        options = [a for a in args[:end] if not re.match(NEGATED_TERM, a)]
        if terms:
            args = [*options, "--", *terms, *args[end + 1 :]]
        return super().parse_args(ctx, args)


@base.command("list", cls=QueryCommand)
@click.argument("query", nargs=-1, metavar="[QUERY]...")
@base.option(
    "-a", "--all", "every", is_flag=True, help="every state, not only listening, bound and unconnected sockets"
)
@_filters
@base.option(
    "-w", "--wide", is_flag=True, help="add all that is known: inode, queues, creation time, directory, command line, …"
)
@output.format_options
@base.option("--sort", metavar="FIELD", help=f"{', '.join(SORTS)}; prefix with - to reverse")
@base.option("--source", metavar="NAME", help="read this data source; see portbook sources")
@output.strict_option
def command(
    query: tuple[str, ...],
    every: bool,
    wide: bool,
    form: str | None,
    sort: str | None,
    source: str | None,
    strict: bool,
    **filters: Any,
) -> int:
    """List ports and the processes that hold them.

    Without --all, the list has the TCP sockets that listen or are bound, and the unconnected UDP sockets. QUERY
    selects sockets as the options do, by terms of the form field:value. A value may be a range or a comma-separated
    list, and the prefix - excludes what matches the term. Without a field, 8080, 53/udp or 127.0.0.1:8080 is a port,
    tcp, ipv6 or established a protocol, family or state, and any other word the name of a process or service. The
    column SERVICE shows a systemd unit, a Windows service or a container. The column REACH shows from where the port
    can be reached: this machine, one address, every network, or none.

    \b
    Examples:
      portbook list --tcp -p 8000-8100
      portbook list 'state:listen -reach:loopback process:node'
      portbook list --all --user postgres --json
    """
    from portbook.inventory import take

    selection = build_query(query, every, filters)
    key = _sort_key(sort)
    listing = take(selection, source=source)
    if wide:
        from msgspec.structs import replace

        from portbook.enrich.owners import with_origins

        listing = replace(listing, sockets=tuple(with_origins(listing.sockets)))
    if form is not None:
        output.write_machine(listing, form, key)
    else:
        if not listing.sockets:
            _explain_empty(query, every, filters, source)
        output.write_people(listing, wide, key or (SORTS["port"], False), selection.all_namespaces())
        output.write_elsewhere(listing)
    if strict and listing.gaps:
        return exits.GAPS
    return exits.YES


def _explain_empty(texts: tuple[str, ...], every: bool, filters: dict[str, Any], source: str | None) -> None:
    from portbook.cli import empty
    from portbook.render.text import note

    written = build_query(texts, True, filters)
    is_default_state = not every and written.with_default_state() != written
    sys.stderr.write(note(empty.explain(written, is_default_state, source)))


def build_query(texts: tuple[str, ...], every: bool, filters: dict[str, Any]) -> Query:
    """The query that the options and the text make together."""
    from portbook import query
    from portbook.query import Query

    selection = query.parse(" ".join(texts))
    for option, (field, value, _) in FLAGS.items():
        if filters[_parameter(option)]:
            selection &= Query((query.term(field, [value]),))
    for option, (field, _, _) in FILTERS.items():
        for text in filters[_parameter(option)]:
            selection &= Query((query.term(field, text.split(",")),))
    if every:
        return selection
    return selection.with_default_state()


def _parameter(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _sort_key(text: str | None) -> output.SortKey | None:
    if text is None:
        return None
    name = text.removeprefix("-")
    if name not in SORTS:
        raise UsageError(f"unknown sort field {name!r}", f"valid values are {', '.join(SORTS)}")
    return SORTS[name], text.startswith("-")
