"""The interface of sources.

A source is a module with two halves. ``read(wanted)`` touches the system and returns its answer, unchanged;
``parse(raw)`` is pure, can be imported on every platform, and turns that answer into sockets. A table captured once
is test data on every platform.

``read`` may return more than was wanted (the pipeline filters again) and never less. It raises ``SourceMissing``,
``SourceDenied``, ``SourceTimeout``, or ``SourceGarbled`` for an answer that is not whole. ``parse`` raises
``SourceGarbled`` for an answer that cannot be parsed, and nothing else, whatever bytes it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from portbook.records import FAMILIES, PROTOCOLS, STATES, Family, Gap, PortRange, Protocol, Socket, State

Capability = Literal[
    "tcp",
    "udp",
    "ipv6",
    "bound",
    "time_wait",
    "uid",
    "inode",
    "queues",
    "v6only",
    "owner",
    "holders",
    "namespaces",
    "created",
]


class Wanted(Struct, frozen=True):
    """What a source may leave out: the part of a query that a kernel can filter."""

    protocols: tuple[Protocol, ...] = PROTOCOLS
    families: tuple[Family, ...] = FAMILIES
    states: frozenset[State | None] = frozenset((*STATES, None))
    ports: tuple[PortRange, ...] | None = None  # local ports, inclusive; None: every port
    pids: tuple[int, ...] | None = None  # only their sockets, without the other owners; None: everything
    all_namespaces: bool = False  # other network namespaces too, where the source sees them


class OtherNamespaces(Struct, frozen=True):
    """What was seen of other network namespaces when they were not wanted."""

    listeners: int
    namespaces: int  # that have them


class Reading(Struct, frozen=True):
    """The sockets of a source, before owners are completed."""

    sockets: list[Socket]
    gaps: list[Gap]
    other_namespaces: OtherNamespaces | None = None  # None: the source does not see them, or they were wanted


class Source(Struct, frozen=True):
    """One way to read this machine. ``portbook sources`` prints this table."""

    name: str
    sees: str
    needs: str
    capabilities: frozenset[Capability]  # what the contract suite holds it to
    missing: Callable[[], str | None]  # why it does not work here, None if it does
    read: Callable[[Wanted], Any]
    parse: Callable[[Any], Reading]
    optional: bool = False  # where it does not work, the next one answers as well: no gap


CAPABILITIES: dict[Capability, str] = {
    "tcp": "listening and connected TCP sockets",
    "udp": "UDP sockets",
    "ipv6": "IPv6 beside IPv4",
    "bound": "TCP sockets that are bound and do not listen",
    "time_wait": "connections in TIME_WAIT",
    "uid": "the user id of a socket",
    "inode": "the socket's inode, by which descriptors are matched",
    "queues": "accept queue and backlog of listeners, bytes queued of others",
    "v6only": "whether an IPv6 socket takes the IPv4 port too",
    "owner": "the pid of an owner",
    "holders": "the pids of all owners, so that no descriptor needs to be read",
    "namespaces": "the sockets of other network namespaces",
    "created": "when the socket was made",
}
