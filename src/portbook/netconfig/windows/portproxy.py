"""Ports that the service iphlpsvc listens on to pass connections on: ``netsh interface portproxy``.

netsh keeps them in the registry, one value per port: its name is what is listened on, "0.0.0.0/8080", its data where
that leads, "192.0.2.7/80". Microsoft does not document the key; public write-ups of incidents and guides to WSL read
it. That takes no process. Where the registry may not be read, netsh is asked; it prints nothing when there is no proxy,
and so cannot say that there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, get_args

from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing
from portbook.netconfig.facts import PortProxy, ProxyKind
from portbook.netconfig.windows.netsh import MOST_PORT, Answers, NetshOutput, Question, ask, complete, number, text_of

KEY = r"SYSTEM\CurrentControlSet\Services\PortProxy"
KINDS: tuple[ProxyKind, ...] = get_args(ProxyKind)
MOST_VALUES = 4 * 0xFFFF
ERROR_NO_MORE_ITEMS = 259


class Value(NamedTuple):
    """A value of the registry: of which kind, its name, its data as text."""

    kind: ProxyKind
    name: str
    data: str


def port_proxies() -> tuple[PortProxy, ...]:
    """Every port that is passed on; empty when none is.

    :raises SourceError: they could not be had, or one of them could not be understood
    """
    return complete(answers())


def answers() -> Answers[PortProxy]:
    """Each as an answer of its own: one that cannot be understood does not hide the others."""
    try:
        return [_parsed(value) for value in read()]
    except SourceDenied as error:
        asked = ask(
            [Question(("interface", "portproxy", "show", kind), partial(parse_text, kind=kind)) for kind in KINDS]
        )
        return [*asked, error] if any(isinstance(answer, SourceError) for answer in asked) else asked


# --- registry ------------------------------------------------------------------------------------------------------


def read() -> tuple[Value, ...]:
    """All values; none if the key does not exist, which netsh makes with the first one.

    :raises SourceMissing: this is not Windows
    :raises SourceDenied: the registry may not be read
    """
    if sys.platform != "win32":
        raise SourceMissing("port proxies are a feature of Windows")
    try:
        return tuple(value for kind in KINDS for value in _values(kind))
    except OSError as error:
        raise SourceDenied(f"HKLM\\{KEY} cannot be read: {error.strerror}", "run as administrator") from error


def _values(kind: ProxyKind) -> Iterator[Value]:
    if sys.platform != "win32":
        return
    import winreg

    try:
        key = winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, f"{KEY}\\{kind}\\tcp")  # there is no other protocol
    except FileNotFoundError:
        return
    with key:
        for index in range(min(winreg.QueryInfoKey(key)[1], MOST_VALUES)):
            try:
                name, data, _ = winreg.EnumValue(key, index)
            except OSError as error:
                if error.winerror != ERROR_NO_MORE_ITEMS:
                    raise
                return  # one was deleted meanwhile
            yield Value(kind, name, str(data))


def _parsed(value: Value) -> tuple[PortProxy, ...] | SourceError:
    try:
        return (parse(value),)
    except SourceGarbled as error:
        return error


def parse(value: Value) -> PortProxy:
    """Read one value; raise SourceGarbled."""
    listen_address, _, listen_port = value.name.rpartition("/")
    connect_address, _, connect_port = value.data.rpartition("/")
    return _proxy(value.kind, listen_address, listen_port, connect_address, connect_port)


# --- text ----------------------------------------------------------------------------------------------------------


def parse_text(raw: NetshOutput, kind: ProxyKind) -> tuple[PortProxy, ...]:
    """Rows are address, port, address, port, behind a ruler; raise SourceGarbled, also when there is none."""
    lines = iter([fields for line in text_of(raw).splitlines() if (fields := line.split())])
    ruled = any(len(fields) == 4 and not "".join(fields).strip("-") for fields in lines)
    rows = [fields for fields in lines if ruled]
    if not rows:
        raise SourceGarbled("no row: there is no such proxy, or it was not told")
    if any(len(fields) != 4 for fields in rows):
        raise SourceGarbled("a row was not understood")
    return tuple(_proxy(kind, *fields) for fields in rows)


def _proxy(kind: ProxyKind, listen: str, listen_port: str, connect: str, connect_port: str) -> PortProxy:
    ports = number(listen_port), number(connect_port)
    if not listen or not connect or not all(port and port <= MOST_PORT for port in ports):
        shown = f"{listen}/{listen_port} to {connect}/{connect_port}"
        raise SourceGarbled(f"the port proxy {shown[:80]!r} was not understood")
    return PortProxy(kind, listen, ports[0] or 0, connect, ports[1] or 0)
