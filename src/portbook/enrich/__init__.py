"""What is added to the sockets of a source: an ordered list of plain callables.

An enricher takes the distinct owners of a listing (at first no more than pids) and returns as many, in the same order,
each unchanged or completed, and the gaps it met. It never raises because of one process: processes end.
"""

from __future__ import annotations

from collections.abc import Callable

from portbook.records import Gap, Owner

Enricher = Callable[[list[Owner]], tuple[list[Owner], list[Gap]]]


def enrichers() -> tuple[Enricher, ...]:
    """The enrichers of this machine, in the order in which they run; each may use the results of earlier ones."""
    from portbook.enrich import process, service
    from portbook.managers import container

    return (process.enrich, service.enrich, container.enrich)
