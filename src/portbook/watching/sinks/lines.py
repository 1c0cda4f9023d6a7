"""What the sinks ``text`` and ``jsonl`` have in common: lines in a file, or on standard output."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from portbook.errors import StoreError, UsageError
from portbook.watching.sinks.base import DeliveryError, EncodedEvent, PlainSink, SinkOption, SinkSettings
from portbook.watching.sinks.log_file import LogFile

STDOUT = 1
MOST_KEPT_FILES = 10_000
OPTIONS = {
    "rotate_bytes": SinkOption(
        "number", 0, "the file is rotated before it becomes larger; 0: never, another program does it (SIGHUP reopens)"
    ),
    "rotate_days": SinkOption("number", 0, "rotated at the first event after so many midnights; 0: never", most=3650),
    "keep": SinkOption("number", 7, "how many rotated files remain: NAME.1 is the newest", 1, MOST_KEPT_FILES),
}
Encode = Callable[[Sequence[EncodedEvent]], bytes]


class StandardOutput:
    """Standard output as a place for lines."""

    def append(self, lines: bytes) -> None:
        """Write the lines; wait for a reader that is slow."""
        done = 0
        try:
            while done < len(lines):
                done += os.write(STDOUT, lines[done:])
        except OSError as error:
            reason = f"standard output could not be written: {error.strerror}"
            raise DeliveryError(reason, lines.count(b"\n", 0, done)) from error

    def reopen(self) -> None:
        """It remains what it is."""

    def close(self) -> None:
        """It belongs to the process."""


class LineSink(PlainSink):
    """Lines in a file, or on standard output."""

    def __init__(self, settings: SinkSettings, encode: Encode) -> None:
        if not settings.target:
            hint = f"write {settings.kind}:/var/log/portbook.log, or {settings.kind}:- for standard output"
            raise UsageError(f"{settings.place}: {settings.kind} needs a file", hint)
        self.name = f"{settings.kind}:{settings.target}"
        self._encode = encode
        self._place: LogFile | StandardOutput
        if settings.target == "-":
            self._place = StandardOutput()
        else:
            options = settings.options
            self._place = LogFile(
                settings.target,
                rotate_bytes=options["rotate_bytes"],
                rotate_days=options["rotate_days"],
                keep=options["keep"],
            )

    def deliver(self, events: Sequence[EncodedEvent]) -> None:
        """Append a line for each event; raise DeliveryError."""
        self._place.append(self._encode(events))

    def test(self, event: EncodedEvent) -> str | None:
        """Append a line; raise DeliveryError."""
        self.deliver((event,))
        return None

    def reopen(self) -> None:
        """Open the file again; raise DeliveryError."""
        try:
            self._place.reopen()
        except StoreError as error:
            raise DeliveryError(str(error)) from error

    def close(self, limit_s: float) -> None:
        """Close the file."""
        self._place.close()
