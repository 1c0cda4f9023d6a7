"""Fixtures for tests that need a port: ``leased_socket``, ``lease_port``, ``free_port``.

pytest imports this module at every start, in every project of an environment that has portbook, so nothing but pytest
is imported before a test uses a fixture. ``-p no:portbook`` disables it.

PYTEST_DONT_REWRITE: it has no assertions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from socket import socket

    from portbook.bind.lease import Lease

    Leaser = Callable[..., Lease]  # what portbook.lease takes


@pytest.fixture
def lease_port() -> Iterator[Leaser]:
    """Lease ports that are closed when the test ends: a function like ``portbook.lease``, on 127.0.0.1 by default."""
    from contextlib import ExitStack

    from portbook.bind.lease import lease

    with ExitStack() as leases:

        def lease_until_end(port: int = 0, **options: Any) -> Lease:
            options.setdefault("address", "127.0.0.1")
            return leases.enter_context(lease(port, **options))

        yield lease_until_end


@pytest.fixture
def leased_socket(lease_port: Leaser) -> socket:
    """A TCP socket that listens on 127.0.0.1. No other process can bind its port until the test ends."""
    return lease_port().socket


@pytest.fixture
def free_port(_ports_given: set[int]) -> int:
    """A port that TCP could bind a moment ago, on every address, and that no other test of this run was given.

    Nothing reserves it. No outgoing connection gets it, unless the ephemeral range of the system has every port.
    """
    from portbook.bind.free import free
    from portbook.errors import LeaseError

    for attempt in range(100):
        fresh = set(free(1, avoid_ephemeral=attempt < 50).ports) - _ports_given
        if fresh:
            _ports_given |= fresh
            return fresh.pop()
    raise LeaseError("every free port was given to another test already")


@pytest.fixture(scope="session")
def _ports_given() -> set[int]:
    return set()
