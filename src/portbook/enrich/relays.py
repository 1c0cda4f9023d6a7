"""What is behind the ports of processes that only pass connections on: docker-proxy, conmon, ``ssh -L``, socat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from portbook.managers import relay
from portbook.query import LISTENING
from portbook.records import Owner, Protocol, Socket

if TYPE_CHECKING:
    from portbook.netconfig.facts import Publication

Served = tuple[int, int, Protocol]  # pid, port and protocol


class Relays:
    """The targets of relays. The published ports of containers are read once, and only if they can name one."""

    def __init__(self) -> None:
        self._is_relay: dict[int, bool] = {}  # by pid: a process may have thousands of sockets
        self._publications: tuple[Publication, ...] | None = None

    def target_of(self, owner: Owner, port: int, protocol: Protocol) -> str | None:
        """``container 172.17.0.2:80 (docker:web)``, ``db:5432 through bastion``; None if it is no known relay."""
        found = self._behind(owner, port, protocol)
        if found is None:
            return None
        if found.container and found.container.partition(":")[2] not in found.to:
            return f"{found.to} ({found.container})"
        return found.to

    def short_targets(self, sockets: Iterable[Socket]) -> dict[Served, str]:
        """The containers, else the targets, of all relays that wait on these sockets."""
        targets: dict[Served, str] = {}
        for s in sockets:
            if s.state in LISTENING:
                for owner in s.owners:
                    found = self._behind(owner, s.local_port, s.protocol)
                    if found is not None:
                        targets[owner.pid, s.local_port, s.protocol] = found.container or found.to
        return targets

    def _behind(self, owner: Owner, port: int, protocol: Protocol) -> relay.Relay | None:
        if owner.pid not in self._is_relay:
            self._is_relay[owner.pid] = relay.find_program(owner) is not None
        if not self._is_relay[owner.pid]:
            return None
        publications: tuple[Publication, ...] = ()
        if relay.has_unnamed_container(owner):
            publications = self._read_publications()
        return relay.behind(owner, port, protocol, publications)

    def _read_publications(self) -> tuple[Publication, ...]:
        if self._publications is None:
            from portbook.managers import publications

            self._publications, _ = publications.take()
        return self._publications
