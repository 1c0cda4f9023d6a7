"""portbook: the register of every TCP and UDP port.

>>> import portbook
>>> for socket in portbook.listeners().sockets:            # doctest: +SKIP
...     print(socket.local_port, [owner.name for owner in socket.owners])
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers know the name; importing typing would double the time of "portbook --version"

if TYPE_CHECKING:
    from portbook.bind.free import Free, free
    from portbook.bind.handover import inherited
    from portbook.bind.lease import Lease, lease
    from portbook.dialing import Dial, dial, dial_async
    from portbook.errors import (
        LeaseError,
        PolicyError,
        PortbookError,
        RemoteError,
        SourceDenied,
        SourceError,
        SourceGarbled,
        SourceMissing,
        SourceTimeout,
        StoreError,
        UsageError,
    )
    from portbook.holding import who
    from portbook.inventory import listeners, take
    from portbook.probe.outcome import Answer
    from portbook.probe.request import Limits
    from portbook.query import Query, parse
    from portbook.records import Gap, Holder, Holding, Listing, Owner, Socket
    from portbook.scanner.run import Scan, scan
    from portbook.store.reader import History
    from portbook.verdict.findings import Finding
    from portbook.verdict.judge import Verdict
    from portbook.verdict.why import why
    from portbook.waiting import wait_for
    from portbook.watching.judge import Judgement, judge
    from portbook.watching.policy.records import Policy
    from portbook.watching.stream import watch

# The module of each public name; it is imported on first use, so that "portbook --version" imports none of them.
_HOMES = {
    "bind.free": "Free free",
    "bind.handover": "inherited",
    "bind.lease": "Lease lease",
    "verdict.findings": "Finding",
    "verdict.judge": "Verdict",
    "verdict.why": "why",
    "errors": "PortbookError UsageError PolicyError SourceError SourceMissing SourceDenied SourceGarbled SourceTimeout "
    "StoreError RemoteError LeaseError",
    "holding": "who",
    "inventory": "listeners take",
    "probe.outcome": "Answer",
    "probe.request": "Limits",
    "query": "Query parse",
    "dialing": "Dial dial dial_async",
    "scanner.run": "Scan scan",
    "store.reader": "History",
    "records": "Gap Holder Holding Listing Owner Socket",
    "waiting": "wait_for",
    "watching.judge": "Judgement judge",
    "watching.policy.records": "Policy",
    "watching.stream": "watch",
}

__all__ = [
    "Answer",
    "Dial",
    "Finding",
    "Free",
    "Gap",
    "History",
    "Holder",
    "Holding",
    "Judgement",
    "Lease",
    "LeaseError",
    "Limits",
    "Listing",
    "Owner",
    "Policy",
    "PolicyError",
    "PortbookError",
    "Query",
    "RemoteError",
    "Scan",
    "Socket",
    "SourceDenied",
    "SourceError",
    "SourceGarbled",
    "SourceMissing",
    "SourceTimeout",
    "StoreError",
    "UsageError",
    "Verdict",
    "dial",
    "dial_async",
    "free",
    "inherited",
    "judge",
    "lease",
    "listeners",
    "parse",
    "scan",
    "take",
    "wait_for",
    "watch",
    "who",
    "why",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names.split():
            value = getattr(import_module(f"portbook.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'portbook' has no attribute {name!r}")
