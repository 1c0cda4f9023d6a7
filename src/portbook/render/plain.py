"""Sockets as columns of text, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from portbook.escaping import safe
from portbook.records import Owner, Reach, Socket
from portbook.render.text import REACH, Column, Style, room, safe_endpoint, table_of_columns, wrap

if TYPE_CHECKING:
    from portbook.enrich.relays import Served

SHORT_REACH: dict[Reach, str] = REACH | {
    "loopback": "machine",
    "address": "address",
    "any": "network",
    "multicast": "multicast",
}
UNKNOWN = "?"  # the socket has an owner that is not visible
NO_OWNER = "-"


class SocketColumn(Struct, frozen=True):
    """A column, and the text that it shows of a socket."""

    column: Column
    cell: Callable[[Socket], str]
    of_owners: bool = False  # it depends on the owners alone, if there are any, and else on what _group has
    of_fields: tuple[str, ...] = ()  # it depends on these alone, which have few values; empty: on any
    many: Callable[[Sequence[Socket]], list[str]] | None = None  # makes all cells, without a call for each


def _address(s: Socket) -> str:
    """The local address; ``*`` is a wildcard that takes IPv4 and IPv6, as in ss(8)."""
    text = safe_endpoint(s.local_address, None, s.zone)
    if s.local_address == "::" and s.v6only is False:
        text = "*"
    if s.interface:
        text += f"%{safe(s.interface)}"
    return text


def _port(s: Socket) -> str:
    name = s.service_name
    return f"{s.local_port} {name}" if name else str(s.local_port)


def _ports(sockets: Sequence[Socket]) -> list[str]:
    ports = map(attrgetter("local_port"), sockets)
    names = list(map(attrgetter("service_name"), sockets))
    cells = list(map(str, ports))
    if any(names):
        for i, name in enumerate(names):
            if name:
                cells[i] += f" {name}"
    return cells


def _short_port(s: Socket) -> str:
    return str(s.local_port)


def _peer(s: Socket) -> str:
    if s.remote_address is None:
        return ""
    return safe_endpoint(s.remote_address, s.remote_port, s.zone)


def _peers(sockets: Sequence[Socket]) -> list[str]:
    if any(map(attrgetter("zone"), sockets)):
        return list(map(_peer, sockets))
    addresses = list(map(attrgetter("remote_address"), sockets))
    ports = map(attrgetter("remote_port"), sockets)
    shown = {address: safe_endpoint(address) for address in set(addresses) if address is not None}
    return [
        "" if address is None else f"{shown[address]}:{port}" for address, port in zip(addresses, ports, strict=True)
    ]


def _state(s: Socket) -> str:
    if s.state_text:
        return safe(s.state_text)
    return s.state or "UNCONN"


def _ownerless(s: Socket) -> str:
    if s.kernel is not None or s.inode == 0 or s.state in ("TIME_WAIT", "SYN_RECV"):
        return NO_OWNER
    return UNKNOWN


def _pid(s: Socket) -> str:
    if not s.owners:
        return _ownerless(s)
    others = len({o.pid for o in s.owners}) - 1
    if others:
        return f"{s.owners[0].pid} +{others}"
    return str(s.owners[0].pid)


def _pids(s: Socket) -> str:
    return ",".join(str(o.pid) for o in s.owners) or _ownerless(s)


def _of_owners(get: Callable[[Owner], str | None]) -> Callable[[Socket], str]:
    def cell(s: Socket) -> str:
        if len(s.owners) == 1:
            return safe(get(s.owners[0]) or UNKNOWN)
        return ",".join(dict.fromkeys(safe(get(o) or UNKNOWN) for o in s.owners)) or _ownerless(s)

    return cell


def _service(s: Socket) -> str:
    names = [o.container or o.service for o in s.owners] or [s.container or s.service]
    return ",".join(dict.fromkeys(safe(name) for name in names if name))


def _with_targets(targets: Mapping[Served, str]) -> SocketColumn:
    """The column SERVICE, in which a relay has what is behind it: its own service is that of its runtime."""

    def cell(s: Socket) -> str:
        names: list[str | None] = []
        for o in s.owners:
            target = targets.get((o.pid, s.local_port, s.protocol))
            names.append(f"to {target}" if target else o.container or o.service)
        if not s.owners:
            return _service(s)
        return ",".join(dict.fromkeys(safe(name) for name in names if name))

    return replace(SERVICE, cell=cell, of_owners=False)  # a relay has a target for each port


_owner_name = _of_owners(attrgetter("name"))


def _process(s: Socket) -> str:
    """The names of the owners, and whether one does not run: it accepts and does not answer."""
    if s.kernel is not None and not s.owners:
        return f"kernel: {safe(s.kernel)}"
    text = _owner_name(s)
    states = {o.state for o in s.owners} - {"running", None}
    if states:
        text += f" ({', '.join(sorted(map(str, states)))})"
    return text


_owner_user = _of_owners(attrgetter("user"))


def _user(s: Socket) -> str:
    """The users of the owners; in parentheses that of the socket, which made it and may be another."""
    if s.owners:
        return _owner_user(s)
    user = s.user or s.uid
    if user is None:
        return ""
    return f"({safe(str(user))})"


def _directories(s: Socket) -> str:
    return ",".join(dict.fromkeys(safe(o.directory) for o in s.owners if o.directory))


def _projects(s: Socket) -> str:
    return ",".join(dict.fromkeys(safe(o.project.rpartition("/")[2]) for o in s.owners if o.project))


def _netns(s: Socket) -> str:
    return safe(s.netns_name or "") or str(s.netns or "")


def _queues(s: Socket) -> str:
    """Of a listener, connections to be accepted and their limit; of another socket, bytes to be read and sent."""
    if s.accept_queue is None and s.recv_queue is None:
        return ""
    if s.accept_queue is None:
        return f"{s.recv_queue}/{s.send_queue}"
    if s.backlog is None:
        return f"{s.accept_queue}/{UNKNOWN}"
    return f"{s.accept_queue}/{s.backlog}"


def _created(s: Socket) -> str:
    if s.created is None:
        return ""
    return f"{s.created:%Y-%m-%d %H:%M:%S}"


def _reach(s: Socket) -> str:
    return REACH[s.reach]


def _short_reach(s: Socket) -> str:
    return SHORT_REACH[s.reach]


def _command(owner: Owner) -> str | None:
    return " ".join(owner.command_line or ()) or None


def _short_command(s: Socket) -> str:
    """What the first owner runs: without the directory of its program, and without the settings of a Java machine."""
    if not s.owners or not s.owners[0].command_line:
        return ""
    program, *arguments = s.owners[0].command_line
    if not program.startswith("-") and " " not in program:
        program = program.replace("\\", "/").rpartition("/")[2]
    if program == "java":
        arguments = [word for word in arguments if not word.startswith(("-D", "-X"))]
    return safe(" ".join((program, *arguments))[:MOST_COMMAND])


PROTOCOL = SocketColumn(Column("PROTO"), attrgetter("protocol"), of_fields=("protocol",))
ADDRESS_FIELDS = ("local_address", "v6only", "zone", "interface")
ADDRESS = SocketColumn(Column("ADDRESS", 1, 15), _address, of_fields=ADDRESS_FIELDS)
PORT = SocketColumn(Column("PORT"), _port, many=_ports)
PEER = SocketColumn(Column("PEER", 2, 21), _peer, many=_peers)
STATE = SocketColumn(Column("STATE"), _state, of_fields=("state", "state_text"))
PID = SocketColumn(Column("PID"), _pid, True)
PROCESS = SocketColumn(Column("PROCESS", 4), _process, True)
USER = SocketColumn(Column("USER", 5), _user, True)
SERVICE = SocketColumn(Column("SERVICE", 6), _service, True)
NETNS = SocketColumn(Column("NETNS", 3), _netns, of_fields=("netns", "netns_name"))
REACHED = SocketColumn(Column("REACH"), _reach, of_fields=("reach",))
# Shorter columns for a narrow terminal, tried before anything is cut.
SHORT = {
    PORT: SocketColumn(Column("PORT"), _short_port),
    REACHED: SocketColumn(Column("REACH"), _short_reach, of_fields=("reach",)),
}
# What fills the rest of a wide terminal.
COMMAND = SocketColumn(Column("COMMAND", 7), _short_command, True)
LEAST_COMMAND = 20  # characters that are worth a column
MOST_COMMAND = 1_000
WIDE = (
    SocketColumn(Column("PIDS"), _pids),
    SocketColumn(Column("INODE"), lambda s: str(s.inode or "")),
    SocketColumn(Column("QUEUES"), _queues),
    SocketColumn(Column("CREATED"), _created),
    SocketColumn(Column("EXECUTABLE"), _of_owners(attrgetter("exe"))),
    SocketColumn(Column("DIRECTORY"), _directories),
    SocketColumn(Column("PROJECT"), _projects),
    SocketColumn(Column("COMMAND"), _of_owners(_command)),
)
INDENT = "    "
CHUNK = 1_000  # sockets whose columns are made together: they stay in the cache of the processor


def lines(
    sockets: Sequence[Socket],
    style: Style,
    wide: bool = False,
    netns: bool = False,
    targets: Mapping[Served, str] | None = None,
) -> list[str]:
    """The table, without the columns that are empty in every row.

    :param wide: add the columns of WIDE; on a terminal that is too narrow for them, in lines below each socket
    :param netns: add the column of the network namespace
    :param targets: what is behind the relays among the owners, as ``enrich.relays`` finds it
    """
    service = _with_targets(targets) if targets else SERVICE
    selected = [PROTOCOL, ADDRESS, PORT, PEER, STATE, PID, PROCESS, USER, service, REACHED]
    if netns:
        selected.insert(0, NETNS)
    warn = [s.reach == "any" for s in sockets] if style.colour else []
    if wide:
        columns, contents = _cells([column for column in selected if column is not PID] + list(WIDE), sockets)
        if room(columns, contents, style) >= 0:
            return table_of_columns(columns, contents, style, warn)
        title, *short = _fitted(selected, sockets, style, warn)
        blocks = [title]
        for line, s in zip(short, sockets, strict=True):
            blocks += [line, *wrap(_rest(s, selected, line), style, INDENT, INDENT)]
        return blocks
    return _fitted([*selected, COMMAND], sockets, style, warn)


def _fitted(
    selected: Sequence[SocketColumn], sockets: Sequence[Socket], style: Style, warn: Sequence[bool]
) -> list[str]:
    """The table in the width of the output; the column COMMAND only if there is room for it."""
    columns, contents = _cells([column for column in selected if column is not COMMAND], sockets)
    left = room(columns, contents, style)
    if left < 0:
        columns, contents = _shortened(selected, sockets)
        if room(columns, contents, style) < 0:
            style = replace(style, gap=" ")
    elif style.width is not None and COMMAND in selected and left >= LEAST_COMMAND:
        (column,), (cells,) = _cells([COMMAND], sockets, keep_empty=True)
        if any(cells):
            columns, contents = [*columns, column], [*contents, cells]
    return table_of_columns(columns, contents, style, warn)


def _shortened(selected: Sequence[SocketColumn], sockets: Sequence[Socket]) -> tuple[list[Column], list[list[str]]]:
    return _cells([SHORT.get(column, column) for column in selected if column is not COMMAND], sockets)


def _rest(s: Socket, selected: Sequence[SocketColumn], line: str) -> str:
    """What the columns of WIDE show, as text, and what was cut in the line: ``pids 812,813; inode 4711``."""
    parts: list[str] = []
    for shown in (*selected, *WIDE):
        cell = SHORT.get(shown, shown).cell(s)
        if cell and (shown in WIDE or cell not in line):
            parts.append(f"{shown.column.title.lower()} {cell}")
    return "; ".join(parts)


def _cells(
    selected: Sequence[SocketColumn], sockets: Sequence[Socket], keep_empty: bool = False
) -> tuple[list[Column], list[list[str]]]:
    """The columns that are not empty, and the cells of each."""
    made = [_Cells(shown) for shown in selected]
    for at in range(0, len(sockets), CHUNK):
        part = sockets[at : at + CHUNK]
        groups = _groups(part)
        for cells in made:
            cells.add(part, groups)
    kept = [cells for cells in made if keep_empty or any(cells.texts)]
    return [cells.shown.column for cells in kept], [cells.texts for cells in kept]


def _groups(sockets: Sequence[Socket]) -> list[object]:
    owners = list(map(attrgetter("owners"), sockets))
    if all(owners):
        return list(map(id, owners))
    return list(map(_group, sockets))


def _group(s: Socket) -> object:
    """What the columns about owners depend on: the owners, by identity (to hash a record is to hash all its fields)."""
    return id(s.owners) if s.owners else (s.inode == 0, s.state, s.uid, s.user, s.service, s.container)


class _Cells:
    """The cells of a column: each made once for all sockets of which it depends on the same values."""

    def __init__(self, shown: SocketColumn) -> None:
        self.shown = shown
        self.texts: list[str] = []
        self._made: dict[object, str] = {}
        self._values = attrgetter(*shown.of_fields) if shown.of_fields else None

    def add(self, sockets: Sequence[Socket], groups: list[object]) -> None:
        cell, made = self.shown.cell, self._made
        if self.shown.of_owners:
            keys = groups
        elif self._values is not None:
            keys = list(map(self._values, sockets))
        else:
            self.texts += self.shown.many(sockets) if self.shown.many else map(cell, sockets)
            return
        try:
            self.texts += list(map(made.__getitem__, keys))
        except KeyError:
            made.update((key, cell(s)) for key, s in zip(keys, sockets, strict=True) if key not in made)
            self.texts += map(made.__getitem__, keys)
