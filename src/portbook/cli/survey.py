"""What scan and probe share: options for limits, Ctrl-C, writing answers while they come, the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from portbook.cli import base, exits, progress

if TYPE_CHECKING:  # not needed to complete options
    from types import FrameType

    from portbook.probe.outcome import Answer
    from portbook.probe.request import Limits
    from portbook.scanner.report import Report
    from portbook.scanner.run import Scan

INTERRUPTED = 130  # as every command that Ctrl-C ends; the answers known by then are shown
FORMATS = {
    "json": "one JSON object: the answers and a report",
    "jsonl": "JSON lines, one port on each line",
    "csv": "CSV, one port on each line",
}
NUMBERS = {
    "timeout": (float, "SECONDS", "time limit of one attempt (default: adapted to the measured round trips)"),
    "retries": (int, "N", "how often to try a silent port again (default: once, and more where packets get lost)"),
    "rate": (float, "N", "at most N probes per second; for UDP, datagrams"),
    "concurrency": (int, "N", "at most N ports at the same time"),
    "deadline": (float, "SECONDS", "time limit of the whole scan; what is known by then is shown"),
}

AnswerFilter = Callable[[Iterator["Answer"], ExitStack], Iterator["Answer"]]  # between the scan and the output


def options(command: base.Decorated) -> base.Decorated:
    """Add the options of ``limits``, and the formats; the last format given counts."""
    for name, text in reversed(FORMATS.items()):
        command = base.option(f"--{name}", "form", flag_value=name, default=None, help=text)(command)
    for name, (kind, metavar, text) in reversed(NUMBERS.items()):
        command = base.option(f"--{name}", type=kind, metavar=metavar, help=text)(command)
    return command


allow_public = base.option(
    "--allow-public", is_flag=True, help="scan globally routable addresses too; ask their owners first"
)
only_open = base.option("--open", "only_open", is_flag=True, help="show open ports only")


def limits(
    timeout: float | None, retries: int | None, rate: float | None, concurrency: int | None, deadline: float | None
) -> Limits:
    """Return the limits of the options; ``--retries`` is an exact number."""
    from msgspec.structs import replace

    from portbook.probe.request import Limits

    limits = Limits(timeout_s=timeout, rate=rate, concurrency=concurrency, deadline_s=deadline)
    if retries is None:
        return limits
    return replace(limits, retries=retries, most_retries=retries)


def conduct(
    running: Scan, form: str | None, meter: progress.Meter | progress.NoMeter, answer_filter: AnswerFilter
) -> bool:
    """Write the answers while they come; True when Ctrl-C has ended the scan. ``form`` None: for people."""
    with ExitStack() as stack:
        stack.enter_context(running)
        interrupt = stack.enter_context(Interrupt())
        answers = answer_filter(interrupt.until(running), stack)
        stack.enter_context(meter.running(running))
        if form is None:
            _write_people(answers, meter)
        else:
            _write_machine(answers, running, form)
    return interrupt.requested


def exit_code(report: Report, interrupted: bool) -> int:
    """YES when a port is open; UNKNOWN when no port could be probed at all."""
    from portbook.probe.outcome import WITHOUT_ADDRESS

    if interrupted:
        return INTERRUPTED
    if report.outcomes.get("open"):
        return exits.YES
    probed = report.outcomes.keys() - {"error", *WITHOUT_ADDRESS}
    return exits.NO if probed or not report.outcomes else exits.UNKNOWN


def write_notes(lines: Iterable[str]) -> None:
    """Write notes to stderr, whatever the format."""
    from portbook.render.text import note

    sys.stderr.write("".join(map(note, lines)))


# --- writing -------------------------------------------------------------------------------------------------------


def _write_people(answers: Iterator[Answer], meter: progress.Meter | progress.NoMeter) -> None:
    from portbook.render.scan import people
    from portbook.render.text import style_of

    for lines in people(answers, style_of(sys.stdout)):
        with meter.aside():
            sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()


def _write_machine(answers: Iterator[Answer], running: Scan, form: str) -> None:
    """Write each part at once, as a reader may be waiting for it; of an unknown format, nothing."""
    from portbook.render.scan_formats import FORMATS as ENCODERS

    if form not in ENCODERS:
        for _ in answers:
            pass
        return
    for part in ENCODERS[form](answers, lambda: running.report):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


# --- Ctrl-C --------------------------------------------------------------------------------------------------------


class Interrupt:
    """Ctrl-C ends the stream of answers, not the program: what is being written is completed.

    Waiting for an answer is interrupted at once, writing one is not. A second Ctrl-C interrupts anything.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False

    def __enter__(self) -> Interrupt:
        import signal

        self._before = signal.signal(signal.SIGINT, self._handle) if _is_main_thread() else None
        return self

    def __exit__(self, *_: object) -> None:
        import signal

        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_second, self.requested = self.requested, True
        if is_second or self._waiting:
            raise KeyboardInterrupt

    def until(self, running: Scan) -> Iterator[Answer]:
        """Yield the answers until Ctrl-C."""
        answer: Answer | None = None
        while not self.requested:
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
    import threading

    return threading.current_thread() is threading.main_thread()
