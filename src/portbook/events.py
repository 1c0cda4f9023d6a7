"""What happened to the ports of a machine: one frozen record for each event, no I/O here.

Field names are an API: they are the JSON lines that ``portbook watch --jsonl`` prints and the history keeps. They are
never renamed or removed; a new field is added at the end, with a default. What could not be known is ``None``.
"""

from __future__ import annotations

from datetime import datetime
from operator import attrgetter
from typing import Literal, get_args

from msgspec import Struct

from portbook.records import Family, Protocol, Reach, State

EventKind = Literal[
    "started",
    "present",
    "opened",
    "closed",
    "short_lived",
    "restarted",
    "flapping",
    "settled",
    "owner_changed",
    "reach_changed",
    "bind_failed",
    "violation",
    "recovered",
    "undecided",
    "requirement_lost",
    "requirement_restored",
    "reminder",
    "blind",
    "seeing",
    "gap",
    "policy_loaded",
    "policy_refused",
    "stopped",
    "test",
]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)
# quiet: for the record; the sinks for people leave it out unless they are configured otherwise.
Level = Literal["quiet", "info", "warning", "critical"]
LEVELS: tuple[Level, ...] = get_args(Level)

# What each kind means: documentation, help and tests read this table.
MEANINGS: dict[EventKind, str] = {
    "started": "the watch began; feed says by what it sees",
    "present": "a socket that was there when the watch began, or that a later comparison found",
    "opened": "a TCP socket listens or holds a port, or a UDP socket is bound",
    "closed": "it ended, and nothing with the same identity came back within the grace time",
    "short_lived": "it ended sooner than a server would; lasted_ms says after how long",
    "restarted": "it ended, and the same identity came back within the grace time",
    "flapping": "the same identity restarts again and again; count says how often",
    "settled": "what was flapping has been stable for a while",
    "owner_changed": "the socket is the same, the processes that hold it are others; before names the old ones",
    "reach_changed": "the identity can be reached from elsewhere than before; before names the old reach",
    "bind_failed": "a process attempted to bind a port and did not get it",
    "violation": "the policy does not allow what happened; rule says why",
    "recovered": "what violated the policy is gone, or is allowed now",
    "undecided": "whether the policy allows it could not be known; reason says what is missing",
    "requirement_lost": "what the policy requires does not listen",
    "requirement_restored": "what the policy requires listens again",
    "reminder": "a violation, or a lost requirement, that lasts; count says how many events it stands for",
    "blind": "a canary socket was not seen: the feed does not report what happens",
    "seeing": "the canary sockets are seen again",
    "gap": "something was missed; count says how much, reason says why",
    "policy_loaded": "a policy was loaded, or loaded again",
    "policy_refused": "a new policy is not valid; the old one remains in force",
    "stopped": "the watch ended",
    "test": "nothing happened: portbook watch --test sends it, to show that the sinks deliver",
}


class Event(Struct, frozen=True, gc=False, kw_only=True):
    """One event. Fields that do not belong to its kind are None, empty or 0.

    ``name``, ``exe``, ``command_line``, ``container``, ``service`` and ``netns_name`` are text that others chose:
    hostile input, to be escaped before it reaches a terminal or a log.
    """

    at: datetime  # aware, UTC: when it happened, as far as the feed knows
    event: EventKind
    severity: Level = "info"
    protocol: Protocol | None = None
    family: Family | None = None
    local_address: str | None = None
    local_port: int | None = None
    zone: str | None = None
    interface: str | None = None
    state: State | None = None
    reach: Reach | None = None
    pid: int | None = None  # of the process that did it; for a socket with several holders the first
    name: str | None = None
    exe: str | None = None
    command_line: tuple[str, ...] | None = None
    uid: int | None = None
    user: str | None = None
    process_started: datetime | None = None
    parents: tuple[str, ...] = ()  # nearest first, "bash(4711)"
    service: str | None = None
    container: str | None = None
    cgroup: str | None = None
    netns: int | None = None
    netns_name: str | None = None
    pids: tuple[int, ...] = ()  # all holders
    process_gone: bool = False  # the process had ended before it could be read: only its pid and name are known
    cookie: int | None = None  # the kernel's number of the socket
    identity: str | None = None  # what stays the same over a restart
    lasted_ms: float | None = None  # how long the socket, or the interruption of a restart, lasted
    count: int = 1  # how many it stands for: restarts, repeats, missed events
    reason: str | None = None  # why: of a failed bind, a gap, blindness, a refused policy
    error: str | None = None  # of a failed bind: the likely error, "EADDRINUSE"
    rule: str | None = None  # the rule of the policy that decided
    comment: str | None = None  # of that rule
    rule_owner: str | None = None  # of that rule
    before: str | None = None  # what it was: owner_changed, reach_changed
    since: datetime | None = None  # when that began: gap, reminder, recovered
    feed: str | None = None  # by what it was seen
    boot_id: str | None = None  # Linux: /proc/sys/kernel/random/boot_id
    monotonic_ns: int | None = None  # when it happened, by a clock that is never set
    sequence: int | None = None  # its number in the history


# In JSON a field that says nothing is left out, but not these: of an event about a socket a reader finds them always.
ALWAYS = ("protocol", "local_address", "local_port", "pid", "name", "netns")
_VALUES = attrgetter(*Event.__struct_fields__)
_NO_DEFAULT = object()  # equal to no value: the field is never left out
_DEFAULTS = (_NO_DEFAULT, _NO_DEFAULT, _NO_DEFAULT, *Event.__struct_defaults__[1:])  # at, event, severity


def compact(event: Event) -> dict[str, object]:
    """The fields of an event that say something, in their order: what its JSON line has.

    The fields of ALWAYS are there in every event that is about a socket, null where they are not known.
    """
    about_socket = event.protocol is not None
    # Every event is encoded, thousands a second: "is" spares most of the comparisons.
    return {
        name: value
        for name, value, default in zip(Event.__struct_fields__, _VALUES(event), _DEFAULTS, strict=True)
        if (value is not default and value != default) or (about_socket and name in ALWAYS)
    }
