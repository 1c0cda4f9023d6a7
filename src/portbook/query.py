"""Which sockets are wanted: one grammar for the command line and the library.

    state:listen port:8000-8100 -reach:loopback process:node

A term is ``field:value``; several values are separated by commas, and any of them matches. A leading ``-``
excludes. Without a field, what ``ports.py`` reads is a port, perhaps with a protocol and an address (``53/udp``,
``127.0.0.1:8080``); then come protocols, families, states, addresses and networks; any other word is part of the name
of a process, or the name that a port is registered for. Blanks and commas in quotes belong to the value; a backslash
takes the next character as it is. Terms of one field widen each other, terms of different fields narrow each other, and
an excluded value never matches.

Everything here is pure, but for the table of service names, which is read when a word is looked for.
``inventory.push_down`` takes from a query what a kernel can filter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from portbook.addresses import MOST_SHOWN, NamedHost, parse_host, split_zone, unmapped
from portbook.errors import UsageError, nearest
from portbook.numerals import UINT32, is_number
from portbook.ports import PORTS, Ports, is_range, local_address, number_range
from portbook.ports import parse as parse_port
from portbook.records import FAMILIES, PROTOCOLS, REACHES, STATES, Owner, Socket, State

NUMBERS = (0, UINT32)
LISTENING: frozenset[State | None] = frozenset(("LISTEN", "BOUND", None))
# Names for several states at once, as in ss(8). An unconnected UDP socket has no state; ss calls it UNCONN.
STATE_GROUPS: dict[str, frozenset[State | None]] = {
    "ALL": frozenset((*STATES, None)),
    "LISTENING": LISTENING,
    "CONNECTED": frozenset(STATES) - LISTENING - {"CLOSE", "UNKNOWN"},
    "UNCONN": frozenset((None,)),
}
STATE_ALIASES = {
    "ESTAB": "ESTABLISHED",
    "SYN_RECEIVED": "SYN_RECV",
    "CLOSED": "CLOSE",
    "FIN_WAIT_1": "FIN_WAIT1",
    "FIN_WAIT_2": "FIN_WAIT2",
}

# Words that stand for a term of their own, without a field. "localhost" is what only this machine can reach.
WORDS: dict[str, tuple[str, str]] = {
    **{word: ("protocol", word) for word in PROTOCOLS},
    **{word: ("family", word) for word in FAMILIES},
    "loopback": ("reach", "loopback"),
    "localhost": ("reach", "loopback"),
}
COMPOUND = {f"{protocol}{number}": f"{protocol} ipv{number}" for protocol in PROTOCOLS for number in (4, 6)}
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  compared, not bound

FieldValue = str | tuple[int, int] | Ports
Test = Callable[[Socket], bool]


class Term(Struct, frozen=True):
    """One condition; any of ``values`` satisfies it. Numbers are inclusive ranges."""

    field: str
    values: tuple[FieldValue, ...]
    negated: bool = False

    def __str__(self) -> str:
        sign = "-" if self.negated else ""
        return f"{sign}{self.field}:{','.join(map(_print_value, self.values))}"


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
        states = _states_of(self.values("state")) or STATE_GROUPS["ALL"]
        return states - _states_of(self._values("state", negated=True))

    def ports(self) -> tuple[tuple[int, int], ...] | None:
        """The ranges of local ports that can match; None: every port."""
        return _ranges(self.values("port")) or None

    def pids(self) -> tuple[tuple[int, int], ...] | None:
        """The ranges of pids of which one must own a socket; None: any owner."""
        return _ranges(self.values("pid")) or None

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


class Field(Struct, frozen=True):
    """How the values of a field are parsed, and what makes a socket match them."""

    parse: Callable[[str, str], FieldValue]  # (field, text): raises UsageError
    test: Callable[[tuple[FieldValue, ...]], Test]
    about: str
    needs_owner: bool = False
    narrow: bool = False  # selects few sockets


def parse(text: str) -> Query:
    """Parse a query; raise UsageError that names the wrong term and the valid values."""
    if not isinstance(text, str):
        raise UsageError(f"a query cannot be of the type {type(text).__name__}", "write text such as 'port:8080'")
    return Query(_merge(_term(token) for token in _tokens(text)))


def term(field: str, values: Iterable[str], negated: bool = False) -> Term:
    """Make one term from the texts of its values, as options of a command line have them; raise UsageError."""
    if field not in FIELDS:
        raise UsageError(f"unknown field {field!r}", f"valid values are {', '.join(FIELDS)}")
    return Term(field, tuple(FIELDS[field].parse(field, v) for v in values), negated)


def is_term(word: str) -> bool:
    """Whether a word without a field means more than part of the name of a process, or almost does."""
    from portbook.names import port_of

    try:
        fields = set(map(_field_of, word.split(",")))
    except UsageError:
        return True  # "127.1", "80/sctp": parse says what is wrong with it
    return fields != {"word"} or any(map(port_of, word.split(",")))


def parse_port_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """Parse ``80,8000-8100``, and names of services; raise UsageError, also for a protocol or a host."""
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        ports = parse_port(part)
        if ports.protocol is not None or ports.host is not None:
            raise UsageError(f"{part[:MOST_SHOWN]!r} is more than a number", f"write {ports.first}")
        ranges.append((ports.first, ports.last))
    return tuple(ranges)


# --- text ----------------------------------------------------------------------------------------------------------

QUOTED = set(' \t\n\r\f\v,"\\')


class Token(Struct, frozen=True):
    """A word of the text, quotes and backslashes resolved."""

    characters: list[tuple[str, bool]]  # character, and whether it is literal: it separates nothing


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
            word.append(("", True))  # so that "" is an empty value
        elif c == "\\":
            word.append((next(characters, "\\"), True))
        else:
            word.append((c, quoted))
    if quoted:
        raise UsageError(f"unclosed quote in {text!r}", 'write field:"a value"')
    return tokens


def _split(characters: list[tuple[str, bool]], separator: str, limit: int = -1) -> list[list[tuple[str, bool]]]:
    """As str.split(): at separators that are not literal."""
    parts: list[list[tuple[str, bool]]] = [[]]
    for c in characters:
        if c == (separator, False) and limit != 0:
            limit -= 1
            parts.append([])
        else:
            parts[-1].append(c)
    return parts


def _text(characters: list[tuple[str, bool]]) -> str:
    return "".join(c for c, _ in characters)


def _term(token: Token) -> Term:
    characters = token.characters
    negated = characters[0] == ("-", False)
    if negated:
        characters = characters[1:]
    before, *after = _split(characters, ":", 1)
    name = ALIASES.get(_text(before), _text(before))
    if after and name in FIELDS:
        return term(name, map(_text, _split(after[0], ",")), negated)
    if after:
        return _term_with_colon(_text(characters), name, negated)
    return _term_without_field([_text(v) for v in _split(before, ",")], (",", True) in characters, negated)


def _term_with_colon(text: str, name: str, negated: bool) -> Term:
    """A port with something before it, or an IPv6 address; raise UsageError for a field that there is none of."""
    before = text.partition(":")[0]
    is_named = before.lower() in (*PROTOCOLS, "", "*", "localhost") or "." in before
    if not (is_named or "://" in text or before.startswith("[") or is_number(before) or text.count(":") > 1):
        raise _unknown_field(name, text)
    if _network(text):
        return term("address", [text], negated)
    if "://" in text:
        return term("port", [text], negated)  # a URL may have commas
    return term("port", text.split(","), negated)


def _unknown_field(name: str, text: str) -> UsageError:
    shown = text[:MOST_SHOWN]
    likely = nearest(name, FIELDS)
    hint = f"valid values are {', '.join(FIELDS)}"
    if likely is not None:
        hint = f"did you mean {likely}:{shown.partition(':')[2]}? {hint}"
    elif is_number(text.partition(":")[2]):
        hint = f"{hint}; to reach another host: portbook dial {shown}"
    return UsageError(f"unknown field {name[:MOST_SHOWN]!r}", hint)


def _term_without_field(values: list[str], is_quoted: bool, negated: bool) -> Term:
    """What a word means by itself. Several words with commas are of one kind, or any words."""
    fields = {"word"} if is_quoted else set(map(_field_of, values))
    if fields == {"port", "word"} and all(is_range(v) for v in values if _field_of(v) == "port"):
        fields = {"word"}
    if len(fields) > 1:
        shown = ",".join(values)[:MOST_SHOWN]
        hint = "separate them by blanks, or name the field: process:a,b"
        raise UsageError(f"{shown!r} has values of different fields: {', '.join(sorted(fields))}", hint)
    (field,) = fields
    if field in ("protocol", "family", "reach"):
        values = [WORDS[v.lower()][1] for v in values]
    return term(field, values, negated)


def _field_of(text: str) -> str:
    """The field that a word is a value of; raise UsageError for what is almost a value."""
    word = text.lower()
    if is_range(text) or ("/" in text and text.rpartition("/")[2].lower() in PROTOCOLS):
        return "port"
    if word in WORDS:
        return WORDS[word][0]
    if word in COMPOUND:
        raise UsageError(f"{text!r} is a protocol and a family", f"write {COMPOUND[word]}")
    if _state_word(text) is not None:
        return "state"
    if "/" in text:
        if not _network(text):
            raise _wrong_slash(text)
        return "address"
    name, equals, value = text.partition("=")
    if equals and ALIASES.get(name.lower(), name.lower()) in FIELDS:
        shown = f"{name.lower()}:{value}"[:MOST_SHOWN]
        raise UsageError(f"{text[:MOST_SHOWN]!r} has an equals sign behind a field", f"write {shown}")
    if _looks_like_ipv4(word):
        parse_host(text)  # raises UsageError for what is almost an address
        return "address"
    _refuse_other_grammar(text)
    return "word"


# What other programs and languages have for ranges and logic, by what is written here.
NO_GRAMMAR = {
    "or": "write the values with commas: port:80,443",
    "and": "write the terms without it: tcp port:80",
    "not": "write a minus in front of the term: -port:80",
}


def _refuse_other_grammar(text: str) -> None:
    """Raise UsageError for a word that nobody means as the name of a process: ``80..90``, ``!tcp``, ``or``."""
    hint = NO_GRAMMAR.get(text.lower())
    if text[:1] == "!" and len(text) > 1:
        hint = f"write -{text[1:]}"[:MOST_SHOWN]
    elif text[:1].isascii() and text[:1].isdigit() and not text.strip("0123456789.-_+"):
        numbers = [part for part in text.replace(".", "-").replace("+", "-").replace("_", "-").split("-") if part]
        hint = f"write {'-'.join(numbers[:2])}"[:MOST_SHOWN]
    if hint is not None:
        raise UsageError(f"{text[:MOST_SHOWN]!r} has no meaning in a query", hint)


def _looks_like_ipv4(word: str) -> bool:
    parts = word.split(".")
    return len(parts) > 1 and all(part[:1].isdigit() and not part.strip("0123456789abcdefx") for part in parts)


def _wrong_slash(text: str) -> UsageError:
    if text.startswith(("/", "./", "../")):
        return UsageError(f"{text[:MOST_SHOWN]!r} is a path", f"write process:{text.rpartition('/')[2][:MOST_SHOWN]}")
    try:
        parse_port(text)
    except UsageError as error:
        return error
    return UsageError(f"{text[:MOST_SHOWN]!r} is not a port", "write 8080/udp")


def _print_value(value: FieldValue) -> str:
    if isinstance(value, Ports):
        return str(value)
    if isinstance(value, tuple):
        first, last = value
        return str(first) if first == last else f"{first}-{last}"
    needs_quotes = not value or any(c in QUOTED or c.isspace() for c in value)
    if needs_quotes:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value


def _merge(terms: Iterable[Term]) -> tuple[Term, ...]:
    merged: dict[tuple[str, bool], tuple[FieldValue, ...]] = {}
    for t in terms:
        merged[t.field, t.negated] = tuple(dict.fromkeys((*merged.get((t.field, t.negated), ()), *t.values)))
    return tuple(Term(field, values, negated) for (field, negated), values in merged.items())


# --- values --------------------------------------------------------------------------------------------------------


def _port(field: str, text: str) -> FieldValue:
    """A range of numbers; a protocol or an address makes it a Ports."""
    if is_range(text) or not text:
        return number_range(field, text, PORTS)
    ports = parse_port(text)
    if ports.protocol is None and ports.host is None:
        return ports.first, ports.last
    local_address(ports)  # raises UsageError for the name of another machine
    return ports


def _remote_port(field: str, text: str) -> FieldValue:
    if is_range(text) or not text:
        return number_range(field, text, PORTS)
    ports = parse_port(text)
    if ports.host is not None:
        hint = f"write remote-address:{ports.host} {field}:{ports.first}"
        raise UsageError(f"{field} {text[:MOST_SHOWN]!r} has an address", hint)
    if ports.protocol is not None:
        return ports
    return ports.first, ports.last


def _number(field: str, text: str) -> FieldValue:
    return number_range(field, text, NUMBERS)


def _choice(valid: Iterable[str]) -> Callable[[str, str], FieldValue]:
    words = tuple(valid)

    def parse_word(field: str, text: str) -> FieldValue:
        if text.lower() not in words:
            raise UsageError(f"unknown {field} {text!r}", f"valid values are {', '.join(words)}")
        return text.lower()

    return parse_word


def _state_word(text: str) -> str | None:
    """The state or group of states that a text names; None if it names none."""
    word = text.upper().replace("-", "_")
    word = STATE_ALIASES.get(word, word)
    if word in STATES or word in STATE_GROUPS:
        return word
    return None


def _state(field: str, text: str) -> FieldValue:
    word = _state_word(text)
    if word is None:
        valid = ", ".join(s.lower() for s in (*STATES, *STATE_GROUPS))
        raise UsageError(f"unknown {field} {text!r}", f"valid values are {valid}")
    return word


def _states(word: str) -> frozenset[State | None]:
    """The states that a name means."""
    return STATE_GROUPS.get(word) or frozenset(s for s in STATES if s == word)


def _states_of(values: Iterable[FieldValue]) -> frozenset[State | None]:
    return frozenset[State | None]().union(*(_states(str(v)) for v in values))


def _ranges(values: Iterable[FieldValue]) -> tuple[tuple[int, int], ...]:
    return tuple((v.first, v.last) if isinstance(v, Ports) else v for v in values if not isinstance(v, str))


def _address(field: str, text: str) -> FieldValue:
    if text == "*":
        return "*"
    network = _network(text)
    if network is None:
        raise UsageError(f"{field} {text[:MOST_SHOWN]!r} is not an address", "write 127.0.0.1, ::1 or 10.0.0.0/8")
    return network


def _network(text: str) -> str | None:
    """An address or a network as canonical text; None if it is neither."""
    from ipaddress import ip_network

    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if "[" in bare or "]" in bare:
        return None
    try:
        network = ip_network(split_zone(bare)[0], strict=False)
    except ValueError:
        return None
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _word(field: str, text: str) -> FieldValue:
    if is_range(text):
        number_range("port", text, PORTS)
    return _pattern(field, text)


def _pattern(field: str, text: str) -> FieldValue:
    if not text:
        raise UsageError(f"{field} is empty", "write part of the name, or a pattern such as 'node*'")
    return text


# --- tests ---------------------------------------------------------------------------------------------------------


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


def _port_test(
    number: Callable[[Socket], int | None],
) -> Callable[[tuple[FieldValue, ...]], Test]:
    """As ``_in_ranges``, for ports that may have a protocol and an address."""

    def make(values: tuple[FieldValue, ...]) -> Test:
        in_ranges = _in_ranges(number)(tuple(v for v in values if isinstance(v, tuple)))
        qualified = [v for v in values if isinstance(v, Ports)]
        if not qualified:
            return in_ranges

        def test(socket: Socket) -> bool:
            n = number(socket)
            return in_ranges(socket) or (n is not None and any(_has_port(socket, n, ports) for ports in qualified))

        return test

    return make


def _has_port(socket: Socket, number: int, ports: Ports) -> bool:
    if not ports.first <= number <= ports.last or ports.protocol not in (None, socket.protocol):
        return False
    return ports.host is None or is_at(socket, ports.host)


def is_at(socket: Socket, host: NamedHost) -> bool:
    """Whether the socket has the port at this address of the machine: it is bound there, or one of both is a wildcard.

    An IPv6 wildcard takes the port of IPv4 too, unless IPV6_V6ONLY is set (RFC 3493 section 5.3).
    """
    if not host.is_address:
        return any(is_at(socket, NamedHost(address, is_address=True)) for address in ("127.0.0.1", "::1"))
    if host.zone is not None and socket.zone not in (None, host.zone):
        return False
    local, wanted = unmapped(socket.local_address), unmapped(host.name)
    if local == wanted:
        return True
    if local not in WILDCARDS and wanted not in WILDCARDS:
        return False
    if (":" in local) == (":" in wanted):
        return True
    return wanted == "::" or (local == "::" and not socket.v6only)


def _in_ranges(number: Callable[[Socket], int | None]) -> Callable[[tuple[FieldValue, ...]], Test]:
    def make(values: tuple[FieldValue, ...]) -> Test:
        ranges = _ranges(values)

        def test(socket: Socket) -> bool:
            n = number(socket)
            return n is not None and any(first <= n <= last for first, last in ranges)

        return test

    return make


def _equals(get: Callable[[Socket], str]) -> Callable[[tuple[FieldValue, ...]], Test]:
    return lambda values: lambda s: get(s) in values


def _in_states(values: tuple[FieldValue, ...]) -> Test:
    states = _states_of(values)
    return lambda s: s.state in states


def _in_networks(get: Callable[[Socket], str | None]) -> Callable[[tuple[FieldValue, ...]], Test]:
    def make(values: tuple[FieldValue, ...]) -> Test:
        from ipaddress import ip_address, ip_network

        wildcards = "*" in values
        networks = [ip_network(str(v)) for v in values if v != "*"]

        def test(socket: Socket) -> bool:
            text = get(socket)
            if text is None:
                return False
            address = ip_address(unmapped(text))
            return (wildcards and address.is_unspecified) or any(address in n for n in networks)

        return test

    return make


def _of_owner(texts: Callable[[Owner], Iterable[str | None]]) -> Callable[[tuple[FieldValue, ...]], Test]:
    return _of_socket(lambda s: (text for owner in s.owners for text in texts(owner)))


def _of_socket(texts: Callable[[Socket], Iterable[str | None]]) -> Callable[[tuple[FieldValue, ...]], Test]:
    def make(values: tuple[FieldValue, ...]) -> Test:
        matches = _text_test([str(v) for v in values])
        return lambda s: any(text is not None and matches(text) for text in texts(s))

    return make


def _text_test(patterns: list[str]) -> Callable[[str], bool]:
    """A pattern without a wildcard matches a part of the text, one with a wildcard the whole. Case is ignored."""
    from fnmatch import fnmatchcase

    lowered = [p.lower() for p in patterns]
    parts = [p for p in lowered if not set(p) & set("*?[")]
    globs = [p for p in lowered if set(p) & set("*?[")]

    def test(text: str) -> bool:
        low = text.lower()
        return any(p in low for p in parts) or any(fnmatchcase(low, g) for g in globs)

    return test


def _user_test(values: tuple[FieldValue, ...]) -> Test:
    wanted = {str(v).lower() for v in values}

    def test(socket: Socket) -> bool:
        if str(socket.uid) in wanted:
            return True
        users = {(name or "").lower() for name in (socket.user, *(o.user for o in socket.owners))}
        return bool(wanted & (users | {u.rpartition("\\")[2] for u in users}))

    return test


def _netns_test(values: tuple[FieldValue, ...]) -> Test:
    """``all``, an inode, or part of a name or a pattern as for every other name."""
    words = [str(v) for v in values]
    every_namespace, matches = "all" in words, _text_test(words)

    def test(socket: Socket) -> bool:
        name = socket.netns_name
        return every_namespace or str(socket.netns) in words or (name is not None and matches(name))

    return test


def _word_test(values: tuple[FieldValue, ...]) -> Test:
    """Part of the name of an owner, or the name or number of the local port."""
    from portbook.names import port_of

    words = [str(v) for v in values]
    of_owner = _of_owner(_process_texts)(values)
    ports = [*filter(None, map(port_of, words))]
    of_port = _port_test(lambda s: s.local_port)(
        (
            *(Ports(number, number, protocol) for number, protocol in ports),
            *(number_range("port", word, PORTS) for word in words if is_range(word)),
        )
    )
    return lambda s: of_port(s) or of_owner(s)


def _pid_test(values: tuple[FieldValue, ...]) -> Test:
    ranges = _ranges(values)
    return lambda s: any(first <= o.pid <= last for o in s.owners for first, last in ranges)


def _process_texts(owner: Owner) -> Iterable[str | None]:
    return (owner.name, owner.exe and owner.exe.replace("\\", "/").rpartition("/")[2])


FIELDS: dict[str, Field] = {
    "port": Field(
        _port,
        _port_test(lambda s: s.local_port),
        "local port: 80, 8000-8100, 53/udp, http, 127.0.0.1:8080",
        narrow=True,
    ),
    "remote-port": Field(_remote_port, _port_test(lambda s: s.remote_port), "port of the peer", narrow=True),
    "protocol": Field(_choice(PROTOCOLS), _equals(lambda s: s.protocol), "tcp, udp"),
    "family": Field(_choice(FAMILIES), _equals(lambda s: s.family), "ipv4, ipv6"),
    "state": Field(_state, _in_states, "listen, established, … or listening, connected, all"),
    "address": Field(
        _address,
        _in_networks(lambda s: s.local_address),
        "local address or network; * for wildcards",
        narrow=True,
    ),
    "remote-address": Field(
        _address, _in_networks(lambda s: s.remote_address), "address or network of the peer", narrow=True
    ),
    "reach": Field(_choice(REACHES), _equals(lambda s: s.reach), ", ".join(REACHES)),
    "inode": Field(_number, _in_ranges(lambda s: s.inode), "inode of the socket (Linux)", narrow=True),
    "netns": Field(_pattern, _netns_test, "network namespace: its name, its inode, or all (Linux)", needs_owner=True),
    "pid": Field(_number, _pid_test, "process id of an owner", needs_owner=True, narrow=True),
    "process": Field(_pattern, _of_owner(_process_texts), "name or executable of an owner", needs_owner=True),
    "word": Field(_word, _word_test, "process, or the name registered for the local port", needs_owner=True),
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
