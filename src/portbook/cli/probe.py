"""``portbook probe``: which UDP ports of a host reply, and which service replies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from portbook.cli import base, progress, survey
from portbook.probe.outcome import WITHOUT_ADDRESS, Answer, describe

if TYPE_CHECKING:
    from portbook.scanner.report import Report


@base.command("probe")
@click.argument("host")
@click.argument("ports")
@survey.only_open
@survey.options
@survey.allow_public
def command(
    host: str,
    ports: str,
    only_open: bool,
    timeout: float | None,
    retries: int | None,
    rate: float | None,
    concurrency: int | None,
    deadline: float | None,
    form: str | None,
    allow_public: bool,
) -> int:
    """Probe UDP ports with requests of their services.

    Each port gets a request of the service that is registered for it. A reply means open, and names the service. ICMP
    port unreachable means closed if the host itself sent it, and filtered if another host did. Silence means
    open|filtered. Hosts limit how many ports they refuse per second: silent ports are probed again, more slowly, until
    their silence is proven, and the evidence says so. Every address of a name is probed. The exit code is 0 if a port
    is open, 1 if none is, and 5 if the name has no address.

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
    through = _report_missing_names if form is None else _unchanged
    interrupted = survey.conduct(running, form, meter, through)
    _write_notes(running.report, for_people=form is None)
    return survey.exit_code(running.report, interrupted)


def _unchanged(answers: Iterator[Answer], _: object) -> Iterator[Answer]:
    return answers


def _report_missing_names(answers: Iterator[Answer], _: object) -> Iterator[Answer]:
    """Yield the answers; report a name without an address on stderr instead, because it concerns the whole command."""
    for answer in answers:
        if answer.outcome in WITHOUT_ADDRESS:
            survey.write_notes([f"{answer.target}: {describe(answer.evidence)}"])
        else:
            yield answer


def _write_notes(report: Report, for_people: bool) -> None:
    """Write the summary, and what makes the answers incomplete, on stderr below the table."""
    from portbook.render.scan_report import notes, partial, summary

    if not report.addresses:
        return
    first_lines = summary(report) if for_people else partial(report)
    survey.write_notes([*first_lines, *notes(report)])
