"""Sockets as columns of text, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from msgspec import Struct
from msgspec.structs import replace

from portbook.records import Owner, Reach, Socket
from portbook.render.text import REACH, Column, Style, fits, safe, safe_endpoint, table

SHORT_REACH: dict[Reach, str] = {"loopback": "machine", "address": "address", "any": "network"}
UNKNOWN = "?"  # the socket has an owner that is not visible
NO_OWNER = "-"


class SocketColumn(Struct, frozen=True):
    """A column, and the text that it shows of a socket."""

    column: Column
    cell: Callable[[Socket], str]


def _address(s: Socket) -> str:
    """The local address; ``*`` is a wildcard that takes IPv4 and IPv6, as in ss(8)."""
    text = safe_endpoint(s.local_address, None, s.zone)
    if s.local_address == "::" and s.v6only is False:
        text = "*"
    if s.interface:
        text += f"%{safe(s.interface)}"
    return text


def _port(s: Socket) -> str:
    if s.service_name:
        return f"{s.local_port} {s.service_name}"
    return str(s.local_port)


def _short_port(s: Socket) -> str:
    return str(s.local_port)


def _peer(s: Socket) -> str:
    if s.remote_address is None:
        return ""
    return safe_endpoint(s.remote_address, s.remote_port, s.zone)


def _state(s: Socket) -> str:
    if s.state_text:
        return safe(s.state_text)
    return s.state or "UNCONN"


def _ownerless(s: Socket) -> str:
    if s.inode == 0 or s.state in ("TIME_WAIT", "SYN_RECV"):
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


_owner_user = _of_owners(attrgetter("user"))


def _user(s: Socket) -> str:
    if s.owners:
        return _owner_user(s)
    return safe(s.user or "")


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


PROTOCOL = SocketColumn(Column("PROTO"), attrgetter("protocol"))
ADDRESS = SocketColumn(Column("ADDRESS", 1, 15), _address)
PORT = SocketColumn(Column("PORT"), _port)
PEER = SocketColumn(Column("PEER", 2, 21), _peer)
STATE = SocketColumn(Column("STATE"), _state)
PID = SocketColumn(Column("PID"), _pid)
PROCESS = SocketColumn(Column("PROCESS", 4), _of_owners(attrgetter("name")))
USER = SocketColumn(Column("USER", 5), _user)
SERVICE = SocketColumn(Column("SERVICE", 6), _service)
NETNS = SocketColumn(Column("NETNS", 3), _netns)
REACHED = SocketColumn(Column("REACH"), _reach)
# Shorter columns for a narrow terminal, tried before anything is cut.
SHORT = {
    PORT: SocketColumn(Column("PORT"), _short_port),
    REACHED: SocketColumn(Column("REACH"), _short_reach),
}
WIDE = (
    SocketColumn(Column("PIDS"), _pids),
    SocketColumn(Column("INODE"), lambda s: str(s.inode or "")),
    SocketColumn(Column("QUEUES"), _queues),
    SocketColumn(Column("CREATED"), _created),
    SocketColumn(Column("EXECUTABLE"), _of_owners(attrgetter("exe"))),
    SocketColumn(Column("COMMAND"), _of_owners(_command)),
)


def lines(sockets: Sequence[Socket], style: Style, wide: bool = False, netns: bool = False) -> list[str]:
    """The table, without the columns that are empty in every row.

    :param wide: add the columns of WIDE, and do not fit the table to the width of the output
    :param netns: add the column of the network namespace
    """
    selected = [PROTOCOL, ADDRESS, PORT, PEER, STATE, PID, PROCESS, USER, SERVICE, REACHED]
    if netns:
        selected.insert(0, NETNS)
    if wide:
        selected = [column for column in selected if column is not PID] + list(WIDE)
        style = replace(style, width=None)
    columns, rows = _cells(selected, sockets)
    if not fits(columns, rows, style):
        columns, rows = _cells([SHORT.get(column, column) for column in selected], sockets)
    if not fits(columns, rows, style):
        style = replace(style, gap=" ")
    return table(columns, rows, style, [s.reach == "any" for s in sockets])


def _cells(selected: Sequence[SocketColumn], sockets: Sequence[Socket]) -> tuple[list[Column], list[tuple[str, ...]]]:
    """The columns that are not empty, and their rows."""
    columns: list[Column] = []
    contents: list[list[str]] = []
    for shown in selected:
        cells = [shown.cell(s) for s in sockets]
        if any(cells):
            columns.append(shown.column)
            contents.append(cells)
    return columns, list(zip(*contents, strict=True))
