"""Names to addresses, all of them, within a time limit.

getaddrinfo(3) cannot be interrupted, so each name is looked up in a thread that is left behind when it does not
come back: a daemon, which keeps no interpreter from ending.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import NamedTuple

from portbook.addresses import split_zone, zone_name
from portbook.probe.outcome import Evidence

LIMIT_S = 10.0  # two tries of five seconds, the default of resolv.conf(5)
MOST_THREADS = 32
POLL_S = 0.1  # on Windows a wait is not interrupted by Ctrl-C, only what comes between two waits


class Place(NamedTuple):
    """One address of a name."""

    address: str
    zone: str | None = None


class Resolved(NamedTuple):
    """What the resolver said about a name: its addresses, or why there are none."""

    name: str
    places: tuple[Place, ...] = ()
    failure: Evidence | None = None


Lookup = Callable[[str], Sequence[Place]]


def resolve(names: Sequence[str], limit_s: float = LIMIT_S, lookup: Lookup | None = None) -> list[Resolved]:
    """Look up every name at the same time; those that nothing came back for within the limit have failed."""
    waiting = SimpleQueue[str]()
    done = SimpleQueue[Resolved]()
    for name in names:
        waiting.put(name)
    for _ in range(min(len(names), MOST_THREADS)):
        Thread(target=_work, args=(waiting, done, lookup or look_up), daemon=True).start()
    found = {resolved.name: resolved for resolved in _collect(done, len(names), limit_s)}
    silent = Evidence("resolver", text=f"no answer from the resolver within {limit_s:g} s")
    return [found.get(name) or Resolved(name, failure=silent) for name in names]


def look_up(name: str) -> Sequence[Place]:
    """Every address of a name, in the resolver's order (RFC 6724); raise OSError or UnicodeError."""
    rows = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(_place(family, sockaddr) for family, _, _, _, sockaddr in rows if family in FAMILIES))


FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _place(family: int, sockaddr: tuple[object, ...]) -> Place:
    address, _ = split_zone(str(sockaddr[0]))
    scope = sockaddr[3] if family == socket.AF_INET6 else 0  # RFC 3493 section 3.3: sin6_scope_id
    return Place(address, zone_name(scope) if isinstance(scope, int) and scope else None)


def _work(waiting: SimpleQueue[str], done: SimpleQueue[Resolved], lookup: Lookup) -> None:
    while True:
        try:
            name = waiting.get_nowait()
        except Empty:
            return
        done.put(_resolved(name, lookup))


def _resolved(name: str, lookup: Lookup) -> Resolved:
    try:
        return Resolved(name, tuple(lookup(name)))
    except OSError as error:  # gaierror is one; its errno is an EAI_ number, which has no name in errno(3)
        return Resolved(name, failure=Evidence("resolver", error.errno, _eai(error.errno), text=error.strerror))
    except ValueError as error:  # not a name at all: too long, an empty label, a NUL
        return Resolved(name, failure=Evidence("resolver", text=str(error)))


def _eai(number: int | None) -> str | None:
    return next((name for name in dir(socket) if name.startswith("EAI_") and getattr(socket, name) == number), None)


def _collect(done: SimpleQueue[Resolved], count: int, limit_s: float) -> list[Resolved]:
    """Results as they come; the limit begins anew with each, as names may have to wait for a thread."""
    found: list[Resolved] = []
    until = monotonic() + limit_s
    while len(found) < count and monotonic() < until:
        try:
            found.append(done.get(timeout=POLL_S))
            until = monotonic() + limit_s
        except Empty:
            continue
    return found
