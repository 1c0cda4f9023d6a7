"""The answers of a scan for people and for programs. All of it streams: what is held does not grow with the scan."""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import attrgetter

from portbook.numerals import counted
from portbook.probe.outcome import Answer, Evidence, Outcome, describe
from portbook.render.machine import ENCODER
from portbook.render.text import BOLD, PLAIN, Column, Style, safe, table
from portbook.scanner.report import SCHEMA, Report, SelfCheck
from portbook.scanner.targets import is_name

FEW = 20  # answers of one kind on one address are shown one by one, more are counted
MOST_ROWS = 20_000  # open ports held for tables; the ports beyond are named without details
MOST_HELD = 1024  # addresses, until the older half is written: targets are asked in blocks of 256
MOST_KINDS = 100  # of answers on one address, until all others count as one
MOST_EVENTS = 5  # named in the summary
CHUNK = 1000  # rows encoded at once

COLUMNS = (
    Column("PORT", right=True),
    Column("PROTOCOL"),
    Column("STATE"),
    Column("SERVICE", shrinks=1),
    Column("EVIDENCE", shrinks=2),
    Column("RTT", right=True),
)
ORDER: dict[Outcome, int] = {
    "open": 0,
    "open|filtered": 1,
    "filtered": 2,
    "unreachable": 3,
    "timeout": 4,
    "error": 5,
    "closed": 6,
    "name-not-found": 7,
}
ANSWERED = ("open", "closed")
FORBIDDEN = ("filtered", "icmp")
WHY = {"cancelled": "interrupted", "deadline": "the time was up"}
VARIOUS = Evidence("errno", text="various reasons")

Group = tuple[Outcome, Evidence]
Key = tuple[str, str | None]  # address and zone

# --- for people ----------------------------------------------------------------------------------------------------


class Host:
    """What was heard of one address so far."""

    def __init__(self, target: str, address: str, zone: str | None) -> None:
        self.target = target
        self.address = address
        self.zone = zone
        self.open: list[Answer] = []
        self.more = array("H")  # open ports without details
        self.others: dict[Group, list[Answer]] = {}  # the first few of each kind
        self.counts: dict[Group, int] = {}
        self.heard = False  # from itself, or from somebody who guards it

    @property
    def silent(self) -> bool:
        """Whether nothing at all was heard, not even that it cannot be reached."""
        return not self.heard and all(evidence.kind == "silence" for _, evidence in self.counts)

    def add(self, answer: Answer, room: bool) -> bool:
        """Note an answer; True when it takes a row of its own for good."""
        self.heard = self.heard or answer.outcome in ANSWERED or (answer.outcome, answer.evidence.kind) == FORBIDDEN
        if answer.outcome == "open":
            if room:
                self.open.append(answer)
            else:
                self.more.append(answer.port)
            return room
        group = (answer.outcome, answer.evidence)
        if group not in self.counts and len(self.counts) >= MOST_KINDS:
            group = (answer.outcome, VARIOUS)
        count = self.counts[group] = self.counts.get(group, 0) + 1
        if count <= FEW and answer.outcome != "closed":
            self.others.setdefault(group, []).append(answer)
        elif count == FEW + 1:
            self.others.pop(group, None)
        return False


