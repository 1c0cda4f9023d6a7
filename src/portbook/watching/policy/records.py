"""What a policy is: its rules, as frozen records. No I/O here."""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from msgspec import Struct

from portbook.events import Level
from portbook.records import PortRange, Protocol
from portbook.watching.policy.glob import Pattern

if TYPE_CHECKING:
    from portbook.watching.policy.index import Index

RuleKind = Literal["deny", "allow", "require"]
RULE_KINDS: tuple[RuleKind, ...] = get_args(RuleKind)
Default = Literal["deny", "allow"]
# How severe a violation may be called: "quiet" is for events that nobody needs to read.
VIOLATION_LEVELS: tuple[Level, ...] = ("info", "warning", "critical")

VERSION = 1
EVERY_PORT: tuple[PortRange, ...] = ((0, 65535),)
ANY = "any"
LOOPBACK = "loopback"
NONE = "none"  # of service, container: that there is none
OWN = "own"  # of netns: the one of portbook itself


class Network(Struct, frozen=True):
    """An address or a network, as two numbers of one family."""

    text: str
    version: int
    first: int
    last: int


class Selector(Struct, frozen=True):
    """Which sockets a rule is about. Keys that the file does not have are None, and every socket matches them.

    Of one key several values may be given: any of them matches.
    """

    tcp: tuple[PortRange, ...] = EVERY_PORT  # ascending, apart from each other; empty: no TCP port
    udp: tuple[PortRange, ...] = EVERY_PORT
    reach: tuple[str | Network, ...] | None = None  # ANY, LOOPBACK or networks
    name: tuple[Pattern, ...] | None = None
    exe: tuple[Pattern, ...] | None = None
    sha256: tuple[str, ...] | None = None  # lower case
    user: tuple[str, ...] | None = None
    service: tuple[Pattern, ...] | None = None
    container: tuple[Pattern, ...] | None = None
    image: tuple[Pattern, ...] | None = None
    netns: tuple[Pattern, ...] | None = None

    def ports(self, protocol: Protocol) -> tuple[PortRange, ...]:
        """The ranges of one protocol."""
        return self.tcp if protocol == "tcp" else self.udp


class PolicyRule(Struct, frozen=True):
    """One rule."""

    kind: RuleKind
    ordinal: int  # among the rules of its kind, from 1
    line: int  # of its header in the file
    selector: Selector
    entries: tuple[Selector, ...] = ()  # of a requirement: each must be met; of others empty
    comment: str | None = None
    owner: str | None = None
    severity: Level | None = None  # None: that of the policy
    until: str | None = None  # as it is written in the file
    ends: datetime | None = None  # aware, UTC: from then on the rule does not apply
    label: str = ""  # "allow[3] (policy.toml:14)"

    def applies(self, at: datetime) -> bool:
        """Whether the rule has not ended."""
        return self.ends is None or at < self.ends


class Policy(Struct, frozen=True, dict=True):
    """What may listen, and what must. ``dict``: what is derived from the rules is kept beside the fields."""

    rules: tuple[PolicyRule, ...] = ()  # in the order of the file
    default: Default = "deny"
    severity: Level = "warning"  # of violations of rules without one
    file: str = "policy.toml"  # where it was read, for messages
    warnings: tuple[Problem, ...] = ()

    @cached_property
    def index(self) -> Index:
        """The rules by port."""
        from portbook.watching.policy.index import Index

        return Index(self.rules)

    def of_kind(self, kind: RuleKind) -> tuple[PolicyRule, ...]:
        """The rules of one kind."""
        return tuple(rule for rule in self.rules if rule.kind == kind)


class Problem(Struct, frozen=True):
    """What is wrong in a file, and what would be valid."""

    file: str
    line: int  # 0: the file as a whole
    what: str
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{place}: {self.what}"
        return f"{text}; {self.hint}" if self.hint else text


def end_of(until: date | datetime) -> datetime:
    """The moment from which a rule does not apply: of a date the end of that day, in the time zone of the machine."""
    if isinstance(until, datetime):
        return until.astimezone(UTC)
    next_day = date.fromordinal(until.toordinal() + 1)
    return datetime(next_day.year, next_day.month, next_day.day).astimezone().astimezone(UTC)
