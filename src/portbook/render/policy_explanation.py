"""Which rule of a policy decides, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.render.machine import ENCODER
from portbook.render.policy import INDENT, blocks, judged_lines
from portbook.render.text import Style, bold, wrap
from portbook.watching.policy.explanation import ExplainedSocket, PolicyExplanation, RuleOpinion


def json(answer: PolicyExplanation) -> Iterator[bytes]:
    """One object."""
    yield ENCODER.encode(answer) + b"\n"


def lines(answer: PolicyExplanation, style: Style) -> list[str]:
    """Each socket with the rules about its port; or what would decide."""
    if answer.sockets:
        return blocks(_socket_lines(each, style) for each in answer.sockets)
    if answer.ports is None:
        return wrap(f"nothing that waits on a port matches {answer.query}", style, indent=INDENT)
    return _nothing_lines(answer, style)


def _socket_lines(explained: ExplainedSocket, style: Style) -> list[str]:
    made = judged_lines([explained.judged], style)
    for opinion in explained.rules:
        made += wrap(_opinion_text(opinion), style, f"{INDENT}- ", f"{INDENT}  ")
    if not explained.rules:
        made += wrap("no rule is about this port", style, f"{INDENT}- ", f"{INDENT}  ")
    return made


def _opinion_text(opinion: RuleOpinion) -> str:
    return f"{opinion.rule} {opinion.result}: {opinion.why}"


def _nothing_lines(answer: PolicyExplanation, style: Style) -> list[str]:
    made = bold(wrap(f"nothing waits on port {answer.ports}", style, indent=INDENT), style)
    verb = "denied" if answer.default == "deny" else "allowed"
    if not answer.candidates:
        text = f"it would be {verb} by default: no rule of {answer.policy} is about this port"
        return made + wrap(text, style, INDENT, INDENT)
    made += wrap(f"it would be {verb} by default, except for what these rules are about:", style, INDENT, INDENT)
    for rule in answer.candidates:
        made += wrap(str(rule), style, f"{INDENT}- ", f"{INDENT}  ")
    return made
