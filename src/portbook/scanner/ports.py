"""Which ports to scan: lists, ranges and groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from portbook.errors import UsageError
from portbook.ports import Ports, is_range, items, parse, split_host, words
from portbook.records import PROTOCOLS, Protocol
from portbook.scanner.groups import GROUPS, TCP

if TYPE_CHECKING:
    from portbook.ports import PortLike, PortsLike


class ScanRequest(Struct, frozen=True):
    """What is to be scanned."""

    targets: tuple[str, ...]
    ports: tuple[int, ...]
    protocol: Protocol


DEFAULT = "@common"
COMMANDS: dict[Protocol, str] = {"tcp": "portbook scan TARGET -p PORTS", "udp": "portbook probe TARGET PORTS"}


def parse_survey(targets: PortsLike, ports: PortsLike | None = None, protocol: Protocol | None = None) -> ScanRequest:
    """Read targets, which may have ports, and the ports of all of them; raise UsageError.

    :param targets: hosts, networks, ``localhost:8080``, ``8080`` or ``8000-8100`` for this machine, URLs, ``@file``
    :param ports: None: those that the targets have, else the group ``@common``
    :param protocol: None: that of the ports, else "tcp"
    """
    hosts: dict[str, list[Ports]] = {}
    own: list[Ports] = []  # ports that are written without a host: of every target
    for word in targets.split() if isinstance(targets, str) else items(targets):
        host, written = _split_target(word)
        if host is None:
            own += written
        else:
            hosts[host] = hosts.get(host, []) + written
    given = list(words(ports)) if ports is not None else []
    of_hosts = {tuple(written) for written in hosts.values()} - {()}
    if len(of_hosts) > 1 or (of_hosts and (own or given or not all(hosts.values()))):
        message = "a scan has the same ports for every target"
        raise UsageError(message, f"write portbook scan {' '.join(hosts)} -p PORTS, or portbook dial TARGET...")
    wanted: list[PortLike] = [*own, *(port for written in of_hosts for port in written), *given]
    if own and not hosts:
        hosts["localhost"] = []
    numbers, written_protocol = _expand(wanted if wanted or ports is not None else [DEFAULT], protocol)
    return ScanRequest(tuple(hosts), tuple(numbers), written_protocol)


def _split_target(word: PortLike) -> tuple[str | None, list[Ports]]:
    """The host of a target, and its ports; None: a port of this machine."""
    if not isinstance(word, str) or "://" in word:
        ports = parse(word)
        host = None if ports.host is None else str(ports.host)
        return host, [Ports(ports.first, ports.last, ports.protocol)]
    if word.startswith("@"):
        return word, []
    body, protocol = _split_protocol(word)
    if body.partition(":")[0].lower() in PROTOCOLS and ":" in body:
        ports = parse(word)
        return None if ports.host is None else str(ports.host), [Ports(ports.first, ports.last, ports.protocol)]
    if all(map(is_range, body.split(","))):
        return None, [parse(f"{part}{protocol}") for part in body.split(",")]
    if body.count(":") == 1 or "]:" in body or body.startswith(":::"):
        before, port = split_host(body)
        host = None if before in (None, "", "*") else before
        return host, [parse(f"{part}{protocol}") for part in port.split(",")]
    if protocol:
        return None, [parse(word)]  # the name of a service
    return word, []


def _split_protocol(word: str) -> tuple[str, str]:
    """The word, and "/tcp" or "/udp" behind it."""
    body, slash, last = word.rpartition("/")
    if slash and last.lower() in PROTOCOLS:
        return body, f"/{last}"
    return word, ""


def parse_ports(values: PortsLike, protocol: Protocol = "tcp") -> list[int]:
    """Read ``22,8000-8100,@web``, a number, or an iterable of these: every port once, ascending; raise UsageError."""
    return _expand(list(words(values)), protocol)[0]


def _expand(wanted: Iterable[PortLike], protocol: Protocol | None) -> tuple[list[int], Protocol]:
    """The numbers of ports and groups, and their protocol: the one that is given, or written with the ports."""
    ports = [item if isinstance(item, str) and item.startswith("@") else parse(item) for item in wanted]
    written = {each.protocol for each in ports if isinstance(each, Ports)} - {None}
    if len(written) > 1:
        raise UsageError("a scan has one protocol", f"write {COMMANDS['tcp']}, then {COMMANDS['udp']}")
    only = next(iter(written), None)
    if protocol is not None and only is not None and only != protocol:
        raise UsageError(f"these are ports of {only}", f"write {COMMANDS[only]}")
    chosen: Protocol = protocol or only or "tcp"
    numbers: set[int] = set()
    for each in ports:
        if isinstance(each, Ports):
            if each.host is not None:
                raise UsageError(f"{each} has a host", "write the host as a target")
            numbers.update(each.numbers)
        else:
            for part in _group(str(each), chosen).split(","):
                numbers.update(parse(part).numbers)
    if not numbers:
        raise UsageError("no port to scan", "valid values are 1 to 65535")
    return sorted(numbers), chosen


def _group(part: str, protocol: Protocol) -> str:
    groups = GROUPS[protocol]
    name = part[1:].lower()
    if name not in groups:
        other = " over UDP" if protocol == "udp" and name in TCP else ""
        valid = ", ".join(f"@{group}" for group in groups)
        raise UsageError(f"unknown group of ports {part!r}{other}", f"valid values are {valid}")
    return groups[name][1]
