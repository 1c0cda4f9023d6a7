"""The request queues of http.sys: who answers on a port that belongs to pid 4.

http.sys listens in the kernel for whoever registered a URL, so that every table of sockets names pid 4, System. Which
process takes the requests tells ``netsh http show servicestate view=requestq`` (learn.microsoft.com, "netsh http").
Its words are translated. What is not: a queue begins in the first column and all that belongs to it is indented; URLs
begin with HTTP:// or HTTPS://; a process is a number alone in its line, or with its image behind a comma ("ID: 944,
image: ..."), as newer systems have it.

A queue has the name that its process gave it, and a line break in there could forge rows. So this is evidence for
people; a process is not to be ended because of it alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from portbook.errors import SourceGarbled
from portbook.netconfig.facts import HttpQueue
from portbook.netconfig.windows.netsh import MOST_PORT, NetshOutput, Question, ask, complete, labelled, number, text_of

SYSTEM_PID = 4
SCHEMES = ("http://", "https://")
COMMAND = ("http", "show", "servicestate", "view=requestq")


def http_queues() -> tuple[HttpQueue, ...]:
    """All request queues, also those without a URL.

    :raises SourceError: they could not be had
    """
    return complete(ask([QUESTION]))


# --- which queue ---------------------------------------------------------------------------------------------------


class UrlPrefix(NamedTuple):
    """A URL as http.sys holds it (learn.microsoft.com, "UrlPrefix Strings"): a port, and what is served there."""

    scheme: str  # "http", "https"
    host: str  # a name, an address without brackets, "+": every host name, "*": what nobody else has
    port: int
    address: str | None  # the local address that it is bound to: "HTTP://localhost:8080:127.0.0.1/"
    path: str


# The port is the number behind the host, and not one in an IPv6 address, in the bound address or in the path.
PREFIX = re.compile(r"(https?)://(\[[^]/]*\]|[^:/\[\]]+):([0-9]{1,5})(?::([^/]+))?(/.*)?", re.IGNORECASE | re.ASCII)


def url_prefix(url: str) -> UrlPrefix | None:
    """Take a URL of http.sys apart; None if it is none."""
    found = PREFIX.fullmatch(url)
    if found is None or not 0 < int(found[3]) <= MOST_PORT:
        return None
    scheme, host, port, address, path = found.groups()
    return UrlPrefix(scheme.lower(), host.strip("[]"), int(port), address and address.strip("[]"), path or "/")


def queues_of(port: int, queues: Iterable[HttpQueue]) -> tuple[HttpQueue, ...]:
    """The queues with a URL on this port. There can be several: they share it by host name and by path."""
    return tuple(queue for queue in queues if any(_is_on(port, url) for url in queue.urls))


def queue_of(port: int, queues: Iterable[HttpQueue]) -> HttpQueue | None:
    """One queue on this port, rather one whose process is known; None if there is none."""
    found = queues_of(port, queues)
    return next((queue for queue in found if queue.pids), found[0] if found else None)


def _is_on(port: int, url: str) -> bool:
    prefix = url_prefix(url)
    return prefix is not None and prefix.port == port


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(raw: NetshOutput) -> tuple[HttpQueue, ...]:
    """Read the answer; raise SourceGarbled, also when there is neither a queue nor the ruler of the title."""
    lines = iter(text_of(raw).splitlines())
    if not any(_is_ruler(line) for line in lines):
        raise SourceGarbled(f"no title with a ruler; it begins {raw.data[:60]!r}")
    return _with_unique_names(block.queue() for block in _blocks(lines))


def _is_ruler(line: str) -> bool:
    return len(line.strip()) > 4 and not line.strip().strip("-")


class _Block:
    """The lines of one queue, so far."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.urls: list[str] = []
        self.pids: list[int] = []
        self.numbers: list[int] = []  # with a label, before the list of processes
        self.counts = True  # whether that list has not begun

    def queue(self) -> HttpQueue:
        return HttpQueue(self.name, tuple(self.urls), tuple(self.pids or self._controller()))

    def _controller(self) -> list[int]:
        """Before an empty list of processes stands their number, 0, and behind it the pid that controls the queue.

        IIS has queues like that: W3SVC listens, and starts a process when a request comes.
        """
        count, last = self.numbers[-2:] if len(self.numbers) > 1 else (None, 0)
        # Without a controller, the last number is that of the processes. Pids of Windows are multiples of 4.
        return [last] if count == 0 and last > SYSTEM_PID and last % 4 == 0 else []

    def take(self, line: str) -> None:
        """Read a line that belongs to this queue."""
        text = line.strip()
        if text[:8].lower().startswith(SCHEMES):
            self.urls.append(text)
        elif (pid := _pid(text)) is not None:
            self.pids.append(pid)
        elif self.counts:
            self._count(text)

    def _count(self, text: str) -> None:
        value = labelled(text)[1]
        self.counts = value != ""
        if (count := number(value)) is not None:
            self.numbers.append(count)


def _blocks(lines: Iterable[str]) -> Iterator[_Block]:
    block: _Block | None = None
    for line in lines:
        if not line.strip():
            continue
        if not line[0].isspace():
            if block:
                yield block
            label, value = labelled(line)
            block = _Block(_name(value)) if label and value else None  # None: a sentence
        elif block is None:
            raise SourceGarbled(f"{line.strip()[:60]!r} belongs to no queue")
        else:
            # What a queue has is told before its URLs: this process is the first of a queue without a heading.
            if block.urls and _pid(line.strip()) is not None:
                yield block
                block = _Block(None)
            block.take(line)
    if block:
        yield block


def _name(value: str) -> str | None:
    """That a queue has no name is said by a sentence, which ends as sentences do; see also _with_unique_names."""
    return None if value.endswith((".", "\u3002")) else value


def _with_unique_names(queues: Iterable[HttpQueue]) -> tuple[HttpQueue, ...]:
    """A queue is opened by its name (HttpCreateRequestQueue, http.h): what several have is the sentence for none."""
    queues = tuple(queues)
    often = Counter(queue.name for queue in queues)
    return tuple(replace(queue, name=None) if often[queue.name] > 1 else queue for queue in queues)


# A label, the number, a comma of whatever script, and another label: nothing else has a number between two colons.
LISTED = re.compile(r"[^:\uff1a]+[:\uff1a]\s*([0-9]{1,10})\s*[^0-9\s.:\uff1a][^:\uff1a]*[:\uff1a]")


def _pid(text: str) -> int | None:
    listed = LISTED.match(text)
    return number(listed[1] if listed else text)


QUESTION = Question(COMMAND, parse)
