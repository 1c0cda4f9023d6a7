"""Fixtures for tests that need a port: ``leased_socket``, ``lease_port``, ``free_port``.

pytest imports this whenever it starts, in every project of an environment that has portbook: so nothing but pytest is
imported before a test asks for a fixture. ``-p no:portbook`` switches it off.

PYTEST_DONT_REWRITE: there is nothing to rewrite here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from socket import socket

    from portbook.bind.lease import Lease

    Leaser = Callable[..., Lease]  # what portbook.lease takes


@pytest.fixture
def lease_port() -> Iterator[Leaser]:
    """Lease ports, each closed when the test ends: takes what ``portbook.lease`` takes, on 127.0.0.1 by default."""
    from contextlib import ExitStack

    from portbook.bind.lease import lease

    with ExitStack() as held:
        yield lambda port=0, **options: held.enter_context(lease(port, **{"address": "127.0.0.1", **options}))


@pytest.fixture
def leased_socket(lease_port: Leaser) -> socket:
    """A TCP socket that listens on 127.0.0.1, on a port that nobody else can have meanwhile."""
    return lease_port().socket


@pytest.fixture
def free_port(_ports_given: set[int]) -> int:
    """A number that TCP could bind a moment ago, on every address; given to no other test of this run.

    Nothing reserves it. No outgoing connection gets it, unless the system lets connections have every port.
    """
    from portbook.bind.free import free
    from portbook.errors import LeaseError

    for attempt in range(100):
        fresh = set(free(1, avoid_ephemeral=attempt < 50).ports) - _ports_given
        if fresh:
            _ports_given |= fresh
            return fresh.pop()
    raise LeaseError("no port is free that no other test was given")


@pytest.fixture(scope="session")
def _ports_given() -> set[int]:
    return set()
