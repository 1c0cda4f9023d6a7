"""The answer of ``who``, as text for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from portbook.enrich.process.state import explain_state
from portbook.escaping import safe
from portbook.holding import PASSED
from portbook.numerals import counted
from portbook.query import LISTENING
from portbook.records import Gap, Holder, Holding, Owner, Socket
from portbook.render.machine import ENCODER
from portbook.render.text import REACH, Style, bold, safe_endpoint, shorten, wrap

MOST_NAMES = 12  # names in a list; the rest is counted
MOST_HOLDERS = 4  # holders described in full: a server may have forked a hundred workers
MOST_ELSEWHERE = 10  # listeners in other network namespaces that have rows
MOST_COMMAND = 400  # characters of a command line, and of other texts of any length, unless all of it is wanted
MOST_SCRIPT = 40  # characters of a script's name in a sentence
TITLE_WIDTH = 12
# A connection whose peer has sent its FIN: RFC 9293 section 3.3.2. No time limit of the kernel ends this state.
CLOSE_WAIT = "their peers have closed, the process has not; only the process can end them"
ORPHANED = "closed: the process runs on without the terminal that it was started from"
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
NEEDS = {"run with sudo": " (needs root)", "run as administrator": " (needs administrator)"}  # by the hint of a gap

Row = tuple[str, str]  # a title and a text; a row with an empty text is not shown


def json(answers: Iterable[Holding]) -> Iterator[bytes]:
    """One object for each port, one line for each object."""
    return (ENCODER.encode(as_dict(answer)) + b"\n" for answer in answers)


def as_dict(answer: Holding) -> dict[str, Any]:
    """An answer for JSON in which each process is described once: 200 workers share their sockets and their parents."""
    seen: set[int] = set()
    facts = {name: getattr(answer, name) for name in answer.__struct_fields__}
    for field in ("holders", "holders_elsewhere"):
        facts[field] = [holder_as_dict(holder, seen) for holder in facts[field]]
    for field in ("sockets", "sockets_elsewhere"):
        facts[field] = [_socket_as_dict(s, _processes_as_dict(s.owners, seen)) for s in facts[field]]
    return facts


def holder_as_dict(holder: Holder, seen: set[int]) -> dict[str, Any]:
    """A holder for JSON.

    :param seen: the pids of the processes that were described before; those that are described now are added
    """
    facts = {name: getattr(holder, name) for name in holder.__struct_fields__}
    seen.add(holder.owner.pid)
    facts["parents"] = _processes_as_dict(holder.parents, seen)
    facts["sockets"] = [_socket_as_dict(s, []) for s in holder.sockets]
    return facts


def _processes_as_dict(owners: Iterable[Owner], seen: set[int]) -> list[Owner | dict[str, Any]]:
    """Those that were described before by their pid, name and user."""
    described: list[Owner | dict[str, Any]] = []
    for owner in owners:
        if owner.pid in seen:
            described.append({"pid": owner.pid, "name": owner.name, "user": owner.user})
        else:
            described.append(owner)
            seen.add(owner.pid)
    return described


def _socket_as_dict(s: Socket, owners: list[Owner | dict[str, Any]]) -> dict[str, Any]:
    facts = {name: getattr(s, name) for name in s.__struct_fields__}
    facts["owners"] = owners
    return facts


def lines(answers: Iterable[Holding], style: Style, whole: bool = False) -> list[str]:
    """A heading for each port, then its holders.

    :param whole: do not cut long command lines
    """
    most = None if whole else MOST_COMMAND
    blocks: list[str] = []
    for answer in answers:
        if blocks:
            blocks.append("")
        blocks += heading_lines(_heading(answer), style)
        for rows in _sections(answer, most):
            section = row_lines(rows, style)
            if section:
                blocks += ["", *section]
    return blocks


def _sections(answer: Holding, most: int | None) -> Iterator[Iterable[Row]]:
    """The parts of an answer below its heading."""
    first, children = _families(answer.holders)
    for holder in first[:MOST_HOLDERS]:
        yield [*holder_rows(holder, most), ("shared with", _list_owners([h.owner for h in children[holder.owner.pid]]))]
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
        return f"{port} is held by {_describe_ownerless(answer)}"
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
    """A process in a sentence: ``nginx (pid 812)``, ``node server.js (pid 813)``."""
    return f"{_program(owner)} (pid {owner.pid})"


def _program(owner: Owner) -> str:
    """The name, and behind that of an interpreter what it runs."""
    name = safe(owner.name or "?")
    script = owner.script or ""
    if not script.startswith("-"):
        script = script.rpartition("/")[2]
    first, _, rest = script.partition(" ")
    if first == owner.name:  # a script with an interpreter line (execve(2)) gives its name to the process
        script = rest
    if not script:
        return name
    return f"{name} {shorten(safe(script), MOST_SCRIPT)}"


def describe_owners(owners: Sequence[Owner]) -> str:
    """Up to three processes in a sentence; of more, two and how many others."""
    names = [describe_owner(owner) for owner in owners]
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more processes"
    return ", ".join(names)


def describe_unknown(gaps: Iterable[Gap], creators: Iterable[str] = ()) -> str:
    """A holder that is not visible, and the privilege that would show it, if a gap names one.

    :param creators: what is known nevertheless: `` of user root in ssh.service``
    """
    needs = next((NEEDS[gap.hint] for gap in gaps if gap.what == "owner" and gap.hint in NEEDS), "")
    known = dict.fromkeys(creator for creator in creators if creator)  # a connection in the accept queue has none
    names = [f"an unknown process{creator}" for creator in known] or ["an unknown process"]
    return f"{' and '.join(names)}{needs}"


def holder_rows(holder: Holder, most: int | None = MOST_COMMAND) -> Iterator[Row]:
    """What is known of a holder.

    :param most: how many characters of texts of any length; None: all
    """
    owner = holder.owner
    process = describe_owner(owner)
    if owner.user:
        process += f", user {safe(owner.user)}"
    yield "process", process
    yield "state", explain_state(owner) or ""
    yield "executable", shorten(safe(owner.exe or ""), most)
    yield "command", shorten(safe(" ".join(owner.command_line or ())), most)
    yield "directory", shorten(safe(owner.directory or ""), most)
    yield "project", _project(owner, most)
    yield "started", _started(holder)
    yield "terminal", ORPHANED if owner.orphaned else ""
    yield "parents", " < ".join(f"{_program(p)} ({p.pid})" for p in holder.parents)
    yield "service", safe(owner.service or "")
    yield "container", safe(owner.container or "")
    yield "forwards to", shorten(safe(holder.forwards_to or ""), most)
    for s in holder.sockets:
        if s.state in LISTENING:
            yield _listener_title(s), _listener(s)
    yield "connections", _connections(holder)
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


def _project(owner: Owner, most: int | None) -> str:
    """The project's name, and where it is if that is not the working directory."""
    if owner.project is None:
        return ""
    name = shorten(safe(owner.project.rpartition("/")[2]), most)
    if owner.project == owner.directory:
        return name
    return f"{name}, in {shorten(safe(owner.project), most)}"


