"""The request queues of http.sys: which process answers on a port that belongs to pid 4.

http.sys listens in the kernel for every process that registers a URL, so every table of sockets names pid 4, System.
``netsh http show servicestate view=requestq`` (learn.microsoft.com, "netsh http") shows which process takes requests.
Its words are translated. What is not: a queue begins in the first column, and all that belongs to it is indented; URLs
begin with HTTP:// or HTTPS://; a process is a number alone in its line, or followed by a comma and its image ("ID: 944,
image: ...") on newer systems.

A queue has the name that its process gave it, and a line break in the name could forge rows. So this is evidence for
people, and never the only reason to end a process.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from portbook.errors import SourceGarbled
from portbook.netconfig.facts import SYSTEM_PID, HttpQueue
from portbook.netconfig.windows.netsh import NetshCommand, NetshOutput, decode, split_label
from portbook.numerals import UINT16, UINT32, number_or_none

SCHEMES = ("http://", "https://")


# --- which queue ---------------------------------------------------------------------------------------------------


class UrlPrefix(NamedTuple):
    """A URL as http.sys keeps it (learn.microsoft.com, "UrlPrefix Strings"): a port, and what is served there."""

    scheme: str  # "http", "https"
    host: str  # a name, an address without brackets, "+": every host name, "*": those that no other URL has
    port: int
    address: str | None  # the local address that it is bound to: "HTTP://localhost:8080:127.0.0.1/"
    path: str


# The port is the number behind the host, and not one in an IPv6 address, in the bound address or in the path.
PREFIX = re.compile(r"(https?)://(\[[^]/]*\]|[^:/\[\]]+):([0-9]{1,5})(?::([^/]+))?(/.*)?", re.IGNORECASE | re.ASCII)


def url_prefix(url: str) -> UrlPrefix | None:
    """Parse a URL of http.sys; None if it is none."""
    match = PREFIX.fullmatch(url)
    if match is None:
        return None
    scheme, host, digits, address, path = match.groups()
    port = number_or_none(digits, UINT16, least=1)
    if port is None:
        return None
    if address is not None:
        address = address.strip("[]")
    return UrlPrefix(scheme.lower(), host.strip("[]"), port, address, path or "/")


def queues_of(port: int, queues: Iterable[HttpQueue]) -> tuple[HttpQueue, ...]:
    """The queues with a URL on this port. There can be several: they share it by host name and by path."""
    return tuple(queue for queue in queues if any(_is_on(port, url) for url in queue.urls))


def _is_on(port: int, url: str) -> bool:
    prefix = url_prefix(url)
    return prefix is not None and prefix.port == port


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(output: NetshOutput) -> tuple[HttpQueue, ...]:
    """Parse the output; raise SourceGarbled, also when there is neither a queue nor the ruler of the title."""
    lines = iter(decode(output).splitlines())
    if not any(_is_ruler(line) for line in lines):
        raise SourceGarbled(f"no title with a ruler; the output begins {output.data[:60]!r}")
    return _with_unique_names([block.queue() for block in _blocks(lines)])


def _is_ruler(line: str) -> bool:
    return len(line.strip()) > 4 and not line.strip().strip("-")


class _Block:
    """The lines of one queue, so far."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.urls: list[str] = []
        self.pids: list[int] = []
        self.numbers: list[int] = []  # with a label, before the list of processes
        self.is_before_processes = True

    def queue(self) -> HttpQueue:
        pids = self.pids or self._controller()
        return HttpQueue(self.name, tuple(self.urls), tuple(pids))

    def _controller(self) -> list[int]:
        """The process that controls a queue without processes, if there is one.

        An empty list of processes is preceded by their number, 0, and followed by the pid that controls the queue. IIS
        has queues like that: W3SVC listens, and starts a process when a request comes.
        """
        if len(self.numbers) < 2:
            return []
        count, last = self.numbers[-2:]
        # Without a controller, the last number is that of the processes. Pids of Windows are multiples of 4.
        is_pid = last > SYSTEM_PID and last % 4 == 0
        if count == 0 and is_pid:
            return [last]
        return []

    def take(self, line: str) -> None:
        """Read a line that belongs to this queue."""
        text = line.strip()
        pid = _pid(text)
        if text[:8].lower().startswith(SCHEMES):
            self.urls.append(text)
        elif pid is not None:
            self.pids.append(pid)
        elif self.is_before_processes:
            self._take_number(text)

    def _take_number(self, text: str) -> None:
        _, value = split_label(text)
        self.is_before_processes = value != ""  # the heading of the list has no value
        number = number_or_none(value, UINT32)
        if number is not None:
            self.numbers.append(number)


def _blocks(lines: Iterable[str]) -> Iterator[_Block]:
    block: _Block | None = None
    for line in lines:
        if not line.strip():
            continue
        if not line[0].isspace():
            if block:
                yield block
            block = _new_block(line)
        elif block is None:
            raise SourceGarbled(f"{line.strip()[:60]!r} belongs to no queue")
        else:
            # The URLs of a queue come last, so a process behind them is the first of a queue without a heading.
            if block.urls and _pid(line.strip()) is not None:
                yield block
                block = _Block(None)
            block.take(line)
    if block:
        yield block


def _new_block(line: str) -> _Block | None:
    """The queue that a line begins; None for a sentence."""
    label, value = split_label(line)
    if not label or not value:
        return None
    # A sentence says that the queue has no name, and ends as sentences do; see also _with_unique_names.
    if value.endswith((".", "\u3002")):
        return _Block(None)
    return _Block(value)


def _with_unique_names(queues: Sequence[HttpQueue]) -> tuple[HttpQueue, ...]:
    """A queue is opened by its name (HttpCreateRequestQueue, http.h): what several have is the sentence for none."""
    counts = Counter(queue.name for queue in queues)
    named: list[HttpQueue] = []
    for queue in queues:
        is_unique = counts[queue.name] == 1
        named.append(queue if is_unique else replace(queue, name=None))
    return tuple(named)


# A label, the number, a comma of whatever script, and another label: nothing else has a number between two colons.
LISTED = re.compile(r"[^:\uff1a]+[:\uff1a]\s*([0-9]{1,10})\s*[^0-9\s.:\uff1a][^:\uff1a]*[:\uff1a]")


def _pid(text: str) -> int | None:
    match = LISTED.match(text)
    if match:
        text = match[1]
    return number_or_none(text, UINT32)


SHOW_QUEUES = NetshCommand(("http", "show", "servicestate", "view=requestq"), parse)
