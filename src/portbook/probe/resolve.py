"""Names to addresses, all of them, within a time limit.

getaddrinfo(3) cannot be interrupted, so each name is looked up in a thread that is abandoned when it does not return:
a daemon thread, which does not keep the interpreter from exiting.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import NamedTuple

from portbook.addresses import split_zone, zone_name
from portbook.probe.outcome import Evidence, Outcome

NOT_A_NAME = "invalid name"
LIMIT_S = 10.0  # two tries of five seconds, the default of resolv.conf(5)
MOST_THREADS = 32
POLL_S = 0.1  # on Windows, Ctrl-C does not interrupt a wait, only what runs between two waits
# What a resolver reports about the name itself (getaddrinfo(3), RFC 3493 section 6.1). EAI_AGAIN, EAI_FAIL and all else
# are about the resolver: another one, or the same one later, may know the name.
ABOUT_THE_NAME = frozenset(("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY", "WSANO_DATA", NOT_A_NAME))


class ResolvedAddress(NamedTuple):
    """One address of a name."""

    address: str
    zone: str | None = None


class Resolved(NamedTuple):
    """What the resolver returned for a name: its addresses, or why there are none."""

    name: str
    addresses: tuple[ResolvedAddress, ...] = ()
    failure: Evidence | None = None


def lookup_outcome(failure: Evidence) -> Outcome:
    """The outcome for a name without addresses: it has none, or the resolver could not find out."""
    if failure.error in ABOUT_THE_NAME:
        return "name-not-found"
    return "lookup-failed"


Lookup = Callable[[str], Sequence[ResolvedAddress]]


def resolve(
    names: Sequence[str], limit_s: float = LIMIT_S, lookup: Lookup | None = None, total_s: float = inf
) -> list[Resolved]:
    """Look up all names at the same time.

    :param limit_s: seconds; a name without an answer by then has failed. It begins anew with each answer
    :param lookup: looks up one name; None: ``look_up``
    :param total_s: seconds for all names together
    :returns: one result for each name, in order
    """
    waiting = SimpleQueue[str]()
    done = SimpleQueue[Resolved]()
    for name in names:
        waiting.put(name)
    for _ in range(min(len(names), MOST_THREADS)):
        Thread(target=_serve, args=(waiting, done, lookup or look_up), daemon=True).start()
    by_name = {resolved.name: resolved for resolved in _collect(done, len(names), limit_s, total_s)}
    with suppress(Empty):
        while True:
            waiting.get_nowait()  # no thread is to begin with another one
    silent = Evidence("resolver", text=f"no answer from the resolver within {limit_s:.3g} s")
    return [by_name.get(name) or Resolved(name, failure=silent) for name in names]


def look_up(name: str) -> Sequence[ResolvedAddress]:
    """Return every address of a name, in the resolver's order (RFC 6724); raise OSError or UnicodeError."""
    rows = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    addresses = [_resolved_address(family, sockaddr) for family, _, _, _, sockaddr in rows if family in FAMILIES]
    return list(dict.fromkeys(addresses))


FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _resolved_address(family: int, sockaddr: tuple[object, ...]) -> ResolvedAddress:
    address, _ = split_zone(str(sockaddr[0]))
    scope = sockaddr[3] if family == socket.AF_INET6 else 0  # RFC 3493 section 3.3: sin6_scope_id
    zone = zone_name(scope) if isinstance(scope, int) and scope else None
    return ResolvedAddress(address, zone)


def _serve(waiting: SimpleQueue[str], done: SimpleQueue[Resolved], lookup: Lookup) -> None:
    while True:
        try:
            name = waiting.get_nowait()
        except Empty:
            return
        done.put(resolve_one(name, lookup))


def resolve_one(name: str, lookup: Lookup | None = None) -> Resolved:
    """Look up one name, however long that takes. Never raises: a failure is a result."""
    try:
        return Resolved(name, tuple((lookup or look_up)(name)))
    except OSError as error:  # gaierror too; its errno is an EAI_ number, which errno(3) does not name
        return Resolved(name, failure=Evidence("resolver", error.errno, _eai(error.errno), text=error.strerror))
    except ValueError as error:  # not a name at all: too long, an empty label, a NUL
        return Resolved(name, failure=Evidence("resolver", error=NOT_A_NAME, text=str(error)))


WSANO_DATA = 11004  # winsock2.h: the name has no address of the kind; Python's socket has no name for it


def _eai(number: int | None) -> str | None:
    if number == WSANO_DATA:
        return "WSANO_DATA"
    for name in dir(socket):
        if name.startswith("EAI_") and getattr(socket, name) == number:
            return name
    return None


def _collect(done: SimpleQueue[Resolved], count: int, limit_s: float, total_s: float) -> list[Resolved]:
    """Collect results as they come; the limit begins anew with each, as names may have to wait for a thread."""
    results: list[Resolved] = []
    last_at = monotonic() + total_s
    until = monotonic() + limit_s
    while len(results) < count and monotonic() < min(until, last_at):
        try:
            results.append(done.get(timeout=min(POLL_S, max(0.0, until - monotonic()))))
            until = monotonic() + limit_s
        except Empty:
            continue
    return results
