"""Policies from what listens now, and from what the history has seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from portbook.numerals import counted
from portbook.records import Gap, Owner, PortRange, Socket
from portbook.watching.evidence import Collector
from portbook.watching.judge import judge
from portbook.watching.policy import proposal
from portbook.watching.policy.matching import PolicyEvidence
from portbook.watching.policy.records import Policy
from portbook.watching.policy.text import parse

if TYPE_CHECKING:
    from portbook.store.records import Interval

# A policy with which a collector looks at every executable.
EVERY_PROGRAM = 'version = 1\n[[allow]]\nexe = "*"\n'


class Proposal(Struct, frozen=True):
    """TOML text, and what is to be said about it."""

    text: str
    count: int  # of rules
    summary: str
    gaps: tuple[Gap, ...] = ()
    refused: tuple[str, ...] = ()  # what a rule of the policy denies, and is therefore not added


def from_now(source: str | None = None) -> Proposal:
    """A whole policy that allows what listens now; raises as ``inventory.take``."""
    from portbook.watching import assessment

    listing = assessment.take_listing(source)
    collector = Collector(parse(EVERY_PROGRAM))
    evidence = collector.collect(listing.sockets)
    rules = proposal.collect(listing.sockets, trusts_path(evidence), _ephemeral())
    text = proposal.head(listing.host, listing.taken_at, "what listened then") + proposal.text_of(rules)
    summary = f"{counted(len(rules), 'rule')} for {counted(len(listing.sockets), 'socket')}"
    return Proposal(text, len(rules), summary, (*listing.gaps, *collector.gaps, *_left_out(listing.sockets)))


def _left_out(sockets: Iterable[Socket]) -> Iterator[Gap]:
    count = proposal.unknown(sockets)
    if count:
        why = f"{counted(count, 'socket')} got no rule, because the holder is not known"
        yield Gap("owner", count, why)


def trusts_path(evidence: PolicyEvidence) -> proposal.TrustsPath:
    """Whether the processes run the files of their paths; in containers, files of the containers."""

    def is_trusted(owner: Owner) -> bool:
        program = evidence.programs.get(owner.pid)
        if program is None:
            return False
        return program.state == "same" or (program.state == "elsewhere" and owner.container is not None)

    return is_trusted


def _ephemeral() -> PortRange:
    """From which the system takes ports of its own choice."""
    from portbook.netconfig import ephemeral

    found = ephemeral.take()
    return found.low, found.high


# --- the history ---------------------------------------------------------------------------------------------------


def from_history(
    policy: Policy | None, since: datetime, history: str | None = None, now: datetime | None = None
) -> Proposal:
    """Rules for what has listened since then and the policy does not allow: to be added to it.

    :param policy: None: there is none yet, and the text is a whole one
    :param history: the file of the history; None: the default one
    :raises StoreError: there is no history, or it cannot be read
    """
    from portbook.store.reader import History

    at = now or datetime.now(UTC)
    with History(history) as reader:
        sockets = [_socket_of(interval) for interval in reader.intervals(since=since, until=at)]
        gaps = [_gap(each.reason) for each in reader.unwatched(since, at)]
    return from_sockets(policy, sockets, since, at, tuple(dict.fromkeys(gaps)))


def from_sockets(
    policy: Policy | None, sockets: Iterable[Socket], since: datetime, at: datetime, gaps: tuple[Gap, ...] = ()
) -> Proposal:
    """The same, of sockets. Pure, but for the range of ephemeral ports."""
    found = list(sockets)
    wanted = found
    refused: list[str] = []
    if policy is not None:
        wanted, refused = _not_allowed(policy, found, at)
    rules = proposal.collect(wanted, lambda owner: True, _ephemeral())
    text = proposal.text_of(rules)
    if policy is None:
        from portbook.inventory import host

        days = f"the history since {since.astimezone().strftime('%Y-%m-%d %H:%M')}"
        text = proposal.head(host(), at, days) + text
    summary = f"{counted(len(rules), 'rule')} from {counted(len(found), 'interval')} of the history"
    return Proposal(text, len(rules), summary, (*gaps, *_left_out(wanted)), tuple(refused))


def _not_allowed(policy: Policy, sockets: list[Socket], at: datetime) -> tuple[list[Socket], list[str]]:
    """The sockets that no rule allows; and why those that a rule denies are left out. Undecided ones are allowed."""
    wanted: list[Socket] = []
    refused: dict[str, None] = {}
    for socket in sockets:
        judgement = judge(policy, socket, at)
        if judgement.allowed is not False:
            continue
        if judgement.rule is None:
            wanted.append(socket)
        else:
            refused[f"{socket.protocol} {socket.local_port}: {judgement.why}"] = None
    return wanted, list(refused)


def _socket_of(interval: Interval) -> Socket:
    """What the history knows of a socket. Of several holders it has one."""
    owner = Owner(
        pid=interval.pids[0] if interval.pids else 0,
        name=interval.name,
        exe=interval.exe,
        user=interval.user,
        started=interval.opened_at,
        service=interval.service,
        container=interval.container,
        cgroup="",
    )
    return Socket(
        protocol=interval.protocol,
        family="ipv6" if ":" in interval.local_address else "ipv4",
        local_address=interval.local_address,
        local_port=interval.local_port,
        state="LISTEN" if interval.protocol == "tcp" else None,
        uid=interval.uid,
        user=interval.user,
        owners=(owner,) if interval.name or interval.exe else (),
        created=interval.opened_at,
        service=interval.service,
        container=interval.container,
        netns=interval.netns,
        netns_name=interval.netns_name,
    )


def _gap(reason: str) -> Gap:
    return Gap("socket", None, f"the history has a gap: {reason}")


def merge(text: str, addition: str, at: datetime) -> str:
    """A policy with rules added at its end; what is there stays as it is."""
    moment = at.astimezone().strftime("%Y-%m-%d %H:%M %z")
    joint = "" if text.endswith("\n") or not text else "\n"
    return f"{text}{joint}\n# --- added by portbook policy learn on {moment} ---\n{addition}"
