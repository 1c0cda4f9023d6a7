"""What is known about a port before it is judged: frozen facts, no I/O here."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from portbook.records import Family, Protocol

ProxyKind = Literal["v4tov4", "v4tov6", "v6tov4", "v6tov6"]  # families listened on and connected to


class ExcludedRange(Struct, frozen=True):
    """Windows: ports that no socket gets by asking for them; the bind fails with WSAEACCES (10013)."""

    family: Family
    protocol: Protocol
    start: int
    end: int  # inclusive
    administered: bool  # somebody reserved it (netsh's asterisk); else a service did, until the next start


class DynamicRange(Struct, frozen=True):
    """Windows: where the system takes ports for outgoing connections, and where it puts reservations of its own."""

    family: Family
    protocol: Protocol
    start: int
    count: int


class PortProxy(Struct, frozen=True):
    """Windows: a port that the service iphlpsvc listens on, to pass connections on."""

    kind: ProxyKind
    listen_address: str  # "*": every address
    listen_port: int
    connect_address: str  # an address or a host name
    connect_port: int


class HttpQueue(Struct, frozen=True):
    """Windows: a request queue of http.sys, behind whose ports stands pid 4 while these processes answer."""

    name: str | None  # None: it has none
    urls: tuple[str, ...]  # as registered: "HTTP://+:5985/WSMAN/"
    pids: tuple[int, ...]  # attached to it; if none is, the one that controls it; empty: not told
