"""Linux: the settings that decide about binds, of this network namespace. Two halves: read, parse.

Sources: ip(7), proc_sys_net(5); Documentation/networking/ip-sysctl.rst and vrf.rst; capabilities(7).
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from portbook.netconfig.facts import Caller
from portbook.records import Family, Protocol

ROOT = "/proc/sys/net/"
UNPRIVILEGED = "ipv4/ip_unprivileged_port_start"
NONLOCAL: dict[Family, str] = {"ipv4": "ipv4/ip_nonlocal_bind", "ipv6": "ipv6/ip_nonlocal_bind"}
DISABLE_IPV6 = "ipv6/conf/all/disable_ipv6"
ACCEPT_ALL: dict[Protocol, str] = {"tcp": "ipv4/tcp_l3mdev_accept", "udp": "ipv4/udp_l3mdev_accept"}
NAMES = (UNPRIVILEGED, *NONLOCAL.values(), DISABLE_IPV6, ACCEPT_ALL["tcp"])
MOST_BYTES = 256  # each is a number
STATUS = "/proc/thread-self/status"
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 10, 12

Raw = dict[str, bytes | None]


class Settings(NamedTuple):
    """What they say; None where the kernel does not tell."""

    privileged_below: int | None
    nonlocal_bind: frozenset[Family]
    ipv6: Literal["on", "disabled", "absent"] | None
    vrf_accepts_all: bool


def read() -> Raw:
    """The settings as the kernel writes them; None for one that is not there, or not readable."""
    return {name: _file(ROOT + name, MOST_BYTES) for name in NAMES}


def _file(path: str, most: int) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(file, most)
    except OSError:
        return None
    finally:
        os.close(file)


def parse(raw: Raw) -> Settings:
    """Read the numbers; what is none counts as not told."""
    numbers = {name: number(text) for name, text in raw.items()}
    return Settings(
        numbers.get(UNPRIVILEGED),
        frozenset(family for family, name in NONLOCAL.items() if numbers.get(name)),
        _ipv6(raw, numbers),
        bool(numbers.get(ACCEPT_ALL["tcp"])),
    )


def _ipv6(raw: Raw, numbers: dict[str, int | None]) -> Literal["on", "disabled", "absent"] | None:
    """Without IPv6 the whole directory is missing; where /proc/sys is hidden, IPv4's is missing as well."""
    if raw.get(DISABLE_IPV6) is None:
        return "absent" if raw.get(UNPRIVILEGED) is not None else None
    return "disabled" if numbers.get(DISABLE_IPV6) else "on"


def number(text: bytes | None) -> int | None:
    """A number as sysctls have them."""
    word = (text or b"").strip()
    return int(word) if word.isdigit() and len(word) <= 10 else None


def read_caller() -> Caller:
    """Who asks, and which capabilities count: those of the thread, for a bind is a thread's."""
    return parse_caller(_file(STATUS, 1 << 14) or b"", os.geteuid())


def parse_caller(status: bytes, uid: int) -> Caller:
    """Read the effective capabilities of proc_pid_status(5)."""
    _, found, rest = status.partition(b"\nCapEff:")
    word = rest.partition(b"\n")[0].strip()
    try:
        bits = int(word, 16) if found and len(word) <= 16 else None
    except ValueError:
        bits = None
    if bits is None:
        return Caller(uid)
    return Caller(uid, bool(bits >> CAP_NET_BIND_SERVICE & 1), bool(bits >> CAP_NET_ADMIN & 1))
