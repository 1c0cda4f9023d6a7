"""What stays the same when a server is restarted: protocol, port, reach, program and unit. Pure.

A pid and a socket are others after every restart. The identity is what people mean by "nginx on port 80", as text:
``tcp/80 any /usr/sbin/nginx nginx.service``. The address family is no part of it: a server that opens one socket for
IPv4 and one for IPv6 has one identity.
"""

from __future__ import annotations

from msgspec import Struct

from portbook.addresses import reach_of
from portbook.records import Reach, Socket

MOST_WORD = 256  # characters: identities that ended are remembered, and a path may have 4,096
UNKNOWN = "?"  # the program of a socket whose owner is not visible


class PortIdentity(Struct, frozen=True, gc=False):
    """An identity. Two are the same if their texts are."""

    text: str
    reach: Reach
    place: str  # the protocol and port, without the reach
    program: str  # program, and unit or namespace


def of(socket: Socket, own_netns: int | None = None) -> PortIdentity:
    """The identity of a socket.

    :param own_netns: the network namespace of the watch, which is no part of an identity
    """
    reach = socket.reach
    if reach == "none":  # bound and not listening, or at an address that no interface has: where it would be reached
        reach = reach_of(socket.local_address)
    place = f"{socket.protocol}/{socket.local_port}"
    program = _program(socket, own_netns)
    return PortIdentity(f"{place} {reach} {program}", reach, place, program)


def program_of(socket: Socket) -> str:
    """The path of the executable of the first owner; in parentheses, a name where the path is not known.

    A process can choose its name: without the parentheses it could choose the path of another program.
    """
    if not socket.owners:
        return f"({_word(socket.kernel)})" if socket.kernel else UNKNOWN
    owner = socket.owners[0]
    if owner.exe:
        return _word(owner.exe)
    return f"({_word(owner.name)})" if owner.name else UNKNOWN


def _program(socket: Socket, own_netns: int | None) -> str:
    program = program_of(socket)
    owner = socket.owners[0] if socket.owners else socket
    if owner.container:
        return f"{program} {_word(owner.container)}"
    unit = f" {_word(owner.service)}" if owner.service else ""
    if socket.netns is None or socket.netns == own_netns:
        return f"{program}{unit}"
    return f"{program}{unit} netns:{_word(socket.netns_name or str(socket.netns))}"


def _word(text: str) -> str:
    """The text without blanks, so that no part of an identity is taken for two; of a very long one its digest."""
    if len(text) > MOST_WORD:
        from hashlib import blake2b

        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        text = f"{text[:MOST_WORD]}...{digest}"
    if " " in text or "\\" in text:
        return text.replace("\\", "\\\\").replace(" ", "\\ ")
    return text
