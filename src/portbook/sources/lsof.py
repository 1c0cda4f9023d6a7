"""macOS, and Linux: lsof's output for other programs.

lsof lists the sockets of each process that it may inspect, so every row has an owner, and a socket without a visible
owner has no row. Without root only the caller's own processes are visible.

Facts: lsof(8), "OUTPUT FOR OTHER PROGRAMS"; https://github.com/lsof-org/lsof: safestrprt() for the escapes,
build_IPstates() for the words, dialects/darwin/libproc/dsock.c for macOS's addresses.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple, get_args

from portbook.addresses import MAPPED_PREFIX, address_text, is_link_local, parse_endpoint, reach_of, split_host_port
from portbook.errors import SourceGarbled, SourceMissing
from portbook.numerals import UINT16, counted, number_or_none, parse_hex, parse_number
from portbook.records import Family, Gap, Owner, Protocol, Socket, State
from portbook.sources.base import Reading, Source, Wanted

PROGRAM = "lsof"
# -n -P: numbers, nothing is looked up; -w: no warnings; +c0: command names uncut; -F0: these fields, each ended by NUL
OPTIONS = ("-n", "-P", "-w", "+c0", "-F0pcLftdPnT")
# At its start lsof closes every descriptor that its limit allows, and without close_range(2) one by one: with the limit
# of a billion that containers may have, for minutes. A lower soft limit ends that. The shell sets it, in the child and
# only there: a preexec_fn would run Python between fork and exec, which can deadlock when the caller has threads.
SHELL = ("/bin/sh", "-c", 'ulimit -Sn 1024 2>/dev/null; exec "$0" "$@"')
TIME_LIMIT_S = 20.0
MOST_BYTES = 256 << 20  # about 100 bytes a descriptor

FAMILIES: dict[bytes, Family] = {b"IPv4": "ipv4", b"IPv6": "ipv6"}
PROTOCOLS: dict[bytes, Protocol] = {b"TCP": "tcp", b"UDP": "udp"}
# The words differ by system: FIN_WAIT1 on Linux, FIN_WAIT_1 on BSD. macOS prints CLOSED for a bound socket too.
TCP_STATES: dict[str, State] = {
    **{state: state for state in get_args(State)},
    "SYN_RCVD": "SYN_RECV",
    "SYN_RECEIVED": "SYN_RECV",
    "FIN_WAIT_1": "FIN_WAIT1",
    "FIN_WAIT_2": "FIN_WAIT2",
    "CLOSED": "CLOSE",
}
ANY: dict[Family, str] = {"ipv4": "0.0.0.0", "ipv6": "::"}  # noqa: S104  read, not bound
ESCAPES = {ord("b"): 8, ord("t"): 9, ord("n"): 10, ord("f"): 12, ord("r"): 13, ord("\\"): ord("\\")}
BACKSLASH = ord("\\")

Fields = dict[bytes, bytes]
AddressAndPort = tuple[str, int, str | None]


class LsofOutput(NamedTuple):
    """What lsof printed, and whether it could inspect every process."""

    data: bytes
    sees_every_process: bool = True
    remedy: str | None = "run with sudo"  # what would let it


def missing() -> str | None:
    """Why this source does not work here; None if it does."""
    from portbook.system import program

    if program.find(PROGRAM):
        return None
    return "lsof is not installed"


def read(wanted: Wanted) -> LsofOutput:
    """Run lsof for all families, states and ports of the wanted protocols; raises SourceError."""
    from portbook.system import program

    path = program.require(PROGRAM)
    selection = [f"-i{protocol.upper()}" for protocol in wanted.protocols]
    if not selection:
        return LsofOutput(b"")
    command = (*SHELL, path, *OPTIONS, *selection)
    output = program.run(command, TIME_LIMIT_S, most_bytes=MOST_BYTES, name=PROGRAM)
    # lsof ends with 1 also when there is nothing to list, so the exit code means nothing.
    if output.stderr and not output.stdout:
        complaint = output.stderr.decode("utf-8", "replace")
        raise SourceMissing(f"{path}: {complaint.partition(chr(10))[0][:200]}")
    return LsofOutput(output.stdout, _sees_every_process(), _remedy())


def _sees_every_process() -> bool:
    """Root does, but not that of a user namespace or of a container without CAP_SYS_PTRACE."""
    if os.geteuid() != 0 or sys.platform != "linux":
        return os.geteuid() == 0
    from portbook.system import privilege

    return privilege.has("CAP_SYS_PTRACE")


def _remedy() -> str | None:
    if sys.platform != "linux":
        return "run with sudo"
    from portbook.system import privilege

    return privilege.remedy("CAP_SYS_PTRACE")


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(output: LsofOutput) -> Reading:
    """Parse the output; raise SourceGarbled. Rows of one socket, from any number of descriptors, become one."""
    sockets: dict[object, Socket] = {}
    owners: dict[object, dict[int, Owner]] = {}
    unreadable = 0
    for process, file in _files(output.data):
        protocol, family = PROTOCOLS.get(file.get(b"P", b"")), FAMILIES.get(file.get(b"t", b""))
        if protocol is None or family is None:
            continue
        try:
            socket = _socket(protocol, family, file)
            owner = _owner(process)
        except ValueError:
            unreadable += 1
            continue
        if socket is not None:
            key = _key(protocol, family, file)
            sockets.setdefault(key, socket)
            owners.setdefault(key, {}).setdefault(owner.pid, owner)
    if unreadable and not sockets:
        raise SourceGarbled(f"lsof: none of {unreadable} rows could be parsed")
    return Reading(list(_with_owners(sockets, owners)), list(_gaps(unreadable, output)))


def _with_owners(sockets: dict[object, Socket], owners: dict[object, dict[int, Owner]]) -> Iterator[Socket]:
    from msgspec.structs import replace

    for key, socket in sockets.items():
        yield replace(socket, owners=tuple(owners[key].values()))


def _gaps(unreadable: int, output: LsofOutput) -> Iterator[Gap]:
    if unreadable:
        yield Gap("socket", unreadable, f"{counted(unreadable, 'row')} of lsof could not be parsed")
    if not output.sees_every_process:
        yield Gap("socket", None, "lsof lists the sockets of the caller's own processes only", output.remedy)


def _files(output: bytes) -> Iterator[tuple[Fields, Fields]]:
    """The fields of each process and descriptor. A line is one set of fields; the first field gives its kind."""
    process: Fields | None = None
    for line in output.split(b"\n"):
        if line[:1] == b"p":
            process = _fields(line)
        elif line[:1] == b"f" and process is not None:
            yield process, _fields(line)
        elif line:
            raise SourceGarbled(f"lsof: unexpected line {line[:40]!r}")


def _fields(line: bytes) -> Fields:
    """Fields by their letter; those of T, which comes several times, by letter and name: ``TST=LISTEN``."""
    fields: Fields = {}
    for field in line.split(b"\0"):
        if field[:1] == b"T":
            name, _, value = field.partition(b"=")
            fields[name] = value
        else:
            fields[field[:1]] = field[1:]
    return fields


def _key(protocol: Protocol, family: Family, file: Fields) -> object:
    """What identifies a socket: the device field, which is the inode on Linux, an address in the kernel on macOS."""
    device = file.get(b"d", b"")
    if device.strip(b"0x"):
        return protocol, device
    return protocol, family, file.get(b"n"), file.get(b"TST")


def _owner(process: Fields) -> Owner:
    return Owner(parse_number(process[b"p"]), _text(process, b"c"), user=_text(process, b"L"), how="lsof")


def _text(process: Fields, letter: bytes) -> str | None:
    value = process.get(letter)
    if value is None:
        return None
    return unescape(value)


def _socket(protocol: Protocol, family: Family, file: Fields) -> Socket | None:
    """The socket of one row; None if it has neither a port nor a peer."""
    local, arrow, remote = file.get(b"n", b"").decode("ascii").partition("->")
    address, port, zone = _endpoint(local, family)
    peer: str | None = None
    peer_port: int | None = None
    if arrow:
        peer, peer_port, _ = _endpoint(remote, family)
    if not port and peer is None:
        return None
    state, state_text = _state(protocol, file, connected=peer is not None)
    inode = number_or_none(file.get(b"d", b""))
    recv_queue, send_queue = _count(file, b"TQR"), _count(file, b"TQS")
    accept_queue: int | None = None
    if state == "LISTEN":
        if inode is not None:  # Linux shows the accept queue here (tcp4_seq_show); macOS bytes, which are always 0
            accept_queue = recv_queue
        recv_queue = send_queue = None
    return Socket(
        protocol,
        family,
        address,
        port,
        peer,
        peer_port,
        state,
        "none" if state == "BOUND" else reach_of(address),
        zone,
        inode=inode,
        recv_queue=recv_queue,
        send_queue=send_queue,
        accept_queue=accept_queue,
        state_text=state_text,
    )


def _state(protocol: Protocol, file: Fields, *, connected: bool) -> tuple[State | None, str | None]:
    """The state, and lsof's own word for a state that portbook does not know."""
    if protocol == "udp":
        return "ESTABLISHED" if connected else None, None
    word = unescape(file.get(b"TST", b""))
    state = TCP_STATES.get(word)
    if state is None:
        return "UNKNOWN", word
    if state == "CLOSE" and not connected:
        return "BOUND", None
    return state, None


