"""Which sockets are wanted: one grammar for the command line, the library and every later surface.

    state:listen port:8000-8100 -reach:loopback process:node

A term is ``field:value``; several values are separated by commas and any of them will do. A ``-`` in front
excludes. A bare number or range is a port, any other bare word a process. Quotes keep blanks and commas inside a
value; a backslash takes the next character as it is. Terms of one field widen each other, terms of different
fields narrow each other, and an excluded value always loses.

Everything here is pure. ``Query.wanted`` is the part that sources push down into the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from msgspec import Struct

from portbook.addresses import split_zone, unmapped
from portbook.errors import UsageError
from portbook.records import FAMILIES, PROTOCOLS, REACHES, STATES, Owner, Socket, State

PORTS = (1, 65535)  # RFC 9293 section 3.1: 16 bits; 0 asks for "any" in bind() and is nobody's port
NUMBERS = (0, 2**32 - 1)
LISTENING: frozenset[State | None] = frozenset(("LISTEN", "BOUND", None))
# Names for several states at once, as in ss(8). An unconnected UDP socket has no state; ss calls it UNCONN.
STATE_GROUPS: dict[str, frozenset[State | None]] = {
    "ALL": frozenset((*STATES, None)),
    "LISTENING": LISTENING,
    "CONNECTED": frozenset(STATES) - LISTENING - {"CLOSE", "UNKNOWN"},
    "UNCONN": frozenset((None,)),
}
STATE_ALIASES = {
    "LISTENING": "LISTENING",
    "ESTAB": "ESTABLISHED",
    "SYN_RECEIVED": "SYN_RECV",
    "CLOSED": "CLOSE",
    "FIN_WAIT_1": "FIN_WAIT1",
    "FIN_WAIT_2": "FIN_WAIT2",
}

Value = str | tuple[int, int]
Test = Callable[[Socket], bool]
T = TypeVar("T")


class Term(NamedTuple):
    """One condition; any of ``values`` satisfies it. Numbers are inclusive ranges."""

    field: str
    values: tuple[Value, ...]
    negated: bool = False

    def __str__(self) -> str:
        return f"{'-' if self.negated else ''}{self.field}:{','.join(map(_print_value, self.values))}"


class Query(Struct, frozen=True):
    """A conjunction of terms. ``str(query)`` is text that ``parse`` reads back to the same query."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.terms))

    def __and__(self, other: Query) -> Query:
        return Query(_merge((*self.terms, *other.terms)))

    def values(self, field: str) -> tuple[Value, ...]:
        """What ``field`` is asked to be; empty when it may be anything."""
        return next((t.values for t in self.terms if t.field == field and not t.negated), ())

    def states(self) -> frozenset[State | None]:
        """The states that can match."""
        asked = {s for v in self.values("state") for s in _states(str(v))} or STATE_GROUPS["ALL"]
        refused = {s for t in self.terms if t.field == "state" and t.negated for v in t.values for s in _states(str(v))}
        return frozenset(asked - refused)

    def ports(self) -> tuple[tuple[int, int], ...] | None:
        """The ranges of local ports that can match; None: every port."""
        return tuple(v for v in self.values("port") if isinstance(v, tuple)) or None

    def pids(self) -> tuple[tuple[int, int], ...] | None:
        """The ranges of pids of which one must own a socket; None: anybody."""
        return tuple(v for v in self.values("pid") if isinstance(v, tuple)) or None

    def everywhere(self) -> bool:
        """Whether other network namespaces than ours are asked for, or about."""
        return any(t.field == "netns" for t in self.terms)

    def is_broad(self) -> bool:
        """Whether no term picks out few sockets, so that most owners of the machine will be asked for."""
        return not any(FIELDS[t.field].narrow and not t.negated for t in self.terms)

    def with_default_state(self) -> Query:
        """What a person means who names no state: ports that are waiting, unless a peer is asked for."""
        told = {t.field for t in self.terms if not t.negated}
        if told & {"state", "remote-port", "remote-address"}:
            return self
        return self & Query((Term("state", ("LISTENING",)),))

    def socket_test(self) -> Test | None:
        """The test of everything that a bare socket shows; None when nothing is asked."""
        return _conjunction(t for t in self.terms if not FIELDS[t.field].needs_owner)

    def owner_test(self) -> Test | None:
        """The test of everything that only enrichment shows; None when nothing is asked."""
        return _conjunction(t for t in self.terms if FIELDS[t.field].needs_owner)


