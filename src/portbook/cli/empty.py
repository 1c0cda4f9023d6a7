"""What is said when a list is empty: how the words were read, and what would have matched."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.inventory import take
from portbook.numerals import counted
from portbook.query import FIELDS, Query, Term

NOTHING = "nothing waits on this machine"
# Other fields that a word may have been meant for, with what they are called.
ALTERNATIVES = {"service": "service", "container": "container", "user": "user", "command": "command line"}


def explain(selection: Query, is_default_state: bool, source: str | None) -> str:
    """One line.

    :param selection: the query that no socket matches
    :param is_default_state: nobody asked for a state: only what waits on a port was selected
    """
    terms = selection.terms
    if is_default_state:
        terms = tuple(t for t in terms if t.field != "state" or t.negated)
    if not terms:
        return NOTHING if is_default_state else "there is no socket"
    parts = [_nothing(terms, is_default_state), *_readings(terms)]
    parts += _elsewhere(Query(terms), is_default_state, source)
    return "; ".join(parts)


def _nothing(terms: tuple[Term, ...], is_default_state: bool) -> str:
    what = "no socket that waits on a port" if is_default_state else "no socket"
    return f"{what} matches {' '.join(map(str, terms))}"


def _readings(terms: tuple[Term, ...]) -> Iterator[str]:
    """How each word without a field was read."""
    from portbook.names import port_of

    for term in terms:
        for word in term.values if term.field == "word" else ():
            port = port_of(str(word))
            meaning = f"the name of a process{f', and as port {port[0]}' if port else ''}"
            yield f"{word!r} was read as {meaning}"


def _elsewhere(selection: Query, is_default_state: bool, source: str | None) -> Iterator[str]:
    """What sockets in other states match, and what words would match in other fields."""
    if is_default_state and (count := len(take(selection, source=source).sockets)):
        verb = "matches" if count == 1 else "match"
        yield f"{counted(count, 'socket')} in other states {verb}: --all"
    words = next((t for t in selection.terms if t.field == "word" and not t.negated), None)
    if words is None:
        return
    rest = [t for t in selection.terms if t is not words]
    sockets = take(Query(tuple(rest)), source=source).sockets
    for field, title in ALTERNATIVES.items():
        if any(map(FIELDS[field].test(words.values), sockets)):
            yield f"a {title} matches: portbook list {Query((Term(field, words.values), *rest))}"
