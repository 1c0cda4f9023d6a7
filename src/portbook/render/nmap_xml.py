"""A scan as nmap's XML: programs that read nmap's files read these.

The elements and attributes are those that the nmap reference guide documents ("XML Output" in "Nmap Output Formats",
and its DTD); the words for reasons are those that its readers know. Many closed or silent ports of a host become one
``extraports`` element, as from nmap itself, that still names every port.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from time import asctime, localtime

from portbook.names import service_name
from portbook.probe.outcome import Answer, Evidence, Outcome
from portbook.render.scan import port_ranges
from portbook.scanner.report import Report
from portbook.scanner.targets import is_name

MANY = 25  # this many ports of one state and reason are written together
MOST_HOSTS = 1024  # in memory, until the older half is written

# Outcome: nmap's state. "unknown" is its word for a port that it could not probe.
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
    0: "net-unreach",
    1: "host-unreach",
    2: "proto-unreach",
    3: "port-unreach",
    9: "net-prohibited",
    10: "host-prohibited",
    13: "admin-prohibited",
}
CODES_6 = {0: "no-route", 1: "admin-prohibited", 2: "beyond-scope", 3: "addr-unreach", 4: "port-unreach"}
UNREACHABLE_4, UNREACHABLE_6 = 3, 1
TIME_EXCEEDED = (11, 3)  # of ICMP and of ICMPv6

TargetKey = tuple[str, str | None, str]  # address, zone, target
PortState = tuple[str, str, str | None]  # state, reason, sender of the message when it was not the host


class NmapXml:
    """Writes a scan while it runs: ``add`` each answer, then ``finish``."""

    def __init__(
        self, write: Callable[[bytes], object], protocol: str, ports: Sequence[int], arguments: str, began: datetime
    ) -> None:
        from portbook import __version__

        self._write = write
        self._protocol = protocol
        self._hosts: dict[TargetKey, _Host] = {}
        self._up = self._down = 0
        self._put('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE nmaprun>\n')
        start = {"start": int(began.timestamp()), "startstr": _date(began)}
        # The DTD allows no other scanner; "args" has the real command.
        head = {"scanner": "nmap", "args": arguments, **start, "version": __version__, "xmloutputversion": "1.05"}
        self._put(_open("nmaprun", head))
        kind = "connect" if protocol == "tcp" else "udp"
        services = {"numservices": len(ports), "services": port_ranges(ports)}
        self._put(_empty("scaninfo", {"type": kind, "protocol": protocol, **services}))
        self._put(_empty("verbose", {"level": 0}) + _empty("debugging", {"level": 0}))

    def add(self, answer: Answer) -> None:
        """Add an answer."""
        if answer.address is None:
            self._put(_empty("target", {"specification": answer.target, "status": "skipped", "reason": "invalid"}))
            return
        key = (answer.address, answer.zone, answer.target)
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _Host()
            if len(self._hosts) > MOST_HOSTS:
                self._flush(list(self._hosts)[: MOST_HOSTS // 2])
        host.add(answer)

    def finish(self, report: Report) -> None:
        """Write the remaining hosts and the end."""
        self._flush(list(self._hosts))
        ended = datetime.now().astimezone()
        end = {"time": int(ended.timestamp()), "timestr": _date(ended), "elapsed": f"{report.elapsed_s:.2f}"}
        up, down = self._up, self._down
        outcome = {"exit": "success"}
        if report.partial is not None:
            outcome = {"exit": "error", "errormsg": report.partial}
        summary = f"portbook done: {report.asked} ports scanned in {report.elapsed_s:.2f} seconds"
        self._put("<runstats>" + _empty("finished", {**end, "summary": summary, **outcome}))
        self._put(_empty("hosts", {"up": up, "down": down, "total": up + down}) + "</runstats>\n</nmaprun>\n")

    def _flush(self, keys: list[TargetKey]) -> None:
        for key in keys:
            host = self._hosts.pop(key)
            self._up += host.up is not None
            self._down += host.up is None
            for part in host.xml(*key, self._protocol):
                self._put(part)

    def _put(self, text: str) -> None:
        self._write(text.encode())


class _Host:
    """The ports of one address by state, two bytes for each port."""

    def __init__(self) -> None:
        self.up: str | None = None  # the reason for "up"; None: down
        self.ports: dict[PortState, array[int]] = {}
        self.services: dict[int, str] = {}  # recognised in what they sent

    def add(self, answer: Answer) -> None:
        state = _state(answer)
        ports = self.ports.get(state)
        if ports is None:
            ports = self.ports[state] = array("H")
        ports.append(answer.port)
        if self.up is None and state[2] is None and answer.evidence.kind in ("syn-ack", "rst", "reply", "icmp"):
            self.up = state[1]
        if answer.outcome == "open" and answer.service and answer.service_origin in ("reply", "banner"):
            self.services[answer.port] = answer.service

    def xml(self, address: str, zone: str | None, target: str, protocol: str) -> Iterator[str]:
        yield "<host>"
        if self.up:
            yield _empty("status", {"state": "up", "reason": self.up, "reason_ttl": 0})
        else:
            yield _empty("status", {"state": "down", "reason": "no-response", "reason_ttl": 0})
        yield _empty("address", {"addr": address, "addrtype": "ipv6" if ":" in address else "ipv4"})
        yield f"<hostnames>\n{_hostname(address, zone, target)}</hostnames>\n<ports>"
        single: list[tuple[int, PortState]] = []
        together: dict[PortState, array[int]] = {}
        for state, ports in self.ports.items():
            if state[0] == "open" or len(ports) < MANY:
                single += [(port, state) for port in ports]
            else:
                together[state] = ports
        yield from _extraports(together, protocol)
        for port, state in sorted(single):
            yield self._port(port, state, protocol)
        yield "</ports>\n</host>\n"

    def _port(self, port: int, state: PortState, protocol: str) -> str:
        word, reason, sender = state
        attributes: dict[str, object] = {"state": word, "reason": reason, "reason_ttl": 0}
        if sender:
            attributes["reason_ip"] = sender
        element = _open("port", {"protocol": protocol, "portid": port}) + _empty("state", attributes)
        return element + self._service(port, protocol) + "</port>\n"

    def _service(self, port: int, protocol: str) -> str:
        if port in self.services:
            return _empty("service", {"name": self.services[port], "method": "probed", "conf": 10})
        name = service_name(port, "udp" if protocol == "udp" else "tcp")
        if name is None:
            return ""
        return _empty("service", {"name": name, "method": "table", "conf": 3})


def _hostname(address: str, zone: str | None, target: str) -> str:
    """The name that the user gave. An ``address`` has no place for its zone, in nmap's files either; a name has."""
    if zone:
        return _empty("hostname", {"name": f"{address}%{zone}", "type": "user"})
    if is_name(target):
        return _empty("hostname", {"name": target, "type": "user"})
    return ""


