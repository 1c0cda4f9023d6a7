"""What netsh prints about ports: which ones Windows excludes, and where it takes those of outgoing connections.

The words are translated, so rows are recognised by their shape: numbers, an asterisk, a ruler of dashes. An output with
neither a row nor the ruler of a table is an error and never "nothing": under Wine, netsh prints nothing and returns 0.

Why text, when there are interfaces (all on learn.microsoft.com):

- excluded ranges: LookupPersistentTcpPortReservation (iphlpapi.h) finds one persistent reservation whose start and
  length are known already, and there is no function that lists them. Those of WinNAT and http.sys are not persistent.
- dynamic ranges: MSFT_NetTCPSetting and MSFT_NetUDPSetting (ROOT\\StandardCimv2) have them, but not their family, and
  starting WMI takes longer than netsh.
- http.sys: HttpQueryServiceConfiguration (http.h) lists what is reserved for whom, not who listens.

netsh takes 50 to 200 ms to start, so all commands run at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from portbook.errors import SourceError, SourceGarbled
from portbook.netconfig.facts import DynamicRange, ExcludedRange
from portbook.numerals import UINT16, UINT32, number_or_none
from portbook.records import Family, Protocol
from portbook.system import console, program

Fact = TypeVar("Fact")


class NetshOutput(NamedTuple):
    """What one run of netsh printed."""

    data: bytes
    codec: str  # of the system's OEM code page


class NetshCommand(NamedTuple, Generic[Fact]):
    """The arguments of netsh, and the pure function that parses its output or raises SourceGarbled."""

    arguments: tuple[str, ...]
    parse: Callable[[NetshOutput], tuple[Fact, ...]]

    def __str__(self) -> str:
        return f"netsh {' '.join(self.arguments)}"


# The facts of each command, or why there are none.
Results = list[tuple[Fact, ...] | SourceError]


def excluded_commands(protocols: Iterable[Protocol], families: Iterable[Family]) -> list[NetshCommand[ExcludedRange]]:
    """The commands that list excluded ranges: Windows keeps a list for each family and protocol."""
    return [
        NetshCommand(
            ("interface", family, "show", "excludedportrange", f"protocol={protocol}"),
            partial(parse_excluded, family=family, protocol=protocol),  # the output names neither in every language
        )
        for family, protocol in _combinations(protocols, families)
    ]


def dynamic_commands(protocols: Iterable[Protocol], families: Iterable[Family]) -> list[NetshCommand[DynamicRange]]:
    """The commands that show dynamic ranges, one for each family and protocol."""
    return [
        NetshCommand(
            ("interface", family, "show", "dynamicport", protocol),
            partial(parse_dynamic, family=family, protocol=protocol),
        )
        for family, protocol in _combinations(protocols, families)
    ]


def _combinations(protocols: Iterable[Protocol], families: Iterable[Family]) -> list[tuple[Family, Protocol]]:
    protocols = tuple(protocols)
    return [(family, protocol) for family in families for protocol in protocols]


# --- read ----------------------------------------------------------------------------------------------------------

PROGRAM = "netsh.exe"
TIMEOUT_S = 10.0  # for all of them together
MOST_BYTES = 1 << 22  # a list of all 65,536 ports takes 2 MB


def run_commands(commands: Sequence[NetshCommand[Fact]]) -> Results[Fact]:
    """Run all commands at the same time and parse their output; an error takes the place of the facts.

    :raises SourceMissing: this is not Windows
    """
    return [_parse(command, output) for command, output in zip(commands, read(commands), strict=True)]


def read(commands: Sequence[NetshCommand[Fact]]) -> list[NetshOutput | SourceError]:
    """Run all commands at the same time; return what each printed, or why it failed.

    :raises SourceMissing: this is not Windows
    """
    codec = console.console().codec
    with ExitStack() as stack:
        runs = [_start(command, stack) for command in commands]
        return [_output(run, codec) for run in runs]


def _start(command: NetshCommand[Fact], stack: ExitStack) -> program.Running | SourceError:
    try:
        argv = (program.require(PROGRAM), *command.arguments)
        return stack.enter_context(program.start(argv, TIMEOUT_S, most_bytes=MOST_BYTES, name=str(command)))
    except SourceError as error:
        return error


def _output(run: program.Running | SourceError, codec: str) -> NetshOutput | SourceError:
    if isinstance(run, SourceError):
        return run
    try:
        return NetshOutput(run.output().successful(), codec)
    except SourceError as error:
        return error


def _parse(command: NetshCommand[Fact], output: NetshOutput | SourceError) -> tuple[Fact, ...] | SourceError:
    if isinstance(output, SourceError):
        return output
    try:
        return command.parse(output)
    except SourceGarbled as error:
        return SourceGarbled(f"{command}: {error}")


# --- parse ---------------------------------------------------------------------------------------------------------


def parse_excluded(output: NetshOutput, family: Family, protocol: Protocol) -> tuple[ExcludedRange, ...]:
    """Parse a list of excluded ranges; raise SourceGarbled.

    A row is two numbers, with an asterisk where an administrator reserved the range.
    """
    lines = [line.split() for line in decode(output).splitlines() if line.strip()]
    rows = [fields for fields in lines if number_or_none(fields[0], UINT32) is not None]
    if not rows and not _is_empty_table(lines):
        raise SourceGarbled(f"neither a range nor an empty table; the output begins {output.data[:60]!r}")
    return tuple(_excluded(fields, family, protocol) for fields in rows)


def _excluded(fields: list[str], family: Family, protocol: Protocol) -> ExcludedRange:
    is_administered = fields[2:] == ["*"]
    start = end = None
    if len(fields) == 2 or is_administered:
        start = number_or_none(fields[0], UINT16)
        end = number_or_none(fields[1], UINT16)
    if start is None or end is None or start > end:
        raise SourceGarbled(f"the row {' '.join(fields)[:60]!r} was not understood")
    return ExcludedRange(family, protocol, start, end, is_administered)


def _is_empty_table(lines: list[list[str]]) -> bool:
    """Whether there is a ruler under two headings, and nothing behind it but the note that begins with an asterisk."""
    for at, fields in enumerate(lines):
        if len(fields) == 2 and all(_is_ruler(field) for field in fields):
            return all(rest[0] == "*" for rest in lines[at + 1 :])
    return False


def _is_ruler(field: str) -> bool:
    return len(field) > 2 and not field.strip("-")


def parse_dynamic(output: NetshOutput, family: Family, protocol: Protocol) -> tuple[DynamicRange, ...]:
    """Parse a dynamic range; raise SourceGarbled. Two lines end in a number: the first port, and how many there are."""
    values = [number_or_none(split_label(line)[1], UINT32) for line in decode(output).splitlines()]
    numbers = [value for value in values if value is not None]
    if len(numbers) == 2:
        first, count = numbers
        if 0 < first <= UINT16 and 0 < count <= UINT16 + 1 - first:
            return (DynamicRange(family, protocol, first, count),)
    raise SourceGarbled(f"no first port with a number of ports; the output begins {output.data[:60]!r}")


def decode(output: NetshOutput) -> str:
    """The text of an output."""
    return console.decode(output.data, output.codec)


def split_label(line: str) -> tuple[str, str]:
    """The parts of a line before and behind the first colon; the second is empty if there is no colon."""
    label, _, value = line.replace("\uff1a", ":").partition(":")  # East Asian text may have the wide colon
    return label.strip(), value.strip()
