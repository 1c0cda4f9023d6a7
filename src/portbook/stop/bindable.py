"""Whether a port can be had now: by a real bind, as its holders had it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from portbook.addresses import Endpoint
from portbook.bind.attempt import Options, Tried, attempt
from portbook.records import Protocol

# What the system answers when somebody else has the port. On Windows WSAEACCES too: an exclusive holder.
IN_USE = frozenset(("EADDRINUSE", "WSAEADDRINUSE", "WSAEACCES"))


class Bindable(NamedTuple):
    """What a real bind said."""

    free: bool
    note: str | None = None  # free, and still not ours to bind


def bindable(port: int, protocol: Protocol, endpoints: Sequence[Endpoint]) -> Bindable:
    """Bind at each place, one after the other: a wildcard and an address beside it would be in each other's way."""
    options = Options(protocol)
    return judge(tried for endpoint in endpoints for tried in attempt(port, (endpoint,), options))


def judge(tried: Iterable[Tried]) -> Bindable:
    """In use anywhere is not free. An error of another kind says something about us, not about the port."""
    failed = [one for one in tried if not one.ok]
    if any(one.error_name in IN_USE for one in failed):
        return Bindable(False)
    if not failed:
        return Bindable(True)
    one = failed[0]
    why = f"nobody holds it; binding {one.endpoint.address} failed for another reason: {one.step} said {one.error_name}"
    return Bindable(True, why)