def _endpoint(text: str, family: Family) -> AddressAndPort:
    """Address, port and zone of ``127.0.0.1:80``, ``[::1]:80``, ``*:80`` or ``*:*``."""
    host, port = split_host_port(text)
    number = 0
    if port != "*":
        number = parse_number(port, UINT16)
    if host == "*":
        return ANY[family], number, None
    endpoint = parse_endpoint(host)
    address, index = _without_index(endpoint.address)
    if family == "ipv6" and ":" not in address:
        address = MAPPED_PREFIX + address  # lsof prints an IPv6 socket that is connected by IPv4 as 127.0.0.1:80
    return address, number, endpoint.zone or index


def _without_index(address: str) -> tuple[str, str | None]:
    """A link-local address and the zone that macOS keeps inside it.

    The second 16 bits are the interface's index; in every other address they are 0 (RFC 4291 section 2.5.6).
    """
    if not is_link_local(address):
        return address, None
    from socket import AF_INET6, inet_pton

    packed = inet_pton(AF_INET6, address)
    index = int.from_bytes(packed[2:4], "big")
    if not index:
        return address, None
    return address_text(packed[:2] + b"\0\0" + packed[4:]), str(index)


def _count(file: Fields, name: bytes) -> int | None:
    value = file.get(name)
    if value is None:
        return None
    return parse_number(value)


