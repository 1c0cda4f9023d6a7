"""What a policy says, for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from portbook.addresses import format_endpoint
from portbook.escaping import safe
from portbook.events import Level
from portbook.numerals import counted, join_words
from portbook.records import Owner, Socket
from portbook.render.machine import ENCODER
from portbook.render.text import BOLD, DIM, RED, YELLOW, Style, paint, wrap
from portbook.watching.assessment import CheckedRequirement, JudgedSocket, PolicyReport
from portbook.watching.policy.records import Policy

COLOURS: dict[Level, str] = {"quiet": DIM, "info": YELLOW, "warning": YELLOW, "critical": RED}
INDENT = "  "


def json(report: PolicyReport) -> Iterator[bytes]:
    """One object."""
    yield ENCODER.encode(report) + b"\n"


# --- check ---------------------------------------------------------------------------------------------------------


def lines(report: PolicyReport, style: Style, every: bool = False) -> list[str]:
    """What differs from the policy, then a summary.

    :param every: what is allowed, too
    """
    made: list[str] = []
    groups: dict[tuple[object, ...], list[JudgedSocket]] = {}
    for judged in report.sockets:
        if every or judged.result != "allowed":
            groups.setdefault(_alike(judged), []).append(judged)
    for group in groups.values():
        made += judged_lines(group, style)
    for required in report.requirements:
        if every or required.met is not True:
            made += _requirement_lines(required, style)
    return [*made, *wrap(summary(report), style, indent=INDENT)]


def _alike(judged: JudgedSocket) -> tuple[object, ...]:
    """What sockets have in common that are shown together: a server may have many, and most of them twice, for IPv6."""
    socket = judged.socket
    pids = tuple(owner.pid for owner in socket.owners)
    holder = pids or (socket.kernel, socket.user, socket.service, socket.container)
    return judged.result, judged.severity, judged.why, holder, socket.protocol, socket.state, socket.netns


def judged_lines(group: Sequence[JudgedSocket], style: Style) -> list[str]:
    """Sockets of one holder: what they are, then why they are allowed or not."""
    judged = group[0]
    severity = f" ({judged.severity})" if judged.result == "violation" else ""
    heading = f"{judged.result}{severity}: {describe_sockets([each.socket for each in group])}"
    made = [paint(line, _colour(judged), style) for line in wrap(heading, style, indent=INDENT)]
    made += wrap(judged.why, style, INDENT, INDENT)
    return made + _about_lines(judged.comment, judged.rule_owner, style)


def _colour(judged: JudgedSocket) -> str:
    return BOLD if judged.result == "allowed" else COLOURS[judged.severity]


def _requirement_lines(required: CheckedRequirement, style: Style) -> list[str]:
    word = {True: "met", False: f"not met ({required.severity})", None: "undecided"}[required.met]
    heading = f"requirement {word}: {required.ports}"
    colour = BOLD if required.met else COLOURS[required.severity]
    made = [paint(line, colour, style) for line in wrap(heading, style, indent=INDENT)]
    made += wrap(required.why, style, INDENT, INDENT)
    return made + _about_lines(required.comment, required.rule_owner, style)


def _about_lines(comment: str | None, owner: str | None, style: Style) -> list[str]:
    made: list[str] = []
    if comment:
        made += wrap(f"comment: {comment}", style, INDENT, INDENT)
    if owner:
        made += wrap(f"responsible: {owner}", style, INDENT, INDENT)
    return made


def summary(report: PolicyReport) -> str:
    """``12 sockets: 10 allowed, 1 violation, 1 undecided; 2 of 2 requirements met``."""
    counts = report.counts
    parts = [f"{counts['allowed']:,} allowed", counted(counts["violation"], "violation")]
    if counts["undecided"]:
        parts.append(f"{counts['undecided']:,} undecided")
    text = f"{counted(len(report.sockets), 'socket')}: {', '.join(parts)}"
    if report.requirements:
        met = sum(each.met is True for each in report.requirements)
        text = f"{text}; {met:,} of {len(report.requirements):,} requirements met"
    return text


def describe_socket(socket: Socket) -> str:
    """``tcp 0.0.0.0:80, nginx (pid 812), /usr/sbin/nginx, user root, nginx.service``."""
    return describe_sockets([socket])


def describe_sockets(sockets: Sequence[Socket]) -> str:
    """The same of sockets of one holder."""
    socket = sockets[0]
    endpoint = join_words([format_endpoint(each.local_address, each.local_port, each.zone) for each in sockets])
    netns = f" in namespace {socket.netns_name}" if socket.netns_name else ""
    state = " (bound)" if socket.state == "BOUND" else ""
    return safe(f"{socket.protocol} {endpoint}{state}{netns}, {_holders(socket)}")


def _holders(socket: Socket) -> str:
    if not socket.owners:
        creator = f" of user {socket.user}" if socket.user else ""
        return socket.kernel or f"unknown process{creator}"
    texts = [_holder(owner) for owner in socket.owners]
    return join_words(list(dict.fromkeys(texts)))


def _holder(owner: Owner) -> str:
    details = [owner.exe, f"user {owner.user}" if owner.user else None, owner.container or owner.service]
    return ", ".join([f"{owner.name or '?'} (pid {owner.pid})", *filter(None, details)])


# --- rules -----------------------------------------------------------------------------------------------------------


def warnings(policy: Policy) -> list[str]:
    """What is valid and probably not meant."""
    return [f"warning: {warning}" for warning in policy.warnings]


def blocks(made: Iterable[Sequence[str]]) -> list[str]:
    """Lines of several answers, with an empty line between them."""
    joined: list[str] = []
    for part in made:
        if joined:
            joined.append("")
        joined += part
    return joined


# --- formats -------------------------------------------------------------------------------------------------------


def _sarif(report: PolicyReport) -> Iterator[bytes]:
    from portbook.render.sarif import sarif

    return sarif(report)


def _junit(report: PolicyReport) -> Iterator[bytes]:
    from portbook.render.junit import junit

    return junit(report)


FORMATS: dict[str, Callable[[PolicyReport], Iterator[bytes]]] = {"json": json, "sarif": _sarif, "junit": _junit}
