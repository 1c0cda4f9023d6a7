"""The plan of ``stop`` before it is carried out, and its result: as text for people and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from portbook.escaping import safe
from portbook.managers.supervisor import Supervisor, stop_instruction
from portbook.records import Owner
from portbook.render.holding import (
    Row,
    describe_owner,
    describe_owners,
    describe_unknown,
    heading_lines,
    holder_as_dict,
    holder_rows,
    row_lines,
)
from portbook.render.machine import ENCODER
from portbook.render.text import Style, cell_count, wrap
from portbook.stop.records import Ended, Fate, Override, Refusal, StopPlan, StopReport, StopResult, StopTarget

FATES: Mapping[Fate, str] = {
    "ended": "ended",
    "let-go": "closed the port and still runs",
    "gone": "had already ended",
    "replaced": "had already ended; its pid belongs to another process now, which was not touched",
    "not-holding": "no longer held the port and was not touched",
    "still-running": "still holds the port",
    "untouched": "was not touched",
}
OVERRIDES: Mapping[Override, str] = {
    "via-manager": "--via-manager runs this command",
    "override": "--override ends it anyway",
}
SENTENCES: Mapping[StopResult, str] = {
    "free": "nobody holds {port}",
    "stopped": "{port} is free",
    "would-stop": "{port}: the processes would be ended (dry run)",
    "refused": "{port}: nothing was ended",
    "declined": "{port}: nothing was ended",
    "still-held": "{port} is still held{by}",
    "restarted": "{port} is held again{by}: it was restarted{starter}",
    "will-restart": "{port} is free for the moment, but what held it is started again",
    "taken": "{port} was free and is now held{by}",
}
# What is shown before the question, which has to stay on the screen together with what it is about.
MOST_TARGETS = 4  # processes with all that is known of them
MOST_REFUSALS = 8
MOST_ALIKE = 3  # rows with the same title: a process may listen at any number of addresses
MOST_COMMANDS = 4
MOST_CELLS = 300  # of a row, such as a command line
FORCED = ("SIGKILL", "TerminateProcess")


def json(answers: Iterable[StopReport]) -> Iterator[bytes]:
    """One object for each port, one line for each object."""
    return (ENCODER.encode(_as_dict(answer)) + b"\n" for answer in answers)


def _as_dict(answer: StopReport) -> dict[str, Any]:
    """A report for JSON, in which each process is described once, as in the answer of ``who``."""
    seen: set[int] = set()
    facts = {name: getattr(answer, name) for name in answer.__struct_fields__}
    facts["targets"] = [_target_as_dict(target, seen) for target in answer.targets]
    return facts


def _target_as_dict(target: StopTarget, seen: set[int]) -> dict[str, Any]:
    facts = {name: getattr(target, name) for name in target.__struct_fields__}
    facts["holder"] = holder_as_dict(target.holder, seen)
    return facts


# --- before --------------------------------------------------------------------------------------------------------


def plan_lines(plan: StopPlan, overrides: Collection[Override], style: Style) -> list[str]:
    """The processes that would be ended, with everything else that they serve; then what is refused."""
    if not plan.held:
        return []
    holders = describe_owners([t.holder.owner for t in plan.targets]) or describe_unknown(plan.gaps)
    text = heading_lines(f"port {plan.port}/{plan.protocol} is held by {holders}", style)
    first = [target for target in plan.targets if target.wave == 0]
    for target in first[:MOST_TARGETS]:
        text += ["", *row_lines(_short_rows(_target_rows(target, plan)), style)]
    if len(first) > MOST_TARGETS:
        others = ", ".join(describe_owner(target.holder.owner) for target in first[MOST_TARGETS:])
        text += ["", *row_lines([("and", _cut(others))], style)]
    if plan.twin:
        same = "the same process holds" if len(plan.targets) == 1 else "the same processes hold"
        text += ["", *row_lines([("also ends", f"{plan.twin}, which {same}")], style)]
    refusals = dict.fromkeys(plan.forbidden(overrides))  # each once: all workers of a server have the same
    if refusals:
        text.append("")
    for refusal in list(refusals)[:MOST_REFUSALS]:
        text += row_lines(_short_rows(_refusal_rows(refusal, plan)), style)
    if len(refusals) > MOST_REFUSALS:
        text += row_lines([("refused", f"{len(refusals) - MOST_REFUSALS} more; --json has all of them")], style)
    return text


def _short_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """What a process chooses must not push anything else off the screen: no long text, and no title again and again."""
    counts: dict[str, int] = {}
    for title, text in rows:
        counts[title] = counts.get(title, 0) + 1
        if counts[title] <= MOST_ALIKE:
            yield title, _cut(text)
    for title, count in counts.items():
        if count > MOST_ALIKE:
            yield title, f"{count - MOST_ALIKE} more; --json has all of them"


def _cut(text: str) -> str:
    """The text in so many cells of a terminal that it takes a few lines."""
    if text.isascii() and len(text) <= MOST_CELLS:
        return text
    cells = 0
    for end, c in enumerate(text):
        cells += max(cell_count(c), 1)  # a combining mark takes no cell, and there may be any number of them
        if cells > MOST_CELLS:
            return f"{text[:end]}… ({len(text)} characters)"
    return text


def _target_rows(target: StopTarget, plan: StopPlan) -> Iterator[Row]:
    pid = target.holder.owner.pid
    yield from holder_rows(target.holder)
    forked = [t.holder.owner for t in plan.targets if t.wave and _is_above(pid, t)]
    yield "shared with", ", ".join(map(describe_owner, forked))
    yield "supervisor", _supervisor(target.supervisor)


def _is_above(pid: int, target: StopTarget) -> bool:
    return any(parent.pid == pid for parent in target.holder.parents)


def _supervisor(supervisor: Supervisor | None) -> str:
    if supervisor is None or supervisor.kind == "relay":  # what a relay holds the port for is in its own row
        return ""
    parts = (_label(supervisor), supervisor.why, stop_instruction(supervisor))
    return safe("; ".join(part for part in parts if part))


def _label(supervisor: Supervisor) -> str:
    return f"{supervisor.kind} {supervisor.name}".strip()


def _refusal_rows(refusal: Refusal, plan: StopPlan) -> Iterator[Row]:
    """Which processes are not ended and why; then what to do."""
    owners = [t.holder.owner for t in plan.targets if refusal in t.refusals]
    why = safe(refusal.why)
    if owners:
        why = f"{describe_owners(owners)}: {why}"
    yield "refused", why
    hints = [text for option, text in OVERRIDES.items() if option in refusal.overridden_by]
    if refusal.hint:
        hints.insert(0, safe(refusal.hint))
    yield "hint", "; ".join(hints)


def question(plans: Sequence[StopPlan], overrides: Collection[Override]) -> str:
    """The question before anything is ended: every command that would be run, every process that would be ended."""
    commands: dict[str, None] = {}
    direct: dict[int, Owner] = {}
    for target in chain.from_iterable(plan.targets for plan in plans):
        supervisor = target.supervisor
        if supervisor and supervisor.command and "via-manager" in overrides:
            commands[safe(stop_instruction(supervisor) or "")] = None
        else:
            direct[target.holder.owner.pid] = target.holder.owner
    actions = []
    if commands:
        actions.append(f"run {_some(list(commands))}")
    if direct:
        actions.append(f"end {describe_owners(list(direct.values()))}")
    text = _cut(" and ".join(actions))
    if twins := _twins(plans):
        text += f", with {' and '.join(twins)}"
    return f"{text[0].upper()}{text[1:]}? [y/N] "


def _twins(plans: Sequence[StopPlan]) -> list[str]:
    """The same numbers over the other protocol, which nobody asked for and which the same processes hold."""
    requested = {f"{plan.port}/{plan.protocol}" for plan in plans}
    twins = [plan.twin for plan in plans if plan.twin and plan.twin not in requested]
    return list(dict.fromkeys(twins))


def _some(commands: Sequence[str]) -> str:
    """The first commands, and how many more."""
    text = ", ".join(commands[:MOST_COMMANDS])
    if len(commands) > MOST_COMMANDS:
        text += f" and {len(commands) - MOST_COMMANDS} more commands"
    return text


# --- after ---------------------------------------------------------------------------------------------------------


def lines(answers: Iterable[StopReport], style: Style) -> list[str]:
    """The result for each port, and the fate of each process."""
    text: list[str] = []
    for answer in answers:
        text += wrap(_sentence(answer), style, indent="    ")
        details = [_ended(process) for process in answer.ended]
        details += [safe(answer.note or ""), _hint(answer)]
        for detail in details:
            if detail:
                text += wrap(detail, style, "  ", "    ")
    return text


def _sentence(answer: StopReport) -> str:
    by = ""
    if answer.held_by:
        by = f" by {describe_owners(answer.held_by)}"
    port = f"port {answer.port}/{answer.protocol}"
    return SENTENCES[answer.result].format(port=port, by=by, starter=_starter(answer))


def _starter(answer: StopReport) -> str:
    """What restarted the process that holds the port now; if that is unknown, its service or container."""
    if answer.restarted_by:
        return f" by {describe_owner(answer.restarted_by)}"
    if not answer.held_by:
        return ""
    label = answer.held_by[0].container or answer.held_by[0].service
    if label is None:
        return ""
    return f" as {safe(label)}"


def _ended(process: Ended) -> str:
    text = f"{safe(process.name or '?')} (pid {process.pid}) {FATES[process.fate]}"
    if process.by:
        text += f" ({', then '.join(map(safe, process.by))})"
    return text


def _hint(answer: StopReport) -> str:
    """What to do next."""
    if answer.result == "still-held" and _ran_out_of_time(answer.ended):
        return "it did not end in time; use a longer --timeout, or --force"
    if answer.result != "restarted":
        return ""
    for target in answer.targets:
        if target.supervisor:
            command = stop_instruction(target.supervisor)
            if command:
                return f"to stop it: {safe(command)}"
    return "stop the process that starts it"


def _ran_out_of_time(ended: Sequence[Ended]) -> bool:
    """Whether a process still runs, and none was forced to end."""
    for process in ended:
        if any(action in FORCED for action in process.by):
            return False
    return any(process.fate == "still-running" for process in ended)
