"""Which addresses to scan, and in which order: text becomes spans of addresses, spans become a stream of probes.

Pure but for ``read_file``. No more than a block of addresses is in memory: a /8 is a pair of numbers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import count, islice
from math import gcd
from socket import AF_INET, inet_ntop, inet_pton
from typing import NamedTuple

from portbook.addresses import parse_host
from portbook.errors import UsageError
from portbook.numerals import is_number, number_or_none
from portbook.probe.request import Probe
from portbook.scanner.special import is_public

VALID = "valid values are 10.0.0.1, 10.0.0.0/24, 10.0.0.1-20, 10.0.0.1-10.0.1.9, fe80::1%eth0, a name, @file"
MOST_ADDRESSES = 2**24  # of one target: 10.0.0.0/8, the largest private network there is (RFC 1918 section 3)
BLOCK = 256  # addresses that are probed in turn; a /24, so that a network's hosts share the load
MOST_FILE_BYTES = 64 << 20  # four million addresses, one a line
MAPPED = int(IPv6Address("::ffff:0:0"))  # IPv4-mapped IPv6 addresses, a /96 (RFC 4291 section 2.5.5.2)
GOLDEN_RATIO = 0.6180339887  # its multiples, modulo 1, leave the most even gaps of all numbers


class Span(NamedTuple):
    """Consecutive addresses of one target."""

    target: str  # as the user wrote it
    version: int  # 4 or 6
    first: int
    last: int
    zone: str | None = None  # interface of link-local IPv6 addresses (RFC 4007)

    @property
    def size(self) -> int:
        """Number of addresses."""
        return self.last - self.first + 1

    def addresses(self) -> Iterator[str]:
        """Yield each address in canonical text, without the zone."""
        make = ADDRESS_TYPES[self.version]
        return (str(make(number)) for number in range(self.first, self.last + 1))


class Name(NamedTuple):
    """A target that has to be looked up."""

    target: str

    @property
    def lookup(self) -> str:
        """What a resolver gets: ASCII."""
        return parse_host(self.target).lookup_name


Address = IPv4Address | IPv6Address
ADDRESS_TYPES: dict[int, type[IPv4Address] | type[IPv6Address]] = {4: IPv4Address, 6: IPv6Address}


def parse_targets(texts: Iterable[str]) -> Iterator[Span | Name]:
    """Parse targets, and read those in the files that ``@file`` names; raise UsageError."""
    for text in texts:
        if text.startswith("@"):
            yield from parse_lines(read_file(text[1:]), text[1:])
        else:
            yield parse_target(text)


def parse_lines(content: str, path: str) -> Iterator[Span | Name]:
    """Parse the targets of a file: separated by blanks or line ends, ``#`` begins a comment. Files name no files."""
    for number, line in enumerate(content.split("\n"), 1):
        for word in line.partition("#")[0].split():
            try:
                yield parse_target(word)
            except UsageError as error:
                raise UsageError(f"{path} line {number}: {error.args[0]}", error.hint) from error


def read_file(path: str) -> str:
    """Read a file of targets; raise UsageError."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = file.read(MOST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read targets from {path!r}: {reason}") from error
    if len(content) > MOST_FILE_BYTES:
        raise UsageError(f"{path!r} is too large for a list of targets", f"at most {MOST_FILE_BYTES >> 20} MB")
    return content


def parse_target(text: str) -> Span | Name:
    """Parse one target; raise UsageError."""
    number = _dotted_quad(text)  # first: a file may have a million lines, and most are such addresses
    if number is not None:
        return Span(text, 4, number, number)
    inner = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    body, zone = _split_zone(inner)
    if "/" in body:
        return _checked(text, *_network(text, body), zone)
    if (ends := _range(text, body)) is not None:
        return _checked(text, *ends, zone)
    address = _address(body)
    if address is not None:
        return _checked(text, address, address, zone)
    return _name(text, inner)


def is_name(target: str) -> bool:
    """Whether a valid target is a name."""
    return isinstance(parse_target(target), Name)


def span_of(target: str, address: str, zone: str | None = None) -> Span:
    """Return the span of one address that a name was resolved to."""
    parsed = ip_address(address)
    return Span(target, *_unmapped(parsed.version, int(parsed), int(parsed)), zone)


# --- one kind of target each ---------------------------------------------------------------------------------------


def _split_zone(text: str) -> tuple[str, str | None]:
    """Accept both ``fe80::1%eth0/120`` and ``fe80::/120%eth0``; an interface's name has no slash."""
    address, percent, rest = text.partition("%")
    if not percent or ":" not in address:
        return text, None
    zone, slash, prefix = rest.partition("/")
    if not zone:
        raise UsageError(f"target {text!r} has no interface after %", "write fe80::1%eth0")
    return address + slash + prefix, zone


def _dotted_quad(text: str) -> int | None:
    try:
        packed = inet_pton(AF_INET, text)
    except (OSError, ValueError):
        return None
    if inet_ntop(AF_INET, packed) != text:  # leading zeros, which some systems accept
        return None
    return int.from_bytes(packed, "big")


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _network(text: str, body: str) -> tuple[Address, Address]:
    try:
        network = ip_network(body, strict=False)
    except ValueError as error:
        raise UsageError(f"target {text!r} is not a network", VALID) from error
    return network[0], network[-1]


def _range(text: str, body: str) -> tuple[Address, Address] | None:
    """Parse ``a-b`` when ``a`` is an address; names have hyphens too."""
    left, hyphen, right = body.partition("-")
    first = _address(left) if hyphen else None
    if first is None:
        return None
    last = _range_end(first, right)
    if last is None or last.version != first.version:
        raise UsageError(f"target {text!r} is not a range of addresses", VALID)
    if int(last) < int(first):
        raise UsageError(f"target {text!r} runs backwards", f"write {last}-{first}")
    return first, last


