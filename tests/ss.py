"""The sockets that ss(8) lists, as fields of portbook: a second opinion to compare with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

STATES = {"ESTAB": "ESTABLISHED", "UNCONN": None, "FIN-WAIT-1": "FIN_WAIT1", "FIN-WAIT-2": "FIN_WAIT2"}
ROW = re.compile(r"(tcp|udp) +(\S+) +(\d+) +(\d+) +(\S+) +(\S+)")  # protocol, state, queues, local, peer


class Row(NamedTuple):
    """A row of ``ss -tunapeH``."""

    identity: tuple
    inode: int
    uid: int
    queues: tuple[int, int]
    pids: frozenset[int]
    both: bool  # shown with "*": takes IPv4 and IPv6


def rows(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        protocol, state, first, second, here, there = ROW.match(line).groups()
        address, port = _endpoint(here)
        family = "ipv6" if ":" in address else "ipv4"
        yield Row(
            (protocol, family, address, port, *_endpoint(there), STATES.get(state, state.replace("-", "_"))),
            int(_after(line, " ino:")),
            int(_after(line, " uid:")),
            (int(first), int(second)),
            frozenset(int(pid) for pid in re.findall(r",pid=(\d+),", line)),
            here.startswith("*"),
        )


def _endpoint(text: str) -> tuple[str | None, int | None]:
    address, _, port = text.rpartition(":")
    address = "::" if address == "*" else address.strip("[]")
    return (None, None) if port == "*" else (address, int(port))


def _after(line: str, word: str) -> str:
    """A number that ss leaves out when it is 0."""
    found = re.search(re.escape(word) + r"(\d+)", line)
    return found[1] if found else "0"
