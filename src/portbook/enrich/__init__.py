"""What is added to the bare rows of a source: an ordered list of plain callables.

An enricher is given the distinct owners of a listing (a pid alone at first) and returns as many, in the same
order, each the same or completed, and the gaps it met. It never raises for one process: processes vanish.
"""

from __future__ import annotations

from collections.abc import Callable

from portbook.records import Gap, Owner

Enricher = Callable[[list[Owner]], tuple[list[Owner], list[Gap]]]


def enrichers() -> tuple[Enricher, ...]:
    """The enrichers of this machine, in the order they run; each may use what earlier ones found."""
    from portbook.enrich import process, service
    from portbook.managers import container

    return (process.enrich, service.enrich, container.enrich)
