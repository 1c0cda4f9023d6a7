"""Linux: the settings that decide about binds, of this network namespace. Two halves: read, parse.

Sources: ip(7), proc_sys_net(5); Documentation/networking/ip-sysctl.rst and vrf.rst; capabilities(7).
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from portbook.netconfig.facts import Caller, SettingsAccess
from portbook.numerals import UINT32, number_or_none, parse_hex
from portbook.records import Family

ROOT = "/proc/sys/net/"
UNPRIVILEGED = "ipv4/ip_unprivileged_port_start"
NONLOCAL: dict[Family, str] = {"ipv4": "ipv4/ip_nonlocal_bind", "ipv6": "ipv6/ip_nonlocal_bind"}
DISABLE_IPV6 = "ipv6/conf/all/disable_ipv6"
VRF_ACCEPTS_ALL = "ipv4/tcp_l3mdev_accept"
NAMES = (UNPRIVILEGED, *NONLOCAL.values(), DISABLE_IPV6, VRF_ACCEPTS_ALL)
MOST_BYTES = 256  # each is a number
STATUS = "/proc/thread-self/status"
UID_MAP = "/proc/thread-self/uid_map"
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 10, 12

SysctlTexts = dict[str, bytes | None]  # by name; None: not there, or not readable
Ipv6State = Literal["on", "disabled", "absent"]


class PortSettings(NamedTuple):
    """The settings as values; None where the kernel does not report them."""

    privileged_below: int | None
    nonlocal_bind: frozenset[Family]
    ipv6: Ipv6State | None
    vrf_accepts_all: bool


def read() -> SysctlTexts:
    """The settings as the kernel writes them; None for one that is not there, or not readable."""
    return {name: _file(ROOT + name, MOST_BYTES) for name in NAMES}


def _file(path: str, size: int) -> bytes | None:
    """The beginning of a file; None if it cannot be read. An object owns the descriptor, whatever interrupts this."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(size)
    except OSError:
        return None


def parse(texts: SysctlTexts) -> PortSettings:
    """Parse the numbers; a text that is not a number counts as missing."""
    numbers = {name: number_or_none((text or b"").strip(), UINT32) for name, text in texts.items()}
    return PortSettings(
        privileged_below=numbers.get(UNPRIVILEGED),
        nonlocal_bind=frozenset(family for family, name in NONLOCAL.items() if numbers.get(name)),
        ipv6=_ipv6(texts, numbers),
        vrf_accepts_all=bool(numbers.get(VRF_ACCEPTS_ALL)),
    )


def _ipv6(texts: SysctlTexts, numbers: dict[str, int | None]) -> Ipv6State | None:
    """Without IPv6 the whole directory is missing; where /proc/sys is hidden, IPv4's is missing as well."""
    if texts.get(DISABLE_IPV6) is not None:
        return "disabled" if numbers.get(DISABLE_IPV6) else "on"
    if texts.get(UNPRIVILEGED) is not None:
        return "absent"
    return None


def read_caller() -> Caller:
    """The caller and its capabilities: those of the thread, since a thread binds."""
    status = _file(STATUS, 1 << 14) or b""
    uid_map = _file(UID_MAP, MOST_BYTES)
    in_user_namespace = uid_map is not None and is_of_user_namespace(uid_map)
    return parse_caller(status, os.geteuid(), in_user_namespace, _settings_access(in_user_namespace))


def is_of_user_namespace(uid_map: bytes) -> bool:
    """Whether a map of user ids is another one than that of the initial user namespace, which maps every id to itself:
    user_namespaces(7).
    """
    return uid_map.split() != [b"0", b"0", b"4294967295"]


def _settings_access(in_user_namespace: bool) -> SettingsAccess:
    """Who may change the settings of the network: access(2) asks the kernel, which knows who owns the namespace.

    Container runtimes mount /proc/sys read-only.
    """
    if os.access(ROOT + UNPRIVILEGED, os.W_OK):
        return "here"
    if in_user_namespace:
        return "outside"
    try:
        read_only = os.statvfs(ROOT).f_flag & os.ST_RDONLY
    except OSError:
        read_only = 0
    return "outside" if read_only else "root"


def parse_caller(status: bytes, uid: int, in_user_namespace: bool = False, settings: SettingsAccess = "root") -> Caller:
    """Parse the capabilities in proc_pid_status(5)."""
    effective = _capabilities(status, b"CapEff")
    if effective is None:
        return Caller(uid, in_user_namespace=in_user_namespace, settings=settings)
    bounding = _capabilities(status, b"CapBnd")
    return Caller(
        uid,
        may_bind_low=bool(effective >> CAP_NET_BIND_SERVICE & 1),
        may_read_nat=bool(effective >> CAP_NET_ADMIN & 1),
        in_user_namespace=in_user_namespace,
        # Neither a bounding set without it nor no_new_privs lets a program have its file's capabilities: execve(2).
        may_gain_low=_has(bounding) and b"\nNoNewPrivs:\t1" not in status,
        settings=settings,
    )


def _has(bounding: int | None) -> bool:
    """Whether the bounding set, if it is known, leaves the capability to programs."""
    return bounding is None or bool(bounding >> CAP_NET_BIND_SERVICE & 1)


def _capabilities(status: bytes, name: bytes) -> int | None:
    _, _, rest = status.partition(b"\n" + name + b":")
    word, _, _ = rest.partition(b"\n")
    try:
        return parse_hex(word.strip())
    except ValueError:
        return None
