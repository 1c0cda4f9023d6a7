"""The registered name of a port: from the machine's own services file, then from portbook's own table.

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
MOST_BYTES = 4 << 20  # the longest file known, macOS's, is 0.7 MB

_names: Names = {}


def service_name(port: int, protocol: Protocol) -> str | None:
    """The name registered for a port, such as ``https`` for 443; None if it has none."""
    if not _names:
        _names.update(load())
    return _names.get((port, protocol))


def load() -> Names:
    """Our table, overridden by the machine's: the administrator's own names count."""
    return {**parse(_read(OURS)), **parse(_read(_machine_file()))}


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
