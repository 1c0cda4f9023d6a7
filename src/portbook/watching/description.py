"""An event as one sentence for people: the text log, syslog, the journal and the live view print it.

Pure. Every text that others chose is escaped here, and cut: a line stays a line.
"""

from __future__ import annotations

from collections.abc import Callable

from portbook.addresses import format_endpoint
from portbook.escaping import safe
from portbook.events import MEANINGS, Event, EventKind
from portbook.numerals import counted

OF_A_SINK = "sink "  # how the reason of a gap begins that a sink caused: "sink syslog:unix: ..."
MOST_WORD = 200  # characters of a text that others chose
MOST_REASON = 1_000


def describe(event: Event) -> str:
    """One sentence without a full stop at its end."""
    text = _SENTENCES[event.event](event)
    return safe(text)


def table() -> list[tuple[str, str]]:
    """Every kind of event and what it means: for the documentation."""
    return list(MEANINGS.items())


# --- parts ---------------------------------------------------------------------------------------------------------


def _cut(text: str, most: int = MOST_WORD) -> str:
    text = safe(text)
    return text if len(text) <= most else text[: most - 3] + "..."


def _program(event: Event) -> str:
    """Who: ``nginx (pid 12, nginx.service)``."""
    if event.pid is None:
        return _cut(event.name) if event.name else "an unknown process"
    details = [f"pid {event.pid}"]
    unit = event.container or event.service
    if unit:
        details.append(_cut(unit))
    return f"{_cut(event.name or 'a process')} ({', '.join(details)})"


def _place(event: Event) -> str:
    """Where: ``127.0.0.1:80/tcp``, and the network namespace if it is not that of the watch."""
    if event.local_address is None:
        return "no socket"
    endpoint = format_endpoint(event.local_address, event.local_port, event.zone)
    return f"{_cut(endpoint)}/{event.protocol}{_namespace(event)}"


def _namespace(event: Event) -> str:
    if event.netns_name:
        return f" in namespace {_cut(event.netns_name)}"
    # An identity has the namespace when it is another one, and no container says more.
    if event.netns and (event.identity or "").endswith(f" netns:{event.netns}"):
        return f" in namespace {event.netns}"
    return ""


def _verb(event: Event) -> str:
    if event.state == "BOUND":
        return "holds"
    return "is bound to" if event.protocol == "udp" else "listens on"


def _because(event: Event) -> str:
    return f": {_cut(event.reason, MOST_REASON)}" if event.reason else ""


def _lasted(event: Event) -> str:
    """A duration as people read it."""
    ms = event.lasted_ms
    if ms is None:
        return ""
    if ms < 1:
        return f"{ms:.3f} ms"
    if ms < 10_000:
        return f"{ms:,.0f} ms"
    return duration(ms / 1000)


