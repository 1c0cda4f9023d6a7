"""What ``netstat -anv`` prints on macOS: the pid of every user's socket, without root.

The columns differ by version, and the heading names them. Behind ``(state)``, which is empty for UDP, they are numbers;
``pid`` is one of them, or ``process:pid`` (macOS 26), whose names are cut at 16 characters and may hold blanks. So
columns are counted from ``(state)`` on the left and from the end of the line on the right.

Facts: netstat(1) of macOS; inet.c in network_cmds of Apple's open source.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from portbook.addresses import is_link_local, parse_endpoint, reach_of
from portbook.errors import SourceGarbled, SourceMissing
from portbook.numerals import UINT16, UINT32, counted, parse_number
from portbook.records import Family, Gap, Owner, Protocol, Socket, State
from portbook.sources.base import Reading, Source, Wanted

PROGRAM = "netstat"
OPTIONS = ("-anv", "-p")  # then the protocol
TIME_LIMIT_S = 20.0
MOST_BYTES = 64 << 20  # about 200 bytes a socket
KINDS: dict[str, tuple[Protocol, Family]] = {
    "tcp4": ("tcp", "ipv4"), "tcp6": ("tcp", "ipv6"), "tcp46": ("tcp", "ipv6"),
    "udp4": ("udp", "ipv4"), "udp6": ("udp", "ipv6"), "udp46": ("udp", "ipv6"),
}  # fmt: skip
STATES: dict[str, State] = {
    "LISTEN": "LISTEN",
    "ESTABLISHED": "ESTABLISHED",
    "SYN_SENT": "SYN_SENT",
    "SYN_RCVD": "SYN_RECV",
    "FIN_WAIT_1": "FIN_WAIT1",
    "FIN_WAIT_2": "FIN_WAIT2",
    "TIME_WAIT": "TIME_WAIT",
    "CLOSED": "CLOSE",
    "CLOSE_WAIT": "CLOSE_WAIT",
    "LAST_ACK": "LAST_ACK",
    "CLOSING": "CLOSING",
}
ANY: dict[Family, str] = {"ipv4": "0.0.0.0", "ipv6": "::"}  # noqa: S104  read, not bound
STATE, PID, PROCESS = "(state)", "pid", "process:pid"
FIXED = 5  # protocol, both queues, both addresses

End = tuple[str, int, str | None]  # address, port, zone


def missing() -> str | None:
    """Why this source does not work here; None if it does."""
    return None if sys.platform == "darwin" else "only on macOS"


def read(wanted: Wanted) -> tuple[bytes, ...]:
    """Run netstat for each wanted protocol; raises SourceError."""
    if sys.platform != "darwin":
        raise SourceMissing("only macOS has a netstat with these columns")
    from portbook.system import program

    path = program.require(PROGRAM)
    return tuple(
        program.run((path, *OPTIONS, protocol), TIME_LIMIT_S, most_bytes=MOST_BYTES).successful()
        for protocol in wanted.protocols
    )


# --- parse ---------------------------------------------------------------------------------------------------------


class PidColumn(NamedTuple):
    """Where the pid is: how many columns are between ``(state)`` and it, and how many behind it."""

    before: int
    behind: int


def parse(outputs: tuple[bytes, ...]) -> Reading:
    """Parse the outputs; raise SourceGarbled for one without the columns that are needed."""
    sockets: list[Socket] = []
    unreadable = 0
    for output in outputs:
        column: PidColumn | None = None
        for line in output.decode("utf-8", "replace").splitlines():
            words = line.split()
            if STATE in words:
                column = _pid_column(words)
            elif words and words[0] in KINDS:
                if column is None:
                    raise SourceGarbled(f"netstat -anv: no heading with {STATE} and {PID}")
                try:
                    sockets += _socket(words, column)
                except (ValueError, IndexError):
                    unreadable += 1
        if column is None:
            raise SourceGarbled(f"netstat -anv: no heading with {STATE} and {PID}; it begins {output[:60]!r}")
    if unreadable and not sockets:
        raise SourceGarbled(f"netstat -anv: none of {unreadable} rows could be parsed")
    gaps: list[Gap] = []
    if unreadable:
        gaps.append(Gap("socket", unreadable, f"{counted(unreadable, 'row')} of netstat -anv could not be parsed"))
    return Reading(sockets, gaps)


def _pid_column(words: list[str]) -> PidColumn | None:
    behind_state = words[words.index(STATE) + 1 :]
    for name in (PID, PROCESS):
        if name in behind_state:
            at = behind_state.index(name)
            return PidColumn(at, len(behind_state) - at - 1)
    return None


def _socket(words: list[str], column: PidColumn) -> Iterator[Socket]:
    """The socket of a row; none for one that has no local port."""
    protocol, family = KINDS[words[0]]
    rest = words[FIXED:]
    word = rest.pop(0) if protocol == "tcp" else ""
    process = " ".join(rest[column.before : len(rest) - column.behind])
    address, port, zone = _end(words[3], family)
    peer, peer_port, _ = _end(words[4], family)
    if not port:
        return
    is_connected = peer_port != 0
    state = _state(protocol, word, is_connected)
    yield Socket(
        protocol,
        family,
        address,
        port,
        peer if is_connected else None,
        peer_port or None,
        state,
        "none" if state == "BOUND" else reach_of(address),
        zone,
        owners=_owners(process),
        recv_queue=None if state == "LISTEN" else parse_number(words[1], UINT32),
        send_queue=None if state == "LISTEN" else parse_number(words[2], UINT32),
        v6only=False if words[0].endswith("46") else None,
        state_text=word if state == "UNKNOWN" else None,
    )


def _state(protocol: Protocol, word: str, is_connected: bool) -> State | None:
    if protocol == "udp":
        return "ESTABLISHED" if is_connected else None
    if word == "CLOSED" and not is_connected:
        return "BOUND"
    return STATES.get(word, "UNKNOWN")


def _end(text: str, family: Family) -> End:
    """``127.0.0.1.8021``, ``*.80``, ``fe80::1%lo0.631``, ``*.*``: the port is behind the last dot."""
    host, _, digits = text.rpartition(".")
    port = 0 if digits == "*" else parse_number(digits, UINT16)
    if host == "*":
        return ANY[family], port, None
    endpoint = parse_endpoint(host)
    if (":" in endpoint.address) != (family == "ipv6"):
        raise ValueError(f"{text} is not of {family}")
    return endpoint.address, port, endpoint.zone if is_link_local(endpoint.address) else None


def _owners(process: str) -> tuple[Owner, ...]:
    """Of ``84517`` or ``Code Helper (Plu:84517``; none for pid 0, a connection that its process has closed."""
    name, _, digits = process.rpartition(":")
    pid = parse_number(digits, UINT32)
    return (Owner(pid, name or None, how="netstat"),) if pid else ()


SOURCE = Source(
    name="netstat-anv",
    sees="what netstat -anv prints: TCP and UDP sockets of every user, with the pid of one owner",
    needs="nothing",
    capabilities=frozenset(("tcp", "udp", "ipv6", "time_wait", "owner")),
    missing=missing,
    read=read,
    parse=parse,
)
