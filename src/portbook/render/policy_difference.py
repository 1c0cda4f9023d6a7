"""What differs between two policies, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.render.machine import ENCODER
from portbook.render.policy import INDENT, describe_socket
from portbook.render.text import DIM, RED, YELLOW, Style, paint, wrap
from portbook.watching.policy.difference import PolicyDifference, RuleChange, SocketChange

SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def json(answer: PolicyDifference) -> Iterator[bytes]:
    """One object."""
    yield ENCODER.encode(answer) + b"\n"


def lines(answer: PolicyDifference, style: Style) -> list[str]:
    """The settings, the rules with a sign, and the sockets."""
    made: list[str] = []
    for setting in answer.settings:
        made += wrap(setting, style, "~ ", INDENT)
    for change in answer.rules:
        made += _rule_lines(change, style)
    for each in answer.sockets or ():
        made += _socket_lines(each, style)
    if answer.same:
        made += wrap("the policies say the same", style)
    elif answer.sockets == ():
        made += wrap("for what listens now they say the same", style)
    return made


def _rule_lines(change: RuleChange, style: Style) -> list[str]:
    rule = change.new or change.old
    if rule is None:
        return []
    text = str(rule)
    if change.what:
        text = f"{text} (changed: {change.what})"
    return wrap(text, style, f"{SIGNS[change.change]} ", INDENT)


def _socket_lines(change: SocketChange, style: Style) -> list[str]:
    colour = {"violation": RED, "undecided": YELLOW}.get(change.new, DIM)
    heading = f"{change.old}, now {change.new}: {describe_socket(change.socket)}"
    made = [paint(line, colour, style) for line in wrap(heading, style, indent=INDENT)]
    return made + wrap(change.new_why, style, INDENT, INDENT)
