"""What ``netstat -ano`` and ``tasklist`` print on Windows: the source that remains when no library can be called.

Both print in the language of the system, in the OEM code page, so rows are parsed by their shape (learn.microsoft.com,
netstat and tasklist): a TCP row is protocol, local address, foreign address, state, pid; a UDP row has no state; the
pid is last; a TCP row whose foreign port is 0 is a listener, whatever the word for it. ``-q`` would add sockets that
are bound and do not listen in rows of that same shape, so it is never used.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import NamedTuple

from portbook.addresses import is_link_local, parse_endpoint, reach_of, split_host_port
from portbook.errors import SourceError, SourceGarbled, SourceMissing
from portbook.numerals import UINT16, UINT32, number_or_none, parse_number
from portbook.records import Family, Gap, Owner, Protocol, Socket, State
from portbook.sources.base import Reading, Source, Wanted
from portbook.system import program
from portbook.system.console import console, decode


class NetstatOutput(NamedTuple):
    """What ``read`` returns: the bytes of both commands and the codec to read them with."""

    netstat: bytes
    tasklist: bytes  # empty: names are not known
    codec: str
    gaps: tuple[Gap, ...] = ()


# --- words ---------------------------------------------------------------------------------------------------------

# Chinese, French, Italian, Japanese, Korean, Portuguese, Russian and Spanish Windows translate the headings and print
# the English states; German Windows translates the states too. The Portuguese and Spanish words are from the tests of
# other programs. A word that is not listed is kept: see _socket.
WORDS: dict[State, str] = {
    "LISTEN": "LISTENING LISTEN ABHÖREN",
    "ESTABLISHED": "ESTABLISHED HERGESTELLT ESTABELECIDA ESTABLECIDO",
    "SYN_SENT": "SYN_SENT SYN_SEND SYN_GESENDET",  # SYN_SEND, TIMED_WAIT: as the page of netstat spells them
    "SYN_RECV": "SYN_RECEIVED SYN_RCVD SYN_EMPFANGEN",
    "FIN_WAIT1": "FIN_WAIT_1 FIN_WARTEN_1",
    "FIN_WAIT2": "FIN_WAIT_2 FIN_WARTEN_2",
    "CLOSE_WAIT": "CLOSE_WAIT SCHLIESSEN_WARTEN",
    "CLOSING": "CLOSING SCHLIESSEND",
    "LAST_ACK": "LAST_ACK ZULETZT_ACK",
    "TIME_WAIT": "TIME_WAIT TIMED_WAIT WARTEND",
    "CLOSE": "CLOSED DELETE_TCB",
    "BOUND": "BOUND",
}
STATES: dict[str, State] = {word: state for state, words in WORDS.items() for word in words.split()}

# --- read ----------------------------------------------------------------------------------------------------------

TIMEOUT_S = 20.0
MOST_BYTES = 64 << 20  # about 80 bytes a socket
NETSTAT = ("netstat.exe", "-ano")
TASKLIST = ("tasklist.exe", "/FO", "CSV", "/NH")


def missing() -> str | None:
    """Why the commands cannot be run here; None if they can."""
    if sys.platform == "win32":
        return None
    return "only on Windows"


def read(_: Wanted) -> NetstatOutput:  # netstat's own filter takes one protocol and family at a time
    """Run both commands; raise SourceMissing, SourceDenied, SourceTimeout or SourceGarbled if netstat fails."""
    if sys.platform != "win32":
        raise SourceMissing("only Windows has a netstat with these columns")
    codec = console().codec
    netstat = _run(NETSTAT)
    try:
        return NetstatOutput(netstat, _run(TASKLIST), codec)
    except SourceError as error:
        gap = Gap("process", None, f"names of processes are not known: {error}")
        return NetstatOutput(netstat, b"", codec, (gap,))


def _run(command: tuple[str, ...]) -> bytes:
    name, *arguments = command
    return program.run((program.require(name), *arguments), TIMEOUT_S, most_bytes=MOST_BYTES).successful()


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(output: NetstatOutput) -> Reading:
    """Parse both outputs; raise SourceGarbled, also if there is no row: a machine without sockets does not exist."""
    names = dict(_names(decode(output.tasklist, output.codec)))
    sockets: list[Socket] = []
    for line in decode(output.netstat, output.codec).splitlines():
        fields = line.split()
        if fields and fields[0] in PROTOCOLS:
            sockets.append(_parse_row(fields, names))
    if not sockets:
        raise SourceGarbled(f"netstat -ano printed no row; its output begins {output.netstat[:60]!r}")
    return Reading(sockets, list(output.gaps))


PROTOCOLS: dict[str, Protocol] = {"TCP": "tcp", "UDP": "udp"}  # in every language


def _parse_row(fields: list[str], names: dict[int, str]) -> Socket:
    try:
        return _socket(PROTOCOLS[fields[0]], fields, names)
    except ValueError as error:
        raise SourceGarbled(f"netstat: the row {' '.join(fields)!r} was not understood: {error}") from error


def _socket(protocol: Protocol, fields: list[str], names: dict[int, str]) -> Socket:
    _, local_column, foreign_column, *words, pid = _until_pid(fields)
    if protocol == "tcp" and not words:
        raise ValueError("no state or no pid")
    local = _address_column(local_column)
    remote = _remote(foreign_column)
    word = " ".join(words)  # a state may be two words
    state = _state(protocol, word, remote)
    return Socket(
        protocol=protocol,
        family=local.family,
        local_address=local.address,
        local_port=local.port,
        remote_address=remote and remote.address,
        remote_port=remote and remote.port,
        state=state,
        reach="none" if state == "BOUND" else reach_of(local.address),
        zone=local.zone,
        owners=_owners(parse_number(pid, UINT32), names),
        state_text=word if state == "UNKNOWN" else None,
    )


def _until_pid(fields: list[str]) -> list[str]:
    """The fields up to the last number: ``-t`` adds a column behind the pid, the offload state."""
    end = len(fields)
    while end > 4 and number_or_none(fields[end - 1]) is None:
        end -= 1
    return fields[:end]


def _remote(column: str) -> AddressColumn | None:
    """The peer; None for a socket without one."""
    if column == "*:*":
        return None
    remote = _address_column(column)
    if remote.port == 0:
        return None
    return remote


def _state(protocol: Protocol, word: str, remote: AddressColumn | None) -> State | None:
    if protocol == "udp":
        return "ESTABLISHED" if remote else None
    if word in STATES:
        return STATES[word]
    return "UNKNOWN" if remote else "LISTEN"


class AddressColumn(NamedTuple):
    """One address column: ``127.0.0.1:80``, ``[::1]:80``, ``[fe80::1%12]:80``."""

    family: Family
    address: str
    zone: str | None
    port: int


def _address_column(text: str) -> AddressColumn:
    host, port = split_host_port(text)
    endpoint = parse_endpoint(host)
    family: Family = "ipv6" if ":" in endpoint.address else "ipv4"
    zone = None
    if is_link_local(endpoint.address):
        zone = endpoint.zone
    return AddressColumn(family, endpoint.address, zone, parse_number(port, UINT16))


def _owners(pid: int, names: dict[int, str]) -> tuple[Owner, ...]:
    """The owner; none for pid 0, which netstat prints for connections in TIME_WAIT."""
    if pid == 0:
        return ()
    return (Owner(pid, names.get(pid), how="netstat"),)


def _names(text: str) -> Iterator[tuple[int, str]]:
    """Pid and image name, by position. Other rows (a message in any language) are ignored."""
    try:
        for row in csv.reader(text.splitlines()):
            pid = number_or_none(row[1], UINT32) if len(row) > 1 else None
            if pid is not None:
                yield pid, row[0]
    except csv.Error:  # a NUL, or a field beyond the limit: the names so far are right
        return


SOURCE = Source(
    name="netstat",
    sees="what netstat -ano prints, with names from tasklist",
    needs="nothing",
    capabilities=frozenset(("tcp", "udp", "ipv6", "time_wait", "owner")),
    missing=missing,
    read=read,
    parse=parse,
)