class Hosts:
    """The addresses of a scan that are still held."""

    def __init__(self) -> None:
        self.held: dict[Key, Host] = {}
        self.quiet = 0  # addresses of which nothing was heard
        self._rows = 0

    def add(self, answer: Answer) -> list[Host]:
        """Note an answer; return addresses that have to be written to make room."""
        key = (answer.address or "", answer.zone)
        host = self.held.get(key)
        if host is None:
            host = self.held[key] = Host(answer.target, *key)
        self._rows += host.add(answer, self._rows < MOST_ROWS)
        return self._oldest() if len(self.held) > MOST_HELD else []

    def rest(self) -> list[Host]:
        """Every address that is left."""
        return self._worth_showing(list(self.held))

    def _oldest(self) -> list[Host]:
        return self._worth_showing(list(islice(self.held, MOST_HELD // 2)))

    def _worth_showing(self, keys: list[Key]) -> list[Host]:
        hosts = [self.held.pop(key) for key in keys]
        self._rows -= sum(len(host.open) for host in hosts)
        shown = [host for host in hosts if not host.silent]
        self.quiet += len(hosts) - len(shown)
        return sorted(shown, key=_by_address)


def people(answers: Iterable[Answer], style: Style) -> Iterator[list[str]]:
    """Lines, a few addresses at a time: for each its open ports, then what else was heard, many of a kind counted."""
    hosts = Hosts()
    for answer in answers:
        if answer.outcome == "name-not-found":
            yield [_nameless(answer)]
        elif some := hosts.add(answer):
            yield _lines(some, style)
    yield _lines(hosts.rest(), style)
    if hosts.quiet:
        yield [f"{counted(hosts.quiet, 'address', 'addresses')} gave no answer at all", ""]


def summary(report: Report) -> list[str]:
    """What was done, what was not, and how far the answers can be trusted."""
    counts = ", ".join(f"{report.outcomes[outcome]:,} {outcome}" for outcome in ORDER if outcome in report.outcomes)
    asked = f"{counted(report.ports, 'port')} of {counted(report.addresses, 'address', 'addresses')}"
    rate = f" ({report.rate:,.0f} a second)" if report.rate and report.elapsed_s >= 0.001 else ""
    lines = [*partial(report), f"{counts or 'no answer'}: {asked} in {_time(report.elapsed_s)}{rate}"]
    if report.silent or report.repeated:
        lines.append(f"{report.silent:,} silent, {counted(report.repeated, 'attempt')} repeated")
    if report.self_check is not None:
        lines.append(_self_check(report.self_check))
    return lines


def partial(report: Report) -> list[str]:
    """Why not everything was asked; empty when it was."""
    if report.partial is None:
        return [f"{counted(report.skipped, 'port')} not asked"] if report.skipped else []
    skipped = f"; {counted(report.skipped, 'port')} left" if report.skipped else ""
    return [f"partial: {WHY[report.partial]}{skipped}"]


def notes(report: Report) -> list[str]:
    """What somebody should know who relies on the answers."""
    missed = report.self_check.missed if report.self_check is not None else ()
    lines = [f"missed on this machine itself: {', '.join(missed)}"] if missed else []
    last = {event.address: event.text for event in report.events if event.kind == "breaker"}
    if mute := [address for address, text in last.items() if " to closed:" not in text]:
        remedy = "; --no-breaker asks all their ports" if report.skipped and report.partial is None else ""
        lines.append(f"asked less, because nothing came back: {counted(len(mute), 'address', 'addresses')}{remedy}")
    others = [event for event in report.events if event.kind != "breaker"]
    lines += [f"{event.address}: {event.text}" if event.address else event.text for event in others[:MOST_EVENTS]]
    if (more := len(others) - MOST_EVENTS) > 0:
        lines.append(f"and {counted(more, 'event')} more; --json has them")
    return lines


def _nameless(answer: Answer) -> str:
    return safe(f"{answer.target}: {describe(answer.evidence) or 'no address'}")


def _lines(hosts: list[Host], style: Style) -> list[str]:
    """A table for each address that has rows to show, then a line for those of which there is the same to say."""
    lines: list[str] = []
    plain: dict[str, list[Host]] = {}
    for host in hosts:
        notes, rows = _notes(host), _rows(host)
        if rows:
            heading = safe(_heading(host))
            lines += [f"{BOLD}{heading}{PLAIN}" if style.colour else heading, *table(COLUMNS, rows, style), *notes, ""]
        else:
            plain.setdefault(", ".join(notes), []).append(host)
    lines += [f"{', '.join(_spans(some))}: {words}" for words, some in plain.items()]
    return [*lines, ""] if plain else lines


def _rows(host: Host) -> list[list[str]]:
    if not host.heard:
        return []
    shown = [*host.open, *(answer for some in host.others.values() for answer in some)]
    return [_row(answer) for answer in sorted(shown, key=attrgetter("port"))]


def _notes(host: Host) -> list[str]:
    """What is counted instead of shown, the most first; of an address that is not there, only why."""
    if not host.heard:
        reasons = sorted(host.counts, key=lambda group: ORDER[group[0]])
        return list(dict.fromkeys("no answer" if e.kind == "silence" else o + _because(e) for o, e in reasons))
    counted = sorted((g for g in host.counts if g not in host.others), key=lambda g: (-host.counts[g], ORDER[g[0]]))
    notes = [f"{host.counts[group]:,} {group[0]}{_because(group[1])}" for group in counted]
    return [f"{len(host.more):,} more open: {ranges(sorted(host.more))}", *notes] if host.more else notes


def _spans(hosts: list[Host]) -> list[str]:
    """Headings of hosts in the order of their addresses, neighbours joined."""
    spans: list[list[Host]] = []
    for host in hosts:
        if spans and _follows(spans[-1][-1], host):
            spans[-1].append(host)
        else:
            spans.append([host])
    return [safe(_heading(s[0]) if len(s) == 1 else f"{s[0].address}-{s[-1].address}") for s in spans]


def _follows(one: Host, other: Host) -> bool:
    """Whether an address is the next one, of the same target or at least not one that has a name of its own."""
    (version, number, _), (next_version, next_number, _) = _by_address(one), _by_address(other)
    named = any(_heading(host) != host.address for host in (one, other))
    return version == next_version and next_number == number + 1 and not named


def _heading(host: Host) -> str:
    """The address, and what the user called it; a network's name says nothing that the address does not."""
    address = f"{host.address}%{host.zone}" if host.zone else host.address
    return f"{address} ({host.target})" if is_name(host.target) else address


def _because(evidence: Evidence) -> str:
    words = safe(describe(evidence))
    return f" ({words})" if words else ""


def _row(answer: Answer) -> list[str]:
    return [
        str(answer.port),
        answer.protocol,
        answer.outcome,
        safe(answer.service or ""),
        safe(describe(answer.evidence)),
        ""
        if answer.rtt_ms is None
        else f"{answer.rtt_ms:.2f} ms"
        if answer.rtt_ms < 100
        else f"{answer.rtt_ms:.0f} ms",
    ]


def _self_check(check: SelfCheck) -> str:
    canaries = f"{check.canaries - check.canaries_missed} of {counted(check.canaries, 'canary', 'canaries')}"
    if not check.known or check.known_missed is None:
        return f"self-check: found {canaries}"
    return (
        f"self-check: found {canaries}, {check.known - check.known_missed} of {counted(check.known, 'listening port')}"
    )


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s"
    from portbook.render.holding import format_age

    return format_age(seconds)


def _by_address(host: Host) -> tuple[int, int, str]:
    from ipaddress import ip_address

    address = ip_address(host.address)
    return address.version, int(address), host.zone or ""


def ranges(ports: Iterable[int]) -> str:
    """Ascending ports, neighbours joined: ``1-21,23``."""
    parts: list[list[int]] = []
    for port in ports:
        if parts and port == parts[-1][1] + 1:
            parts[-1][1] = port
        else:
            parts.append([port, port])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


# --- for programs --------------------------------------------------------------------------------------------------


def json(answers: Iterable[Answer], report: Callable[[], Report]) -> Iterator[bytes]:
    """One object: the answers, one on each line, then the report, which is known when they are all there."""
    yield b'{"schema":%d,"answers":[' % SCHEMA
    separator = b"\n"
    for chunk in chunks(answers):
        yield separator + b",\n".join(map(ENCODER.encode, chunk))
        separator = b",\n"
    yield b'],\n"report":' + ENCODER.encode(report()) + b"}\n"


def jsonl(answers: Iterable[Answer], report: Callable[[], Report]) -> Iterator[bytes]:
    """One answer a line."""
    for chunk in chunks(answers):
        yield ENCODER.encode_lines(chunk)


def csv(answers: Iterable[Answer], report: Callable[[], Report]) -> Iterator[bytes]:
    """One answer a line, the evidence in columns of its own (RFC 4180)."""
    from csv import writer

    text = io.StringIO(newline="")
    rows = writer(text)
    rows.writerow([*ANSWER_COLUMNS[:EVIDENCE_AT], "evidence", *EVIDENCE_COLUMNS[1:], *ANSWER_COLUMNS[EVIDENCE_AT:]])
    for chunk in chunks(answers):
        for answer in chunk:
            values = ANSWER_VALUES(answer)
            rows.writerow((*values[:EVIDENCE_AT], *EVIDENCE_VALUES(answer.evidence), *values[EVIDENCE_AT:]))
        yield _taken(text)
    yield _taken(text)


def _taken(text: io.StringIO) -> bytes:
    written = text.getvalue()
    text.seek(0)
    text.truncate()
    return written.encode("utf-8", "surrogatepass")


EVIDENCE_AT = Answer.__struct_fields__.index("evidence")
ANSWER_COLUMNS = tuple(f for f in Answer.__struct_fields__ if f != "evidence")
ANSWER_VALUES = attrgetter(*ANSWER_COLUMNS)
EVIDENCE_COLUMNS = Evidence.__struct_fields__
EVIDENCE_VALUES = attrgetter(*EVIDENCE_COLUMNS)


def chunks(answers: Iterable[Answer]) -> Iterator[list[Answer]]:
    """Some answers at a time, an open port at once: somebody may be waiting for it."""
    some: list[Answer] = []
    for answer in answers:
        some.append(answer)
        if answer.outcome == "open" or len(some) >= CHUNK:
            yield some
            some = []
    if some:
        yield some


FORMATS: dict[str, Callable[[Iterable[Answer], Callable[[], Report]], Iterator[bytes]]] = {
    "json": json,
    "jsonl": jsonl,
    "csv": csv,
}
