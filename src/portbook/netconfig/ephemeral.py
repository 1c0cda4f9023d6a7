"""The system's own choice of ports: from which range outgoing connections get theirs, and what it leaves out.

A number inside that range may be taken by any connection that somebody opens, at any moment. The administrator can
keep numbers out of it for a server that is to come: Linux, ``ip_local_reserved_ports``.

Sources: ip(7) and Documentation/networking/ip-sysctl.rst of Linux (ip_local_port_range, ip_local_reserved_ports; IPv6
follows both); "The default dynamic port range for TCP/IP has changed" on learn.microsoft.com; RFC 6335 section 6;
sysctl(8) of macOS (net.inet.ip.portrange.first, .last).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from msgspec import Struct

from portbook.records import Gap

NOTHING = b""
LINUX = "/proc/sys/net/ipv4/"
MACOS = "net.inet.ip.portrange."
SETTING = {"linux": LINUX + "ip_local_port_range", "darwin": MACOS + "first"}
# What the systems start with: Linux its own, everybody else the dynamic ports of RFC 6335.
DEFAULT = {"linux": (32768, 60999)}
IANA = (49152, 65535)


class Ephemeral(Struct, frozen=True):
    """The range of automatic choice."""

    low: int
    high: int
    how: str  # the setting that was read, or "documented default"
    reserved: tuple[tuple[int, int], ...] = ()  # kept out of it by the administrator: first and last of each range
    gaps: tuple[Gap, ...] = ()  # of the range
    reserved_gaps: tuple[Gap, ...] = ()

    def has(self, port: int) -> bool:
        """Whether an outgoing connection may get this port."""
        return self.low <= port <= self.high and not self.keeps(port)

    def keeps(self, port: int) -> bool:
        """Whether the administrator has reserved this port."""
        return any(low <= port <= high for low, high in self.reserved)


def take() -> Ephemeral:
    """Ask the system, of this network namespace."""
    return parse(*read(), sys.platform)


def read() -> tuple[bytes, bytes | None]:
    """What the system says about its range and about reserved ports; None: it has them, and does not let us see."""
    return READERS.get(sys.platform, lambda: (NOTHING, NOTHING))()


def parse(limits: bytes, reserved: bytes | None, platform: str) -> Ephemeral:
    """Two numbers; then ``8080,9000-9010``. What cannot be read is the documented default, with a gap that says so."""
    kept = _ranges(reserved or NOTHING)
    hidden = (Gap("setting", None, f"{LINUX}ip_local_reserved_ports could not be read"),) if reserved is None else ()
    numbers = [int(word) for word in limits.split() if word.isdigit()]
    if len(numbers) == 2 and numbers[0] <= numbers[1] <= 65535:
        return Ephemeral(numbers[0], numbers[1], SETTING[platform], kept, (), hidden)
    low, high = DEFAULT.get(platform, IANA)
    why = f"the ephemeral range of this system was not read; taken to be the documented default, {low} to {high}"
    hint = "netsh int ipv4 show dynamicport tcp tells it" if platform == "win32" else None
    return Ephemeral(low, high, "documented default", kept, (Gap("setting", None, why, hint),), hidden)


def _ranges(text: bytes) -> tuple[tuple[int, int], ...]:
    pairs = (part.partition(b"-") for part in text.strip().split(b",") if part)
    return tuple((int(low), int(high or low)) for low, _, high in pairs)


def _linux() -> tuple[bytes, bytes | None]:
    return _file(LINUX + "ip_local_port_range") or NOTHING, _file(LINUX + "ip_local_reserved_ports")


def _file(path: str) -> bytes | None:
    """A container may hide /proc/sys."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError:
        return None


def _macos() -> tuple[bytes, bytes | None]:
    return b"%d %d" % (_sysctl(b"first"), _sysctl(b"last")), NOTHING


def _sysctl(name: bytes) -> int:
    """A number of sysctlbyname(3); -1, which is no port, when there is none of this name."""
    import ctypes

    value, size = ctypes.c_int(-1), ctypes.c_size_t(4)
    libc = ctypes.CDLL(None)
    libc.sysctlbyname(MACOS.encode() + name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return value.value


# Windows has no documented call that tells it, and netsh takes longer than everything else here together.
READERS: dict[str, Callable[[], tuple[bytes, bytes | None]]] = {"linux": _linux, "darwin": _macos}
