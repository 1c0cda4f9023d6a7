"""Ports on which the service iphlpsvc listens to forward connections: ``netsh interface portproxy``.

netsh keeps them in the registry, one value for each port. Its name is where the service listens ("0.0.0.0/8080"), its
data where it connects to ("192.0.2.7/80"). Microsoft does not document the key; public reports of incidents and guides
to WSL read it. That needs no process. If the registry cannot be read, netsh is run. It prints nothing when there is no
proxy, so it cannot confirm that there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, get_args

from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing
from portbook.netconfig.facts import PortProxy, ProxyKind
from portbook.netconfig.windows.netsh import NetshCommand, NetshOutput, Results, decode, run_commands
from portbook.numerals import UINT16, number_or_none

KEY = r"SYSTEM\CurrentControlSet\Services\PortProxy"
KINDS: tuple[ProxyKind, ...] = get_args(ProxyKind)
MOST_VALUES = 4 * 0xFFFF
ERROR_NO_MORE_ITEMS = 259


class ProxyValue(NamedTuple):
    """A value of the registry: the kind of proxy, the name of the value, its data as text."""

    kind: ProxyKind
    name: str
    data: str


def take() -> Results[PortProxy]:
    """Every port proxy, as a result of its own: one that is not understood does not hide the others.

    :raises SourceError: they cannot be read
    """
    try:
        return [_parse(value) for value in read()]
    except SourceDenied as error:
        results = run_commands([_command(kind) for kind in KINDS])
        if any(isinstance(result, SourceError) for result in results):
            results.append(error)
        return results


def _command(kind: ProxyKind) -> NetshCommand[PortProxy]:
    return NetshCommand(("interface", "portproxy", "show", kind), partial(parse_text, kind=kind))


# --- registry ------------------------------------------------------------------------------------------------------


def read() -> tuple[ProxyValue, ...]:
    """All values; none if the key does not exist, which netsh creates with the first proxy.

    :raises SourceMissing: this is not Windows
    :raises SourceDenied: the registry cannot be read
    """
    if sys.platform != "win32":
        raise SourceMissing("port proxies are a feature of Windows")
    try:
        return tuple(value for kind in KINDS for value in _values(kind))
    except OSError as error:
        raise SourceDenied(f"HKLM\\{KEY} cannot be read: {error.strerror}", "run as administrator") from error


def _values(kind: ProxyKind) -> Iterator[ProxyValue]:
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
            yield ProxyValue(kind, name, str(data))


def _parse(value: ProxyValue) -> tuple[PortProxy, ...] | SourceError:
    try:
        return (parse(value),)
    except SourceGarbled as error:
        return error


def parse(value: ProxyValue) -> PortProxy:
    """Parse one value; raise SourceGarbled."""
    listen_address, _, listen_port = value.name.rpartition("/")
    connect_address, _, connect_port = value.data.rpartition("/")
    return _proxy(value.kind, listen_address, listen_port, connect_address, connect_port)


# --- text ----------------------------------------------------------------------------------------------------------


def parse_text(output: NetshOutput, kind: ProxyKind) -> tuple[PortProxy, ...]:
    """Parse what netsh prints: rows of address, port, address, port below a ruler.

    :raises SourceGarbled: a row is not understood, or there is none
    """
    rows: list[list[str]] = []
    is_below_ruler = False
    for line in decode(output).splitlines():
        fields = line.split()
        if fields and is_below_ruler:
            rows.append(fields)
        elif len(fields) == 4 and not "".join(fields).strip("-"):
            is_below_ruler = True
    if not rows:
        raise SourceGarbled("no row: there is no such proxy, or netsh does not show it")
    if any(len(fields) != 4 for fields in rows):
        raise SourceGarbled("a row was not understood")
    return tuple(_proxy(kind, *fields) for fields in rows)


def _proxy(kind: ProxyKind, listen: str, listen_port: str, connect: str, connect_port: str) -> PortProxy:
    from_port = number_or_none(listen_port, UINT16, least=1)
    to_port = number_or_none(connect_port, UINT16, least=1)
    if not listen or not connect or from_port is None or to_port is None:
        text = f"{listen}/{listen_port} to {connect}/{connect_port}"
        raise SourceGarbled(f"the port proxy {text[:80]!r} was not understood")
    return PortProxy(kind, listen, from_port, connect, to_port)
