"""``portbook watch``: what happens to the ports of this machine, until it is told to end."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from portbook.cli import base, exits
from portbook.cli.list_ import QueryCommand

if TYPE_CHECKING:  # not needed to complete options
    from portbook.cli.signals import Signals
    from portbook.cli.watch_output import WatchOutput
    from portbook.cli.watch_session import Manager
    from portbook.cli.watch_settings import Choices
    from portbook.store.sqlite import Writer
    from portbook.watching.loop import Loop

VIOLATIONS = ("violation", "requirement_lost")  # kinds of events that are one for the exit code of --once
ONCE = "poll"  # the feed of --once: it has nothing to attach
SECONDS = click.FloatRange(0.01)


@base.command("watch", cls=QueryCommand)
@click.argument("query", nargs=-1, metavar="[QUERY]...")
@base.option("--policy", metavar="FILE", help="judge by this policy (default: that of this user or machine, if any)")
@base.option("--feed", metavar="NAME", help="see changes by this feed (default: the best that works; --explain)")
@base.option("--source", metavar="NAME", help="poll this data source; see portbook sources")
@base.option(
    "--interval", type=SECONDS, metavar="SECONDS", help="between two readings, of a feed that polls (default: 1)"
)
@base.option(
    "--grace", type=click.FloatRange(0), metavar="SECONDS", help="who is back in this time restarted (default: 5)"
)
@base.option("--remind", type=SECONDS, metavar="SECONDS", help="between two reminders of what lasts (default: 3600)")
@base.option("--canary", type=SECONDS, metavar="SECONDS", help="between two proofs that the feed sees (default: 300)")
@base.option("--sink", "sinks", multiple=True, metavar="KIND:TARGET", help="send events there; see docs/sinks.md")
@base.option("--config", metavar="FILE", help="read these options, and more about sinks, from a TOML file")
@base.option(
    "--store", "--db", "store", metavar="FILE", help="keep the history there (default: that of this user or machine)"
)
@base.option("--no-store", is_flag=True, help="keep no history")
@base.option("--keep", metavar="TIME", help="remove events from the history after this time: 90d")
@base.option("--jsonl", is_flag=True, default=None, help="JSON, one event on each line")
@base.option("--once", is_flag=True, help="show and judge what is there now, and end")
@base.option("--explain", is_flag=True, help="say what each feed sees and misses here, and end")
@base.option("--self-test", is_flag=True, help="open two sockets, say whether the feed sees them, and end")
@base.option("--service", is_flag=True, help="Windows: the service manager starts this process; see docs/watch.md")
@base.option("--test", "test_sinks", is_flag=True, help="send a test event to every sink, and end")
def command(
    config: str | None, once: bool, explain: bool, self_test: bool, service: bool, test_sinks: bool, **options: Any
) -> int:
    """Report every bind, failed bind and end of a port as it happens.

    Ctrl-C ends it. On a terminal, watch shows who listens and what happened last; elsewhere it prints a line for each
    event. QUERY selects sockets as in list. With a policy, what it does not allow is a violation. Events are kept in a
    history that portbook history and portbook who --at read. Sinks send them elsewhere.

    SIGHUP reads the policy again, and opens log files again. SIGTERM ends the watch with exit code 0. The exit code of
    --once is 4 if the policy is violated; that of --self-test is 1 if the feed does not see.

    \b
    Examples:
      sudo portbook watch
      sudo portbook watch --policy /etc/portbook/policy.toml --sink journald:
      portbook watch --jsonl 'port:8000-8100' | jq -r .event
      portbook watch --once --policy policy.toml
      portbook watch --explain
    """
    from portbook.cli import watch_settings

    choices = watch_settings.choose(options, config)
    if explain:
        return _explain(choices)
    if self_test:
        return _self_test(choices)
    if test_sinks:
        return _test_sinks(choices)
    choices = choices.with_output()
    if once:
        return _look_once(choices)
    from portbook.cli.signals import Signals

    is_live = not (choices.jsonl or choices.prints_by_sink or service) and _is_live()
    with Signals(suspends=is_live) as signals:
        if service:
            return _serve(choices, signals)
        from portbook.system import notify

        return _watch(choices, signals, notify.of_environment(), is_live)


def _serve(choices: Choices, signals: Signals) -> int:
    """Watch as a service of Windows: the orders of its manager are what signals are elsewhere."""
    from portbook.errors import PortbookError
    from portbook.system import windows_service

    manager = windows_service.WindowsService(signals.end, signals.ask_for_reload)
    manager.connect()
    code = exits.UNKNOWN
    try:
        code = _watch(choices, signals, manager, is_live=False)
    except PortbookError as error:
        code = error.exit_code
        windows_service.log_error("portbook", str(error))
        raise
    finally:
        manager.stopped(code)
    return code


def _watch(choices: Choices, signals: Signals, manager: Manager, is_live: bool) -> int:
    """Watch until a signal comes."""
    from portbook.cli.watch_session import Session
    from portbook.watching.loop import Loop
    from portbook.watching.sinks.dispatch import open_sinks

    with ExitStack() as stack:
        policy = choices.read_policy()
        with ExitStack() as unless_begun:
            store = _open_store(choices, is_live)
            if store is not None:
                unless_begun.callback(store.close)
            loop = Loop(choices.settings(policy))
            first = loop.start()
            unless_begun.callback(loop.stop)
            _give_up_capabilities()
            sinks = open_sinks(choices.sinks)  # with the privileges that it has to open files again after SIGHUP
            sinks.start()
            output = _output(choices, loop, is_live, stack)
            unless_begun.pop_all()
        session = Session(
            loop, output, store, sinks, manager,
            read_policy=choices.read_policy if policy is not None else None,
            policy_file=choices.policy_file(), keep_s=choices.keep_s,
        )  # fmt: skip
        return session.run(signals, first)


def _is_live() -> bool:
    from portbook.cli import screen

    return screen.is_possible()


def _output(choices: Choices, loop: Loop, is_live: bool, stack: ExitStack) -> WatchOutput:
    from portbook.cli import watch_output

    if choices.jsonl:
        return watch_output.JsonLines()
    if choices.prints_by_sink:
        return watch_output.NoLines()
    if not is_live:
        return watch_output.PlainLines()
    from portbook.cli.outlet import Outlet
    from portbook.cli.screen import Screen

    outlet = Outlet()
    screen = stack.enter_context(Screen(outlet))
    return watch_output.Live(loop, screen, outlet, has_policy=choices.policy_file() is not None)


def _open_store(choices: Choices, is_live: bool) -> Writer | None:
    """The history. A look at the terminal while another watch writes the history of the machine needs none."""
    if choices.no_store:
        return None
    from portbook.errors import StoreError
    from portbook.store.sqlite import Writer

    try:
        return Writer(choices.store)
    except StoreError as error:
        if choices.store is None and not is_live and error.hint is None:
            raise StoreError(str(error), "name a file with --store, or keep no history with --no-store") from error
        if choices.store is not None or not is_live:
            raise
        _note(f"this watch keeps no history: {error}")
        return None


def _give_up_capabilities() -> None:
    """Keep what the watch needs while it runs; programs that it starts have none of it."""
    from portbook.system import capabilities
    from portbook.watching import privileges

    try:
        capabilities.keep(privileges.KEPT)
    except OSError as error:
        _note(f"capabilities could not be given up: {error.strerror}")


def _look_once(choices: Choices) -> int:
    from msgspec.structs import replace

    from portbook.cli import watch_output
    from portbook.watching.loop import Loop

    # What is there now is read from the socket tables, and what is required is missed at once.
    settings = replace(choices.settings(choices.read_policy()), feed=choices.feed or ONCE, grace_s=0.0)
    loop = Loop(settings)
    events = [*loop.start(), *loop.wait(0.0), *loop.stop()]
    output = watch_output.JsonLines() if choices.jsonl else watch_output.PlainLines()
    output.write(events)
    output.close()
    if any(event.event in VIOLATIONS for event in events):
        return exits.VIOLATED
    return exits.YES


def _explain(choices: Choices) -> int:
    from portbook.render.feeds import explanation
    from portbook.render.text import style_of

    settings = choices.settings(None)
    lines = explanation(choices.feed, settings.canary_s, style_of(sys.stdout), settings.interval_s)
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()
    return exits.YES


def _self_test(choices: Choices) -> int:
    from portbook.escaping import safe
    from portbook.watching.loop import Loop

    answer = Loop(choices.settings(None)).self_test()
    sys.stdout.write(f"feed {answer.feed}: {'sees' if answer.passed else 'does not see'}\n")
    sys.stdout.write("".join(f"  {safe(line)}\n" for line in answer.lines))
    sys.stdout.flush()
    return exits.YES if answer.passed else exits.NO


def _test_sinks(choices: Choices) -> int:
    from portbook.errors import UsageError
    from portbook.escaping import safe
    from portbook.watching.sinks.dispatch import open_sinks

    if not choices.sinks:
        raise UsageError("there is no sink to test", "name some with --sink or --config")
    answers = open_sinks(choices.sinks).test()
    for answer in answers:
        result = "delivered" if answer.delivered else f"not delivered: {safe(answer.reason or '')}"
        sys.stdout.write(f"{safe(answer.name)}: {result}\n")
    sys.stdout.flush()
    return exits.YES if all(answer.delivered for answer in answers) else exits.NO


def _note(text: str) -> None:
    from portbook.render.text import note

    sys.stderr.write(note(text))
