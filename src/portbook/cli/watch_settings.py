"""The options of ``portbook watch``, from the command line and a TOML file: the command line wins, sinks add up."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec import Struct
from msgspec.structs import replace

from portbook.errors import StoreError, UsageError, nearest
from portbook.numerals import is_within

if TYPE_CHECKING:
    from portbook.query import Query
    from portbook.watching.policy.records import Policy
    from portbook.watching.records import Settings
    from portbook.watching.sinks.base import SinkSettings

MOST_BYTES = 1 << 20  # of a file of options
MOST_S = 1e6  # as on the command line
SINK = "sink"  # the tables of sinks
# Keys of the file that are options of the command line, and the type of their values.
NUMBERS = ("interval", "grace", "remind", "canary")
TEXTS = ("query", "policy", "feed", "source", "keep")
FLAGS = ("jsonl",)
STORE = "store"  # a path, or false
PRINTING, STDOUT = ("text", "jsonl"), "-"
JSONL_TO_STDOUT = ("jsonl", STDOUT, "quiet")
KEYS = (*TEXTS, *NUMBERS, *FLAGS, STORE, SINK)


class Choices(Struct, frozen=True):
    """What was chosen. None is the default of the watch."""

    query: str = ""
    policy: str | None = None
    feed: str | None = None
    source: str | None = None
    interval: float | None = None
    grace: float | None = None
    remind: float | None = None
    canary: float | None = None
    store: str | None = None  # None: the default place
    no_store: bool = False
    keep_s: float | None = None
    jsonl: bool = False
    sinks: tuple[SinkSettings, ...] = ()

    @property
    def prints_by_sink(self) -> bool:
        """Whether a sink writes to standard output, which is then its own."""
        return any(sink.kind in PRINTING and sink.target == STDOUT for sink in self.sinks)

    def with_output(self) -> Choices:
        """The same, with ``--jsonl`` instead of a sink that writes the same lines: that output ends with its reader."""
        others = tuple(sink for sink in self.sinks if (sink.kind, sink.target, sink.severity) != JSONL_TO_STDOUT)
        if others == self.sinks:
            return self
        return replace(self, sinks=others, jsonl=True)

    def policy_file(self) -> str | None:
        """The policy that was named, or else the one at the default place, if there is one."""
        if self.policy is not None:
            return self.policy
        from portbook.watching.policy import default_path

        place = default_path()
        return place if os.path.exists(place) else None

    def read_policy(self) -> Policy | None:
        """Read the policy; raise PolicyError with file and line if it is not valid."""
        place = self.policy_file()
        if place is None:
            return None
        from portbook.watching.policy import read

        return read(place)

    def settings(self, policy: Policy | None) -> Settings:
        """What the loop wants to know."""
        from portbook.watching.records import Settings

        given = {f"{name}_s": getattr(self, name) for name in NUMBERS if getattr(self, name) is not None}
        return Settings(feed=self.feed, source=self.source, policy=policy, query=self._query(), **given)

    def _query(self) -> Query | None:
        from portbook.query import parse

        return parse(self.query) if self.query else None


def choose(options: Mapping[str, Any], config: str | None) -> Choices:
    """Put together what was chosen.

    :param options: the parameters of the command
    :param config: a file of options; None: there is none
    :raises UsageError: a value is not valid; of one in the file the message names the line
    :raises StoreError: the file cannot be read
    """
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value not in (None, (), False)}
    sinks = [_parse_sink(text) for text in chosen.pop("sinks", ())]
    if config is not None:
        of_file = ConfigFile(config)
        chosen = of_file.options(no_store="store" in chosen) | chosen
        sinks += of_file.sinks()
    if isinstance(chosen.get("query"), tuple):
        chosen["query"] = " ".join(chosen["query"])
    keep = chosen.pop("keep", None)
    if keep is not None:
        from portbook.times import parse_duration

        chosen["keep_s"] = parse_duration(keep)
    if chosen.get("store") and options.get("no_store"):
        raise UsageError("--store and --no-store contradict each other", "give one of them")
    return Choices(**chosen, sinks=tuple(sinks))


class ConfigFile:
    """A TOML file with options and tables of sinks."""

    def __init__(self, path: str) -> None:
        from portbook.watching.policy import lines

        self._path = path
        text = _read(path)
        try:
            self._values: dict[str, Any] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UsageError(f"{path}: this is no TOML: {error}") from error
        self._lines = lines.find(text)

    def options(self, no_store: bool) -> dict[str, Any]:
        """The options, as the command line has them."""
        chosen: dict[str, Any] = {}
        for key, value in self._values.items():
            if key not in KEYS:
                near = nearest(key, KEYS)
                hint = f"did you mean {near}?" if near else f"valid keys are {', '.join(KEYS)}"
                self._refuse(key, f"unknown key {key[:40]!r}", hint)
            if key in NUMBERS and (isinstance(value, bool) or not is_within(value, MOST_S) or not value):
                self._refuse(key, f"{key} is not a number of seconds", f"valid numbers are up to {MOST_S:,.0f}")
            if key in TEXTS and not isinstance(value, str):
                self._refuse(key, f"{key} is not a text", f'write {key} = "..."')
            if key in FLAGS and not isinstance(value, bool):
                self._refuse(key, f"{key} is neither true nor false")
            if key == STORE and value is not False and not isinstance(value, str):
                self._refuse(key, "store is neither a file nor false")
            if key == STORE and value is False:
                chosen["no_store"] = not no_store
            elif key != SINK:
                chosen[key] = value
        return chosen

    def sinks(self) -> list[SinkSettings]:
        """The sinks."""
        from portbook.watching.sinks.configuration import parse_table

        tables = self._values.get(SINK, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._refuse(SINK, "sinks are tables", 'write [[sink]], type = "journald"')
        return [
            parse_table(table, self._place(ordinal), partial(self._place, ordinal))
            for ordinal, table in enumerate(tables, 1)
        ]

    def _place(self, ordinal: int, key: str = "") -> str:
        return f"{self._path}:{self._lines.of(SINK, ordinal, key)}"

    def _refuse(self, key: str, what: str, hint: str | None = None) -> NoReturn:
        raise UsageError(f"{self._path}:{self._lines.of('', 1, key) or self._lines.of(key)}: {what}", hint)


def _parse_sink(text: str) -> SinkSettings:
    from portbook.watching.sinks.configuration import parse_text

    return parse_text(text, "--sink")


def _read(path: str) -> str:
    """The text of a file; as root, only of one that nobody else could have written: it names programs to run."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise StoreError(f"{path!r} cannot be read: {error.strerror}") from error
    if os.name == "posix" and os.geteuid() == 0:
        from portbook.system.files import is_writable_by_others

        if is_writable_by_others(status):
            raise StoreError(f"{path!r} can be written by other users", f"chown root {path} && chmod go-w {path}")
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path}: more than {MOST_BYTES:,} bytes are no file of options")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: this is not UTF-8, as TOML is") from error