def _connections(holder: Holder) -> str:
    """How many there are in each state, and what CLOSE_WAIT means."""
    counts: dict[str, int] = {}
    for s in holder.sockets:
        if s.state not in LISTENING:
            state = s.state or ""
            counts[state] = counts.get(state, 0) + 1
    if not counts:
        return ""
    states = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    text = f"{sum(counts.values())} on this port: {states}"
    if "CLOSE_WAIT" in counts:
        text += f". In CLOSE_WAIT {CLOSE_WAIT}"
    return text


TITLES = {"LISTEN": "listens on", "BOUND": "holds"}


def _listener_title(s: Socket) -> str:
    """A UDP socket is bound; a TCP socket in BOUND has a port and does not listen."""
    return TITLES.get(s.state or "", "bound to")


def _listener(s: Socket) -> str:
    text = f"{safe_endpoint(s.local_address, s.local_port, s.zone)}/{s.protocol}"
    if s.v6only is False and s.local_address == "::":
        text += " and IPv4"
    if s.state == "BOUND":
        text += " without listening,"
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


def _describe_ownerless(answer: Holding) -> str:
    """A holder that is not visible, with what the kernel shows to every user: the uid, and the creator's cgroup."""
    parts_of_kernel = _kernel(s for s in answer.sockets if not s.owners)
    if parts_of_kernel:
        return parts_of_kernel
    hidden = [s for s in answer.sockets if not s.owners and s.state not in PASSED]
    return describe_unknown(answer.gaps, map(_creator, hidden))


def _kernel(sockets: Iterable[Socket]) -> str:
    """``the kernel: vxlan vx0``; empty if the kernel has none of the sockets."""
    names = dict.fromkeys(safe(s.kernel) for s in sockets if s.kernel is not None)
    return f"the kernel: {_list(tuple(names))}" if names else ""


def _creator(s: Socket) -> str:
    if s.kernel is not None:
        return ""
    text = ""
    user = s.user or s.uid
    if user is not None:
        text += f" of user {safe(str(user))}"
    creator = s.container or s.service
    if creator:
        text += f" in {safe(creator)}"
    return text


def _ownerless_rows(answer: Holding) -> Iterator[Row]:
    for s in answer.sockets:
        if not s.owners and s.state in LISTENING:
            creator = _creator(s)
            yield _listener_title(s), _listener(s) + (f", created by a process{creator}" if creator else "")


def _elsewhere_rows(answer: Holding) -> Iterator[Row]:
    """What listens on the port in other network namespaces: each container of a node may do so."""
    listeners = [s for s in answer.sockets_elsewhere if s.state in LISTENING]
    for s in listeners[:MOST_ELSEWHERE]:
        owners = _list_owners(s.owners) or _kernel((s,)) or describe_unknown(answer.gaps)
        namespace = safe(s.netns_name or str(s.netns))
        yield "elsewhere", f"{owners} in network namespace {namespace}: {_listener(s)}"
    if len(listeners) > MOST_ELSEWHERE:
        yield "elsewhere", f"and {len(listeners) - MOST_ELSEWHERE:,} more; --json has them"