def _extraports(ports_by_state: dict[PortState, array[int]], protocol: str) -> Iterator[str]:
    """One element for each state, within it one for each reason; ``extrareasons`` has no place for the sender."""
    states: dict[str, dict[str, array[int]]] = {}
    for (state, reason, _), ports in ports_by_state.items():
        states.setdefault(state, {}).setdefault(reason, array("H")).extend(ports)
    for state, reasons in states.items():
        yield _open("extraports", {"state": state, "count": sum(map(len, reasons.values()))})
        for reason, numbers in reasons.items():
            attributes = {"reason": reason, "count": len(numbers), "proto": protocol}
            yield _empty("extrareasons", {**attributes, "ports": port_ranges(sorted(numbers))})
        yield "</extraports>\n"


def _state(answer: Answer) -> PortState:
    evidence = answer.evidence
    sender = evidence.sender
    if sender == answer.address:
        sender = None
    return STATES.get(answer.outcome, "unknown"), _reason(evidence, answer.outcome), sender


def _reason(evidence: Evidence, outcome: Outcome) -> str:
    if evidence.kind == "icmp" and evidence.icmp_code is not None:
        if evidence.icmp_type == UNREACHABLE_4 and ":" not in (evidence.sender or ""):
            return CODES_4.get(evidence.icmp_code, "dest-unreach")
        if evidence.icmp_type == UNREACHABLE_6:
            return CODES_6.get(evidence.icmp_code, "dest-unreach")
        if evidence.icmp_type in TIME_EXCEEDED:
            return "time-exceeded"
    elif evidence.kind in REASONS:
        return REASONS[evidence.kind]
    elif outcome == "unreachable":
        return "host-unreach"
    return "unknown-response"


# --- text ----------------------------------------------------------------------------------------------------------

# XML 1.0 (W3C) section 2.2: characters that a document cannot hold, not even escaped.
ILLEGAL = dict.fromkeys((*(c for c in range(32) if c not in (9, 10, 13)), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF))
ESCAPES = str.maketrans(
    {**dict.fromkeys(ILLEGAL, "�"), "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;"}
    | {"\n": "&#10;", "\r": "&#13;"}
)


def _attributes(values: dict[str, object]) -> str:
    return "".join(f' {name}="{_escaped(str(value))}"' for name, value in values.items())


def _escaped(text: str) -> str:
    """A text as a value of an attribute; unprintable characters as references, which no terminal takes for controls."""
    text = text.translate(ESCAPES)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"&#{ord(c)};" for c in text)


def _open(name: str, values: dict[str, object]) -> str:
    return f"<{name}{_attributes(values)}>\n"


def _empty(name: str, values: dict[str, object]) -> str:
    return f"<{name}{_attributes(values)}/>\n"


def _date(moment: datetime) -> str:
    """Local time, in English whatever the locale (Python documentation, time.asctime)."""
    return asctime(localtime(moment.timestamp()))


def add_all(answers: Iterable[Answer], sink: NmapXml) -> Iterator[Answer]:
    """Yield the same answers, each added to the XML."""
    for answer in answers:
        sink.add(answer)
        yield answer
