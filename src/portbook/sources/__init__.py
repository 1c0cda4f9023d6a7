"""The data sources of a machine, in order of preference."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from portbook.errors import UsageError

if TYPE_CHECKING:  # not needed to complete names
    from portbook.records import Platform
    from portbook.sources.base import Source

PLATFORMS: dict[str, Platform] = {"win32": "windows", "darwin": "macos"}  # others read /proc, as Linux
PLATFORM = PLATFORMS.get(sys.platform, "linux")

# Best first: a listing uses the first of its platform that works, and the next when that one fails. Modules are
# imported when they are tried. Name: (module, platforms).
SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "bpf": ("bpf", ("linux",)),
    "sockdiag": ("sockdiag", ("linux",)),
    "procfs": ("procfs", ("linux",)),
    "iphlpapi": ("iphlpapi", ("windows",)),
    "netstat-anv": ("netstat_macos", ("macos",)),
    "psutil": ("psutil_", ("linux", "windows", "macos")),
    "netstat": ("netstat", ("windows",)),
    "lsof": ("lsof", ("macos", "linux")),
}
PLATFORM_NAMES = {"linux": "Linux", "windows": "Windows", "macos": "macOS"}


def load(name: str) -> Source:
    """Return the source called ``name``; raise UsageError that lists the valid names."""
    if name not in [*SOURCES]:  # not by its hash: a list has none
        raise UsageError(f"unknown source {name!r:.40}", f"valid values are {', '.join(SOURCES)}")
    source: Source = import_module(f"portbook.sources.{SOURCES[name][0]}").SOURCE
    return source


def names(platform: str = PLATFORM) -> list[str]:
    """The sources of a platform, best first."""
    return [name for name, (_, platforms) in SOURCES.items() if platform in platforms]


def missing(name: str, platform: str = PLATFORM) -> str | None:
    """Why the source called ``name`` cannot be used on this machine; None if it can."""
    platforms = SOURCES[name][1]
    if platform not in platforms:
        return f"only on {' and '.join(PLATFORM_NAMES[each] for each in platforms)}"
    return load(name).missing()
