"""``portbook scan``: which of many ports answer."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING

import click

from portbook.cli import exits, progress
from portbook.errors import UsageError
from portbook.probe.outcome import Answer
from portbook.probe.request import Limits

if TYPE_CHECKING:
    from portbook.scan.report import Report
    from portbook.scan.run import Scan

INTERRUPTED = 130  # as a run that Ctrl-C ends anywhere else; what is known by then is shown all the same
FORMATS = {
    "json": "one JSON object: the answers and a report",
    "jsonl": "JSON, one port a line",
    "csv": "CSV, one port a line",
}
NUMBERS = {
    "--timeout": (float, "SECONDS", "of one attempt; adapted to the round trips measured, when not given"),
    "--retries": (int, "N", "more attempts for a silent port; 1, and more where packets get lost, when not given"),
    "--rate": (float, "N", "probes a second, at most"),
    "--concurrency": (int, "N", "probes in flight, at most"),
    "--deadline": (float, "SECONDS", "for everything; what is known by then is shown"),
}


def _options(command: Callable[..., int]) -> Callable[..., int]:
    for name, text in reversed(FORMATS.items()):
        command = click.option(f"--{name}", "form", flag_value=name, default=None, help=text)(command)
    for option, (kind, metavar, text) in reversed(NUMBERS.items()):
        command = click.option(option, type=kind, metavar=metavar, help=text)(command)
    return command


@click.command("scan")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "-p", "--ports", default="@common", metavar="PORTS", help="22,8000-8100, or a group; @common if not given"
)
@click.option("-u", "--udp", is_flag=True, help="UDP instead of TCP")
@click.option("--open", "only_open", is_flag=True, help="show open ports only")
@_options
@click.option(
    "--nmap-xml", "xml_path", metavar="FILE", help="write nmap's XML as well; - is the output, and nothing else"
)
@click.option("--allow-public", is_flag=True, help="scan globally routable addresses too; ask their owners first")
def command(
    targets: tuple[str, ...], ports: str, udp: bool, only_open: bool, timeout: float | None, retries: int | None,
    rate: float | None, concurrency: int | None, deadline: float | None, form: str | None, xml_path: str | None,
    allow_public: bool,
) -> int:  # fmt: skip
    """Find out which ports answer.

    TARGET is a name, an address, 10.0.0.0/24, 10.0.0.1-20, fe80::1%eth0, or @FILE with one of these on each line.
    PORTS are numbers, ranges and groups: @common, @web, @db, @mail, @remote, @windows, @queue. Every answer comes
    with its evidence; silence is never called closed. On this machine a scan checks itself, and says what it missed.
    Ctrl-C shows what is known so far. Exit code 0 when a port is open, 1 when none is.

    \b
    Examples:
      portbook scan localhost -p 1-65535 --open
      portbook scan 192.168.1.0/24 -p @web,22 --jsonl
      portbook scan 10.0.0.1-20 --udp --nmap-xml udp.xml
    """
    from portbook.scan.run import scan

    if xml_path == "-" and form is not None:
        raise UsageError(f"--{form} and --nmap-xml - cannot both have the output", "name a file for the XML")
    limits = Limits(
        timeout_s=timeout, rate=rate, concurrency=concurrency, deadline_s=deadline,
        **({} if retries is None else {"retries": retries, "most_retries": retries}),
    )  # fmt: skip
    meter = progress.Meter() if progress.wanted(form is not None or xml_path == "-") else progress.Silent()
    with ExitStack() as stack:
        running = stack.enter_context(
            scan(
                targets, ports, udp=udp, limits=limits, allow_public=allow_public, only_open=only_open, tell=meter.tell
            )
        )
        interrupt = stack.enter_context(Interrupt())
        answers = interrupt.until(running)
        if xml_path is not None:
            answers = _with_xml(answers, running, xml_path, stack)
        if isinstance(meter, progress.Meter):
            stack.enter_context(meter.shown(running))
        _write(answers, running, form if xml_path != "-" else "nothing", meter)
    _write_notes(running.report, form is None and xml_path != "-")
    return INTERRUPTED if interrupt.asked else exit_code(running.report)


def exit_code(report: Report) -> int:
    """Yes when a port is open; "could not find out" when no port could be asked at all."""
    if report.outcomes.get("open"):
        return exits.YES
    asked = set(report.outcomes) - {"error", "name-not-found"}
    return exits.NO if asked or not report.outcomes else exits.UNKNOWN


class Interrupt:
    """Ctrl-C ends the stream of answers, not the program: what is being written is completed.

    While an answer is waited for, the wait is interrupted at once; while one is written, nothing is. A second Ctrl-C
    interrupts anything.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._heard) if _is_main_thread() else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if again or self._waiting:
            raise KeyboardInterrupt

    def until(self, running: Scan) -> Iterator[Answer]:
        """The answers until Ctrl-C."""
        answer: Answer | None = None
        while not self.asked:
            try:
                self._waiting = True
                answer = next(running, None)
                self._waiting = False
            except KeyboardInterrupt:
                self._waiting = False
                if running.latest is not None and running.latest is not answer:
                    yield running.latest
                break
            if answer is None:
                return
            yield answer
        running.close()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _with_xml(answers: Iterator[Answer], running: Scan, path: str, stack: ExitStack) -> Iterator[Answer]:
    from datetime import UTC, datetime

    from portbook.cli.replace import new_file
    from portbook.render.nmap_xml import NmapXml, add_all

    write = sys.stdout.buffer.write if path == "-" else stack.enter_context(new_file(path)).write
    xml = NmapXml(write, running.protocol, running.ports, _arguments(), datetime.now(UTC))
    stack.callback(lambda: xml.finish(running.report))
    return add_all(answers, xml)


def _arguments() -> str:
    return " ".join(["portbook", *sys.argv[1:]])


def _write(answers: Iterator[Answer], running: Scan, form: str | None, meter: progress.Meter | progress.Silent) -> None:
    from portbook.render import scan as render

    if form is None:
        from portbook.render.text import style_of

        for lines in render.people(answers, style_of(sys.stdout)):
            with meter.aside():
                sys.stdout.write("".join(line + "\n" for line in lines))
        return
    parts = render.FORMATS[form](answers, lambda: running.report) if form in render.FORMATS else _drained(answers)
    for part in parts:
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


def _drained(answers: Iterator[Answer]) -> Iterator[bytes]:
    for _ in answers:
        pass
    return iter(())


def _write_notes(report: Report, for_people: bool) -> None:
    """The summary below the table; what makes the answers less than expected on stderr, whatever the format."""
    from portbook.render import scan as render
    from portbook.render.text import safe

    if for_people:
        sys.stdout.write("".join(line + "\n" for line in render.summary(report)))
        sys.stdout.flush()
    notes = render.notes(report) if for_people else [*render.partial(report), *render.notes(report)]
    sys.stderr.write("".join(f"portbook: {safe(line)}\n" for line in notes))
