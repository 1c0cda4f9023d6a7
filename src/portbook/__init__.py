"""portbook: the register of every TCP and UDP port.

>>> import portbook
>>> for socket in portbook.listeners().sockets:            # doctest: +SKIP
...     print(socket.local_port, [owner.name for owner in socket.owners])
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers know the name; importing typing would double the time of "portbook --version"

if TYPE_CHECKING:
    from portbook.bind.findings import Finding
    from portbook.bind.judge import Verdict
    from portbook.bind.why import why
    from portbook.errors import (
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
    from portbook.query import Query, parse
    from portbook.reach import Dial, dial, dial_async
    from portbook.records import Gap, Holder, Holding, Listing, Owner, Socket

# Where each public name lives; it is imported when first used, so that "portbook --version" need not import it all.
_HOMES = {
    "bind.findings": "Finding",
    "bind.judge": "Verdict",
    "bind.why": "why",
    "errors": "PortbookError UsageError SourceError SourceMissing SourceDenied SourceGarbled SourceTimeout "
    "StoreError RemoteError",
    "holding": "who",
    "inventory": "listeners take",
    "query": "Query parse",
    "reach": "Dial dial dial_async",
    "records": "Gap Holder Holding Listing Owner Socket",
}

__all__ = [
    "Dial",
    "Finding",
    "Gap",
    "Holder",
    "Holding",
    "Listing",
    "Owner",
    "PortbookError",
    "Query",
    "RemoteError",
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
    "listeners",
    "parse",
    "take",
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
