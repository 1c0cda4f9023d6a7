"""What would be done about a port, and what came of it, in words and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from portbook.managers.supervisor import Supervisor, stop_instruction
from portbook.records import Owner
from portbook.render.holding import facts, named
from portbook.render.machine import ENCODER
from portbook.render.text import BOLD, PLAIN, Style, safe
from portbook.stop.records import Ended, Override, Refusal, StopPlan, StopReport, StopTarget

FATES = {
    "ended": "ended",
    "let-go": "has let go of the port and runs on",
    "gone": "had ended already",
    "replaced": "had ended already; its pid is another process's by now, which was not touched",
    "not-holding": "did not hold the port any more, and was not touched",
    "still-running": "still holds the port",
    "untouched": "was not touched",
}
LEAVE = {"via-manager": "--via-manager runs that", "override": "--override ends it nevertheless"}
SENTENCES = {
    "free": "nobody holds {port}",
    "stopped": "{port} is free",
    "would-stop": "{port}: nothing stands in the way; a dry run ends nothing",
    "refused": "{port}: nothing was ended",
    "declined": "{port}: nothing was ended",
    "still-held": "{port} is still held{by}",
    "restarted": "{port} is held again{by}: it was started again{starter}",
    "taken": "{port} was free, and is held{by} now",
}


def json(answers: Iterable[StopReport]) -> Iterator[bytes]:
    """One object a port, one port a line."""
    return (ENCODER.encode(answer) + b"\n" for answer in answers)


# --- before --------------------------------------------------------------------------------------------------------


def plan_lines(plan: StopPlan, overrides: Collection[Override], style: Style) -> list[str]:
    """Who would be ended, all of them, with what else they do; then what forbids it."""
    if not plan.held:
        return []
    heading = f"port {plan.port}/{plan.protocol} is held by {_many([t.holder.owner for t in plan.targets])}"
    lines = [f"{BOLD}{heading}{PLAIN}" if style.colour else heading]
    first = [t for t in plan.targets if t.wave == 0]
    for target in first:
        lines += ["", *_aligned(_rows(target, plan.targets))]
    stands = dict.fromkeys(plan.forbidden(overrides))  # of many workers the same is refused
    return [*lines, "", *(line for r in stands for line in _aligned(_refusal(r, plan)))] if stands else lines


def _aligned(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"  {title:<12}{text}" for title, text in rows if text)


def _many(owners: Sequence[Owner]) -> str:
    names = [named(owner) for owner in owners]
    more = f" and {len(names) - 2} more processes" if len(names) > 3 else ""
    return (", ".join(names[:2] if more else names) + more) or "a process that is not visible"


def _rows(target: StopTarget, targets: Sequence[StopTarget]) -> Iterator[tuple[str, str]]:
    pid = target.holder.owner.pid
    yield from facts(target.holder)
    yield "shared with", ", ".join(named(t.holder.owner) for t in targets if t.wave and _is_above(pid, t))
    yield "manager", _manager(target.supervisor)


def _is_above(pid: int, target: StopTarget) -> bool:
    return any(parent.pid == pid for parent in target.holder.parents)


def _manager(supervisor: Supervisor | None) -> str:
    if supervisor is None:
        return ""
    parts = (f"{supervisor.kind} {supervisor.name}".strip(), supervisor.why or "", stop_instruction(supervisor) or "")
    return safe("; ".join(part for part in parts if part))


def _refusal(refusal: Refusal, plan: StopPlan) -> Iterator[tuple[str, str]]:
    """Why, of whom, and what would help."""
    concerned = [t.holder.owner for t in plan.targets if refusal in t.refusals]
    yield "refused", (f"{_many(concerned)}: " if concerned else "") + safe(refusal.why)
    helps = [refusal.hint or "", *(text for option, text in LEAVE.items() if option in refusal.overridden_by)]
    yield "helps", safe("; ".join(text for text in helps if text))


def question(plans: Sequence[StopPlan], overrides: Collection[Override]) -> str:
    """What is asked before anything is ended."""
    targets = [t for plan in plans for t in plan.targets]
    managed = [t.supervisor for t in targets if "via-manager" in overrides and t.supervisor and t.supervisor.command]
    direct = {t.holder.owner.pid: t.holder.owner for t in targets if t.supervisor not in managed}
    commands = [safe(stop_instruction(r) or "") for r in dict.fromkeys(managed)]
    what = [f"run {', '.join(commands)}"] if commands else []
    what += [f"end {_many(list(direct.values()))}"] if direct else []
    text = " and ".join(what)
    return f"{text[0].upper()}{text[1:]}? [y/N] "


# --- after ---------------------------------------------------------------------------------------------------------


def lines(answers: Iterable[StopReport]) -> list[str]:
    """What became of each port, and of each process."""
    found: list[str] = []
    for answer in answers:
        found.append(_sentence(answer))
        found += [f"  {_ended(one)}" for one in answer.ended]
        found += [f"  {safe(answer.note)}"] if answer.note else []
        found += [f"  {_hint(answer)}"] if _hint(answer) else []
    return found


def _sentence(answer: StopReport) -> str:
    port = f"port {answer.port}/{answer.protocol}"
    by = f" by {_many(answer.held_by)}" if answer.held_by else ""
    starter = f" by {named(answer.restarted_by)}" if answer.restarted_by else _label(answer)
    return SENTENCES[answer.result].format(port=port, by=by, starter=starter)


def _label(answer: StopReport) -> str:
    """The service or container of whoever has it now."""
    labels = [owner.container or owner.service for owner in answer.held_by]
    return f" as {safe(labels[0])}" if labels and labels[0] else ""


def _ended(one: Ended) -> str:
    by = f" ({', then '.join(safe(what) for what in one.by)})" if one.by else ""
    return f"{safe(one.name or '?')} (pid {one.pid}) {FATES[one.fate]}{by}"


def _hint(answer: StopReport) -> str:
    """What to do next."""
    forced = any(what in ("SIGKILL", "TerminateProcess") for one in answer.ended for what in one.by)
    if answer.result == "still-held" and not forced and any(one.fate == "still-running" for one in answer.ended):
        return "it did not let go in time: a longer --timeout, or --force"
    commands = [text for t in answer.targets if t.supervisor and (text := stop_instruction(t.supervisor))]
    if answer.result == "restarted" and commands:
        return f"what really stops it: {safe(commands[0])}"
    return "what started it has to be stopped" if answer.result == "restarted" else ""
