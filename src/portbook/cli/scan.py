"""``portbook scan``: which of many ports answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from portbook.cli import base, progress, survey
from portbook.errors import UsageError

if TYPE_CHECKING:  # not needed to complete options
    from portbook.probe.outcome import Answer
    from portbook.scanner.report import Report
    from portbook.scanner.run import Scan

NO_FORMAT = "nothing"  # write the XML alone


@base.command("scan")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@base.option("-p", "--ports", metavar="PORTS", help="22,8000-8100, http, or a group (default: @common)")
@base.option("-u", "--udp", is_flag=True, help="UDP instead of TCP")
@survey.only_open
@survey.options
@base.option("--banner", is_flag=True, help="read what each open TCP port says first; nothing is sent")
@base.option("--no-breaker", is_flag=True, help="probe every TCP port of silent hosts too; slow")
@base.option(
    "--nmap-xml",
    "xml_path",
    metavar="FILE",
    help="also write nmap's XML; - writes it to stdout instead of the answers",
)
@survey.allow_public
def command(
    targets: tuple[str, ...],
    ports: str | None,
    udp: bool,
    only_open: bool,
    timeout: float | None,
    retries: int | None,
    rate: float | None,
    concurrency: int | None,
    deadline: float | None,
    form: str | None,
    banner: bool,
    no_breaker: bool,
    xml_path: str | None,
    allow_public: bool,
) -> int:
    """Find out which ports answer.

    TARGET is a name, an address, 10.0.0.0/24, 10.0.0.1-20, fe80::1%eth0, or @FILE with one of these on each line. It
    may have ports: localhost:8000-8100; a number is a port of this machine. PORTS are numbers, ranges, names of
    services and groups: @common, @web, @db, @mail, @remote, @windows, @queue. Every answer comes
    with its evidence; silence is never called closed. A scan of this machine checks itself, and reports what it missed.
    If there are several hosts, the silent ones are given up after some probes; --no-breaker probes all their ports.
    Ctrl-C shows what is known so far. The exit code is 0 if a port is open, and 1 if none is.

    \b
    Examples:
      portbook scan localhost -p 1-65535 --open
      portbook scan 192.168.1.0/24 -p @web,22 --jsonl
      portbook scan 10.0.0.1-20 --udp --nmap-xml udp.xml
    """
    from portbook.scanner.run import scan

    if ports == "-":
        ports = "1-65535"  # as in "nmap -p-"
    if xml_path == "-":
        if form is not None:
            raise UsageError(f"--{form} and --nmap-xml - both write to stdout", "name a file for the XML")
        form = NO_FORMAT
    limits = survey.limits(timeout, retries, rate, concurrency, deadline)
    if no_breaker:
        from msgspec.structs import replace

        limits = replace(limits, breaker=None)
    meter = progress.meter(streams_rows=form is not None)
    running = scan(
        targets,
        ports,
        udp=udp or None,
        limits=limits,
        allow_public=allow_public,
        only_open=only_open,
        banner=banner,
        on_event=meter.show_event,
    )

    def with_xml(answers: Iterator[Answer], stack: ExitStack) -> Iterator[Answer]:
        if xml_path is None:
            return answers
        return _with_xml(answers, running, xml_path, stack)

    interrupted = survey.conduct(running, form, meter, with_xml)
    _write_notes(running.report, form is None)
    return survey.exit_code(running.report, interrupted)


def _with_xml(answers: Iterator[Answer], running: Scan, path: str, stack: ExitStack) -> Iterator[Answer]:
    from datetime import UTC, datetime

    from portbook.render.nmap_xml import NmapXml, add_all
    from portbook.system.files import new_file

    stream = sys.stdout.buffer if path == "-" else stack.enter_context(new_file(path))
    xml = NmapXml(stream.write, running.protocol, running.ports, _arguments(), datetime.now(UTC))
    stack.callback(lambda: xml.finish(running.report))
    return add_all(answers, xml)


def _arguments() -> str:
    return " ".join(["portbook", *sys.argv[1:]])


def _write_notes(report: Report, for_people: bool) -> None:
    """Write the summary below the tables; on stderr, whatever the format, what makes the answers less than expected."""
    from portbook.render.scan_report import notes, partial, summary

    if for_people:
        sys.stdout.write("".join(line + "\n" for line in summary(report)))
        sys.stdout.flush()
    else:
        survey.write_notes(partial(report))
    survey.write_notes(notes(report))
