"""What scan and probe share: how hard to try, Ctrl-C, the writing of answers while they come, the exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from portbook.cli import base, exits, progress
from portbook.probe.outcome import Answer
from portbook.probe.request import Limits

if TYPE_CHECKING:
    from portbook.scanner.report import Report
    from portbook.scanner.run import Scan

INTERRUPTED = 130  # as a run that Ctrl-C ends anywhere else; what is known by then is shown all the same
FORMATS = {
    "json": "one JSON object: the answers and a report",
    "jsonl": "JSON, one port a line",
    "csv": "CSV, one port a line",
}
NUMBERS = {
    "timeout": (float, "SECONDS", "of one attempt; adapted to the round trips measured, when not given"),
    "retries": (int, "N", "more attempts for a silent port; 1, and more where packets get lost, when not given"),
    "rate": (float, "N", "probes a second, at most; of UDP, datagrams"),
    "concurrency": (int, "N", "ports asked at the same time, at most"),
    "deadline": (float, "SECONDS", "for everything; what is known by then is shown"),
}

Command = TypeVar("Command", bound=Callable[..., Any])
Through = Callable[[Iterator[Answer], ExitStack], Iterator[Answer]]  # what happens to answers on their way


def options(command: Command) -> Command:
    """The numbers, which ``limits`` takes, and the formats, of which the last one counts."""
    for name, text in reversed(FORMATS.items()):
        command = base.option(f"--{name}", "form", flag_value=name, default=None, help=text)(command)
    for name, (kind, metavar, text) in reversed(NUMBERS.items()):
        command = base.option(f"--{name}", type=kind, metavar=metavar, help=text)(command)
    return command


allow_public = base.option(
    "--allow-public", is_flag=True, help="ask globally routable addresses too; ask their owners first"
)
only_open = base.option("--open", "only_open", is_flag=True, help="show open ports only")


def limits(
    timeout: float | None, retries: int | None, rate: float | None, concurrency: int | None, deadline: float | None
) -> Limits:
    """What the options say; ``--retries`` is meant exactly."""
    said = Limits(timeout_s=timeout, rate=rate, concurrency=concurrency, deadline_s=deadline)
    return said if retries is None else replace(said, retries=retries, most_retries=retries)


def conduct(running: Scan, form: str | None, meter: progress.Meter | progress.Silent, through: Through) -> bool:
    """Write the answers while they come; True when Ctrl-C has ended it. ``form`` None: for people."""
    with ExitStack() as stack:
        stack.enter_context(running)
        interrupt = stack.enter_context(Interrupt())
        answers = through(interrupt.until(running), stack)
        stack.enter_context(meter.shown(running))
        if form is None:
            _write_people(answers, meter)
        else:
            _write_machine(answers, running, form)
    return interrupt.asked


def exit_code(report: Report, interrupted: bool) -> int:
    """Yes when a port is open; "could not find out" when no port could be asked at all."""
    if interrupted:
        return INTERRUPTED
    if report.outcomes.get("open"):
        return exits.YES
    asked = set(report.outcomes) - {"error", "name-not-found"}
    return exits.NO if asked or not report.outcomes else exits.UNKNOWN


def say(lines: Iterable[str]) -> None:
    """What somebody should know whatever the format: on stderr."""
    from portbook.render.text import safe

    sys.stderr.write("".join(f"portbook: {safe(line)}\n" for line in lines))


# --- writing -------------------------------------------------------------------------------------------------------


def _write_people(answers: Iterator[Answer], meter: progress.Meter | progress.Silent) -> None:
    from portbook.render import scan as render
    from portbook.render.text import style_of

    for lines in render.people(answers, style_of(sys.stdout)):
        with meter.aside():
            sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()


def _write_machine(answers: Iterator[Answer], running: Scan, form: str) -> None:
    """A part at a time, as somebody may be waiting for it; of a form that is none, nothing."""
    from portbook.render import scan as render

    if form not in render.FORMATS:
        for _ in answers:
            pass
        return
    for part in render.FORMATS[form](answers, lambda: running.report):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


# --- Ctrl-C --------------------------------------------------------------------------------------------------------


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
