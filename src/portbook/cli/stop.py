"""``portbook stop``: end the processes that hold a port."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output

if TYPE_CHECKING:
    from portbook.ports import Ports
    from portbook.records import Gap
    from portbook.stop.records import Override, StopPlan, StopReport

ALL_OR_NONE = "another port was refused: either all are stopped, or none"
NO_TERMINAL = "there is no terminal for the question; --yes ends the processes without asking"
ANSWERED_NO = "the answer was no"


@base.command("stop")
@click.argument("ports", nargs=-1, metavar="PORT...")
@base.port_option
@base.option("-f", "--force", is_flag=True, help="after the timeout, kill what still runs (SIGKILL, TerminateProcess)")
@base.option(
    "--timeout",
    type=click.FloatRange(0),
    default=10.0,
    metavar="SECONDS",
    help="how long the processes have to end (default: 10)",
)
@base.option("-y", "--yes", is_flag=True, help="do not ask for confirmation")
@base.option("-n", "--dry-run", is_flag=True, help="show the processes that would be ended, and end nothing")
@base.option("--via-manager", is_flag=True, help="let the service manager or container runtime stop it")
@base.option("--override", is_flag=True, help="also end what a supervisor restarts, protected and parent processes")
@output.json_option
@click.pass_context
def command(
    ctx: click.Context,
    ports: tuple[str, ...],
    more: tuple[str, ...],
    force: bool,
    timeout: float,
    yes: bool,
    dry_run: bool,
    via_manager: bool,
    override: bool,
    as_json: bool,
) -> int:
    """End the processes that hold a port.

    Only processes that listen on the port or are bound to it are ended: not its clients, and not a process that only
    has an accepted connection. They are shown together with everything else that they serve, and you are asked for
    confirmation. Then they receive SIGTERM and have 10 seconds to end, and portbook waits until the port can be
    bound. The exit code is 0 if every port is free afterwards, or with --dry-run if nothing is refused; it is 1 if a
    port is still held or was refused, or if you answered no.

    \b
    Examples:
      portbook stop 8080
      portbook stop 8080 53/udp --dry-run
      portbook stop 8080 -y -f --timeout 3
      portbook stop 443 --via-manager
    """
    from portbook.stop.run import plan_stop

    overrides: list[Override] = []
    if via_manager:
        overrides.append("via-manager")
    if override:
        overrides.append("override")
    requested = _requested(base.given(ctx, ports, more))
    plans = [plan_stop(each.port, each.protocol or "tcp") for each in requested]
    _show_plans(plans, overrides, as_json)
    for each, plan in zip(requested, plans, strict=True):
        if each.protocol is None and not plan.held:
            _mention_udp(each.port)
    answers = _without_ending(plans, overrides, dry_run)
    if not answers and not yes:
        answers = _confirm(plans, overrides)
    if not answers:
        answers = _carry_out(plans, overrides, timeout, force)
    return _report(answers, as_json)


def _requested(written: Sequence[str]) -> list[Ports]:
    """Each port by itself; raise UsageError for an address where another address has the port too."""
    from portbook.ports import local_address, parse_several, singles

    requested = singles(parse_several(written))
    for ports in requested:
        if local_address(ports) is not None:
            _refuse_other_addresses(ports)
    return requested


def _refuse_other_addresses(ports: Ports) -> None:
    """A port is stopped at every address: refuse if that would end more than was asked for."""
    from portbook import inventory, query
    from portbook.addresses import format_endpoint
    from portbook.errors import UsageError

    terms = [query.term("port", [str(ports.port)]), query.term("protocol", [ports.protocol or "tcp"])]
    _, sockets, _ = inventory.select(query.Query((*terms, query.term("state", ["listening"]))))
    others = [s for s in sockets if ports.host is not None and not query.is_at(s, ports.host)]
    if others:
        found = ", ".join(dict.fromkeys(format_endpoint(s.local_address, s.local_port, s.zone) for s in others))
        raise UsageError(f"{found} would be stopped too", f"write portbook stop {ports.port} to stop every address")


def _show_plans(plans: Sequence[StopPlan], overrides: Collection[Override], as_json: bool) -> None:
    """Write the plans to standard error if standard output is for a program."""
    from portbook.render import stop as render
    from portbook.render.text import style_of

    stream = sys.stderr if as_json else sys.stdout
    style = style_of(stream)
    gaps: dict[Gap, None] = {}
    for plan in plans:
        if lines := render.plan_lines(plan, overrides, style):
            stream.write("\n".join([*lines, "", ""]))
        gaps |= dict.fromkeys(gap for gap in plan.gaps if not plan.covers(gap))
    stream.flush()
    output.write_gaps(gaps)


def _mention_udp(port: int) -> None:
    """A number without a protocol is TCP. If only the UDP port is held, that one may have been meant."""
    from portbook import inventory, query

    terms = query.term("port", [str(port)]), query.term("protocol", ["udp"]), query.term("state", ["listening"])
    _, sockets, _ = inventory.select(query.Query(terms))
    if sockets:
        from portbook.render.text import note

        sys.stderr.write(note(f"{port}/udp is held; to stop it: portbook stop {port}/udp"))


def _without_ending(plans: Sequence[StopPlan], overrides: Collection[Override], dry_run: bool) -> list[StopReport]:
    """The answers if a port is refused, or in a dry run; none if the plans may be carried out."""
    from portbook.stop.run import report_nothing_ended

    is_refused = any(plan.forbidden(overrides) for plan in plans if plan.held)
    if not is_refused and not dry_run:
        return []
    answers: list[StopReport] = []
    for plan in plans:
        refusals = plan.forbidden(overrides)
        if not plan.held:
            answers.append(report_nothing_ended(plan, "free"))
        elif refusals:
            answers.append(report_nothing_ended(plan, "refused", refusals))
        elif dry_run:
            answers.append(report_nothing_ended(plan, "would-stop"))
        else:
            answers.append(report_nothing_ended(plan, "refused", note=ALL_OR_NONE))
    return answers


def _confirm(plans: Sequence[StopPlan], overrides: Collection[Override]) -> list[StopReport]:
    """Ask on the terminal. The answers if it is not confirmed; none if it is, or if nothing has to be asked."""
    from portbook.render.stop import question
    from portbook.render.text import style_of, wrap
    from portbook.stop.run import report_nothing_ended

    held = [plan for plan in plans if plan.held]
    if not held:
        return []
    note = NO_TERMINAL
    if sys.stdin and sys.stdin.isatty() and sys.stderr.isatty():
        text = wrap(question(held, overrides), style_of(sys.stderr))
        sys.stderr.write("\n".join(text))
        sys.stderr.flush()
        answer = sys.stdin.readline()
        if answer.strip().lower() in ("y", "yes"):
            return []
        if not answer.endswith("\n"):
            sys.stderr.write("\n")  # the end of the input, Ctrl-D, is not echoed
        note = ANSWERED_NO
    answers: list[StopReport] = []
    for plan in plans:
        if plan.held:
            answers.append(report_nothing_ended(plan, "declined", note=note))
        else:
            answers.append(report_nothing_ended(plan, "free"))
    return answers


def _carry_out(
    plans: Sequence[StopPlan], overrides: Collection[Override], timeout_s: float, force: bool
) -> list[StopReport]:
    from portbook.stop.run import carry_out

    return [carry_out(plan, timeout_s=timeout_s, force=force, overrides=overrides, notify=_notify) for plan in plans]


def _notify(action: str) -> None:
    """Show progress on a terminal."""
    from portbook.escaping import safe

    if sys.stderr.isatty():
        sys.stderr.write(f"{safe(action)}\n")
        sys.stderr.flush()


def _report(answers: Sequence[StopReport], as_json: bool) -> int:
    from portbook.render import stop as render
    from portbook.render.text import style_of
    from portbook.stop.records import DONE

    if as_json:
        output.write_bytes(render.json(answers))
    else:
        sys.stdout.write("\n".join(render.lines(answers, style_of(sys.stdout))) + "\n")
        sys.stdout.flush()
    return exits.YES if all(answer.result in DONE for answer in answers) else exits.NO
