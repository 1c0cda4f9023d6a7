"""What of the history is wanted: a query of ``query.py``, asked of events. Pure.

An event is tested as the socket that it is about. Ports and kinds are left to SQL, which has them in an index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from portbook import query as grammar
from portbook.errors import UsageError, nearest
from portbook.events import EVENT_KINDS, Event
from portbook.query import Query
from portbook.records import Owner, Socket
from portbook.store import schema

# Fields of a query about what no event has.
UNRECORDED = frozenset(("remote-port", "remote-address", "inode"))
FIELD = "event"

_Condition = tuple[str, list[Any]]


class EventQuery(Struct, frozen=True):
    """What is wanted, as conditions of SQL and a test of what is left."""

    query: Query
    kinds: tuple[str, ...]
    excluded: tuple[str, ...]
    test: Callable[[Event], bool] | None

    def of_events(self) -> tuple[list[str], list[Any]]:
        """The conditions that select rows of events, and their values."""
        conditions = ["kind != ?"]
        values: list[Any] = [schema.CHECKPOINT]
        if self.kinds:
            marks = ", ".join("?" * len(self.kinds))
            conditions.append(f"kind IN ({marks})")
            values += self.kinds
            if not set(self.kinds) & schema.COMMON_KINDS:
                conditions.append(f"kind NOT IN {schema.COMMON}")  # so that the index of rare kinds can be used
        if self.excluded:
            conditions.append(f"kind NOT IN ({', '.join('?' * len(self.excluded))})")
            values += self.excluded
        ports = self.query.ports()
        if ports is not None:
            conditions.append(f"({' OR '.join(['port BETWEEN ? AND ?'] * len(ports))})")
            values += [number for ends in ports for number in ends]
        return conditions, values

    def of_intervals(self) -> _Condition:
        """The condition that selects rows of intervals, and its values."""
        ports = self.query.ports()
        if ports is None:
            return "TRUE", []
        numbers: list[Any] = [number for ends in ports for number in ends]
        return f"({' OR '.join(['i.port BETWEEN ? AND ?'] * len(ports))})", numbers

    def few_ports(self, most: int) -> list[int] | None:
        """The ports, if they are few enough to be looked up one by one; else None."""
        ports = self.query.ports()
        if ports is None or sum(last - first + 1 for first, last in ports) > most:
            return None
        return sorted({number for first, last in ports for number in range(first, last + 1)})


def parse(query: Query | str, *, intervals: bool = False) -> EventQuery:
    """Read a query with ``event:`` terms; raise UsageError.

    :param intervals: it is about intervals, which have no kind
    """
    kinds: list[str] = []
    excluded: list[str] = []
    if isinstance(query, str):
        words = query.split()
        for word in words:
            if word.startswith((f"{FIELD}:", f"-{FIELD}:")):
                (excluded if word[0] == "-" else kinds).extend(_kinds(word.partition(":")[2]))
        query = grammar.parse(" ".join(w for w in words if not w.startswith((f"{FIELD}:", f"-{FIELD}:"))))
    if intervals and (kinds or excluded):
        raise UsageError("an interval has no kind of event", "select events")
    for term in query.terms:
        if term.field in UNRECORDED:
            raise UsageError(f"the history does not have the field {term.field!r}", f"omit {term}"[:80])
    return EventQuery(query, tuple(kinds), tuple(excluded), _test(query))


def has_kinds(text: str) -> bool:
    """Whether a query has a term that only events have."""
    return any(word.startswith((f"{FIELD}:", f"-{FIELD}:")) for word in text.split())


def _kinds(text: str) -> Iterator[str]:
    for word in text.lower().replace("-", "_").split(","):
        if word not in EVENT_KINDS:
            likely = nearest(word, EVENT_KINDS)
            hint = f"valid values are {', '.join(EVENT_KINDS)}"
            raise UsageError(
                f"unknown {FIELD} {word[:40]!r}", hint if likely is None else f"did you mean {FIELD}:{likely}? {hint}"
            )
        yield word


def _test(query: Query) -> Callable[[Event], bool] | None:
    """The test of an event: all terms, but for those that SQL has tested wholly."""
    left = Query(tuple(term for term in query.terms if not _is_of_sql(term)))
    tests = [test for test in (left.socket_test(), left.owner_test()) if test is not None]
    if not tests:
        return None

    def test(event: Event) -> bool:
        if event.protocol is None or event.local_port is None:
            return False
        socket = to_socket(event)
        return all(each(socket) for each in tests)

    return test


def _is_of_sql(term: grammar.Term) -> bool:
    return term.field == "port" and not term.negated and all(isinstance(value, tuple) for value in term.values)


def to_socket(event: Event) -> Socket:
    """The socket that an event is about, for the tests of a query."""
    pids = event.pids or (() if event.pid is None else (event.pid,))
    owners = tuple(
        Owner(
            pid,
            event.name,
            event.exe,
            event.user,
            event.process_started,
            event.service,
            event.container,
            command_line=event.command_line,
            cgroup=event.cgroup,
        )
        for pid in pids
    )
    return Socket(
        protocol=event.protocol or "tcp",
        family=event.family or ("ipv6" if ":" in (event.local_address or "") else "ipv4"),
        local_address=event.local_address or "",
        local_port=event.local_port or 0,
        state=event.state,
        reach=event.reach or "none",
        zone=event.zone,
        uid=event.uid,
        user=event.user,
        owners=owners,
        interface=event.interface,
        cookie=event.cookie,
        service=event.service,
        container=event.container,
        netns=event.netns,
        netns_name=event.netns_name,
    )
