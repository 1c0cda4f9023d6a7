"""The answers of a scan for people: a table for each address. It streams: memory does not grow with the scan."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter

from portbook.escaping import safe
from portbook.numerals import counted
from portbook.probe.outcome import WITHOUT_ADDRESS, Answer, Evidence, Outcome, describe
from portbook.render.text import Column, Style, bold, table
from portbook.scanner.targets import is_name

FEW = 20  # answers of one kind at one address have rows; more are counted
MOST_ROWS = 20_000  # open ports in memory for tables; further ports are named without details
MOST_ADDRESSES = 1024  # in memory, until the older half is written: targets are probed in blocks of 256
MOST_KINDS = 100  # of answers at one address, until all others count as one

COLUMNS = (
    Column("PORT", right=True),
    Column("PROTOCOL"),
    Column("STATE"),
    Column("SERVICE", shrinks=1),
    Column("EVIDENCE", shrinks=2),
    Column("RTT", right=True),
)
PROCESS = Column("PROCESS", shrinks=1)  # of this machine
BANNER = Column("BANNER", shrinks=3)
GUESS = "?"  # behind a service that is only registered for the port
ORDER: dict[Outcome, int] = {
    "open": 0,
    "open|filtered": 1,
    "filtered": 2,
    "unreachable": 3,
    "timeout": 4,
    "error": 5,
    "closed": 6,
    "name-not-found": 7,
    "lookup-failed": 8,
}
ANSWERED = ("open", "closed")
HOST_UNREACHABLE = ((3, 1), (1, 3))  # ICMP, ICMPv6
FORBIDDEN = ("filtered", "icmp")
VARIOUS = Evidence("errno", text="various reasons")

AnswerKind = tuple[Outcome, Evidence]
AddressKey = tuple[str, str | None]  # address and zone


def people(answers: Iterable[Answer], style: Style) -> Iterator[list[str]]:
    """Yield lines, a few addresses at a time: open ports first, then other answers, frequent ones counted."""
    addresses = AddressBuffer()
    for answer in answers:
        if answer.outcome in WITHOUT_ADDRESS:
            yield [safe(f"{answer.target}: {describe(answer.evidence) or 'no address'}")]
        elif complete := addresses.add(answer):
            yield _lines(complete, style)
    yield _lines(addresses.take_all(), style)
    if addresses.has_guesses:
        yield [f"{GUESS} the name registered for the port; no answer confirms it", ""]
    if addresses.silent:
        yield [_silence(addresses), ""]


def port_ranges(ports: Iterable[int]) -> str:
    """Format ascending ports, neighbours joined: ``1-21,23``."""
    ranges: list[list[int]] = []
    for port in ports:
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    texts: list[str] = []
    for first, last in ranges:
        if first == last:
            texts.append(str(first))
        else:
            texts.append(f"{first}-{last}")
    return ",".join(texts)


# --- collecting ----------------------------------------------------------------------------------------------------


class AddressAnswers:
    """The answers of one address so far."""

    def __init__(self, target: str, address: str, zone: str | None) -> None:
        self.target = target
        self.address = address
        self.zone = zone
        self.open: list[Answer] = []
        self.open_without_row = array("H")
        self.others: dict[AnswerKind, list[Answer]] = {}  # the first few of each kind
        self.counts: dict[AnswerKind, int] = {}
        self.has_answered = False  # itself, or a firewall for it

    @property
    def is_silent(self) -> bool:
        """Whether no answer came at all, except that no host has the address."""
        kinds = self.counts
        return not self.has_answered and all(e.kind == "silence" or is_host_unreachable(e) for _, e in kinds)

    @property
    def unreachable(self) -> Evidence | None:
        """Who reported that no host has the address."""
        return next((evidence for _, evidence in self.counts if is_host_unreachable(evidence)), None)

    @property
    def heading(self) -> str:
        """The address, and the name that the user gave; the text of a network or range would add nothing."""
        text = self.address
        if self.zone:
            text += f"%{self.zone}"
        if is_name(self.target):
            text += f" ({self.target})"
        return text

    def add(self, answer: Answer, has_room: bool) -> bool:
        """Add an answer; True when it takes a row for good."""
        if answer.outcome in ANSWERED or (answer.outcome, answer.evidence.kind) == FORBIDDEN:
            self.has_answered = True
        if answer.outcome == "open":
            if has_room:
                self.open.append(answer)
            else:
                self.open_without_row.append(answer.port)
            return has_room
        kind = (answer.outcome, answer.evidence)
        if kind not in self.counts and len(self.counts) >= MOST_KINDS:
            kind = (answer.outcome, VARIOUS)
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        if count <= FEW and answer.outcome != "closed":
            self.others.setdefault(kind, []).append(answer)
        elif count == FEW + 1:
            self.others.pop(kind, None)
        return False


class AddressBuffer:
    """The addresses that are not written yet."""

    def __init__(self) -> None:
        self.silent = 0  # addresses without any answer
        self.unreachable = 0  # of these, those that no host has, as a router or this machine reported
        self.reported_by: Evidence | None = None  # the first such report
        self.has_guesses = False  # whether a row has a service that is only registered
        self._addresses: dict[AddressKey, AddressAnswers] = {}
        self._rows = 0

    def add(self, answer: Answer) -> list[AddressAnswers]:
        """Add an answer; return addresses that have to be written to make room."""
        key = (answer.address or "", answer.zone)
        address = self._addresses.get(key)
        if address is None:
            address = self._addresses[key] = AddressAnswers(answer.target, *key)
        self._rows += address.add(answer, self._rows < MOST_ROWS)
        if len(self._addresses) <= MOST_ADDRESSES:
            return []
        return self._take(list(islice(self._addresses, MOST_ADDRESSES // 2)))

    def take_all(self) -> list[AddressAnswers]:
        """Remove every address; return those that are not silent, in order."""
        return self._take(list(self._addresses))

    def _take(self, keys: list[AddressKey]) -> list[AddressAnswers]:
        addresses = [self._addresses.pop(key) for key in keys]
        self._rows -= sum(len(address.open) for address in addresses)
        not_silent = [address for address in addresses if not address.is_silent]
        self.silent += len(addresses) - len(not_silent)
        if any(_is_guess(answer) for address in not_silent for answer in _answers(address)):
            self.has_guesses = True
        for address in addresses:
            if address.is_silent and address.unreachable is not None:
                self.unreachable += 1
                self.reported_by = self.reported_by or address.unreachable
        return sorted(not_silent, key=_order)


def is_host_unreachable(evidence: Evidence) -> bool:
    """Whether a router, or this machine for its own network, found no host at the address.

    ICMP 3/1 (RFC 792, RFC 1812 section 5.2.7.1) and ICMPv6 1/3 (RFC 4443 section 3.1). Which of the silent addresses
    of a network get such a report depends on timers of the neighbour cache, so they are one kind with the silent ones.
    """
    if evidence.kind == "icmp":
        return (evidence.icmp_type, evidence.icmp_code) in HOST_UNREACHABLE
    return evidence.kind == "errno" and evidence.error in ("EHOSTUNREACH", "WSAEHOSTUNREACH")


def _silence(addresses: AddressBuffer) -> str:
    text = f"{counted(addresses.silent, 'address', 'addresses')} gave no answer at all"
    if addresses.reported_by is not None:
        text += f", {addresses.unreachable:,} of them host unreachable{_in_parentheses(addresses.reported_by)}"
    return text


def _order(address: AddressAnswers) -> tuple[int, int, str]:
    from ipaddress import ip_address

    parsed = ip_address(address.address)
    return parsed.version, int(parsed), address.zone or ""


# --- lines ---------------------------------------------------------------------------------------------------------


def _lines(addresses: list[AddressAnswers], style: Style) -> list[str]:
    """A table for each address that has rows; then one line for all addresses without rows that have the same notes."""
    lines: list[str] = []
    without_rows: dict[str, list[AddressAnswers]] = {}
    for address in addresses:
        notes, answers = _notes(address), _answers(address)
        if answers:
            lines += [*bold([safe(address.heading)], style), *_table(answers, style), *notes, ""]
        else:
            without_rows.setdefault(", ".join(notes), []).append(address)
    for text, group in without_rows.items():
        lines.append(f"{', '.join(_spans(group))}: {text}")
    if without_rows:
        lines.append("")
    return lines


def _answers(address: AddressAnswers) -> list[Answer]:
    """The answers that have rows, in the order of their ports."""
    if not address.has_answered:
        return []
    answers = list(address.open)
    for others in address.others.values():
        answers += others
    return sorted(answers, key=attrgetter("port"))


def _table(answers: list[Answer], style: Style) -> list[str]:
    columns, rows = list(COLUMNS), [_row(answer) for answer in answers]
    if any(answer.process for answer in answers):
        columns.append(PROCESS)
        for answer, row in zip(answers, rows, strict=True):
            row.append(_process(answer))
    if any(answer.banner for answer in answers):
        columns.append(BANNER)
        for answer, row in zip(answers, rows, strict=True):
            row.append(safe(answer.banner or ""))
    return table(columns, rows, style)


def _row(answer: Answer) -> list[str]:
    evidence = safe(describe(answer.evidence))
    return [
        str(answer.port),
        answer.protocol,
        answer.outcome,
        _service(answer),
        evidence,
        _rtt(answer.rtt_ms),
    ]


def _service(answer: Answer) -> str:
    name = safe(answer.service or "")
    if _is_guess(answer):
        name += GUESS
    return name


def _is_guess(answer: Answer) -> bool:
    return bool(answer.service) and answer.service_origin == "registered"


def _process(answer: Answer) -> str:
    if answer.pid is None:
        return ""
    return f"{safe(answer.process or '?')} ({answer.pid})"


def _rtt(rtt_ms: float | None) -> str:
    if rtt_ms is None:
        return ""
    if rtt_ms < 100:
        return f"{rtt_ms:.2f} ms"
    return f"{rtt_ms:.0f} ms"


def _notes(address: AddressAnswers) -> list[str]:
    """What is counted and has no row, the most frequent first; of an address that has not answered, only why."""
    if not address.has_answered:
        return _reasons(address)
    notes = []
    if address.open_without_row:
        ports = sorted(address.open_without_row)
        notes.append(f"{len(ports):,} more open: {port_ranges(ports)}")
    without_rows = [kind for kind in address.counts if kind not in address.others]
    for outcome, evidence in sorted(without_rows, key=lambda kind: (-address.counts[kind], ORDER[kind[0]])):
        notes.append(f"{address.counts[outcome, evidence]:,} {outcome}{_in_parentheses(evidence)}")
    return notes


def _reasons(address: AddressAnswers) -> list[str]:
    reasons = []
    for outcome, evidence in sorted(address.counts, key=lambda kind: ORDER[kind[0]]):
        if evidence.kind == "silence":
            reasons.append("no answer")
        else:
            reasons.append(outcome + _in_parentheses(evidence))
    return list(dict.fromkeys(reasons))


def _in_parentheses(evidence: Evidence) -> str:
    text = safe(describe(evidence))
    if not text:
        return ""
    return f" ({text})"


def _spans(addresses: list[AddressAnswers]) -> list[str]:
    """Headings of addresses in ascending order, neighbours joined."""
    spans: list[list[AddressAnswers]] = []
    for address in addresses:
        if spans and _follows(spans[-1][-1], address):
            spans[-1].append(address)
        else:
            spans.append([address])
    texts = []
    for span in spans:
        if len(span) == 1:
            texts.append(safe(span[0].heading))
        else:
            texts.append(safe(f"{span[0].address}-{span[-1].address}"))
    return texts


def _follows(earlier: AddressAnswers, later: AddressAnswers) -> bool:
    """Whether an address is the next one, and neither has a name or zone."""
    if earlier.heading != earlier.address or later.heading != later.address:
        return False
    version, number, _ = _order(earlier)
    return _order(later)[:2] == (version, number + 1)
