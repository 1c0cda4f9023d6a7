"""Whether a socket blocks a bind, by its address, its state and the options: the rules of each system. Pure.

No system shows which options another socket has set. SO_REUSEADDR and SO_REUSEPORT must be set on both sides, so what
depends on the other side is "likely", and the real bind decides.

Sources: socket(7), ip(7); inet_csk_bind_conflict() in net/ipv4/inet_connection_sock.c, udp_lib_lport_inuse() in
net/ipv4/udp.c, Documentation/networking/vrf.rst; "Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE" on learn.microsoft.com;
in_pcbbind() of BSD.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from portbook.addresses import Endpoint
from portbook.records import Confidence, Socket
from portbook.verdict.overlap import ANY, claim_of_endpoint, claim_of_socket, overlap
from portbook.verdict.situation import Situation

# A connection that is not established yet is not in the kernel's table of bound ports: it belongs to its listener.
NOT_BOUND = frozenset(("SYN_RECV",))
WAITING = ("LISTEN", "BOUND", None)  # states of sockets that wait for peers


class Blocked(NamedTuple):
    """The requested endpoints that some sockets block."""

    endpoints: tuple[str, ...] = ()
    confidence: Confidence = "certain"
    perhaps: tuple[str, ...] = ()  # likely, beside those that are certain


def blocked(situation: Situation, sockets: Iterable[Socket]) -> Blocked:
    """Return the requested endpoints that any of the sockets blocks, and how certain that is."""
    certain: list[str] = []
    likely: list[str] = []
    for endpoint in situation.endpoints:
        conflicts = {conflict(situation, s, endpoint) for s in sockets}
        if "certain" in conflicts:
            certain.append(str(endpoint))
        elif "likely" in conflicts:
            likely.append(str(endpoint))
    if certain:
        return Blocked(tuple(certain), "certain", tuple(likely))
    return Blocked(tuple(likely), "likely")


def conflict(situation: Situation, s: Socket, endpoint: Endpoint) -> Confidence | None:
    """Whether a socket blocks a bind of an endpoint; None if it does not."""
    if s.state in NOT_BOUND or s.protocol != situation.protocol:
        return None
    by_address = overlap(s, endpoint)
    if by_address is None:
        return None
    by_options = SHARING[situation.platform](situation, s, endpoint)
    if by_options is None:
        return None
    if "likely" in (by_address, by_options):
        return "likely"
    return "certain"


def _linux(situation: Situation, s: Socket, endpoint: Endpoint) -> Confidence | None:
    if in_another_vrf(situation, s, endpoint):
        return None
    may_share_port = _may_share_port(situation, s)
    if situation.options.reuse_port and (s.protocol == "tcp" or may_share_port):
        if may_share_port and is_reuseport_group(situation, s):
            return None
        return "likely"
    if sets_reuse_address(situation) and s.state != "LISTEN":
        return "likely"
    return "certain"


def _windows(situation: Situation, s: Socket, endpoint: Endpoint) -> Confidence | None:
    """An exclusive bind of the wildcard fails beside any socket; one address beside a wildcard may succeed."""
    if s.state == "TIME_WAIT":
        return None
    requested = claim_of_endpoint(endpoint)
    excludes = claim_of_socket(s) == requested or ANY in requested
    if s.state in WAITING and excludes:
        return "certain"
    return "likely"


def _macos(situation: Situation, s: Socket, endpoint: Endpoint) -> Confidence | None:
    """With SO_REUSEADDR only the same address conflicts: the more specific socket gets the connections."""
    if not sets_reuse_address(situation):
        return "certain"
    if claim_of_socket(s) != claim_of_endpoint(endpoint):
        return None
    return "certain" if s.state == "LISTEN" else "likely"


SHARING = {"linux": _linux, "windows": _windows, "macos": _macos}


def sets_reuse_address(situation: Situation) -> bool:
    """Whether the requested bind sets SO_REUSEADDR, as it does by default for TCP on POSIX systems."""
    reuse = situation.options.reuse_address
    if reuse is None:
        return situation.protocol == "tcp" and situation.platform != "windows"
    return reuse


def _may_share_port(situation: Situation, s: Socket) -> bool:
    """Whether SO_REUSEPORT could share the port with this socket: of the same user, or in TIME_WAIT without a user.

    For TCP this is not certain: the kernel remembers for each port the user who bound it last, and compares with that
    user first (fastuid, sk_reuseport_match()). On 6.18 another user's listener was joined in this way.
    """
    return s.state == "TIME_WAIT" or s.uid is None or s.uid == situation.caller.uid


def is_reuseport_group(situation: Situation, s: Socket) -> bool:
    """Whether another TCP socket listens at the same place: then all of them have set SO_REUSEPORT."""
    if s.protocol == "udp" or s.state != "LISTEN":
        return False  # UDP shares with SO_REUSEADDR as well
    others = (other for other in situation.sockets if other.state == "LISTEN" and other is not s)
    return any(group_key(other) == group_key(s) for other in others)


def joins_group(situation: Situation, s: Socket, endpoint: Endpoint) -> bool:
    """Linux: whether the requested bind would join the sockets that share the port with SO_REUSEPORT."""
    if situation.platform != "linux" or not situation.options.reuse_port or not is_reuseport_group(situation, s):
        return False
    if overlap(s, endpoint) is None or in_another_vrf(situation, s, endpoint):
        return False
    return conflict(situation, s, endpoint) is None


def group_key(s: Socket) -> tuple[str, str, str | None, str | None, str | None]:
    """What the sockets of a group have in common."""
    return s.protocol, s.local_address, s.zone, s.interface, s.state


def in_another_vrf(situation: Situation, s: Socket, endpoint: Endpoint) -> bool:
    """Whether a TCP socket and the endpoint are in different VRFs, which have separate port tables."""
    if s.protocol != "tcp" or situation.vrf_accepts_all:
        return False
    return _vrf(situation, s.interface or s.zone) != _vrf(situation, endpoint.zone)


def _vrf(situation: Situation, device: str | None) -> str | None:
    if not device:
        return None
    return next((link.vrf for link in situation.links if link.name == device), None)
