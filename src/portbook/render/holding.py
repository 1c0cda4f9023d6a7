"""The answer of ``who``, as text for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from portbook.numerals import counted
from portbook.query import LISTENING
from portbook.records import Gap, Holder, Holding, Owner, Socket
from portbook.render.machine import ENCODER
from portbook.render.text import REACH, Style, bold, safe, safe_endpoint, wrap

MOST_NAMES = 12  # names in a list; the rest is counted
MOST_HOLDERS = 4  # holders described in full: a server may have forked a hundred workers
TITLE_WIDTH = 12
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
NEEDS = {"run with sudo": " (needs root)", "run as administrator": " (needs administrator)"}  # by the hint of a gap

Row = tuple[str, str]  # a title and a text; a row with an empty text is not shown


def json(answers: Iterable[Holding]) -> Iterator[bytes]:
    """One object for each port, one line for each object."""
    return (ENCODER.encode(answer) + b"\n" for answer in answers)


def lines(answers: Iterable[Holding], style: Style) -> list[str]:
    """A heading for each port, then its holders."""
    blocks: list[str] = []
    for answer in answers:
        if blocks:
            blocks.append("")
        blocks += heading_lines(_heading(answer), style)
        for rows in _sections(answer):
            section = row_lines(rows, style)
            if section:
                blocks += ["", *section]
    return blocks


def _sections(answer: Holding) -> Iterator[Iterable[Row]]:
    """The parts of an answer below its heading."""
    first, children = _families(answer.holders)
    for holder in first[:MOST_HOLDERS]:
        yield [*holder_rows(holder), ("shared with", _list_owners([h.owner for h in children[holder.owner.pid]]))]
    yield [("and", _list_owners([h.owner for h in first[MOST_HOLDERS:]]))]
    yield _ownerless_rows(answer)
    yield _elsewhere_rows(answer)


def _families(holders: Sequence[Holder]) -> tuple[list[Holder], dict[int, list[Holder]]]:
    """The holders that no other holder forked; and by pid, the holders that it forked, such as a server's workers."""
    pids = {h.owner.pid for h in holders}
    first: list[Holder] = []
    children: dict[int, list[Holder]] = {pid: [] for pid in pids}
    for holder in holders:
        ancestors = [parent.pid for parent in holder.parents if parent.pid in pids]
        if ancestors:
            children[ancestors[-1]].append(holder)
        else:
            first.append(holder)
    return first, children


def _heading(answer: Holding) -> str:
    port = f"port {answer.port}"
    if answer.protocol:
        port += f"/{answer.protocol}"
    if answer.holders:
        return f"{port} is held by {describe_owners([h.owner for h in answer.holders])}"
    if answer.held:
        return f"{port} is held by {describe_unknown(answer.gaps)}"
    heading = f"nobody holds {port}"
    if answer.sockets_elsewhere:
        heading += " in this network namespace"
    if answer.sockets:
        heading += f" ({counted(len(answer.sockets), 'closed connection')} in TIME_WAIT)"
    return heading


# --- shared with the answer of stop --------------------------------------------------------------------------------


def heading_lines(text: str, style: Style) -> list[str]:
    """A heading, wrapped to the width of the output, and in bold if the output shows that."""
    return bold(wrap(text, style, indent="  "), style)


def row_lines(rows: Iterable[Row], style: Style) -> list[str]:
    """Indented rows with aligned texts, wrapped to the width of the output."""
    indent = " " * (2 + TITLE_WIDTH)
    lines: list[str] = []
    for title, text in rows:
        if text:
            lines += wrap(text, style, f"  {title:<{TITLE_WIDTH}}", indent)
    return lines


def describe_owner(owner: Owner) -> str:
    """A process in a sentence: ``nginx (pid 812)``."""
    return f"{safe(owner.name or '?')} (pid {owner.pid})"


def describe_owners(owners: Sequence[Owner]) -> str:
    """Up to three processes in a sentence; of more, two and how many others."""
    names = [describe_owner(owner) for owner in owners]
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more processes"
    return ", ".join(names)


def describe_unknown(gaps: Iterable[Gap]) -> str:
    """A holder that is not visible, and the privilege that would show it, if a gap names one."""
    for gap in gaps:
        if gap.what == "owner" and gap.hint in NEEDS:
            return f"an unknown process{NEEDS[gap.hint]}"
    return "an unknown process"


def holder_rows(holder: Holder) -> Iterator[Row]:
    """What is known of a holder."""
    owner = holder.owner
    process = describe_owner(owner)
    if owner.user:
        process += f", user {safe(owner.user)}"
    yield "process", process
    yield "executable", safe(owner.exe or "")
    yield "command", safe(" ".join(owner.command_line or ()))
    yield "started", _started(holder)
    yield "parents", " < ".join(f"{safe(p.name or '?')} ({p.pid})" for p in holder.parents)
    yield "service", safe(owner.service or "")
    yield "container", safe(owner.container or "")
    listeners = [s for s in holder.sockets if s.state in LISTENING]
    for s in listeners:
        yield _listener_title(s), _listener(s)
    connections = len(holder.sockets) - len(listeners)
    if connections:
        yield "connections", f"{connections} on this port"
    yield "other ports", _list(holder.other_ports)
    if owner.confidence != "certain":
        yield "found by", f"{owner.how}, {owner.confidence}"


def format_age(seconds: float) -> str:
    """A duration in its two largest units: ``3 h 12 min``."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in UNITS:
        if rest >= size or (unit == "s" and not parts):
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2])


# --- the parts of a row --------------------------------------------------------------------------------------------


def _started(holder: Holder) -> str:
    if holder.owner.started is None or holder.age_s is None:
        return ""
    return f"{holder.owner.started.astimezone():%Y-%m-%d %H:%M:%S}, {format_age(holder.age_s)} ago"


def _listener_title(s: Socket) -> str:
    """A UDP socket and a TCP socket in BOUND have a port and do not listen."""
    if s.state == "LISTEN":
        return "listens on"
    return "bound to"


def _listener(s: Socket) -> str:
    text = f"{safe_endpoint(s.local_address, s.local_port, s.zone)}/{s.protocol}"
    if s.v6only is False and s.local_address == "::":
        text += " and IPv4"
    text += f" {s.state or 'UNCONN'}, reach: {REACH[s.reach]}"
    if s.backlog is not None:
        text += f", accept queue {s.accept_queue} of {s.backlog}"
    return text


def _list(names: Sequence[str]) -> str:
    text = ", ".join(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        text += f" and {len(names) - MOST_NAMES} more"
    return text


def _list_owners(owners: Sequence[Owner]) -> str:
    return _list([describe_owner(owner) for owner in owners])


def _ownerless_rows(answer: Holding) -> Iterator[Row]:
    for s in answer.sockets:
        if not s.owners and s.state in LISTENING:
            text = _listener(s)
            creator = s.container or s.service
            if creator:
                text += f", created in {safe(creator)}"
            yield _listener_title(s), text


def _elsewhere_rows(answer: Holding) -> Iterator[Row]:
    """What listens on the port in other network namespaces."""
    for s in answer.sockets_elsewhere:
        if s.state in LISTENING:
            owners = _list_owners(s.owners) or describe_unknown(answer.gaps)
            namespace = safe(s.netns_name or str(s.netns))
            yield "elsewhere", f"{owners} in network namespace {namespace}: {_listener(s)}"
