"""Whether a port can be bound now: a real bind, at the addresses where its holders had it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from portbook.addresses import Endpoint
from portbook.bind.attempt import BindAttempt, Options, attempt
from portbook.records import Protocol

# The errors of a port that is in use. On Windows also WSAEACCES: the holder has set SO_EXCLUSIVEADDRUSE.
IN_USE = frozenset(("EADDRINUSE", "WSAEADDRINUSE", "WSAEACCES"))


class Bindable(NamedTuple):
    """The result of a real bind."""

    free: bool
    note: str | None = None  # why the bind failed although nobody holds the port


def try_bind(port: int, protocol: Protocol, endpoints: Sequence[Endpoint]) -> Bindable:
    """Bind each endpoint alone: a wildcard address and a specific address would conflict with each other."""
    options = Options(protocol)
    attempts: list[BindAttempt] = []
    for endpoint in endpoints:
        attempts += attempt(port, (endpoint,), options)
    return combine(attempts)


def combine(attempts: Iterable[BindAttempt]) -> Bindable:
    """The port is not free if it is in use anywhere. An error of another kind concerns this process, not the port."""
    failed = [attempt for attempt in attempts if not attempt.ok]
    if any(attempt.error_name in IN_USE for attempt in failed):
        return Bindable(False)
    if not failed:
        return Bindable(True)
    first = failed[0]
    reason = f"{first.step} failed with {first.error_name}"
    return Bindable(True, f"nobody holds it, but {first.endpoint.address} cannot be bound: {reason}")
