"""Ports that containers have published, as docker and podman tell it: whose a NAT rule or a docker-proxy is.

Asked for only when something points at a container. Source: Docker Engine API, ContainerList
(https://docs.docker.com/reference/api/engine), which podman answers in the same form.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from portbook.managers import runtimes
from portbook.netconfig.facts import Publication
from portbook.records import Gap

MOST = 5_000  # ports of all containers


class _Port(msgspec.Struct, rename="pascal"):
    private_port: int
    type: str = "tcp"
    public_port: int | None = None
    ip: str = msgspec.field(default="", name="IP")


class _Network(msgspec.Struct):
    ip: str = msgspec.field(default="", name="IPAddress")
    ip6: str = msgspec.field(default="", name="GlobalIPv6Address")


class _Settings(msgspec.Struct, rename="pascal"):
    networks: dict[str, _Network] | None = None


class Listed(msgspec.Struct, rename="pascal"):
    """What ContainerList says of a container's network."""

    id: str
    names: list[str] | None = None
    ports: list[_Port] | None = None
    network_settings: _Settings | None = None


def take() -> tuple[tuple[Publication, ...], list[Gap]]:
    """Ask root's daemons."""
    found: list[Publication] = []
    gaps: list[Gap] = []
    for runtime, paths in runtimes.api_sockets().items():
        try:
            found += _first(runtime, paths)
        except (OSError, ValueError, RecursionError) as error:
            hint = "run with sudo" if isinstance(error, PermissionError) else None
            gaps.append(Gap("container", None, f"which {runtime} container has published the port: {error}", hint))
    return tuple(found[:MOST]), gaps


def _first(runtime: str, paths: list[str]) -> Iterator[Publication]:
    """From the first API that answers; nothing where none is."""
    for path in paths:
        try:
            entries = runtimes.list_containers(path, Listed)
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        for entry in entries:
            yield from read(runtime, entry)
        return


def read(runtime: str, entry: Listed) -> Iterator[Publication]:
    """The ports of one container: pure. One without published ports is named by its addresses all the same."""
    name = runtimes.own_name(entry.names or []) or entry.id[:12]
    networks = (entry.network_settings.networks if entry.network_settings else None) or {}
    addresses = tuple(a for n in networks.values() for a in (n.ip, n.ip6) if a)
    for port in entry.ports or [_Port(0)]:
        label, host = f"{runtime}:{name}", port.public_port or 0
        yield Publication(label, port.type, port.ip, host, port.private_port, addresses)
