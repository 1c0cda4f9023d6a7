"""The keys of a rule: how the value of each is read, and what is valid. Pure, but for the table of service names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from ipaddress import ip_network
from typing import Any

from portbook.errors import UsageError
from portbook.events import Level
from portbook.ports import parse as parse_port
from portbook.records import PROTOCOLS, PortRange
from portbook.watching.policy.glob import Pattern, pattern
from portbook.watching.policy.records import ANY, EVERY_PORT, LOOPBACK, VIOLATION_LEVELS, Network

MOST_TEXT = 4096  # characters of one value: a path may have as many (PATH_MAX)
MOST_VALUES = 1000  # of one key
MOST_SHOWN = 60
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def shown(value: object) -> str:
    """A value in a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        text = repr(value)
        return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
    names = {list: "an array", dict: "a table", datetime: "a date and time", date: "a date", time: "a time"}
    return names.get(type(value), type(value).__name__)


def _values(value: object, valid: str) -> list[object]:
    """One value, or those of an array; raise UsageError."""
    if not isinstance(value, list):
        return [value]
    if not value:
        raise UsageError("the array is empty", f"omit the key, or write {valid}")
    if len(value) > MOST_VALUES:
        raise UsageError(f"the array has {len(value):,} values", f"at most {MOST_VALUES:,}")
    return value


