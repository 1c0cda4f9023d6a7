"""``portbook stop``: let go of ports."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from portbook.cli import exits, output
from portbook.cli.who import read_port

if TYPE_CHECKING:
    from portbook.stop.records import Override, StopPlan, StopReport

ALL_OR_NONE = "nothing is ended unless everything that was asked for can be"
NO_TERMINAL = "there is no terminal to ask on: --yes ends without asking"
ANSWERED_NO = "the answer was no"


@click.command("stop")
@click.argument("ports", nargs=-1, required=True, metavar="PORT[/udp]...")
@click.option("--force", is_flag=True, help="end what is left when the time is up (SIGKILL, TerminateProcess)")
@click.option(
    "--timeout", type=click.FloatRange(0), default=10.0, metavar="SECONDS", show_default=True, help="to end in"
)
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--dry-run", is_flag=True, help="show what would be ended, and end nothing")
@click.option("--via-manager", is_flag=True, help="have the service manager or container runtime stop it")
@click.option("--override", is_flag=True, help="also what would be started again, is protected, or portbook runs below")
@output.json_option
def command(
    ports: tuple[str, ...],
    force: bool,
    timeout: float,
    yes: bool,
    dry_run: bool,
    via_manager: bool,
    override: bool,
    as_json: bool,
) -> int:
    """End the processes that hold a port, and wait until it can be bound.

    Only those that wait on the port are ended: not its clients, nor who has merely accepted a connection. They are
    shown, with everything else they serve, and you are asked. They are asked to end (SIGTERM) and have 10 seconds.
    Exit code 0 when the ports are free now, or in a dry run could be freed; 1 when one is still held, was refused, or
    your answer was no.

    \b
    Examples:
      portbook stop 8080
      portbook stop 8080 53/udp --dry-run
      portbook stop 8080 --yes --force --timeout 3
      portbook stop 443 --via-manager
    """
    from portbook.stop.run import plan_stop

    chosen = {"via-manager": via_manager, "override": override}
    overrides: list[Override] = [option for option, given in chosen.items() if given]  # type: ignore[misc]  # the keys are
    asked = dict.fromkeys(map(read_port, ports))
    plans = [plan_stop(number, protocol or "tcp") for number, protocol in asked]
    _show(plans, overrides, as_json)
    _tell_of_udp([number for (number, protocol), plan in zip(asked, plans, strict=True) if not (protocol or plan.held)])
    answers = _without_ending(plans, overrides, dry_run) or _asked(plans, overrides, yes)
    return _report(answers or _carry_out(plans, overrides, timeout, force), as_json)


def _show(plans: Sequence[StopPlan], overrides: Collection[Override], as_json: bool) -> None:
    """On standard error where standard output is for a program."""
    from portbook.render import stop as render
    from portbook.render.text import style_of

    stream = sys.stderr if as_json else sys.stdout
    for plan in plans:
        if lines := render.plan_lines(plan, overrides, style_of(stream)):
            stream.write("\n".join([*lines, "", ""]))
    stream.flush()
    output.write_gaps(dict.fromkeys(gap for plan in plans for gap in plan.gaps if not plan.tells(gap)))


def _tell_of_udp(ports: Sequence[int]) -> None:
    """A bare number is TCP, so that nothing is ended that was not meant; but it may have been meant."""
    from portbook import inventory, query

    for port in ports:
        terms = query.term("port", [str(port)]), query.term("protocol", ["udp"]), query.term("state", ["listening"])
        if inventory.select(query.Query(terms), None)[1]:
            sys.stderr.write(f"portbook: {port}/udp is held: portbook stop {port}/udp\n")


def _without_ending(plans: Sequence[StopPlan], overrides: Collection[Override], dry_run: bool) -> list[StopReport]:
    """The answers when something is refused, or only a look was wanted; none when it may go on."""
    from portbook.stop.run import stopping

    refused = any(plan.held and plan.forbidden(overrides) for plan in plans)
    if not refused and not dry_run:
        return []
    return [
        stopping(plan, "free")
        if not plan.held
        else stopping(plan, "refused", stands)
        if (stands := plan.forbidden(overrides))
        else stopping(plan, "would-stop" if dry_run else "refused", note=None if dry_run else ALL_OR_NONE)
        for plan in plans
    ]


def _asked(plans: Sequence[StopPlan], overrides: Collection[Override], yes: bool) -> list[StopReport]:
    """The answers when nobody says yes; none when somebody does, or nothing has to be asked."""
    from portbook.render.stop import question
    from portbook.stop.run import stopping

    held = [plan for plan in plans if plan.held]
    if yes or not held:
        return []
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        note = NO_TERMINAL
    else:
        sys.stderr.write(question(held, overrides))
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return []
        note = ANSWERED_NO
    return [stopping(plan, "declined", note=note) if plan.held else stopping(plan, "free") for plan in plans]


def _carry_out(
    plans: Sequence[StopPlan], overrides: Collection[Override], timeout_s: float, force: bool
) -> list[StopReport]:
    from portbook.stop.run import carry_out

    return [carry_out(plan, timeout_s=timeout_s, force=force, overrides=overrides, tell=_tell) for plan in plans]


def _tell(what: str) -> None:
    """While somebody waits in front of a terminal."""
    from portbook.render.text import safe

    if sys.stderr.isatty():
        sys.stderr.write(f"{safe(what)}\n")
        sys.stderr.flush()


def _report(answers: Sequence[StopReport], as_json: bool) -> int:
    from portbook.render import stop as render
    from portbook.stop.records import DONE

    if as_json:
        output.write_bytes(render.json(answers))
    else:
        sys.stdout.write("\n".join(render.lines(answers)) + "\n")
        sys.stdout.flush()
    return exits.YES if all(answer.result in DONE for answer in answers) else exits.NO