class Field(NamedTuple):
    """How the values of a field are read, and what makes a socket match them."""

    read: Callable[[str, str], Value]  # (field, text): raises UsageError
    test: Callable[[tuple[Value, ...]], Test]
    about: str
    needs_owner: bool = False
    narrow: bool = False  # picks out few sockets


def parse(text: str) -> Query:
    """Read a query; raise UsageError that says which term is wrong and what is valid."""
    return Query(_merge(_term(token) for token in _tokens(text)))


def term(field: str, values: Iterable[str], negated: bool = False) -> Term:
    """Build one term from texts, as options of a command line have them."""
    if field not in FIELDS:
        raise UsageError(f"unknown field {field!r}", f"valid are {', '.join(FIELDS)}")
    return Term(field, tuple(FIELDS[field].read(field, v) for v in values), negated)


def read_ports(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``80,8000-8100``; raise UsageError."""
    return tuple(_number_range("port", part, PORTS) for part in text.split(","))


# --- text ----------------------------------------------------------------------------------------------------------

QUOTED = set(' \t\n\r\f\v,"\\')


class Token(NamedTuple):
    """A word of the text, quotes resolved: where it may be cut, and what stood inside quotes."""

    characters: list[tuple[str, bool]]  # (character, literal)


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    word: list[tuple[str, bool]] | None = None
    quoted = False
    characters = iter(text)
    for c in characters:
        if c.isspace() and not quoted:
            word = None
            continue
        if word is None:
            word = []
            tokens.append(Token(word))
        if c == '"':
            quoted = not quoted
            word.append(("", True))  # so that "" is a value, an empty one
        elif c == "\\":
            word.append((next(characters, "\\"), True))
        else:
            word.append((c, quoted))
    if quoted:
        raise UsageError(f"a quote is not closed in {text!r}", 'write field:"a value"')
    return tokens


def _split(characters: list[tuple[str, bool]], at: str, most: int = -1) -> list[list[tuple[str, bool]]]:
    parts: list[list[tuple[str, bool]]] = [[]]
    for c in characters:
        if c == (at, False) and most != 0:
            most -= 1
            parts.append([])
        else:
            parts[-1].append(c)
    return parts


def _text(characters: list[tuple[str, bool]]) -> str:
    return "".join(c for c, _ in characters)


def _term(token: Token) -> Term:
    characters = token.characters
    negated = characters[0] == ("-", False)
    name, *rest = _split(characters[1:] if negated else characters, ":", 1)
    if rest:
        return term(ALIASES.get(_text(name), _text(name)), map(_text, _split(rest[0], ",")), negated)
    values = [_text(v) for v in _split(name, ",")]
    field = "port" if all(_is_range(v) for v in values) else "process"
    return term(field, values, negated)


def _is_range(text: str) -> bool:
    return bool(text) and all(part.isdecimal() and part.isascii() for part in text.split("-", 1))


def _print_value(value: Value) -> str:
    if isinstance(value, tuple):
        return str(value[0]) if value[0] == value[1] else f"{value[0]}-{value[1]}"
    if value and not any(c in QUOTED or c.isspace() for c in value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _merge(terms: Iterable[Term]) -> tuple[Term, ...]:
    merged: dict[tuple[str, bool], tuple[Value, ...]] = {}
    for t in terms:
        merged[t.field, t.negated] = tuple(dict.fromkeys((*merged.get((t.field, t.negated), ()), *t.values)))
    return tuple(Term(field, values, negated) for (field, negated), values in merged.items())


# --- values --------------------------------------------------------------------------------------------------------


def _number_range(field: str, text: str, limits: tuple[int, int]) -> tuple[int, int]:
    low, high = limits
    shown = f"{field} {text!r}"
    if not _is_range(text):
        raise UsageError(f"{shown} is not a number", f"valid are {low} to {high}, as 80 or 8000-8100")
    first, _, last = text.partition("-")
    a, b = (int(n) if len(n) <= 10 else high + 1 for n in (first, last or first))  # int() refuses 4,300 digits
    if not (low <= a <= high and low <= b <= high):
        raise UsageError(f"{shown} is out of range", f"valid are {low} to {high}")
    if a > b:
        raise UsageError(f"{shown} runs backwards", f"write {b}-{a}")
    return a, b


def _port(field: str, text: str) -> Value:
    return _number_range(field, text, PORTS)


def _number(field: str, text: str) -> Value:
    return _number_range(field, text, NUMBERS)


def _choice(valid: Iterable[str]) -> Callable[[str, str], Value]:
    words = tuple(valid)

    def read(field: str, text: str) -> Value:
        if text.lower() not in words:
            raise UsageError(f"unknown {field} {text!r}", f"valid are {', '.join(words)}")
        return text.lower()

    return read


def _state(field: str, text: str) -> Value:
    word = text.upper().replace("-", "_")
    word = STATE_ALIASES.get(word, word)
    if word not in STATES and word not in STATE_GROUPS:
        valid = ", ".join(s.lower() for s in (*STATES, *STATE_GROUPS))
        raise UsageError(f"unknown {field} {text!r}", f"valid are {valid}")
    return word


def _states(word: str) -> frozenset[State | None]:
    return STATE_GROUPS.get(word) or frozenset(s for s in STATES if s == word)


def _address(field: str, text: str) -> Value:
    from ipaddress import ip_network

    bare = text.strip("[]")
    if bare == "*":
        return "*"
    try:
        network = ip_network(split_zone(bare)[0], strict=False)
    except ValueError as error:
        raise UsageError(f"{field} {text!r} is not an address", "write 127.0.0.1, ::1 or 10.0.0.0/8") from error
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _pattern(field: str, text: str) -> Value:
    if not text:
        raise UsageError(f"{field} is empty", "write a part of the name, or a pattern such as 'node*'")
    return text


# --- tests ---------------------------------------------------------------------------------------------------------


def _conjunction(terms: Iterable[Term]) -> Test | None:
    tests = [_negate(FIELDS[t.field].test(t.values)) if t.negated else FIELDS[t.field].test(t.values) for t in terms]
    if len(tests) <= 1:
        return tests[0] if tests else None
    return lambda s: all(test(s) for test in tests)


def _negate(test: Test) -> Test:
    return lambda s: not test(s)


def _in_ranges(number: Callable[[Socket], int | None]) -> Callable[[tuple[Value, ...]], Test]:
    def make(values: tuple[Value, ...]) -> Test:
        ranges = [v for v in values if isinstance(v, tuple)]

        def test(socket: Socket) -> bool:
            n = number(socket)
            return n is not None and any(a <= n <= b for a, b in ranges)

        return test

    return make


def _equals(get: Callable[[Socket], str]) -> Callable[[tuple[Value, ...]], Test]:
    return lambda values: lambda s: get(s) in values


def _in_states(values: tuple[Value, ...]) -> Test:
    states = frozenset(s for v in values for s in _states(str(v)))
    return lambda s: s.state in states


def _in_networks(get: Callable[[Socket], str | None]) -> Callable[[tuple[Value, ...]], Test]:
    def make(values: tuple[Value, ...]) -> Test:
        from ipaddress import ip_address, ip_network

        anywhere = "*" in values
        networks = [ip_network(str(v)) for v in values if v != "*"]

        def test(socket: Socket) -> bool:
            text = get(socket)
            if text is None:
                return False
            address = ip_address(unmapped(text))
            return (anywhere and address.is_unspecified) or any(address in n for n in networks)

        return test

    return make


def _of_owner(texts: Callable[[Owner], Iterable[str | None]]) -> Callable[[tuple[Value, ...]], Test]:
    return _of_socket(lambda s: (text for owner in s.owners for text in texts(owner)))


def _of_socket(texts: Callable[[Socket], Iterable[str | None]]) -> Callable[[tuple[Value, ...]], Test]:
    def make(values: tuple[Value, ...]) -> Test:
        matches = _text_test([str(v) for v in values])
        return lambda s: any(text is not None and matches(text) for text in texts(s))

    return make


def _text_test(patterns: list[str]) -> Callable[[str], bool]:
    """Without a wildcard a part of the text will do; with one the whole text has to fit. Case does not count."""
    from fnmatch import fnmatchcase

    lowered = [p.lower() for p in patterns]
    parts = [p for p in lowered if not set(p) & set("*?[")]
    globs = [p for p in lowered if set(p) & set("*?[")]

    def test(text: str) -> bool:
        low = text.lower()
        return any(p in low for p in parts) or any(fnmatchcase(low, g) for g in globs)

    return test


def _user_test(values: tuple[Value, ...]) -> Test:
    wanted = {str(v).lower() for v in values}

    def test(socket: Socket) -> bool:
        if str(socket.uid) in wanted:
            return True
        users = {(name or "").lower() for name in (socket.user, *(o.user for o in socket.owners))}
        return bool(wanted & (users | {u.rpartition("\\")[2] for u in users}))

    return test


def _netns_test(values: tuple[Value, ...]) -> Test:
    """``all``, an inode, or a part of a name or a pattern as for every other name."""
    words = [str(v) for v in values]
    everywhere, matches = "all" in words, _text_test(words)

    def test(socket: Socket) -> bool:
        name = socket.netns_name
        return everywhere or str(socket.netns) in words or (name is not None and matches(name))

    return test


def _pid_test(values: tuple[Value, ...]) -> Test:
    ranges = [v for v in values if isinstance(v, tuple)]
    return lambda s: any(a <= o.pid <= b for o in s.owners for a, b in ranges)


def _process_texts(owner: Owner) -> Iterable[str | None]:
    return (owner.name, owner.exe and owner.exe.replace("\\", "/").rpartition("/")[2])


FIELDS: dict[str, Field] = {
    "port": Field(_port, _in_ranges(lambda s: s.local_port), "local port: 80, 8000-8100", narrow=True),
    "remote-port": Field(_port, _in_ranges(lambda s: s.remote_port), "port of the peer", narrow=True),
    "protocol": Field(_choice(PROTOCOLS), _equals(lambda s: s.protocol), "tcp, udp"),
    "family": Field(_choice(FAMILIES), _equals(lambda s: s.family), "ipv4, ipv6"),
    "state": Field(_state, _in_states, "listen, established, … or listening, connected, all"),
    "address": Field(
        _address, _in_networks(lambda s: s.local_address), "local address or network; * is every one", narrow=True
    ),
    "remote-address": Field(
        _address, _in_networks(lambda s: s.remote_address), "address or network of the peer", narrow=True
    ),
    "reach": Field(_choice(REACHES), _equals(lambda s: s.reach), "loopback, address, any"),
    "inode": Field(_number, _in_ranges(lambda s: s.inode), "inode of the socket (Linux)", narrow=True),
    "netns": Field(_pattern, _netns_test, "network namespace: its name, its inode, or all (Linux)", needs_owner=True),
    "pid": Field(_number, _pid_test, "process id of an owner", needs_owner=True, narrow=True),
    "process": Field(_pattern, _of_owner(_process_texts), "name or executable of an owner", needs_owner=True),
    "command": Field(
        _pattern, _of_owner(lambda o: (" ".join(o.command_line or ()),)), "command line of an owner", needs_owner=True
    ),
    "user": Field(_pattern, _user_test, "user name or id", needs_owner=True),
    "service": Field(
        _pattern,
        _of_socket(lambda s: (s.service, *(o.service for o in s.owners))),
        "systemd unit or Windows service",
        needs_owner=True,
    ),
    "container": Field(
        _pattern,
        _of_socket(lambda s: (s.container, *(o.container for o in s.owners))),
        "container, such as docker:web",
        needs_owner=True,
    ),
}
ALIASES = {
    "proto": "protocol",
    "addr": "address",
    "raddr": "remote-address",
    "rport": "remote-port",
    "cmd": "command",
    "name": "process",
}
