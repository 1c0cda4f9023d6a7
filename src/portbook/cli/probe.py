"""``portbook probe``: which UDP ports of a host reply, and which service replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from portbook.cli import base, progress, survey
from portbook.errors import UsageError

if TYPE_CHECKING:  # not needed to complete options
    from portbook.probe.outcome import Answer
    from portbook.scanner.report import Report


@base.command("probe")
@click.argument("words", nargs=-1, metavar="[HOST] PORTS...")
@base.option("-p", "--ports", "more", metavar="PORTS", help="the same as PORTS")
@survey.only_open
@survey.options
@survey.allow_public
def command(
    words: tuple[str, ...],
    more: str | None,
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

    HOST and its ports are written as localhost:53, or apart; ports alone are those of this machine. Each port gets a
    request of the service that is registered for it. A reply means open, and names the service. ICMP port unreachable
    means closed if the host itself sent it, and filtered if another host did. Silence means open|filtered. Hosts limit
    how many ports they refuse per second: silent ports are probed again, more slowly, until their silence is proven,
    and the evidence says so. Every address of a name is probed. The exit code is 0 if a port is open, 1 if none is, and
    5 if the name has no address.

    \b
    Examples:
      portbook probe 192.168.1.1 53,123,161
      portbook probe printer.local 1-1024 --open --deadline 60
      portbook probe localhost:53 --json
    """
    from portbook.scanner.run import scan

    targets, ports = _read(words, more)
    limits = survey.limits(timeout, retries, rate, concurrency, deadline)
    meter = progress.meter(streams_rows=form is not None)
    running = scan(
        targets,
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


def _read(words: Sequence[str], more: str | None) -> tuple[list[str], list[str] | None]:
    """The host, perhaps with ports, and the ports; a port without a host is one of this machine."""
    if more is not None:
        return list(words) or ["localhost"], [more]
    if len(words) == 1:
        return _alone(words[0]), None
    if len(words) < 1:
        raise UsageError("no port to probe", "write portbook probe HOST 53,123, or portbook probe HOST:53")
    return [words[0]], list(words[1:])


def _alone(word: str) -> list[str]:
    """One word has to have a port: a host alone would be probed at other ports than somebody may think."""
    from portbook.ports import parse_several

    if not word.startswith("@"):
        return [str(ports) for ports in parse_several(word)]
    raise UsageError(f"{word!r} has no host", f"write portbook probe localhost {word}")


def _unchanged(answers: Iterator[Answer], _: object) -> Iterator[Answer]:
    return answers


def _report_missing_names(answers: Iterator[Answer], _: object) -> Iterator[Answer]:
    """Yield the answers; report a name without an address on stderr instead, because it concerns the whole command."""
    from portbook.probe.outcome import WITHOUT_ADDRESS, describe

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
