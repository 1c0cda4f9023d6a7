"""Sockets as columns for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from portbook.addresses import format_endpoint
from portbook.records import Owner, Reach, Socket
from portbook.render.text import Column, Style, fits, safe, table

REACH: dict[Reach, str] = {"loopback": "this machine", "address": "one address", "any": "every network"}
SHORT_REACH: dict[Reach, str] = {"loopback": "machine", "address": "address", "any": "network"}
UNKNOWN = "?"  # there is an owner; it is not visible
NOBODY = "-"


class Shown(NamedTuple):
    """A column and the text of its cell."""

    column: Column
    cell: Callable[[Socket], str]


def _address(s: Socket) -> str:
    """The local address; ``*`` is a wildcard that takes IPv4 and IPv6, as in ss(8)."""
    text = "*" if s.local_address == "::" and s.v6only is False else format_endpoint(s.local_address, None, s.zone)
    return f"{text}%{safe(s.interface)}" if s.interface else text


def _port(s: Socket) -> str:
    return f"{s.local_port} {s.service_name}" if s.service_name else str(s.local_port)


def _peer(s: Socket) -> str:
    return "" if s.remote_address is None else format_endpoint(s.remote_address, s.remote_port, s.zone)


def _state(s: Socket) -> str:
    return safe(s.state_text) if s.state_text else s.state or "UNCONN"


def _nobody(s: Socket) -> str:
    return NOBODY if s.inode == 0 or s.state in ("TIME_WAIT", "SYN_RECV") else UNKNOWN


def _pid(s: Socket) -> str:
    if not s.owners:
        return _nobody(s)
    more = len({o.pid for o in s.owners}) - 1
    return f"{s.owners[0].pid} +{more}" if more else str(s.owners[0].pid)


def _of_owners(get: Callable[[Owner], str | None]) -> Callable[[Socket], str]:
    def cell(s: Socket) -> str:
        if len(s.owners) == 1:
            return safe(get(s.owners[0]) or UNKNOWN)
        return ",".join(dict.fromkeys(safe(get(o) or UNKNOWN) for o in s.owners)) or _nobody(s)

    return cell


def _service(s: Socket) -> str:
    names = [o.container or o.service for o in s.owners] or [s.container or s.service]
    return ",".join(dict.fromkeys(safe(name) for name in names if name))


def _user(s: Socket) -> str:
    if s.owners:
        return _of_owners(lambda o: o.user)(s)
    return safe(s.user or "")


def _netns(s: Socket) -> str:
    return safe(s.netns_name or "") or str(s.netns or "")


def _queues(s: Socket) -> str:
    if s.accept_queue is not None:
        return f"{s.accept_queue}/{UNKNOWN if s.backlog is None else s.backlog}"
    return "" if s.recv_queue is None else f"{s.recv_queue}/{s.send_queue}"


PROTOCOL = Shown(Column("PROTO"), lambda s: s.protocol)
ADDRESS = Shown(Column("ADDRESS", 1, 15), _address)
PORT = Shown(Column("PORT"), _port)
PEER = Shown(Column("PEER", 2, 21), _peer)
STATE = Shown(Column("STATE"), _state)
PID = Shown(Column("PID"), _pid)
PROCESS = Shown(Column("PROCESS", 4), _of_owners(lambda o: o.name))
USER = Shown(Column("USER", 5), _user)
SERVICE = Shown(Column("SERVICE", 6), _service)
NETNS = Shown(Column("NETNS", 3), _netns)
REACHED = Shown(Column("REACH"), lambda s: REACH[s.reach])
# What a column says instead when the terminal is too narrow, before anything is cut.
SHORT = {
    PORT: Shown(Column("PORT"), lambda s: str(s.local_port)),
    REACHED: Shown(Column("REACH"), lambda s: SHORT_REACH[s.reach]),
}
WIDE = (
    Shown(Column("PIDS"), lambda s: ",".join(str(o.pid) for o in s.owners) or _nobody(s)),
    Shown(Column("INODE"), lambda s: str(s.inode or "")),
    Shown(Column("QUEUES"), _queues),
    Shown(Column("CREATED"), lambda s: s.created.strftime("%Y-%m-%d %H:%M:%S") if s.created else ""),
    Shown(Column("EXECUTABLE"), _of_owners(lambda o: o.exe)),
    Shown(Column("COMMAND"), _of_owners(lambda o: " ".join(o.command_line) if o.command_line else None)),
)


def lines(sockets: Sequence[Socket], style: Style, wide: bool = False, netns: bool = False) -> list[str]:
    """The table; columns in which no row has anything are left out. ``wide`` is for scrolling, not for fitting.

    ``netns``: say of each row in which network namespace it is.
    """
    shown = [PROTOCOL, ADDRESS, PORT, PEER, STATE, PID, PROCESS, USER, SERVICE, REACHED]
    if netns:
        shown.insert(0, NETNS)
    if wide:
        shown = [s for s in shown if s is not PID] + list(WIDE)
        style = style._replace(width=None)
    columns, rows = _cells(shown, sockets)
    if not fits(columns, rows, style):
        columns, rows = _cells([SHORT.get(s, s) for s in shown], sockets)
    if not fits(columns, rows, style):
        style = style._replace(gap=" ")
    return table(columns, rows, style, [s.reach == "any" for s in sockets])


def _cells(shown: Sequence[Shown], sockets: Sequence[Socket]) -> tuple[list[Column], list[tuple[str, ...]]]:
    filled = [(column, [cell(s) for s in sockets]) for column, cell in shown]
    kept = [(column, cells) for column, cells in filled if any(cells)]
    return [column for column, _ in kept], list(zip(*(cells for _, cells in kept), strict=True))
