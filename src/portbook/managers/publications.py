"""Ports that containers have published, as docker and podman list them: they name the container behind a relay.

Read only if something points at a container. Source: Docker Engine API, ContainerList
(https://docs.docker.com/reference/api/engine), which podman answers in the same form.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from portbook.managers import runtimes
from portbook.netconfig.facts import Publication
from portbook.records import Gap
from portbook.system.users import user_name

MOST_PORTS = 5_000  # of all containers


class _Port(msgspec.Struct, rename="pascal"):
    type: str = "tcp"
    public_port: int | None = None


class _Network(msgspec.Struct):
    ip: str = msgspec.field(default="", name="IPAddress")
    ip6: str = msgspec.field(default="", name="GlobalIPv6Address")


class _Settings(msgspec.Struct, rename="pascal"):
    networks: dict[str, _Network] | None = None


class ListedContainer(msgspec.Struct, rename="pascal"):
    """The fields of ContainerList about a container's network."""

    id: str
    names: list[str] | None = None
    ports: list[_Port] | None = None
    network_settings: _Settings | None = None


def take() -> tuple[tuple[Publication, ...], list[Gap]]:
    """Read the published ports from the daemons of root and of the caller; one that does not answer is a gap."""
    if not hasattr(os, "geteuid"):
        return (), []  # Windows: the API is behind a named pipe
    publications: list[Publication] = []
    gaps: list[Gap] = []
    daemons: list[tuple[int, str, list[str]]] = []
    for uid in dict.fromkeys((runtimes.ROOT, os.geteuid())):
        daemons += [(uid, runtime, paths) for runtime, paths in runtimes.api_sockets(uid).items()]
    for uid, runtime, paths in daemons:
        try:
            publications += _read_first(runtime, paths, user_name(uid))
        except (OSError, ValueError, RecursionError) as error:
            hint = "run with sudo" if isinstance(error, PermissionError) else None
            gaps.append(Gap("container", None, f"cannot read which ports {runtime} has published: {error}", hint))
    return tuple(publications[:MOST_PORTS]), gaps


def _read_first(runtime: str, paths: list[str], user: str) -> Iterator[Publication]:
    """From the first API that answers; nothing if none exists."""
    for path in paths:
        try:
            containers = runtimes.list_containers(path, ListedContainer)
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        for container in containers:
            yield from parse(runtime, container, user)
        return


def parse(runtime: str, container: ListedContainer, user: str = "root") -> Iterator[Publication]:
    """The ports of one container: pure. A container without published ports still gives a name to its addresses."""
    label = f"{runtime}:{runtimes.own_name(container.names or []) or container.id[:12]}"
    addresses: list[str] = []
    if container.network_settings and container.network_settings.networks:
        for network in container.network_settings.networks.values():
            addresses += filter(None, (network.ip, network.ip6))
    for port in container.ports or [_Port()]:
        host_port = port.public_port or 0
        yield Publication(label, port.type, host_port, tuple(addresses), user)
