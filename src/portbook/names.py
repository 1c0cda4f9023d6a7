"""The registered name of a port, and the port of a name: from the machine's services file, then from portbook's table.

A name says what a port is meant for, not what listens there. Both files are read once, when a name is first needed.

Facts: services(5); IANA Service Name and Transport Protocol Port Number Registry (RFC 6335). Windows keeps the file
beside its hosts file.
"""

from __future__ import annotations

import os
import sys

from portbook.numerals import UINT16, number_or_none
from portbook.records import Protocol

Names = dict[tuple[int, str], str]

OURS = os.path.join(os.path.dirname(__file__), "services.txt")
UNUSED = os.path.join(os.path.dirname(__file__), "unused_services.txt")  # names that mislead
MOST_BYTES = 4 << 20  # the longest file known, macOS's, is 0.7 MB

# What people call services that are registered under another name, and the schemes of URLs.
CUSTOMARY = {
    "amqps": 5671,
    "dns": 53,
    "elasticsearch": 9200,
    "etcd": 2379,
    "kafka": 9092,
    "kubernetes-api": 6443,
    "mariadb": 3306,
    "memcached": 11211,
    "mongo": 27017,
    "mongodb": 27017,
    "mqtt": 1883,
    "mqtts": 8883,
    "mssql": 1433,
    "nats": 4222,
    "postgres": 5432,
    "postgresql": 5432,
    "rabbitmq": 5672,
    "rdp": 3389,
    "redis": 6379,
    "rediss": 6379,
    "smb": 445,
    "sqlserver": 1433,
    "vnc": 5900,
    "winrm": 5985,
    "ws": 80,
    "wss": 443,
    "www": 80,
    "zookeeper": 2181,
}

_names: Names = {}
_registered: Names = {}  # with the names that mislead
_ports: dict[str, tuple[int, Protocol | None]] = {}


def service_name(port: int, protocol: Protocol) -> str | None:
    """The name registered for a port, such as ``https`` for 443; None if it has none."""
    return service_names().get((port, protocol))


def service_names() -> Names:
    """All registered names, by port and protocol."""
    if not _names:
        _names.update(load())
    return _names


def port_of(name: str) -> tuple[int, Protocol | None] | None:
    """The port that a name or alias is registered for; None if there is none. Case is ignored.

    The protocol is "udp" for a name that has no TCP port, None for others: people say "http" and mean the number.
    """
    if not _ports:
        _ports.update(_load_ports())
    return _ports.get(name.lower())


def _load_ports() -> dict[str, tuple[int, Protocol | None]]:
    """The machine's names and aliases override the customary ones, and those ours."""
    ports: dict[str, tuple[int, Protocol | None]] = dict(parse_ports(_read(OURS)))
    for name, port in CUSTOMARY.items():
        ports[name] = (port, None)
    return {**ports, **parse_ports(_read(_machine_file()))}


def is_registered(port: int, protocol: Protocol) -> bool:
    """Whether a port has any name, also one that misleads: other programs are likely to want it."""
    if not _registered:
        _registered.update(_registry())
    return (port, protocol) in _registered or service_name(port, protocol) is not None


def _registry() -> Names:
    return {**parse(_read(OURS)), **parse(_read(_machine_file()))}


def load() -> Names:
    """Our table, overridden by the machine's: the administrator's own names count. Without names that mislead."""
    every = _registry()
    unused = frozenset(_read(UNUSED).split("\n"))
    names = {port: name for port, name in every.items() if name not in unused}
    for name, number in CUSTOMARY.items():
        names.setdefault((number, "tcp"), name)
    return names


def parse(text: str) -> Names:
    """Read ``name port/protocol[/protocol] [alias …] [# comment]`` lines; others are skipped.

    The first name of a port counts, as for getservbyport(3).
    """
    names: Names = {}
    for line in text.split("\n"):
        fields = line.split(None, 2)
        if len(fields) < 2 or fields[0][0] == "#":
            continue
        port, *protocols = fields[1].split("/")
        number = number_or_none(port, UINT16)
        if number is not None:
            for protocol in protocols:
                names.setdefault((number, protocol), fields[0])
    return names


def parse_ports(text: str) -> dict[str, tuple[int, Protocol | None]]:
    """Read the same lines as ``parse``: the first port of each name and alias, in lower case."""
    ports: dict[str, tuple[int, Protocol | None]] = {}
    for line in text.split("\n"):
        fields = line.partition("#")[0].split()
        if len(fields) < 2:
            continue
        text_of_port, *protocols = fields[1].split("/")
        number = number_or_none(text_of_port, UINT16, 1)
        if number is None:
            continue
        only: Protocol | None = "udp" if protocols == ["udp"] else None
        for name in (fields[0], *fields[2:]):
            known = ports.setdefault(name.lower(), (number, only))
            if known[0] == number and only is None:
                ports[name.lower()] = (number, None)
    return ports


def _machine_file() -> str:
    if sys.platform == "win32":
        return os.environ.get("SYSTEMROOT", r"C:\Windows") + r"\System32\drivers\etc\services"
    return "/etc/services"


def _read(path: str) -> str:
    """The text of a file; empty if there is none: most containers have no /etc/services."""
    try:
        with open(path, "rb") as file:
            return file.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
