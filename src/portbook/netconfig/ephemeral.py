"""The ephemeral ports of the system: the range that connections get theirs from, and what is excluded from it.

A port in this range may be taken by any connection that a program opens, at any moment. The administrator can exclude
ports for servers that start later: on Linux, ``ip_local_reserved_ports``.

Sources: ip(7) and Documentation/networking/ip-sysctl.rst of Linux (ip_local_port_range, ip_local_reserved_ports; IPv6
follows both); "The default dynamic port range for TCP/IP has changed" on learn.microsoft.com; RFC 6335 section 6;
sysctl(8) of macOS (net.inet.ip.portrange.first, .last).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from msgspec import Struct

from portbook.numerals import UINT16, number_or_none, parse_number
from portbook.records import Gap, PortRange

NOTHING = b""
LINUX = "/proc/sys/net/ipv4/"
MACOS = "net.inet.ip.portrange."
SETTING = {"linux": LINUX + "ip_local_port_range", "darwin": MACOS + "first"}
RESERVED = LINUX + "ip_local_reserved_ports"
MOST_BYTES = 1 << 20  # of a setting: every port, each with a comma, takes less
# The defaults of the systems: Linux has its own, all others the dynamic ports of RFC 6335.
DEFAULT = {"linux": (32768, 60999)}
IANA = (49152, 65535)


class Ephemeral(Struct, frozen=True):
    """The range from which the system chooses the ports of connections."""

    low: int
    high: int
    how: str  # the setting that was read, or "documented default"
    reserved: tuple[PortRange, ...] = ()  # excluded by the administrator
    gaps: tuple[Gap, ...] = ()  # about the range
    reserved_gaps: tuple[Gap, ...] = ()

    def has(self, port: int) -> bool:
        """Whether a connection may get this port."""
        return self.low <= port <= self.high and not self.reserves(port)

    def reserves(self, port: int) -> bool:
        """Whether the administrator has reserved this port."""
        return any(low <= port <= high for low, high in self.reserved)


def take() -> Ephemeral:
    """Read the settings of this machine, on Linux of this network namespace."""
    return parse(*read(), sys.platform)


def read() -> tuple[bytes, bytes | None]:
    """The range and the reserved ports as the system writes them; None: there are reserved ports, but not readable."""
    reader = READERS.get(sys.platform)
    return reader() if reader else (NOTHING, NOTHING)


def parse(limits: bytes, reserved: bytes | None, platform: str) -> Ephemeral:
    """Parse two numbers, and ports such as ``8080,9000-9010``.

    A range that cannot be parsed is the documented default, reserved ports that cannot be parsed are none; each with a
    gap.
    """
    reserved_ranges, reserved_gaps = _parse_reserved(reserved)
    numbers = [number_or_none(word, UINT16) for word in limits.split()]
    if len(numbers) == 2:
        low, high = numbers
        if low is not None and high is not None and low <= high:
            return Ephemeral(low, high, SETTING[platform], reserved_ranges, (), reserved_gaps)
    low, high = DEFAULT.get(platform, IANA)
    why = f"the ephemeral port range could not be read; the documented default, {low} to {high}, is assumed"
    hint = "netsh int ipv4 show dynamicport tcp prints it" if platform == "win32" else None
    gaps = (Gap("setting", None, why, hint),)
    return Ephemeral(low, high, "documented default", reserved_ranges, gaps, reserved_gaps)


def _parse_reserved(text: bytes | None) -> tuple[tuple[PortRange, ...], tuple[Gap, ...]]:
    if text is None:
        return (), (Gap("setting", None, f"{RESERVED} could not be read"),)
    ranges: list[tuple[int, int]] = []
    try:
        for part in text.strip().split(b",") if text.strip() else ():
            low, hyphen, high = part.partition(b"-")
            ranges.append((parse_number(low, UINT16), parse_number(high if hyphen else low, UINT16)))
    except ValueError as error:
        return (), (Gap("setting", None, f"{RESERVED} could not be parsed: {error}"),)
    return tuple(ranges), ()


def _linux() -> tuple[bytes, bytes | None]:
    return _file(SETTING["linux"]) or NOTHING, _file(RESERVED)


def _file(path: str) -> bytes | None:
    """What a file contains; None where it cannot be read: a container may hide /proc/sys."""
    try:
        with open(path, "rb") as file:
            return file.read(MOST_BYTES)
    except OSError:
        return None


def _macos() -> tuple[bytes, bytes | None]:
    return b"%d %d" % (_sysctl(b"first"), _sysctl(b"last")), NOTHING


def _sysctl(name: bytes) -> int:
    """A number from sysctlbyname(3); -1, which is no port, if the name is unknown."""
    import ctypes

    value, size = ctypes.c_int(-1), ctypes.c_size_t(4)
    libc = ctypes.CDLL(None)
    libc.sysctlbyname(MACOS.encode() + name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return value.value


# Windows has no documented function for it, and netsh takes longer than everything else here together.
READERS: dict[str, Callable[[], tuple[bytes, bytes | None]]] = {"linux": _linux, "darwin": _macos}
