"""The fields of a query: how their values are read, and what makes a socket match them.

Pure, but for the table of service names, which is read when a word is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from portbook.addresses import MOST_SHOWN, NamedHost, split_zone, unmapped
from portbook.errors import UsageError
from portbook.numerals import UINT32
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

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  compared, not bound

FieldValue = str | tuple[int, int] | Ports
Test = Callable[[Socket], bool]


class Field(Struct, frozen=True):
    """How the values of a field are parsed, and what makes a socket match them."""

    parse: Callable[[str, str], FieldValue]  # (field, text): raises UsageError
    test: Callable[[tuple[FieldValue, ...]], Test]
    about: str
    needs_owner: bool = False
    narrow: bool = False  # selects few sockets


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


def state_word(text: str) -> str | None:
    """The state or group of states that a text names; None if it names none."""
    word = text.upper().replace("-", "_")
    word = STATE_ALIASES.get(word, word)
    if word in STATES or word in STATE_GROUPS:
        return word
    return None


def _state(field: str, text: str) -> FieldValue:
    word = state_word(text)
    if word is None:
        valid = ", ".join(s.lower() for s in (*STATES, *STATE_GROUPS))
        raise UsageError(f"unknown {field} {text!r}", f"valid values are {valid}")
    return word


def _states(word: str) -> frozenset[State | None]:
    """The states that a name means."""
    return STATE_GROUPS.get(word) or frozenset(s for s in STATES if s == word)


def states_of(values: Iterable[FieldValue]) -> frozenset[State | None]:
    """The states that any of the names means."""
    return frozenset[State | None]().union(*(_states(str(v)) for v in values))


def ranges_of(values: Iterable[FieldValue]) -> tuple[tuple[int, int], ...]:
    """The numbers of the values, without their protocols and addresses; words have none."""
    return tuple((v.first, v.last) if isinstance(v, Ports) else v for v in values if not isinstance(v, str))


def _address(field: str, text: str) -> FieldValue:
    if text == "*":
        return "*"
    network = network_of(text)
    if network is None:
        raise UsageError(f"{field} {text[:MOST_SHOWN]!r} is not an address", "write 127.0.0.1, ::1 or 10.0.0.0/8")
    return network


def network_of(text: str) -> str | None:
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
        ranges = ranges_of(values)

        def test(socket: Socket) -> bool:
            n = number(socket)
            return n is not None and any(first <= n <= last for first, last in ranges)

        return test

    return make


def _equals(get: Callable[[Socket], str]) -> Callable[[tuple[FieldValue, ...]], Test]:
    return lambda values: lambda s: get(s) in values


def _in_states(values: tuple[FieldValue, ...]) -> Test:
    states = states_of(values)
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
    ranges = ranges_of(values)
    return lambda s: any(first <= o.pid <= last for o in s.owners for first, last in ranges)


def _process_texts(owner: Owner) -> Iterable[str | None]:
    return (owner.name, owner.exe and owner.exe.replace("\\", "/").rpartition("/")[2])


# --- the table -----------------------------------------------------------------------------------------------------

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
