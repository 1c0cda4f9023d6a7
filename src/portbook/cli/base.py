"""What commands are made of: click's classes, without the calls that import ``inspect`` and ``locale`` at every start.

click formats help texts when an option is made, and translates its own. The texts here are one line each and are in
English: they are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from portbook import __version__

MOST = 1e6  # seconds are more than a week, and within what every timer of a system takes; packets a second are any
MOST_SHOWN = 40  # characters of a value that are quoted
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Option(click.Option):
    """An option with a help text of one line."""

    def __init__(self, *declarations: Any, help: str | None = None, **attributes: Any) -> None:  # noqa: A002  click's
        super().__init__(*declarations, **attributes)
        self.help = help


class Finite(click.types.FloatParamType):
    """A number that can be counted with: float() also reads "nan", which no comparison refuses, and "inf"."""

    name = "number"  # in messages, where click has "float range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as click does, within MOST."""
        number = super().convert(value, param, ctx)
        if not abs(number) <= MOST:
            self.fail(f"{str(value)[:MOST_SHOWN]!r} is not a number up to {MOST:,.0f}.", param, ctx)
        return number


class FiniteRange(Finite, click.FloatRange):
    """Such a number within limits."""


def option(*declarations: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """As ``click.option``; every floating-point number is finite."""
    kind = attributes.get("type")
    if kind is float:
        attributes["type"] = Finite()
    elif isinstance(kind, click.FloatRange):
        attributes["type"] = FiniteRange(kind.min, kind.max, kind.min_open, kind.max_open, kind.clamp)
    elif isinstance(kind, click.IntRange):
        kind.name = "whole number"
    return click.option(*declarations, cls=Option, **attributes)


def _show_help(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given and not ctx.resilient_parsing:
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _show_version(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given and not ctx.resilient_parsing:
        click.echo(f"portbook {__version__}")
        ctx.exit()


def _first(callback: Callable[[click.Context, click.Parameter, bool], None], *names: str, text: str) -> Option:
    """An option that is answered before all others, instead of the command."""
    return Option(list(names), is_flag=True, is_eager=True, expose_value=False, callback=callback, help=text)


HELP = _first(_show_help, "-h", "--help", text="show this message and exit")
VERSION = _first(_show_version, "-V", "--version", text="show the version and exit")


class Command(click.Command):
    """A command with ``HELP`` as its help option."""

    def get_short_help_str(self, limit: int = 200) -> str:
        """The first sentence of the help text; click's own limit would cut it in completions."""
        return super().get_short_help_str(limit)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The one help option of all commands."""
        return HELP


class Group(click.Group):
    """A group with ``HELP`` as its help option."""

    def get_short_help_str(self, limit: int = 200) -> str:
        """The first sentence of the help text; click's own limit would cut it in completions."""
        return super().get_short_help_str(limit)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The one help option of all commands."""
        return HELP


port_option = option("-p", "--ports", "more", multiple=True, metavar="PORTS", help="the same as PORT")


def given(ctx: click.Context, words: Sequence[str], more: Sequence[str]) -> list[str]:
    """The ports given as arguments and as options.

    :raises click.UsageError: there is none
    :raises UsageError: a word is neither a port nor a service: it may be the name of a process
    """
    ports = [*words, *more]
    if not ports:
        raise click.UsageError("missing argument PORT", ctx)
    if len(ports) > 1 and ports[0].lower() in ("tcp", "udp"):
        from portbook.errors import UsageError

        raise UsageError("the protocol is written behind the port", f"write {ports[1][:MOST_SHOWN]}/{ports[0].lower()}")
    for word in ports:
        if word.replace("-", "").replace("_", "").isalnum() and word[:1].isalpha():
            _check_service(word)
    return ports


def _check_service(word: str) -> None:
    from portbook.errors import UsageError
    from portbook.names import port_of

    if port_of(word) is None:
        shown = word[:40]
        hint = f"write 8080 or http; the ports of a process: portbook list {shown}"
        raise UsageError(f"port {shown!r} is not a number or the name of a service", hint)


def command(name: str, cls: type[Command] = Command) -> Callable[[Callable[..., Any]], Command]:
    """As ``click.command``."""
    return click.command(name, cls=cls)
