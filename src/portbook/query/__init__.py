"""Which sockets are wanted: one grammar for the command line and the library.

    state:listen port:8000-8100 -reach:loopback process:node

A term is ``field:value``; several values are separated by commas, and any of them matches. A leading ``-``
excludes. Without a field, what ``ports.py`` reads is a port, perhaps with a protocol and an address (``53/udp``,
``127.0.0.1:8080``); then come protocols, families, states, addresses and networks; any other word is part of the name
of a process, or the name that a port is registered for. Blanks and commas in quotes belong to the value; a backslash
takes the next character as it is. Terms of one field widen each other, terms of different fields narrow each other, and
an excluded value never matches.

``fields`` has the fields, ``grammar`` the text: it is imported when there is some, as options alone make terms too.
Everything here is pure, but for the table of service names, which is read when a word is looked for.
``inventory.push_down`` takes from a query what a kernel can filter.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from portbook.errors import UsageError
from portbook.query.fields import (
    ALIASES,
    FIELDS,
    LISTENING,
    NUMBERS,
    STATE_GROUPS,
    Field,
    FieldValue,
    Test,
    is_at,
    ranges_of,
    states_of,
)
from portbook.records import State

__all__ = [
    "ALIASES",
    "FIELDS",
    "LISTENING",
    "NUMBERS",
    "STATE_GROUPS",
    "Field",
    "FieldValue",
    "Query",
    "Term",
    "Test",
    "is_at",
    "parse",
    "term",
]


class Term(Struct, frozen=True):
    """One condition; any of ``values`` satisfies it. Numbers are inclusive ranges."""

    field: str
    values: tuple[FieldValue, ...]
    negated: bool = False

    def __str__(self) -> str:
        from portbook.query.grammar import print_value

        sign = "-" if self.negated else ""
        return f"{sign}{self.field}:{','.join(map(print_value, self.values))}"


class Query(Struct, frozen=True):
    """A conjunction of terms. ``str(query)`` is text that ``parse`` reads back to the same query."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.terms))

    def __and__(self, other: Query) -> Query:
        return Query(_merge((*self.terms, *other.terms)))

    def values(self, field: str) -> tuple[FieldValue, ...]:
        """The values that ``field`` may have; empty: any."""
        return self._values(field, negated=False)

    def states(self) -> frozenset[State | None]:
        """The states that can match."""
        states = states_of(self.values("state")) or STATE_GROUPS["ALL"]
        return states - states_of(self._values("state", negated=True))

    def ports(self) -> tuple[tuple[int, int], ...] | None:
        """The ranges of local ports that can match; None: every port."""
        return ranges_of(self.values("port")) or None

    def pids(self) -> tuple[tuple[int, int], ...] | None:
        """The ranges of pids of which one must own a socket; None: any owner."""
        return ranges_of(self.values("pid")) or None

    def all_namespaces(self) -> bool:
        """Whether a term needs the sockets of other network namespaces."""
        return any(t.field == "netns" for t in self.terms)

    def is_broad(self) -> bool:
        """Whether no term selects few sockets, so that the owners of most sockets will be needed."""
        return not any(FIELDS[t.field].narrow and not t.negated for t in self.terms)

    def with_default_state(self) -> Query:
        """The query, restricted to waiting ports unless it names a state or a peer."""
        fields = {t.field for t in self.terms if not t.negated}
        if fields & {"state", "remote-port", "remote-address"}:
            return self
        return self & Query((Term("state", ("LISTENING",)),))

    def socket_test(self) -> Test | None:
        """The test of the fields that a source fills; None when no term has one."""
        return _conjunction(t for t in self.terms if not FIELDS[t.field].needs_owner)

    def owner_test(self) -> Test | None:
        """The test of the fields that enrichment fills; None when no term has one."""
        return _conjunction(t for t in self.terms if FIELDS[t.field].needs_owner)

    def _values(self, field: str, *, negated: bool) -> tuple[FieldValue, ...]:
        for t in self.terms:  # of one field and sign there is one term: _merge
            if t.field == field and t.negated == negated:
                return t.values
        return ()


def parse(text: str) -> Query:
    """Parse a query; raise UsageError that names the wrong term and the valid values."""
    if not isinstance(text, str):
        raise UsageError(f"a query cannot be of the type {type(text).__name__}", "write text such as 'port:8080'")
    if not text:
        return Query()
    from portbook.query import grammar

    return Query(_merge(grammar.terms(text)))


def term(field: str, values: Iterable[str], negated: bool = False) -> Term:
    """Make one term from the texts of its values, as options of a command line have them; raise UsageError."""
    if field not in FIELDS:
        raise UsageError(f"unknown field {field!r}", f"valid values are {', '.join(FIELDS)}")
    return Term(field, tuple(FIELDS[field].parse(field, v) for v in values), negated)


def _merge(terms: Iterable[Term]) -> tuple[Term, ...]:
    merged: dict[tuple[str, bool], tuple[FieldValue, ...]] = {}
    for t in terms:
        merged[t.field, t.negated] = tuple(dict.fromkeys((*merged.get((t.field, t.negated), ()), *t.values)))
    return tuple(Term(field, values, negated) for (field, negated), values in merged.items())


def _conjunction(terms: Iterable[Term]) -> Test | None:
    tests: list[Test] = []
    for t in terms:
        test = FIELDS[t.field].test(t.values)
        tests.append(_negate(test) if t.negated else test)
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]
    return lambda s: all(test(s) for test in tests)


def _negate(test: Test) -> Test:
    return lambda s: not test(s)