def _text(value: object, valid: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{shown(value)} is not text", f"write {valid}")
    if not value:
        raise UsageError("the text is empty", f"omit the key, or write {valid}")
    if len(value) > MOST_TEXT:
        raise UsageError(f"the text has {len(value):,} characters", f"at most {MOST_TEXT:,}")
    return value


# --- ports ---------------------------------------------------------------------------------------------------------

PORT_VALID = 'write 22, "8000-8100", [80, 443], "http", "53/udp" or "any"'
Entry = tuple[tuple[PortRange, ...], tuple[PortRange, ...]]  # of TCP and of UDP


def read_entries(value: object) -> list[Entry]:
    """The ports of each value of ``port``; raise UsageError."""
    entries = [_entry(each) for each in _values(value, "22")]
    if (EVERY_PORT, EVERY_PORT) in entries and len(entries) > 1:
        raise UsageError('"any" beside other ports', 'write port = "any" alone')
    return entries


def _entry(value: object) -> Entry:
    if isinstance(value, str) and value.strip().lower() == ANY:
        return EVERY_PORT, EVERY_PORT
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(f"{shown(value)} is not a port", PORT_VALID)
    try:
        ports = parse_port(value)
    except UsageError as error:
        raise UsageError(str(error.args[0]), PORT_VALID) from error
    if ports.host is not None:
        raise UsageError(f"{shown(value)} has an address", f'write port = {ports.first} and reach = "{ports.host}"')
    found = ((ports.first, ports.last),)
    return (found if ports.protocol != "udp" else (), found if ports.protocol != "tcp" else ())


def join_ranges(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The same ports as few ranges, ascending."""
    joined: list[PortRange] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return tuple(joined)


def read_protocols(value: object) -> tuple[str, ...]:
    """One protocol, or both; raise UsageError."""
    valid = '"tcp", "udp" or ["tcp", "udp"]'
    found: list[str] = []
    for each in _values(value, valid):
        text = _text(each, valid).lower()
        if text not in PROTOCOLS:
            raise UsageError(f"{shown(each)} is not a protocol", f"write {valid}")
        found.append(text)
    return tuple(found)


# --- other selectors -----------------------------------------------------------------------------------------------

REACH_VALID = '"loopback", "any", an address or a network such as "10.0.0.0/8"'


def _reach(value: object) -> tuple[str | Network, ...]:
    found = [_one_reach(_text(each, REACH_VALID)) for each in _values(value, REACH_VALID)]
    return tuple(dict.fromkeys(found))


def _one_reach(text: str) -> str | Network:
    word = text.strip().lower()
    if word in (LOOPBACK, ANY):
        return word
    if word == "localhost":
        return LOOPBACK
    bare = word[1:-1] if word.startswith("[") and word.endswith("]") else word
    if "%" in bare:
        raise UsageError(f"{shown(text)} has an interface", f"write {REACH_VALID}")
    try:
        network = ip_network(bare)
    except ValueError as error:
        raise UsageError(f"{shown(text)} is not a reach", _network_hint(bare)) from error
    return Network(_network_text(network), network.version, int(network[0]), int(network[-1]))


def _network_text(network: Any) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _network_hint(text: str) -> str:
    """A network with bits behind its prefix is a slip; the right one is shown."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return f"write {REACH_VALID}"
    return f'write "{network}", or "{text.partition("/")[0]}" for the one address'


def _patterns(valid: str, within: str = "") -> Callable[[object], tuple[Pattern, ...]]:
    def read(value: object) -> tuple[Pattern, ...]:
        texts = [_text(each, valid) for each in _values(value, valid)]
        return tuple(pattern(text, "" if text == "*" else within) for text in dict.fromkeys(texts))

    return read


EXE_VALID = '"/usr/sbin/nginx", the whole path'


def _exe(value: object) -> tuple[Pattern, ...]:
    found: list[Pattern] = []
    for text in [_text(each, EXE_VALID) for each in _values(value, EXE_VALID)]:
        on_windows = re.match(r"[A-Za-z]:[\\/]|\\\\", text) is not None
        if not text.startswith("/") and not on_windows and text != "*":
            hint = f"write {EXE_VALID}; a name without its path is name = {shown(text)}"
            raise UsageError(f"{shown(text)} is not a whole path", hint)
        if text.endswith(" (deleted)"):
            raise UsageError(f"{shown(text)} is a deleted file", "write the path without (deleted)")
        found.append(_path(text, on_windows))
    return tuple(dict.fromkeys(found))


def _path(text: str, on_windows: bool) -> Pattern:
    """A path. On Windows case does not matter, and neither does which slash it has."""
    if text == "*":
        return pattern(text)
    if on_windows:
        return pattern(text.replace("/", "\\").lower(), "\\")
    return pattern(text, "/")


def _sha256(value: object) -> tuple[str, ...]:
    valid = "the 64 hexadecimal digits that sha256sum prints"
    found: list[str] = []
    for each in _values(value, valid):
        text = _text(each, valid)
        if not SHA256.fullmatch(text):
            raise UsageError(f"{shown(text)} is not a SHA-256", f"write {valid}")
        found.append(text.lower())
    return tuple(dict.fromkeys(found))


def _users(value: object) -> tuple[str, ...]:
    valid = '"www-data", or a number'
    found: list[str] = []
    for each in _values(value, valid):
        is_uid = isinstance(each, int) and not isinstance(each, bool) and each >= 0
        found.append(str(each) if is_uid else _text(each, valid))
    return tuple(dict.fromkeys(found))


def _namespaces(value: object) -> tuple[Pattern, ...]:
    valid = '"own", a name as "ip netns" and "portbook list --netns all" show it, or a number'
    texts: list[object] = [str(v) if type(v) is int else v for v in _values(value, valid)]
    return _patterns(valid)(texts)


IMAGE_VALID = '"nginx:1.27", "nginx" for every tag, or "sha256:…"'
# docker.io/library is where images without a registry come from; podman writes it, docker does not.
DEFAULT_REGISTRY = ("docker.io/library/", "docker.io/", "index.docker.io/library/", "index.docker.io/", "localhost/")


def _images(value: object) -> tuple[Pattern, ...]:
    texts = [image_name(_text(each, IMAGE_VALID)) for each in _values(value, IMAGE_VALID)]
    return tuple(pattern(text) for text in dict.fromkeys(texts))


def image_name(text: str) -> str:
    """An image without the registry that is the default."""
    for prefix in DEFAULT_REGISTRY:
        if text.startswith(prefix):
            return text.removeprefix(prefix)
    return text


# By key: how its value is read. They select sockets; port and protocol are read together.
SELECTORS: dict[str, Callable[[object], Any]] = {
    "reach": _reach,
    "name": _patterns('"nginx", as the column PROCESS of portbook list shows it'),
    "exe": _exe,
    "sha256": _sha256,
    "user": _users,
    "service": _patterns('"nginx.service", or "none"'),
    "container": _patterns('"docker:web", "docker:*", or "none"'),
    "image": _images,
    "netns": _namespaces,
}

# --- what is said about a rule -------------------------------------------------------------------------------------


def _line(value: object) -> str:
    return _text(value, "a text")


def read_severity(value: object) -> Level:
    """One of VIOLATION_LEVELS; raise UsageError."""
    valid = ", ".join(f'"{level}"' for level in VIOLATION_LEVELS)
    for level in VIOLATION_LEVELS:
        if value == level:
            return level
    raise UsageError(f"{shown(value)} is not a severity", f"valid values are {valid}")


def _until(value: object) -> date | datetime:
    valid = "write until = 2026-12-31, which includes that day, or until = 2026-12-31T18:00:00+01:00"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise UsageError("the time has no offset from UTC", valid)
        return value
    if isinstance(value, date):
        if value == date.max:
            raise UsageError("the date is the last that can be computed with", "omit the key")
        return value
    if isinstance(value, str):
        raise UsageError(f"{shown(value)} is text", f"{valid}, without quotes")
    raise UsageError(f"{shown(value)} is not a date", valid)


ABOUT: dict[str, Callable[[object], Any]] = {
    "comment": _line,
    "owner": _line,
    "severity": read_severity,
    "until": _until,
}
KEYS = ("port", "protocol", *SELECTORS, *ABOUT)
TOP_KEYS = ("version", "default", "severity", "allow", "deny", "require")


def port_text(tcp: tuple[PortRange, ...], udp: tuple[PortRange, ...]) -> str:
    """Ports of both protocols in words: ``443/tcp``, ``8000-8100``, ``53/tcp, 123/udp``, ``any``."""
    if tcp == udp:
        return _ranges_text(tcp, "")
    return ", ".join(filter(None, (_ranges_text(tcp, "/tcp"), _ranges_text(udp, "/udp"))))


def _ranges_text(ranges: tuple[PortRange, ...], suffix: str) -> str:
    texts: list[str] = []
    for first, last in ranges:
        if (first, last) in EVERY_PORT:
            texts.append(f"{ANY}{suffix}")
        else:
            texts.append(f"{first}{suffix}" if first == last else f"{first}-{last}{suffix}")
    return ", ".join(texts)