def duration(seconds: float) -> str:
    """``12 s``, ``3 min``, ``5 h``, ``9 days``."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def _since(event: Event) -> str:
    return f" since {event.since:%Y-%m-%d %H:%M:%S} UTC" if event.since else ""


_REACHES = {
    "loopback": "this machine",
    "address": "one address",
    "any": "every network",
    "none": "nowhere",
    "multicast": "a multicast group",
    "broadcast": "broadcasts",
}


# --- sentences -----------------------------------------------------------------------------------------------------


def _started(event: Event) -> str:
    skipped = f" ({_cut(event.reason, MOST_REASON)})" if event.reason else ""
    return f"the watch began with the feed {event.feed}{skipped}; {counted(event.count, 'socket')} open"


def _present(event: Event) -> str:
    return f"{_program(event)} {_verb(event)} {_place(event)}"


def _opened(event: Event) -> str:
    if event.state == "BOUND":
        what = f"now holds {_place(event)} without listening"
    elif event.protocol == "udp":
        what = f"is now bound to {_place(event)}"
    else:
        what = f"now listens on {_place(event)}"
    further = f"; {event.count} sockets of this identity are open" if event.count > 1 else ""
    gone = "; the process has ended already" if event.process_gone else ""
    return f"{_program(event)} {what}{further}{gone}"


def _closed(event: Event) -> str:
    lasted = f" after {_lasted(event)}" if event.lasted_ms is not None else ""
    further = f"; {event.count - 1} of {event.count} sockets of this identity remain" if event.count > 1 else ""
    return f"{_program(event)} has closed {_place(event)}{lasted}{further}"


def _short_lived(event: Event) -> str:
    return f"{_program(event)} had {_place(event)} for only {_lasted(event)}"


def _restarted(event: Event) -> str:
    return f"{_program(event)} is back on {_place(event)} after an interruption of {_lasted(event)}"


def _flapping(event: Event) -> str:
    return f"{_program(event)} on {_place(event)} is flapping: {event.count} restarts in a short time"


def _settled(event: Event) -> str:
    return f"{_program(event)} on {_place(event)} is not flapping any longer{_because(event)}"


def _owner_changed(event: Event) -> str:
    return f"{_place(event)} is held by {_program(event)}; before by {_cut(event.before or 'an unknown process')}"


def _reach_changed(event: Event) -> str:
    after, before = (_REACHES.get(reach or "", _cut(reach or "unknown")) for reach in (event.reach, event.before))
    return f"{_place(event)} of {_program(event)} can be reached from {after}; before: {before}"


def _bind_failed(event: Event) -> str:
    error = f" ({_cut(event.error)})" if event.error else ""
    repeats = f"; attempt {event.count:,}" if event.count > 1 else ""
    return f"{_program(event)} could not bind {_place(event)}{error}{_because(event)}{repeats}"


def _violation(event: Event) -> str:
    is_failed_bind = event.error is not None or (event.protocol == "tcp" and event.state is None)
    verb = "could not bind" if is_failed_bind else _verb(event)
    rule = f" [{_cut(event.rule)}]" if event.rule else ""
    return f"policy violation: {_program(event)} {verb} {_place(event)}{_because(event)}{rule}"


def _recovered(event: Event) -> str:
    rule = f" [{_cut(event.rule)}]" if event.rule else ""
    return f"policy violation ended: {_program(event)} on {_place(event)}{_because(event)}{rule}"


def _undecided(event: Event) -> str:
    return f"the policy cannot be applied: {_program(event)} {_verb(event)} {_place(event)}{_because(event)}"


def _requirement_lost(event: Event) -> str:
    return f"what the policy requires does not listen: {_cut(event.rule or 'a rule')}{_because(event)}"


def _requirement_restored(event: Event) -> str:
    return f"what the policy requires listens again: {_cut(event.rule or 'a rule')}"


def _reminder(event: Event) -> str:
    if event.local_address is None:
        return f"still{_since(event)}: {_requirement_lost(event)}"
    return f"still{_since(event)}: {_violation(event)}"


def _blind(event: Event) -> str:
    return f"the watch does not see what happens{_since(event)}{_because(event)}"


def _seeing(event: Event) -> str:
    return "the watch sees what happens again"


def _gap(event: Event) -> str:
    if event.reason is not None and event.reason.startswith(OF_A_SINK):
        return f"{counted(event.count, 'event')} could not be delivered{_since(event)}{_because(event)}"
    missed = f"{event.count:,} changes were missed" if event.count > 1 else "changes may have been missed"
    return f"{missed}{_since(event)}{_because(event)}"


def _policy_loaded(event: Event) -> str:
    return f"the policy was loaded{_because(event)}"


def _policy_refused(event: Event) -> str:
    return f"the new policy is not valid, the old one remains in force{_because(event)}"


def _stopped(event: Event) -> str:
    return "the watch ended"


def _test(event: Event) -> str:
    return "this is a test of portbook watch: nothing happened"


_SENTENCES: dict[EventKind, Callable[[Event], str]] = {
    "started": _started,
    "present": _present,
    "opened": _opened,
    "closed": _closed,
    "short_lived": _short_lived,
    "restarted": _restarted,
    "flapping": _flapping,
    "settled": _settled,
    "owner_changed": _owner_changed,
    "reach_changed": _reach_changed,
    "bind_failed": _bind_failed,
    "violation": _violation,
    "recovered": _recovered,
    "undecided": _undecided,
    "requirement_lost": _requirement_lost,
    "requirement_restored": _requirement_restored,
    "reminder": _reminder,
    "blind": _blind,
    "seeing": _seeing,
    "gap": _gap,
    "policy_loaded": _policy_loaded,
    "policy_refused": _policy_refused,
    "stopped": _stopped,
    "test": _test,
}
