"""Who holds a port, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from portbook.addresses import format_endpoint
from portbook.query import LISTENING
from portbook.records import Holder, Holding, Owner, Socket
from portbook.render.machine import ENCODER
from portbook.render.plain import REACH
from portbook.render.text import BOLD, PLAIN, Style, safe

MOST_NAMES = 12  # of other ports, before the rest is counted
MOST_HOLDERS = 4  # described at length: a server may have forked a hundred workers
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def json(answers: Iterable[Holding]) -> Iterator[bytes]:
    """One object a port, one port a line."""
    return (ENCODER.encode(answer) + b"\n" for answer in answers)


def lines(answers: Iterable[Holding], style: Style) -> list[str]:
    """A heading for each port, then each holder."""
    parts: list[str] = []
    for answer in answers:
        if parts:
            parts.append("")
        heading = _heading(answer)
        parts.append(f"{BOLD}{heading}{PLAIN}" if style.colour else heading)
        first, children = _families(answer.holders)
        for holder in first[:MOST_HOLDERS]:
            rows = (*facts(holder), ("shared with", _some([named(h.owner) for h in children[holder.owner.pid]])))
            parts += ["", *(f"  {name:<12}{text}" for name, text in rows if text)]
        if more := first[MOST_HOLDERS:]:
            parts += ["", f"  {'and':<12}" + _some([named(h.owner) for h in more])]
        parts += _ownerless(answer)
        parts += _elsewhere(answer)
    return parts


def _families(holders: Sequence[Holder]) -> tuple[list[Holder], dict[int, list[Holder]]]:
    """Holders that no other holder has forked, and below each pid the holders that it has: a server's workers."""
    pids = {h.owner.pid for h in holders}
    first: list[Holder] = []
    children: dict[int, list[Holder]] = {pid: [] for pid in pids}
    for holder in holders:
        above = [p.pid for p in holder.parents if p.pid in pids]
        (children[above[-1]] if above else first).append(holder)
    return first, children


def _heading(answer: Holding) -> str:
    port = f"port {answer.port}" + (f"/{answer.protocol}" if answer.protocol else "")
    if answer.holders:
        names = [named(h.owner) for h in answer.holders]
        more = f" and {len(names) - 2} more processes" if len(names) > 3 else ""
        return f"{port} is held by {', '.join(names[:2] if more else names)}{more}"
    if answer.held:
        return f"{port} is held by a process that is not visible"
    waiting = len(answer.sockets)
    here = " in this network namespace" if answer.sockets_elsewhere else ""
    return f"nobody holds {port}{here}" + (f" ({waiting} closed connections in TIME_WAIT)" if waiting else "")


def named(owner: Owner) -> str:
    """A process in a sentence."""
    return f"{safe(owner.name or '?')} (pid {owner.pid})"


def facts(holder: Holder) -> Iterator[tuple[str, str]]:
    """What is known of a holder, as rows of a title and a text; an empty text is no row."""
    owner = holder.owner
    yield "process", named(owner) + (f", user {safe(owner.user)}" if owner.user else "")
    yield "executable", safe(owner.exe or "")
    yield "command", safe(" ".join(owner.command_line or ()))
    yield "started", _started(holder)
    yield "parents", " < ".join(f"{safe(p.name or '?')} ({p.pid})" for p in holder.parents)
    yield "service", safe(owner.service or "")
    yield "container", safe(owner.container or "")
    waiting = [s for s in holder.sockets if s.state in LISTENING]
    for s in waiting:
        yield "waits on", _waiting(s)
    connected = len(holder.sockets) - len(waiting)
    yield "connections", f"{connected} on this port" if connected else ""
    yield "other ports", _some(holder.other_ports)
    yield "found by", "" if owner.confidence == "certain" else f"{owner.how}, {owner.confidence}"


def _started(holder: Holder) -> str:
    if holder.owner.started is None or holder.age_s is None:
        return ""
    return f"{holder.owner.started.astimezone():%Y-%m-%d %H:%M:%S}, {age(holder.age_s)} ago"


def age(seconds: float) -> str:
    """A span in its two largest units: "3 h 12 min"."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in UNITS:
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])


def _waiting(s: Socket) -> str:
    where = f"{format_endpoint(s.local_address, s.local_port, s.zone)}/{s.protocol}"
    both = " and IPv4" if s.v6only is False and s.local_address == "::" else ""
    queue = f", accept queue {s.accept_queue} of {s.backlog}" if s.backlog is not None else ""
    return f"{where}{both} {s.state or 'UNCONN'}, reach: {REACH[s.reach]}{queue}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _ownerless(answer: Holding) -> list[str]:
    rows = [s for s in answer.sockets if not s.owners and s.state in LISTENING]
    return ["", *(f"  {'waits on':<12}{_waiting(s)}{_creator(s)}" for s in rows)] if rows else []


def _elsewhere(answer: Holding) -> list[str]:
    """What waits on the port in other network namespaces, one line each."""
    rows = [
        f"  {'elsewhere':<12}{_names_of(s)} in network namespace {safe(s.netns_name or str(s.netns))}: {_waiting(s)}"
        for s in answer.sockets_elsewhere
        if s.state in LISTENING
    ]
    return ["", *rows] if rows else []


def _names_of(s: Socket) -> str:
    return _some([named(owner) for owner in s.owners]) if s.owners else "nobody who is visible"


def _creator(s: Socket) -> str:
    made_by = s.container or s.service
    return f", made in {safe(made_by)}" if made_by else ""
