"""Asking netsh: which ports Windows keeps back, and where it takes those of outgoing connections.

The words are translated, so rows are read by their shape: numbers, an asterisk, a ruler of dashes. An answer that has
neither a row nor the ruler of a table is an error and never "nothing": under Wine, netsh prints nothing and is content.

Why text, when there are interfaces (all on learn.microsoft.com):

- excluded ranges: LookupPersistentTcpPortReservation (iphlpapi.h) finds one persistent reservation whose start and
  length are known already, and there is no function that lists them. Those of WinNAT and http.sys are not persistent.
- dynamic ranges: MSFT_NetTCPSetting and MSFT_NetUDPSetting (ROOT\\StandardCimv2) have them, but do not tell the family,
  and starting WMI takes longer than netsh.
- http.sys: HttpQueryServiceConfiguration (http.h) lists what is reserved for whom, not who listens.

netsh takes 50 to 200 ms to start, so all that is asked for is asked for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from portbook.errors import SourceError, SourceGarbled
from portbook.netconfig.facts import DynamicRange, ExcludedRange
from portbook.records import FAMILIES, PROTOCOLS, Family, Protocol
from portbook.system import console, program

Command = tuple[str, ...]  # the arguments of netsh
Fact = TypeVar("Fact")


class NetshOutput(NamedTuple):
    """What one run of netsh printed."""

    data: bytes
    codec: str  # of the system's OEM code page


class Question(NamedTuple, Generic[Fact]):
    """A command, and the pure function that reads its answer or raises SourceGarbled."""

    command: Command
    parse: Callable[[NetshOutput], tuple[Fact, ...]]


# Of each question its answer, or why there is none.
Answers = list[tuple[Fact, ...] | SourceError]


def excluded_ranges(
    protocols: Iterable[Protocol] = PROTOCOLS, families: Iterable[Family] = FAMILIES
) -> tuple[ExcludedRange, ...]:
    """The ports that no bind gets, of every list that is asked for: Windows keeps one per family and protocol.

    :raises SourceError: one of the lists could not be had
    """
    return complete(ask(excluded_questions(protocols, families)))


def dynamic_ranges(
    protocols: Iterable[Protocol] = PROTOCOLS, families: Iterable[Family] = FAMILIES
) -> tuple[DynamicRange, ...]:
    """From where the system takes ports, one range per family and protocol.

    :raises SourceError: one of them could not be had
    """
    return complete(ask(dynamic_questions(protocols, families)))


def excluded_questions(protocols: Iterable[Protocol], families: Iterable[Family]) -> list[Question[ExcludedRange]]:
    """What to ask for excluded ranges."""
    return [
        Question(
            ("interface", family, "show", "excludedportrange", f"protocol={protocol}"),
            partial(parse_excluded, family=family, protocol=protocol),  # which list it is, no language's text tells
        )
        for family, protocol in _lists(protocols, families)
    ]


def dynamic_questions(protocols: Iterable[Protocol], families: Iterable[Family]) -> list[Question[DynamicRange]]:
    """What to ask for dynamic ranges."""
    return [
        Question(
            ("interface", family, "show", "dynamicport", protocol),
            partial(parse_dynamic, family=family, protocol=protocol),
        )
        for family, protocol in _lists(protocols, families)
    ]


def _lists(protocols: Iterable[Protocol], families: Iterable[Family]) -> list[tuple[Family, Protocol]]:
    protocols = tuple(protocols)
    return [(family, protocol) for family in families for protocol in protocols]


# --- ask -----------------------------------------------------------------------------------------------------------


def ask(questions: Sequence[Question[Fact]]) -> Answers[Fact]:
    """Ask all at once; what failed is in the place of its answer."""
    answers = read([question.command for question in questions])
    return [_parsed(question, raw) for question, raw in zip(questions, answers, strict=True)]


def _parsed(question: Question[Fact], raw: NetshOutput | SourceError) -> tuple[Fact, ...] | SourceError:
    if isinstance(raw, SourceError):
        return raw
    try:
        return question.parse(raw)
    except SourceGarbled as error:
        return SourceGarbled(f"netsh {' '.join(question.command)}: {error}")


def complete(answers: Answers[Fact]) -> tuple[Fact, ...]:
    """All answers in one; raise the first that is an error."""
    facts: list[Fact] = []
    for answer in answers:
        if isinstance(answer, SourceError):
            raise answer
        facts += answer
    return tuple(facts)


# --- read ----------------------------------------------------------------------------------------------------------

PROGRAM = "netsh.exe"
TIMEOUT_S = 10.0  # for all of them together
MOST_BYTES = 1 << 22  # a list of every port that there is takes 2 MB


def read(commands: Sequence[Command]) -> list[NetshOutput | SourceError]:
    """Run netsh once per command, all at the same time, and return what each printed or why it failed.

    :raises SourceMissing: this is not Windows
    """
    codec = console.console().codec
    with ExitStack() as stack:
        runs = [_start(command, stack) for command in commands]
        return [_output(run, codec) for run in runs]


def _start(command: Command, stack: ExitStack) -> program.Running | SourceError:
    try:
        path = program.require(PROGRAM)
        name = f"netsh {' '.join(command)}"
        return stack.enter_context(program.start((path, *command), TIMEOUT_S, most_bytes=MOST_BYTES, name=name))
    except SourceError as error:
        return error


def _output(run: program.Running | SourceError, codec: str) -> NetshOutput | SourceError:
    if isinstance(run, SourceError):
        return run
    try:
        return NetshOutput(run.output().successful(), codec)
    except SourceError as error:
        return error


# --- parse ---------------------------------------------------------------------------------------------------------


def parse_excluded(raw: NetshOutput, family: Family, protocol: Protocol) -> tuple[ExcludedRange, ...]:
    """Rows are two numbers, and an asterisk where somebody reserved them; raise SourceGarbled."""
    lines = [fields for line in text_of(raw).splitlines() if (fields := line.split())]
    ranges = tuple(_excluded(fields, family, protocol) for fields in lines if number(fields[0]) is not None)
    if not ranges and not _is_empty_table(lines):
        raise SourceGarbled(f"neither a range nor an empty table; it begins {raw.data[:60]!r}")
    return ranges


def _excluded(fields: list[str], family: Family, protocol: Protocol) -> ExcludedRange:
    start, end = (number(fields[0]), number(fields[1])) if len(fields) > 1 else (None, None)
    administered = fields[2:] == ["*"]
    if start is None or end is None or not start <= end <= MOST_PORT or not (administered or len(fields) == 2):
        raise SourceGarbled(f"the row {' '.join(fields)[:60]!r} was not understood")
    return ExcludedRange(family, protocol, start, end, administered)


def _is_empty_table(lines: list[list[str]]) -> bool:
    """A ruler under two headings, and at most the note that begins with an asterisk after it."""
    for at, fields in enumerate(lines):
        if len(fields) == 2 and all(len(field) > 2 and not field.strip("-") for field in fields):
            return all(rest[0] == "*" for rest in lines[at + 1 :])
    return False


def parse_dynamic(raw: NetshOutput, family: Family, protocol: Protocol) -> tuple[DynamicRange, ...]:
    """Two lines end in a number: the first port, and how many there are; raise SourceGarbled."""
    values = [value for line in text_of(raw).splitlines() if (value := number(labelled(line)[1])) is not None]
    if len(values) != 2 or not 0 < values[0] <= MOST_PORT or not 0 < values[1] <= MOST_PORT + 1 - values[0]:
        raise SourceGarbled(f"no first port with a number of ports; it begins {raw.data[:60]!r}")
    return (DynamicRange(family, protocol, *values),)


MOST_PORT = 0xFFFF


def text_of(raw: NetshOutput) -> str:
    """Its text. A system that is set to UTF-8 prints that, whatever its OEM code page was when it was asked for."""
    try:
        return raw.data.decode("utf-8")
    except UnicodeDecodeError:
        return console.decode(raw.data, raw.codec)


def number(text: str) -> int | None:
    """A number of ASCII digits up to 32 bits; int() takes signs, underscores and every script's digits too."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= 0xFFFFFFFF else None


def labelled(line: str) -> tuple[str, str]:
    """What is before the first colon and what is behind it; the second is empty when there is no colon."""
    label, _, value = line.replace("\uff1a", ":").partition(":")  # East Asian text may have the wide colon
    return label.strip(), value.strip()