def unescape(text: bytes) -> str:
    r"""Undo lsof's escapes: ``\xNN`` for bytes that are not printable ASCII, ``\n`` and the like, ``\\``.

    Other control characters are written ``^A``, which a name may well contain itself: they stay so.
    """
    if BACKSLASH not in text:
        return text.decode("utf-8", "replace")
    plain = bytearray()
    at = 0
    while at < len(text):
        byte, size = _unescaped(text, at)
        plain.append(byte)
        at += size
    return plain.decode("utf-8", "replace")


def _unescaped(text: bytes, at: int) -> tuple[int, int]:
    """The byte that the text encodes at a place, and the number of bytes that encode it."""
    code = text[at + 1 : at + 4]
    if text[at] != BACKSLASH or not code:
        return text[at], 1
    if code[0] in ESCAPES:
        return ESCAPES[code[0]], 2
    if code[:1] == b"x" and len(code) == 3 and code[1:].isalnum():
        try:
            return parse_hex(code[1:]), 4
        except ValueError:
            pass
    return BACKSLASH, 1


SOURCE = Source(
    name="lsof",
    sees="TCP and UDP sockets that a visible process holds",
    needs="the lsof program; root for the processes of other users",
    capabilities=frozenset(("tcp", "udp", "ipv6", "owner")),
    missing=missing,
    read=read,
    parse=parse,
)
