"""``portbook probe``: which UDP ports of a host answer, and what answers there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from portbook.cli import output, progress
from portbook.cli.scan import FORMATS, INTERRUPTED, Interrupt, exit_code
from portbook.probe.outcome import Answer, in_words
from portbook.probe.request import Limits

if TYPE_CHECKING:
    from portbook.scan.report import Report
    from portbook.scan.run import Scan

NUMBERS = {
    "--timeout": (float, "SECONDS", "of one attempt; adapted to the round trips measured, when not given"),
    "--retries": (int, "N", "more attempts for a silent port; 1, and more where packets get lost, when not given"),
    "--rate": (float, "N", "datagrams a second, at most"),
    "--deadline": (float, "SECONDS", "for everything; what is known by then is shown"),
}


def _options(command: Callable[..., int]) -> Callable[..., int]:
    for name, text in reversed(FORMATS.items()):
        command = click.option(f"--{name}", "form", flag_value=name, default=None, help=text)(command)
    for option, (kind, metavar, text) in reversed(NUMBERS.items()):
        command = click.option(option, type=kind, metavar=metavar, help=text)(command)
    return command


@click.command("probe")
@click.argument("host")
@click.argument("ports")
@click.option("--open", "only_open", is_flag=True, help="show open ports only")
@_options
@click.option("--allow-public", is_flag=True, help="ask globally routable addresses too; ask their owners first")
def command(
    host: str, ports: str, only_open: bool, timeout: float | None, retries: int | None, rate: float | None,
    deadline: float | None, form: str | None, allow_public: bool,
) -> int:  # fmt: skip
    """Ask UDP ports in the language of the service that belongs there.

    A reply means open, and names the service; a refusal of the host itself (ICMP port unreachable) means closed, one
    by somebody else filtered; silence means open|filtered. Hosts limit how many ports they refuse a second: silent
    ports are asked again, more slowly, until the silence is their own, and the evidence says so. Every address of a
    name is asked. Exit code 0 when a port is open, 1 when none is, 5 when the name has no address.

    \b
    Examples:
      portbook probe 192.168.1.1 53,123,161
      portbook probe printer.local 1-1024 --open --deadline 60
      portbook probe fe80::1%eth0 53 --json
    """
    from portbook.scan.run import scan

    limits = Limits(timeout_s=timeout, rate=rate, deadline_s=deadline)
    if retries is not None:
        limits = replace(limits, retries=retries, most_retries=retries)
    meter = progress.Meter() if progress.wanted(form is not None) else progress.Silent()
    running = scan(
        [host], ports, udp=True, limits=limits, allow_public=allow_public, only_open=only_open, tell=meter.tell
    )
    with ExitStack() as stack:
        stack.enter_context(running)
        interrupt = stack.enter_context(Interrupt())
        if isinstance(meter, progress.Meter):
            stack.enter_context(meter.shown(running))
        _write(interrupt.until(running), running, form, meter)
    _write_notes(running.report, form is None)
    return INTERRUPTED if interrupt.asked else exit_code(running.report)


def _write(answers: Iterator[Answer], running: Scan, form: str | None, meter: progress.Meter | progress.Silent) -> None:
    from portbook.render import scan as render
    from portbook.render.text import style_of

    if form is not None:
        output.write_bytes(render.FORMATS[form](answers, lambda: running.report))
        return
    for lines in render.people(_with_address(answers), style_of(sys.stdout)):
        with meter.aside():
            sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()


def _with_address(answers: Iterator[Answer]) -> Iterator[Answer]:
    """The answers; that a name has no address is an error of the whole command."""
    from portbook.render.text import safe

    for answer in answers:
        if answer.outcome == "name-not-found":
            sys.stderr.write(f"portbook: {safe(answer.target)}: {safe(in_words(answer.evidence))}\n")
        else:
            yield answer


def _write_notes(report: Report, for_people: bool) -> None:
    """The summary, and what makes the answers less than expected: on stderr, below the table."""
    from portbook.render import scan as render
    from portbook.render.text import safe

    if not report.addresses:
        return
    lines = render.summary(report) if for_people else render.partial(report)
    sys.stderr.write("".join(f"portbook: {safe(line)}\n" for line in (*lines, *render.notes(report))))
