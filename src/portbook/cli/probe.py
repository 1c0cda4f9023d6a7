"""``portbook probe``: which UDP ports of a host answer, and what answers there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from portbook.cli import base, progress, survey
from portbook.probe.outcome import Answer, describe

if TYPE_CHECKING:
    from portbook.scanner.report import Report


@base.command("probe")
@click.argument("host")
@click.argument("ports")
@survey.only_open
@survey.options
@survey.allow_public
def command(
    host: str, ports: str, only_open: bool, timeout: float | None, retries: int | None, rate: float | None,
    concurrency: int | None, deadline: float | None, form: str | None, allow_public: bool,
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
    from portbook.scanner.run import scan

    limits = survey.limits(timeout, retries, rate, concurrency, deadline)
    meter = progress.meter(streams_rows=form is not None)
    running = scan(
        [host],
        ports,
        udp=True,
        limits=limits,
        allow_public=allow_public,
        only_open=only_open,
        on_event=meter.show_event,
    )
    interrupted = survey.conduct(running, form, meter, _with_address if form is None else _unchanged)
    _write_notes(running.report, form is None)
    return survey.exit_code(running.report, interrupted)


def _unchanged(answers: Iterator[Answer], _: object) -> Iterator[Answer]:
    return answers


def _with_address(answers: Iterator[Answer], _: object) -> Iterator[Answer]:
    """The answers; that a name has no address is an error of the whole command."""
    for answer in answers:
        if answer.outcome == "name-not-found":
            survey.write_notes([f"{answer.target}: {describe(answer.evidence)}"])
        else:
            yield answer


def _write_notes(report: Report, for_people: bool) -> None:
    """The summary, and what makes the answers less than expected: on stderr, below the table."""
    from portbook.render.scan_report import notes, partial, summary

    if report.addresses:
        survey.write_notes([*(summary(report) if for_people else partial(report)), *notes(report)])
