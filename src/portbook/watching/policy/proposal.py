"""A policy that allows what listens, as TOML text with comments: for ``policy init`` and ``policy learn``. Pure.

Rules say who may have a port by what a process cannot choose: the path of its executable and its service or container,
and its user. Its name is used only where the executable is not known, or is no longer the file of its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from portbook.addresses import reach_of, unmapped
from portbook.enrich.process.script import find_script
from portbook.numerals import join_words
from portbook.records import Owner, PortRange, Protocol, Socket
from portbook.watching.policy.glob import quote
from portbook.watching.policy.keys import MOST_VALUES
from portbook.watching.policy.matching import judged_owners
from portbook.watching.policy.records import ANY, LOOPBACK, OWN

MOST_COMMENT = 60  # characters of a name in a comment
WHO = ("name", "exe", "users", "service", "container")
PLAIN_REACHES = (LOOPBACK, ANY)


class Proposed(Struct, frozen=True):
    """What a rule is about, but for its ports."""

    protocol: Protocol
    reach: str
    name: str | None = None
    exe: str | None = None
    users: tuple[str, ...] = ()  # any of them
    service: str | None = None
    container: str | None = None
    netns: str | None = None


class Occasion(Struct, frozen=True):
    """Why a port is in a rule: what held it, since when."""

    port: PortRange
    seen: int  # the port that was held, also where the rule is about a range
    holder: str
    since: datetime | None = None
    note: str | None = None


ProposedRules = dict[Proposed, list[Occasion]]
TrustsPath = Callable[[Owner], bool]  # whether the process runs the file of its path


def collect(sockets: Iterable[Socket], trusts_path: TrustsPath, ephemeral: PortRange | None = None) -> ProposedRules:
    """Group what would have to be allowed. Where nothing is known about a holder there is no rule: see ``unknown``.

    :param ephemeral: from which the system takes ports of its own choice: a UDP socket on one may have another one
        next time, so its rule is about all of them
    """
    rules: ProposedRules = {}
    for socket in sorted(sockets, key=lambda s: (s.local_port, s.protocol, s.local_address)):
        for owner in judged_owners(socket):
            rule, note = _propose(socket, owner, trusts_path)
            if not _names_holder(rule):
                continue  # it would allow the port to everybody
            port = (socket.local_port, socket.local_port)
            if socket.protocol == "udp" and owner and ephemeral and ephemeral[0] <= socket.local_port <= ephemeral[1]:
                port = ephemeral
            since = owner.started if owner else None
            occasion = Occasion(port, socket.local_port, _holder(socket, owner), since or socket.created, note)
            rules.setdefault(rule, []).append(occasion)
    return _join_users(rules)


def unknown(sockets: Iterable[Socket]) -> int:
    """Of how many sockets nothing is known about a holder: it has ended, or the system does not say."""
    rules = [[_propose(socket, owner, lambda owner: True)[0] for owner in judged_owners(socket)] for socket in sockets]
    return sum(not all(map(_names_holder, each)) for each in rules)


def _names_holder(rule: Proposed) -> bool:
    return any(getattr(rule, key) for key in WHO)


def _join_users(rules: ProposedRules) -> ProposedRules:
    """One rule for several users who have the same ports, as the workers of a server have them."""
    users: dict[tuple[Proposed, bool, frozenset[PortRange]], list[str]] = {}
    occasions: dict[tuple[Proposed, bool, frozenset[PortRange]], list[Occasion]] = {}
    for rule, seen in rules.items():
        key = replace(rule, users=()), bool(rule.users), frozenset(each.port for each in seen)
        users.setdefault(key, []).extend(rule.users)
        occasions.setdefault(key, []).extend(seen)
    joined: ProposedRules = {}
    for key, seen in occasions.items():
        joined.setdefault(replace(key[0], users=tuple(sorted(set(users[key])))), []).extend(seen)
    return joined


def _propose(socket: Socket, owner: Owner | None, trusts_path: TrustsPath) -> tuple[Proposed, str | None]:
    """The rule for a socket as one process holds it, and what is to be said about it."""
    reach = reach_of(unmapped(socket.local_address))
    text = reach if reach in PLAIN_REACHES else unmapped(socket.local_address)
    if owner is None:
        return _propose_unowned(socket, text)
    container = owner.container
    name, exe, note = None, owner.exe, None
    if exe is None or (not exe.startswith(("/", "\\")) and exe[1:2] != ":"):
        name, exe, note = owner.name, None, "the executable is not known, and every process may take this name"
    elif not trusts_path(owner):
        name, exe = owner.name, None
        note = f"{exe_text(owner)} is not what runs: deleted or replaced since the start, or in another mount namespace"
    is_alone = owner.service is None and container is None
    if note is None and is_alone and find_script(owner.command_line, owner.exe):
        note = "an interpreter runs any program"
    rule = Proposed(
        socket.protocol,
        text,
        name or None,
        exe,
        _users(owner.user or _user_of(socket)),
        None if container else owner.service,
        container,
        _netns(socket, container),
    )
    return rule, note


def exe_text(owner: Owner) -> str:
    """The path of an executable in a comment."""
    return (owner.exe or "")[-MOST_COMMENT:]


def _propose_unowned(socket: Socket, reach: str) -> tuple[Proposed, str | None]:
    """A socket of the kernel, or of a process that is not visible."""
    container = socket.container
    service = None if container else socket.service
    users = _users(_user_of(socket))
    rule = Proposed(socket.protocol, reach, socket.kernel, None, users, service, container, _netns(socket, container))
    if socket.kernel is not None:
        return rule, None
    return rule, "the process was not visible to this user"


def _users(user: str | None) -> tuple[str, ...]:
    return (user,) if user else ()


def _user_of(socket: Socket) -> str | None:
    return socket.user or (None if socket.uid is None else str(socket.uid))


def _netns(socket: Socket, container: str | None) -> str | None:
    """The name of another namespace; a container says it already, and a number is another one next time."""
    if container is not None or socket.netns_name == OWN:
        return None
    return socket.netns_name


def _holder(socket: Socket, owner: Owner | None) -> str:
    if owner is None:
        return socket.kernel or "unknown process"
    script = find_script(owner.command_line, owner.exe)
    name = owner.name or f"pid {owner.pid}"
    return f"{name} ({script})" if script else name


# --- text ----------------------------------------------------------------------------------------------------------


def head(host: str, at: datetime, source: str) -> str:
    """The beginning of a new policy."""
    moment = at.astimezone().strftime("%Y-%m-%d %H:%M %z")
    return "\n".join(
        [
            f"# What may listen on {_comment(host)}: written by portbook on {moment}, from {source}.",
            '# Read every rule, remove what should not be there, and say who is responsible: owner = "...".',
            "# portbook policy check FILE says what differs from it; https://toml.io describes the syntax.",
            "",
            "version = 1",
            'default = "deny"  # what no rule mentions',
            "",
        ]
    )


def text_of(rules: ProposedRules) -> str:
    """The rules as TOML, those of one program together."""
    parts: list[str] = []
    program = ""
    for rule, occasions in sorted(rules.items(), key=_order):
        if (title := _title(rule)) != program:
            program = title
            parts += ["", f"# --- {_comment(title)} ---"]
        parts += _rule_lines(rule, occasions)
    return "".join(f"{part}\n" for part in parts)


def _order(item: tuple[Proposed, list[Occasion]]) -> tuple[str, int, str, str, str]:
    rule, occasions = item
    return _title(rule), min(each.port for each in occasions)[0], rule.protocol, rule.reach, str(rule)


def _title(rule: Proposed) -> str:
    return (
        rule.container
        or rule.exe
        or rule.name
        or rule.service
        or f"unknown processes of user {''.join(rule.users[:1])}"
    )


def _rule_lines(rule: Proposed, occasions: list[Occasion]) -> Iterator[str]:
    ports = sorted({each.port for each in occasions})
    for at in range(0, len(ports), MOST_VALUES):
        some = ports[at : at + MOST_VALUES]
        yield ""
        yield from _comments([each for each in occasions if each.port in set(some)])
        yield "[[allow]]"
        yield f"port = {_ports(some)}"
        for key in Proposed.__struct_fields__:
            value = getattr(rule, key)
            if value and key != "users":
                yield f"{key} = {toml_text(value if key in ('protocol', 'reach') else quote(value))}"
        if rule.users:
            yield f"user = {_texts(rule.users)}"


def _comments(occasions: list[Occasion]) -> Iterator[str]:
    """Who, since when; and what is weak about the rule."""
    holders = list(dict.fromkeys(each.holder for each in occasions))
    since = min((each.since for each in occasions if each.since), default=None)
    text = join_words([_comment(holder) for holder in holders])
    if since is not None:
        text = f"{text}, since {since.astimezone().strftime('%Y-%m-%d %H:%M')}"
    yield f"# {text}"
    ranges = sorted({each.seen for each in occasions if each.port[0] != each.port[1]})
    if ranges:
        yield f"# the system chose {join_words(list(map(str, ranges)))}: the next time it may be any of these"
    for note in dict.fromkeys(each.note for each in occasions if each.note):
        yield f"# weak: {_comment(note, 200)}"


def _ports(ports: list[PortRange]) -> str:
    texts = [str(first) if first == last else f'"{first}-{last}"' for first, last in ports]
    if len(texts) == 1:
        return texts[0]
    return f"[{', '.join(texts)}]"


def _texts(values: tuple[str, ...]) -> str:
    texts = list(map(toml_text, values))
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _comment(text: str, most: int = MOST_COMMENT) -> str:
    """Text of others in a comment: on one line, without what TOML does not allow there."""
    shown = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else "?" for c in shown)


def toml_text(text: str) -> str:
    """A basic string (TOML v1.0.0): what is not printable as an escape."""
    return f'"{"".join(map(_escape, text))}"'


def _escape(character: str) -> str:
    number = ord(character)
    if character in '"\\':
        return f"\\{character}"
    if 0xD800 <= number <= 0xDFFF:
        return "\ufffd"  # TOML is UTF-8, which has no surrogates; names read from the system have none
    if character.isprintable():
        return character
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
