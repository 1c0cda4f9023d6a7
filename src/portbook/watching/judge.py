"""Whether a policy allows a socket, and whether what it requires listens. Pure: no I/O, and the time is an argument.

The same for TCP that listens, TCP that is only bound, and UDP. A rule that denies wins over every rule that allows.
A socket that several processes hold is allowed if it is allowed for each of them. What could not be known makes the
answer undecided, which is neither allowed nor a violation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from msgspec import Struct

from portbook.events import LEVELS, Level
from portbook.records import PROTOCOLS, Owner, Socket
from portbook.watching.policy.index import Candidate, Required
from portbook.watching.policy.keys import port_text
from portbook.watching.policy.matching import PolicyEvidence, judged_owners, match
from portbook.watching.policy.records import Policy, PolicyRule

WAITING = ("LISTEN", None)  # states in which something answers: BOUND does not
# What a key is called where a socket differs in it, or where it could not be known.
KEYS = {
    "reach": "from where it can be reached",
    "netns": "the network namespace",
    "user": "the user",
    "service": "the service",
    "container": "the container",
    "name": "the process name",
    "exe": "the executable",
    "sha256": "the SHA-256 of the executable",
    "image": "the image of the container",
}


class Judgement(Struct, frozen=True):
    """What a policy says about one socket."""

    allowed: bool | None  # None: undecided, because something could not be known
    rule: PolicyRule | None  # that decided; None: no rule did, but the default
    why: str  # a sentence for people; it may contain names that others chose
    severity: Level  # of a violation; "quiet" where there is none
    unknown: str | None = None  # undecided: the key of a rule that could not be known
    pid: int | None = None  # the process because of which, if the socket has several


class Requirement(Struct, frozen=True):
    """What a policy says must listen, and whether it does."""

    rule: PolicyRule
    entry: str  # which of the rule's ports: "443/tcp"
    met: bool | None  # None: something listens there, and whether it is what the rule requires is not known
    why: str
    severity: Level


def judge(policy: Policy, socket: Socket, at: datetime, evidence: PolicyEvidence | None = None) -> Judgement:
    """Judge one socket.

    :param at: aware; rules that have ended by then do not apply
    :param evidence: what ``evidence.Collector`` has found out for this policy and this socket. None: paths of
        executables are believed, and rules with an image or a checksum are undecided
    """
    owners = judged_owners(socket)
    if len(owners) == 1:
        return _judge_holder(policy, socket, owners[0], at, evidence)
    return min((_judge_holder(policy, socket, owner, at, evidence) for owner in owners), key=_rank)


def _rank(judgement: Judgement) -> tuple[int, int]:
    """Violations first, the most severe of them first; then what is undecided."""
    order = (False, None, True).index(judgement.allowed)
    return order, -LEVELS.index(judgement.severity)


def _judge_holder(
    policy: Policy, socket: Socket, owner: Owner | None, at: datetime, evidence: PolicyEvidence | None
) -> Judgement:
    """The socket as one process holds it."""
    denying, allowing = policy.index.candidates(socket.protocol, socket.local_port)
    pid = owner.pid if owner else None
    undecided: tuple[PolicyRule, str] | None = None
    for candidate in denying:
        if candidate.rule.ends is not None and not candidate.rule.applies(at):
            continue
        result, key = match(candidate.checks, socket, owner, evidence)
        if result:
            rule = candidate.rule
            return Judgement(False, rule, f"{rule.label} denies it", rule.severity or policy.severity, None, pid)
        if result is None and undecided is None:
            undecided = candidate.rule, key
    allowed, unsure = _first_allowing(allowing, socket, owner, at, evidence)
    if allowed is not None:
        if undecided is not None:
            return _undecided(*undecided, pid)
        return Judgement(True, allowed, f"{allowed.label} allows it", "quiet", None, pid)
    if unsure is not None:
        return _undecided(*unsure, pid)
    if policy.default == "deny":
        why = _why_none(allowing, socket, owner, at, evidence)
        return Judgement(False, None, why, _severity(policy, allowing), None, pid)
    if undecided is not None:
        return _undecided(*undecided, pid)
    return Judgement(True, None, "no rule denies it, and the default is to allow", "quiet", None, pid)


def _first_allowing(
    allowing: Sequence[Candidate], socket: Socket, owner: Owner | None, at: datetime, evidence: PolicyEvidence | None
) -> tuple[PolicyRule | None, tuple[PolicyRule, str] | None]:
    """The first rule that allows the socket; else the first that may, with the key that is not known."""
    unsure: tuple[PolicyRule, str] | None = None
    for candidate in allowing:
        if candidate.rule.ends is not None and not candidate.rule.applies(at):
            continue
        result, key = match(candidate.checks, socket, owner, evidence)
        if result:
            return candidate.rule, None
        if result is None and unsure is None:
            unsure = candidate.rule, key
    return None, unsure


def _undecided(rule: PolicyRule, key: str, pid: int | None) -> Judgement:
    return Judgement(None, rule, f"{rule.label} needs {KEYS[key]}, which could not be read", "quiet", key, pid)


def _severity(policy: Policy, allowing: Sequence[Candidate]) -> Level:
    """Of what no rule allows: a port that rules are about is as severe as they say."""
    levels = [each.rule.severity for each in allowing if each.rule.severity and not each.is_general]
    return max(levels, key=LEVELS.index, default=policy.severity)


def _why_none(
    allowing: Sequence[Candidate], socket: Socket, owner: Owner | None, at: datetime, evidence: PolicyEvidence | None
) -> str:
    """Why the default denies it: the rule that comes nearest, and in what the socket differs."""
    nearest: Candidate | None = None
    most, differing = -1, ""
    for candidate in allowing:
        if candidate.is_general:
            continue
        key = match(candidate.checks, socket, owner, evidence)[1]
        if key and not candidate.rule.applies(at):
            continue
        held = [check.key for check in candidate.checks].index(key) if key else len(candidate.checks)
        if held > most:
            nearest, most, differing = candidate, held, key
    if nearest is None:
        return "no rule allows it, and the default is to deny"
    if not differing:
        return f"no rule allows it: {nearest.rule.label} ended with {nearest.rule.until}"
    return f"no rule allows it: {nearest.rule.label} differs in {difference(differing, owner, evidence)}"


def difference(key: str, owner: Owner | None, evidence: PolicyEvidence | None) -> str:
    """A key in words; of an executable why the process does not run the file of its path."""
    program = evidence.programs.get(owner.pid) if evidence and owner else None
    if key != "exe" or program is None:
        return KEYS[key]
    return PROGRAM_STATES.get(program.state, KEYS[key])


PROGRAM_STATES: dict[str, str] = {
    "deleted": "the executable (the file that the process runs has been deleted or replaced since it started)",
    "replaced": "the executable (the file of this path is another one than the process runs)",
    "elsewhere": "the executable (its path is one inside a container or another mount namespace)",
}


# --- what must listen ----------------------------------------------------------------------------------------------


def requirements(
    policy: Policy, sockets: Iterable[Socket], at: datetime, evidence: PolicyEvidence | None = None
) -> list[Requirement]:
    """Say of each port that the policy requires whether something listens there as it must.

    :param sockets: all that wait now; what is bound and does not listen meets no requirement
    """
    required = [each for each in policy.index.required if each.rule.applies(at)]
    if not required:
        return []
    by_port: dict[tuple[str, int], list[Socket]] = {}
    for socket in sockets:
        if socket.state in WAITING:
            by_port.setdefault((socket.protocol, socket.local_port), []).append(socket)
    return [_requirement(policy, each, by_port, evidence) for each in required]


def _requirement(
    policy: Policy, required: Required, by_port: dict[tuple[str, int], list[Socket]], evidence: PolicyEvidence | None
) -> Requirement:
    rule, entry = required.rule, port_text(required.selector.tcp, required.selector.udp)
    severity = rule.severity or policy.severity
    unknown, different = "", ""
    for socket in _sockets_on(required, by_port):
        for owner in socket.owners or (None,):
            result, key = match(required.checks, socket, owner, evidence)
            if result:
                return Requirement(rule, entry, True, f"{rule.label} is met", "quiet")
            if result is None:
                unknown = key
            else:
                different = difference(key, owner, evidence)
    if unknown:
        why = f"{rule.label} needs {KEYS[unknown]}, which could not be read"
        return Requirement(rule, entry, None, why, "quiet")
    if different:
        return Requirement(rule, entry, False, f"what listens differs from {rule.label} in {different}", severity)
    return Requirement(rule, entry, False, f"nothing listens, and {rule.label} requires it", severity)


def _sockets_on(required: Required, by_port: dict[tuple[str, int], list[Socket]]) -> Iterator[Socket]:
    """The sockets on the ports of an entry."""
    for protocol in PROTOCOLS:
        for first, last in required.selector.ports(protocol):
            if first == last:
                yield from by_port.get((protocol, first), ())
                continue
            for (of, port), sockets in by_port.items():
                if of == protocol and first <= port <= last:
                    yield from sockets
