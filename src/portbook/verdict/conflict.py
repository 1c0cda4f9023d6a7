"""Whether a socket would stop a bind, by its address, its state and the options: the rules of each system. Pure.

Nobody is told which options another socket has set: SO_REUSEADDR and SO_REUSEPORT have to be set on both sides, so what
depends on the other side is "likely", and the real bind tells.

Sources: socket(7), ip(7); inet_csk_bind_conflict() in net/ipv4/inet_connection_sock.c, udp_lib_lport_inuse() in
net/ipv4/udp.c, Documentation/networking/vrf.rst; "Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE" on learn.microsoft.com;
in_pcbbind() of BSD.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from portbook.addresses import Endpoint
from portbook.records import Confidence, Socket
from portbook.verdict.evidence import Evidence
from portbook.verdict.overlap import ANY, of_endpoint, of_socket, overlap

# Not in the kernel's table of bound ports: a connection that is being made belongs to its listener.
NOT_BOUND = frozenset(("SYN_RECV",))


class Stopped(NamedTuple):
    """What was asked and cannot be had because of some sockets."""

    endpoints: tuple[str, ...] = ()
    confidence: Confidence = "certain"
    perhaps: tuple[str, ...] = ()  # besides those that are certain


def stopped(evidence: Evidence, sockets: Iterable[Socket]) -> Stopped:
    """The asked endpoints that any of the sockets stops, and how sure that is."""
    by_endpoint = {str(e): [obstacle(evidence, s, e) for s in sockets] for e in evidence.endpoints}
    sure = tuple(name for name, found in by_endpoint.items() if "certain" in found)
    likely = tuple(name for name, found in by_endpoint.items() if any(found) and name not in sure)
    return Stopped(sure, "certain", likely) if sure else Stopped(likely, "likely")


def obstacle(evidence: Evidence, s: Socket, endpoint: Endpoint) -> Confidence | None:
    """Whether a socket stops a bind of an endpoint; None if it does not."""
    if s.state in NOT_BOUND or s.protocol != evidence.protocol:
        return None
    place = overlap(s, endpoint)
    if place is None:
        return None
    sharing = SHARING[evidence.platform](evidence, s, endpoint)
    return None if sharing is None else "likely" if "likely" in (place, sharing) else "certain"


def _linux(evidence: Evidence, s: Socket, endpoint: Endpoint) -> Confidence | None:
    if elsewhere(evidence, s, endpoint):
        return None
    if evidence.options.reuse_port and (s.protocol == "tcp" or _is_ours(evidence, s)):
        return None if is_group(evidence, s) and _is_ours(evidence, s) else "likely"
    tolerant = reuses(evidence) and s.state != "LISTEN"
    return "likely" if tolerant else "certain"


def _windows(evidence: Evidence, s: Socket, endpoint: Endpoint) -> Confidence | None:
    """An exclusive bind of the wildcard fails whoever is there; one address beside somebody's wildcard may succeed."""
    if s.state == "TIME_WAIT":
        return None
    same = of_socket(s) == of_endpoint(endpoint)
    waits = s.state in ("LISTEN", "BOUND", None)
    return "certain" if waits and (same or ANY in of_endpoint(endpoint)) else "likely"


def _macos(evidence: Evidence, s: Socket, endpoint: Endpoint) -> Confidence | None:
    """With SO_REUSEADDR only the same address is in the way: the more specific one gets the connections."""
    if not reuses(evidence):
        return "certain"
    if of_socket(s) != of_endpoint(endpoint):
        return None
    return "certain" if s.state == "LISTEN" else "likely"


SHARING = {"linux": _linux, "windows": _windows, "macos": _macos}


def reuses(evidence: Evidence) -> bool:
    """Whether the asker sets SO_REUSEADDR (or, what counts as much beside a socket that does not listen, REUSEPORT)."""
    options = evidence.options
    by_default = evidence.protocol == "tcp" and evidence.platform != "windows"
    return by_default if options.reuse_address is None else options.reuse_address


def _is_ours(evidence: Evidence, s: Socket) -> bool:
    """SO_REUSEPORT is for sockets of one user; TIME_WAIT belongs to nobody.

    For TCP that is no certainty: the kernel remembers for each port the user who bound it last, and compares with
    that one first (fastuid, sk_reuseport_match()); seen on 6.18, another user's listener was joined.
    """
    return s.state == "TIME_WAIT" or s.uid is None or s.uid == evidence.caller.uid


def is_group(evidence: Evidence, s: Socket) -> bool:
    """Whether another socket waits at the same place: then all of them have set SO_REUSEPORT."""
    if s.protocol == "udp" or s.state != "LISTEN":
        return False  # UDP shares with SO_REUSEADDR as well
    others = (other for other in evidence.sockets if other.state == "LISTEN" and other is not s)
    return any(place(other) == place(s) for other in others)


def joins(evidence: Evidence, s: Socket, endpoint: Endpoint) -> bool:
    """Linux: whether what is asked would be one more of the sockets that share a port with SO_REUSEPORT."""
    if evidence.platform != "linux" or not evidence.options.reuse_port or not is_group(evidence, s):
        return False
    meets = overlap(s, endpoint) is not None and not elsewhere(evidence, s, endpoint)
    return meets and obstacle(evidence, s, endpoint) is None


def place(s: Socket) -> tuple[str, str, str | None, str | None, str | None]:
    """What sockets of a group have in common."""
    return s.protocol, s.local_address, s.zone, s.interface, s.state


def elsewhere(evidence: Evidence, s: Socket, endpoint: Endpoint) -> bool:
    """Whether a TCP socket is bound in a VRF and the asked one outside, or the other way round: two port tables."""
    if s.protocol != "tcp" or evidence.vrf_accepts_all:
        return False
    return _vrf(evidence, s.interface or s.zone) != _vrf(evidence, endpoint.zone)


def _vrf(evidence: Evidence, device: str | None) -> str | None:
    return next((link.vrf for link in evidence.links if link.name == device), None) if device else None
