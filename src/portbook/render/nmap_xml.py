"""A scan as nmap's XML: what reads nmap's files reads these.

The elements and attributes are those that the nmap reference guide documents ("XML Output" in "Nmap Output Formats",
and its DTD); the words for reasons are those its readers know. Many closed or silent ports of a host become one
``extraports`` element, as from nmap itself, that still names every port.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from time import asctime, localtime

from portbook.enrich.names import service_name
from portbook.probe.outcome import Answer, Evidence, Outcome
from portbook.render.scan import ranges
from portbook.scanner.report import Report
from portbook.scanner.targets import is_name

MANY = 25  # ports of one state and reason that are written together from here on
MOST_HELD = 1024  # hosts, until the older half is written

# Outcome: the state that nmap's readers know. "unknown" is what nmap says of a port it could not ask.
STATES: dict[Outcome, str] = {
    "open": "open",
    "closed": "closed",
    "filtered": "filtered",
    "open|filtered": "open|filtered",
    "unreachable": "filtered",
    "timeout": "filtered",
    "error": "unknown",
}
REASONS: dict[str, str] = {
    "syn-ack": "syn-ack",
    "rst": "conn-refused",
    "reply": "udp-response",
    "silence": "no-response",
}
# Destination unreachable by code: RFC 792 and RFC 1812 section 5.2.7.1; of ICMPv6, RFC 4443 section 3.1.
CODES_4 = {
    0: "net-unreach", 1: "host-unreach", 2: "proto-unreach", 3: "port-unreach", 9: "net-prohibited",
    10: "host-prohibited", 13: "admin-prohibited",
}  # fmt: skip
CODES_6 = {0: "no-route", 1: "admin-prohibited", 2: "beyond-scope", 3: "addr-unreach", 4: "port-unreach"}
UNREACHABLE_4, UNREACHABLE_6 = 3, 1

Key = tuple[str, str | None, str]  # address, zone, target
State = tuple[str, str, str | None]  # state, reason, who said so when it was not the host


class NmapXml:
    """Writes a scan as it goes on: ``add`` each answer, then ``finish``."""

    def __init__(
        self, write: Callable[[bytes], object], protocol: str, ports: Sequence[int], arguments: str, began: datetime
    ) -> None:
        from portbook import __version__

        self._write = write
        self._protocol = protocol
        self._hosts: dict[Key, _Host] = {}
        self._up = self._down = 0
        self._put('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE nmaprun>\n')
        start = {"start": int(began.timestamp()), "startstr": _date(began)}
        # The DTD allows no other scanner; "args" says who it was.
        head = {"scanner": "nmap", "args": arguments, **start, "version": __version__, "xmloutputversion": "1.05"}
        self._put(_open("nmaprun", head))
        kind = "connect" if protocol == "tcp" else "udp"
        services = {"numservices": len(ports), "services": ranges(ports)}
        self._put(_empty("scaninfo", {"type": kind, "protocol": protocol, **services}))
        self._put(_empty("verbose", {"level": 0}) + _empty("debugging", {"level": 0}))

    def add(self, answer: Answer) -> None:
        """Note an answer."""
        if answer.address is None:
            self._put(_empty("target", {"specification": answer.target, "status": "skipped", "reason": "invalid"}))
            return
        key = (answer.address, answer.zone, answer.target)
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _Host()
            if len(self._hosts) > MOST_HELD:
                self._flush(list(self._hosts)[: MOST_HELD // 2])
        host.add(answer)

    def finish(self, report: Report) -> None:
        """Write what is held and the end."""
        self._flush(list(self._hosts))
        ended = datetime.now().astimezone()
        end = {"time": int(ended.timestamp()), "timestr": _date(ended), "elapsed": f"{report.elapsed_s:.2f}"}
        up, down = self._up, self._down
        outcome = {"exit": "success"} if report.partial is None else {"exit": "error", "errormsg": report.partial}
        summary = f"portbook done: {report.asked} ports asked in {report.elapsed_s:.2f} seconds"
        self._put("<runstats>" + _empty("finished", {**end, "summary": summary, **outcome}))
        self._put(_empty("hosts", {"up": up, "down": down, "total": up + down}) + "</runstats>\n</nmaprun>\n")

    def _flush(self, keys: list[Key]) -> None:
        for key in keys:
            host = self._hosts.pop(key)
            self._up += host.up is not None
            self._down += host.up is None
            for part in host.xml(*key, self._protocol):
                self._put(part)

    def _put(self, text: str) -> None:
        self._write(text.encode())


class _Host:
    """The ports of one address by state, two bytes each."""

    def __init__(self) -> None:
        self.up: str | None = None  # the reason to believe that it is there
        self.ports: dict[State, array[int]] = {}
        self.services: dict[int, str] = {}  # recognised in replies

    def add(self, answer: Answer) -> None:
        state = _state(answer)
        ports = self.ports.get(state)
        if ports is None:
            ports = self.ports[state] = array("H")
        ports.append(answer.port)
        if self.up is None and state[2] is None and answer.evidence.kind in ("syn-ack", "rst", "reply", "icmp"):
            self.up = state[1]
        if answer.outcome == "open" and answer.evidence.kind == "reply" and answer.service:
            self.services[answer.port] = answer.service

    def xml(self, address: str, zone: str | None, target: str, protocol: str) -> Iterator[str]:
        yield "<host>"
        up = {"state": "up", "reason": self.up} if self.up else {"state": "down", "reason": "no-response"}
        yield _empty("status", {**up, "reason_ttl": 0})
        yield _empty("address", {"addr": address, "addrtype": "ipv6" if ":" in address else "ipv4"})
        # An address has no place for its zone: as nmap, without. What the user called it has.
        called = f"{address}%{zone}" if zone else target
        name = _empty("hostname", {"name": called, "type": "user"}) if zone or is_name(target) else ""
        yield f"<hostnames>\n{name}</hostnames>\n<ports>"
        single = {s: p for s, p in self.ports.items() if s[0] == "open" or len(p) < MANY}
        yield from _extra({s: p for s, p in self.ports.items() if s not in single}, protocol)
        for port, state in sorted((port, state) for state, ports in single.items() for port in ports):
            yield self._port(port, state, protocol)
        yield "</ports>\n</host>\n"

    def _port(self, port: int, state: State, protocol: str) -> str:
        word, reason, sender = state
        shown = {"state": word, "reason": reason, "reason_ttl": 0, **({"reason_ip": sender} if sender else {})}
        probed = self.services.get(port)
        name = probed or service_name(port, "udp" if protocol == "udp" else "tcp")
        by = {"method": "probed", "conf": 10} if probed else {"method": "table", "conf": 3}
        service = _empty("service", {"name": name, **by}) if name else ""
        return _open("port", {"protocol": protocol, "portid": port}) + _empty("state", shown) + service + "</port>\n"


def _extra(groups: dict[State, array[int]], protocol: str) -> Iterator[str]:
    """One element for each state, within it one for each reason."""
    for word in dict.fromkeys(state for state, _, _ in groups):
        of_word = {reason: ports for (state, reason, _), ports in _by_reason(groups).items() if state == word}
        yield _open("extraports", {"state": word, "count": sum(map(len, of_word.values()))})
        for reason, ports in of_word.items():
            shown = {"reason": reason, "count": len(ports), "proto": protocol, "ports": ranges(sorted(ports))}
            yield _empty("extrareasons", shown)
        yield "</extraports>\n"


def _by_reason(groups: dict[State, array[int]]) -> dict[State, array[int]]:
    """Who said so has no place in ``extrareasons``."""
    merged: dict[State, array[int]] = {}
    for (word, reason, _), ports in groups.items():
        key = (word, reason, None)
        merged[key] = merged[key] + ports if key in merged else ports
    return merged


def _state(answer: Answer) -> State:
    evidence = answer.evidence
    sender = evidence.sender if evidence.sender != answer.address else None
    return STATES.get(answer.outcome, "unknown"), _reason(evidence, answer.outcome), sender


def _reason(evidence: Evidence, outcome: Outcome) -> str:
    if evidence.kind == "icmp" and evidence.icmp_code is not None:
        if evidence.icmp_type == UNREACHABLE_4 and ":" not in (evidence.sender or ""):
            return CODES_4.get(evidence.icmp_code, "dest-unreach")
        if evidence.icmp_type == UNREACHABLE_6:
            return CODES_6.get(evidence.icmp_code, "dest-unreach")
        return "time-exceeded" if evidence.icmp_type in (11, 3) else "unknown-response"
    return REASONS.get(evidence.kind) or ("host-unreach" if outcome == "unreachable" else "unknown-response")


# --- text ----------------------------------------------------------------------------------------------------------

# XML 1.0 (W3C) section 2.2: characters that a document cannot hold, not even escaped.
ILLEGAL = dict.fromkeys((*(c for c in range(32) if c not in (9, 10, 13)), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF))
ESCAPES = str.maketrans(
    {**dict.fromkeys(ILLEGAL, "�"), "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;"}
    | {"\n": "&#10;", "\r": "&#13;"}
)


def _attributes(values: dict[str, object]) -> str:
    return "".join(f' {name}="{str(value).translate(ESCAPES)}"' for name, value in values.items())


def _open(name: str, values: dict[str, object]) -> str:
    return f"<{name}{_attributes(values)}>\n"


def _empty(name: str, values: dict[str, object]) -> str:
    return f"<{name}{_attributes(values)}/>\n"


def _date(moment: datetime) -> str:
    """Local time, in English whatever the locale (Python documentation, time.asctime)."""
    return asctime(localtime(moment.timestamp()))


def add_all(answers: Iterable[Answer], sink: NmapXml) -> Iterator[Answer]:
    """The same answers, noted on their way."""
    for answer in answers:
        sink.add(answer)
        yield answer