def _range_end(first: Address, text: str) -> Address | None:
    """Parse the end of a range: a whole address, or the last number of an IPv4 address."""
    if first.version == 4 and is_number(text) and len(text) <= 3:
        if text.startswith("0") and text != "0":  # octal for some programs, as in an address
            return None
        last = number_or_none(text, 0xFF)
        return None if last is None else IPv4Address(int(first) & ~0xFF | last)
    return _address(text)


def _name(text: str, inner: str) -> Name:
    """Check a host name; what only looks like an address must not reach a resolver, which reads "10.1" as 10.0.0.1.

    RFC 1123 section 2.1: the last label of a name is not a number.
    """
    has_invalid = any(c in "[]/%@,\\" or c.isspace() or not c.isprintable() for c in inner)
    if not inner or has_invalid or not inner.strip("0123456789.-"):
        raise _not_an_address(text, inner)
    if ":" in inner:
        raise UsageError(f"target {text!r} is not an address", "ports are given with -p")
    try:
        parse_host(text)
    except UsageError as error:
        raise UsageError(f"target {error.args[0]}", error.hint) from error
    return Name(text)


def _not_an_address(text: str, inner: str) -> UsageError:
    """The error, with the address to write if the text is read as one by other programs."""
    try:
        parse_host(inner)
    except UsageError as error:
        if inner and not inner.strip("0123456789."):
            return UsageError(f"target {error.args[0]}", error.hint)
    return UsageError(f"target {text!r} is not an address", VALID)


def _checked(text: str, first: Address, last: Address, zone: str | None) -> Span:
    size = int(last) - int(first) + 1
    if size > MOST_ADDRESSES:
        count_text = f"{size:,}" if size < 2**64 else f"2**{size.bit_length() - 1}"
        raise UsageError(f"target {text!r} has {count_text} addresses", "the limit is a /8 of IPv4 or a /104 of IPv6")
    if zone and not first.is_link_local:
        raise UsageError(f"target {text!r}: only a link-local address has an interface", "omit %" + zone)
    if first.version == 6 and first.is_link_local and not zone:
        raise UsageError(f"target {text!r} is link-local and needs its interface", f"write {first}%eth0")
    return Span(text, *_unmapped(first.version, int(first), int(last)), zone)


def _unmapped(version: int, first: int, last: int) -> tuple[int, int, int]:
    """An IPv4-mapped IPv6 address is the IPv4 address, and as public as that."""
    if version == 6 and first >> 32 == last >> 32 == MAPPED >> 32:
        return 4, first - MAPPED, last - MAPPED
    return version, first, last


# --- public addresses ----------------------------------------------------------------------------------------------


def refuse_public(spans: Iterable[Span]) -> None:
    """Raise UsageError when a span has a globally routable address."""
    for span in spans:
        if is_public(span.version, span.first, span.last):
            address = next(span.addresses())
            name = span.target
            if span.size == 1 and span.target != address:
                name = f"{span.target} ({address})"
            raise UsageError(
                f"{name} is globally routable",
                "add --allow-public if you are permitted to scan it",
            )


# --- no address twice ----------------------------------------------------------------------------------------------


def disjoint(spans: Iterable[Span]) -> Iterator[Span]:
    """Yield the spans without the addresses of earlier ones."""
    taken: dict[tuple[int, str | None], tuple[list[int], list[int]]] = {}  # firsts and lasts, sorted, disjoint
    for span in spans:
        firsts, lasts = taken.setdefault((span.version, span.zone), ([], []))
        if not lasts or span.first > lasts[-1]:  # a list is mostly in order: a file may have a million lines
            firsts.append(span.first)
            lasts.append(span.last)
            yield span
            continue
        low = bisect_left(lasts, span.first)  # the taken spans that overlap this one are low to high - 1
        high = bisect_right(firsts, span.last)
        at = span.first
        for first, last in zip(firsts[low:high], lasts[low:high], strict=True):
            if at < first:
                yield span._replace(first=at, last=first - 1)
            at = last + 1
        if at <= span.last:
            yield span._replace(first=at)
        ends = min((span.first, *firsts[low:high])), max((span.last, *lasts[low:high]))
        firsts[low:high], lasts[low:high] = [ends[0]], [ends[1]]


# --- in which order ------------------------------------------------------------------------------------------------


def probes_of(spans: Iterable[Span], ports: Sequence[int], seed: int = 0) -> Iterator[Probe]:
    """Yield every port of every address: a block of hosts in turn, each at another port.

    So no host gets many probes in a row, no firewall sees one port probed everywhere at once, and neighbouring ports
    of a host are probed far apart.
    """
    order = [ports[i] for i in walk(len(ports), seed)]
    hosts = ((s.target, address, s.zone) for s in spans for address in s.addresses())
    while block := list(islice(hosts, BLOCK)):
        for turn in range(len(order)):
            for index, (target, address, zone) in enumerate(block, turn):
                yield Probe(target, address, order[index % len(order)], zone)


def walk(size: int, seed: int = 0) -> Iterator[int]:
    """Yield every number below ``size`` once, neighbours far apart: steps of the golden ratio, coprime to ``size``."""
    step = next(n for n in count(max(1, round(size * GOLDEN_RATIO))) if gcd(n, size) == 1)
    return ((seed + i * step) % size for i in range(size))


def weave(stream: Iterable[Probe], extras: Sequence[Probe], every: int) -> Iterator[Probe]:
    """Yield the stream with one of ``extras`` after each ``every`` probes; the rest of them comes at the end."""
    stream = iter(stream)
    for extra in extras:
        yield from islice(stream, every)
        yield extra
    yield from stream
