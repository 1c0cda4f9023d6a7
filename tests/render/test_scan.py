from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import tracemalloc
import warnings
from collections import Counter
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.escaping import safe
from portbook.probe.outcome import SILENCE, Answer, Evidence
from portbook.probe.request import ScanEvent
from portbook.render import nmap_xml, scan, scan_formats, scan_report
from portbook.render.nmap_xml import MANY, NmapXml
from portbook.render.scan import FEW, MOST_KINDS, port_ranges
from portbook.render.text import Style
from portbook.scanner.report import Report, SelfCheck
from tests.components import need

SYN_ACK, RST = Evidence("syn-ack"), Evidence("rst", 111, "ECONNREFUSED")
PROHIBITED = Evidence("icmp", 113, "EHOSTUNREACH", 3, 13, "10.0.0.254")
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PLAIN = Style()


def answer(port, outcome="open", evidence=None, address="10.0.0.1", target=None, zone=None, **more):
    natural = {"open": SYN_ACK, "closed": RST, "filtered": SILENCE, "open|filtered": SILENCE}
    more.setdefault("protocol", "tcp")
    return Answer(
        target or address,
        address,
        zone,
        port,
        outcome=outcome,
        evidence=evidence or natural.get(outcome, SILENCE),
        **more,
    )


def report(**more):
    facts = {
        "schema": 1, "protocol": "tcp", "started_at": BEGAN, "elapsed_s": 2.0, "addresses": 1, "ports": 100,
        "asked": 100, "outcomes": {"closed": 99, "open": 1}, "silent": 0, "repeated": 0, "skipped": 0, "rate": 50.0,
        "partial": None,
    }  # fmt: skip
    return Report(**{**facts, **more})


def shown(answers, style=PLAIN):
    return [line for lines in scan.people(answers, style) for line in lines]


# --- for people ----------------------------------------------------------------------------------------------------


def test_a_question_mark_is_explained_wherever_a_row_has_one():
    explained = "? the name registered for the port; no answer confirms it"
    answers = [answer(22, "open"), answer(25, "filtered", service="smtp", service_origin="registered")]
    assert [line for line in shown(answers) if "?" in line][-1] == explained
    assert explained not in shown([answer(22, "open"), answer(25, "filtered")])
    many = [answer(n, "filtered", service="smtp", service_origin="registered") for n in range(1000, 1100)]
    assert explained not in shown([answer(22, "open"), *many]), "counted answers have no row"


def test_the_table_of_an_address():
    answers = [
        answer(443, service="https", rtt_ms=0.123),
        answer(22, service="ssh", rtt_ms=1234.5),
        answer(25, "filtered", PROHIBITED, rtt_ms=20.0),
        *(answer(p, "closed") for p in range(1000, 1997)),
    ]
    assert shown(answers) == [
        "10.0.0.1",
        "PORT  PROTOCOL  STATE     SERVICE  EVIDENCE                        RTT",
        "  22  tcp       open      ssh      SYN/ACK                     1234 ms",
        "  25  tcp       filtered           ICMP 3/13 from 10.0.0.254  20.00 ms",
        " 443  tcp       open      https    SYN/ACK                     0.12 ms",
        "997 closed (RST: ECONNREFUSED)",
        "",
    ]


@pytest.mark.parametrize(("count", "counted"), [(FEW, False), (FEW + 1, True)])
def test_few_silent_ports_are_shown_and_many_are_counted(count, counted):
    lines = shown([answer(1), *(answer(p, "filtered") for p in range(100, 100 + count))])
    assert (f"{count} filtered (no answer)" in lines) is counted
    assert sum(" filtered " in line and "tcp" in line for line in lines) == (0 if counted else count)


def test_closed_ports_are_counted_even_when_there_is_one():
    assert shown([answer(1), answer(2, "closed")])[-2] == "1 closed (RST: ECONNREFUSED)"


def test_each_reason_is_counted_by_itself_the_most_first():
    answers = [answer(p, "closed") for p in range(30)]
    answers += [answer(p, "filtered") for p in range(100, 150)]
    answers += [answer(p, "filtered", PROHIBITED) for p in range(200, 240)]
    assert shown(answers) == [
        "10.0.0.1: 50 filtered (no answer), 40 filtered (ICMP 3/13 from 10.0.0.254), 30 closed (RST: ECONNREFUSED)",
        "",
    ]


def test_addresses_come_in_their_order_and_alike_ones_on_one_line():
    answers = [answer(1, "closed", address=f"10.0.0.{n}", target="10.0.0.0/24") for n in (10, 9, 2, 3, 4)]
    answers += [answer(1, "closed", address="fd00::1"), answer(1, address="10.0.0.20", target="10.0.0.0/24")]
    lines = shown(answers)
    assert lines[0] == "10.0.0.20"
    assert lines[-2] == "10.0.0.2-10.0.0.4, 10.0.0.9-10.0.0.10, fd00::1: 1 closed (RST: ECONNREFUSED)"


def test_addresses_that_gave_no_answer_are_counted():
    answers = [answer(p, "filtered", address=f"10.0.0.{n}") for n in range(250) for p in range(3)]
    assert shown([*answers, answer(80, address="10.0.0.251")])[-2:] == ["250 addresses gave no answer at all", ""]


def test_addresses_that_no_host_has_are_one_kind_with_the_silent_ones():
    """As without an answer to ARP: some silence, then this kernel reports that the host is unreachable."""
    gone = Evidence("icmp", 113, "EHOSTUNREACH", 3, 1, "10.0.0.200")
    answers = [answer(p, "timeout", SILENCE, address=f"10.0.0.{n}") for n in (7, 8) for p in range(n)]
    answers += [answer(p, "unreachable", gone, address=f"10.0.0.{n}") for n in (7, 8) for p in range(20, 23)]
    assert shown([*answers, answer(1, "closed", address="10.0.0.9")]) == [
        "10.0.0.9: 1 closed (RST: ECONNREFUSED)",
        "",
        "2 addresses gave no answer at all, 2 of them host unreachable (ICMP 3/1 from 10.0.0.200)",
        "",
    ]


def test_an_address_behind_a_firewall_that_answers_has_a_table():
    lines = shown([answer(1, "filtered", PROHIBITED), *(answer(p, "filtered") for p in range(2, 5))])
    assert [line.split()[:3] for line in lines[2:6]] == [[str(p), "tcp", "filtered"] for p in range(1, 5)]


def test_a_name_is_shown_beside_its_address():
    answers = [answer(1, target="www.example"), answer(1, address="10.0.0.2", target="10.0.0.0/24")]
    assert [line for line in shown(answers) if line.startswith("10.")] == ["10.0.0.1 (www.example)", "10.0.0.2"]


def test_one_address_through_two_interfaces_is_two():
    answers = [answer(1, address="fe80::1", target=f"fe80::1%eth{n}", zone=f"eth{n}") for n in (0, 1)]
    assert [line for line in shown(answers) if line.startswith("fe80")] == ["fe80::1%eth0", "fe80::1%eth1"]
    answers = [answer(1, address=f"fe80::{n}", target="fe80::/120%eth0", zone="eth0") for n in (1, 2)]
    assert [line for line in shown(answers) if line.startswith("fe80")] == ["fe80::1%eth0", "fe80::2%eth0"]


def test_a_name_without_address():
    missing = Answer(
        "www.exmaple", None, None, 0, "tcp", "name-not-found", Evidence("resolver", -2, "EAI_NONAME", text="No")
    )
    assert shown([missing])[0] == "www.exmaple: EAI_NONAME: No"


def test_text_of_a_peer_cannot_control_the_terminal():
    hostile = Evidence("reply", text="\x1b]0;owned\x07\u202e")
    lines = shown([answer(53, evidence=hostile, service="a\x1b[31m", protocol="udp")])
    assert all(line.isprintable() for line in lines)
    assert "owned" in lines[2]


@pytest.mark.parametrize("width", [80, 200])
def test_lines_fit_the_terminal(width):
    long = Evidence("reply", text="a reply that has a great deal to say about what is running there " * 5)
    lines = shown([answer(65535, evidence=long, service="service-with-a-long-name", rtt_ms=99.99)], Style(width))
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) > width - 10
    assert "…" in lines[2]


def test_open_ports_beyond_the_limit_are_still_named(monkeypatch):
    monkeypatch.setattr(scan, "MOST_ROWS", 3)
    lines = shown([answer(p) for p in (1, 2, 3, 10, 11, 12, 20)])
    assert sum("SYN/ACK" in line for line in lines) == 3
    assert "4 more open: 10-12,20" in lines


def test_kinds_of_answers_are_limited():
    """Each ICMP message may claim another sender."""
    answers = [
        answer(p, "filtered", Evidence("icmp", None, None, 3, 13, f"10.9.{p >> 8}.{p & 255}")) for p in range(9000)
    ]
    host = scan.AddressAnswers("10.0.0.1", "10.0.0.1", None)
    for one in answers:
        host.add(one, True)
    assert len(host.counts) <= MOST_KINDS + 1
    assert sum(host.counts.values()) == 9000


def test_many_addresses_are_written_before_the_end(monkeypatch):
    monkeypatch.setattr(scan, "MOST_ADDRESSES", 10)
    parts = list(scan.people((answer(1, address=f"10.0.0.{n}") for n in range(100)), PLAIN))
    assert len(parts) > 10
    headings = [line for lines in parts for line in lines if line.startswith("10.")]
    assert headings == [f"10.0.0.{n}" for n in range(100)]


def test_the_summary():
    check = SelfCheck(1, 4, 0, 7, 0)
    text = scan_report.summary(report(silent=3, repeated=5, self_check=check, outcomes={"closed": 1099, "open": 1}))
    assert text == [
        "1 open, 1,099 closed: 100 ports of 1 address in 2.00 s (50 a second)",
        "3 silent, 5 attempts repeated",
        "self-check: found 4 of 4 canaries, 7 of 7 listening ports",
    ]
    assert scan_report.notes(report(self_check=check)) == []


def test_a_partial_scan_is_marked():
    assert scan_report.summary(report(partial="cancelled", skipped=900))[0] == "partial: interrupted; 900 ports left"
    assert scan_report.summary(report(partial="deadline", skipped=1))[0] == "partial: the time was up; 1 port left"
    assert scan_report.summary(report(skipped=12))[0] == "12 ports not probed"


def test_misses_and_events_are_in_the_notes():
    check = SelfCheck(1, 4, 1, 7, 2, ("canary 127.0.0.1:4000", "127.0.0.1:80"))
    events = tuple(ScanEvent("rate-limit", f"10.0.0.{n}", "refuses 1 a second", 1.0) for n in range(7))
    events += tuple(ScanEvent("breaker", f"10.0.0.{n}", "closed to open", 1.0) for n in (1, 2, 1, 2))
    events += (ScanEvent("descriptors", None, "none left", 1.0),)
    assert (
        scan_report.summary(report(self_check=check))[-1] == "self-check: found 3 of 4 canaries, 5 of 7 listening ports"
    )
    assert scan_report.notes(report(self_check=check, events=events)) == [
        "missed on this machine itself: canary 127.0.0.1:4000, 127.0.0.1:80",
        "probed less, because no answer came: 2 addresses",
        *(f"10.0.0.{n}: refuses 1 a second" for n in range(5)),
        "and 3 events more; --json has them",
    ]


def test_a_host_that_came_back_is_not_in_the_notes():
    came_back = ScanEvent("breaker", "10.0.0.1", "half-open to closed: it has answered", 2.0)
    events = tuple(ScanEvent("breaker", f"10.0.0.{n}", "closed to open: silence", 1.0) for n in (1, 2))
    (said,) = scan_report.notes(report(events=(*events, came_back)))
    assert said == "probed less, because no answer came: 1 address"


def test_the_notes_name_the_option_for_ports_that_were_not_probed():
    events = (ScanEvent("breaker", "10.0.0.1", "closed to open", 1.0),)
    (said,) = scan_report.notes(report(events=events, skipped=80))
    assert said == "probed less, because no answer came: 1 address; --no-breaker probes all their ports"
    (said,) = scan_report.notes(report(events=events, skipped=80, partial="deadline"))  # that is another reason
    assert "--no-breaker" not in said


@given(st.sets(st.integers(1, 300)))
def test_ranges_name_every_port(ports):
    text = port_ranges(sorted(ports))
    named = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(ports)


# --- for programs --------------------------------------------------------------------------------------------------

ANSWERS = [
    answer(22, rtt_ms=0.5, service="ssh"),
    answer(23, "closed", address="10.0.0.2", target="www.example"),
    answer(25, "filtered", PROHIBITED, attempts=2),
    answer(53, "open", Evidence("reply", text='say "no"\n, ü'), protocol="udp", service="domain"),
    Answer("nonesuch", None, None, 0, "tcp", "name-not-found", Evidence("resolver"), attempts=0),
]
FIELDS = ["target", "address", "zone", "port", "protocol", "outcome", "evidence", "rtt_ms", "attempts", "service"]
FIELDS += ["service_origin", "pid", "process", "banner"]


def written(form, answers=ANSWERS):
    return b"".join(scan_formats.FORMATS[form](iter(answers), report))


def test_jsonl_is_one_row_a_port():
    rows = [json.loads(line) for line in written("jsonl").splitlines()]
    assert [list(row) for row in rows] == [FIELDS] * len(ANSWERS)
    assert [msgspec.convert(row, Answer) for row in rows] == ANSWERS


def test_json_is_the_same_rows_and_the_report():
    whole = json.loads(written("json"))
    assert list(whole) == ["schema", "answers", "report"]
    assert whole["answers"] == [json.loads(line) for line in written("jsonl").splitlines()]
    assert msgspec.convert(whole["report"], Report) == report()


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_the_report_is_taken_after_the_last_answer(form):
    order = []

    def answers():
        yield from ANSWERS
        order.append("end")

    def finished():
        order.append("report")
        return report()

    for _ in scan_formats.FORMATS[form](answers(), finished):
        pass
    assert order == (["end", "report"] if form == "json" else ["end"])


def test_no_answers_are_well_formed_too():
    assert json.loads(written("json", []))["answers"] == []
    assert written("jsonl", []) == b""
    assert len(list(csv.reader(io.StringIO(written("csv", []).decode())))) == 1


def test_csv_has_the_same_values_flat():
    rows = list(csv.DictReader(io.StringIO(written("csv").decode(), newline="")))
    for row, one in zip(rows, ANSWERS, strict=True):
        facts = {**msgspec.to_builtins(one), **msgspec.to_builtins(one.evidence), "evidence": one.evidence.kind}
        del facts["kind"]
        assert row == {name: "" if value is None else safe(str(value)) for name, value in facts.items()}


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_an_open_port_is_written_at_once(form):
    """Somebody may be waiting for it, and the next answer may be long in coming."""
    taken = []

    def answers():
        for one in (answer(1, "closed"), answer(2), answer(3, "closed")):
            taken.append(one.port)
            yield one

    for part in scan_formats.FORMATS[form](answers(), report):
        if b"syn-ack" in part:
            break
    assert taken == [1, 2]


# --- for nmap's readers --------------------------------------------------------------------------------------------


def xml(answers, ports=(), protocol="tcp", **more):
    parts: list[bytes] = []
    ports = list(ports) or sorted({a.port for a in answers})
    writer = NmapXml(parts.append, protocol, ports, 'portbook scan <a> & "b"', BEGAN)
    for one in answers:
        writer.add(one)
    writer.finish(report(**more))
    return b"".join(parts).decode()


def parsed(text):
    need(importlib.util.find_spec("libnmap") is not None, "python-libnmap")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libnmap's own
        from libnmap.parser import NmapParser

        return NmapParser.parse_fromstring(text)


def validated(text):
    need(shutil.which("xmllint") is not None, "xmllint (package libxml2-utils)")
    dtd = "/usr/share/nmap/nmap.dtd"
    need(os.path.exists(dtd), f"{dtd} (package nmap-common)")
    done = subprocess.run(
        ["xmllint", "--noout", "--dtdvalid", dtd, "-"], input=text.encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


MANY_ANSWERS = [
    *ANSWERS,
    *(answer(p, "closed") for p in range(1000, 1000 + MANY)),
    *(answer(p, "filtered") for p in range(2000, 2000 + MANY - 1)),
    *(answer(p, "filtered", PROHIBITED) for p in range(3000, 3100)),
    answer(4000, "unreachable", Evidence("icmp", 113, "EHOSTUNREACH", 3, 1, "10.0.0.254")),
    answer(4001, "error", Evidence("errno", 24, "EMFILE")),
    answer(80, address="fd00::1", target="six.example"),
    answer(80, "filtered", address="10.0.0.3"),
]


def test_the_xml_conforms_to_the_dtd():
    validated(xml(MANY_ANSWERS))
    validated(xml([]))
    validated(xml(ANSWERS, partial="cancelled"))


def test_libnmap_reads_the_answers():
    found = parsed(xml([a for a in ANSWERS if a.protocol == "tcp"]))
    assert [(h.address, h.status, h.hostnames) for h in found.hosts] == [
        ("10.0.0.1", "up", []),
        ("10.0.0.2", "up", ["www.example"]),
    ]
    services = {s.port: (s.protocol, s.state, s.reason, s.service) for h in found.hosts for s in h.services}
    assert services == {
        22: ("tcp", "open", "syn-ack", "ssh"),
        23: ("tcp", "closed", "conn-refused", "telnet"),
        25: ("tcp", "filtered", "admin-prohibited", "smtp"),
    }


def test_libnmap_reads_the_frame():
    found = parsed(xml(MANY_ANSWERS, ports=[1, 2, 3, 7], elapsed_s=1.5))
    assert (found.commandline, found.scan_type, found.numservices) == ('portbook scan <a> & "b"', "connect", 4)
    assert (found.started, found.elapsed) == (int(BEGAN.timestamp()), 1.5)
    assert (found.hosts_up, found.hosts_down, found.hosts_total) == (3, 1, 4)
    assert {h.address: h.status for h in found.hosts} == {
        "10.0.0.1": "up", "10.0.0.2": "up", "10.0.0.3": "down", "fd00::1": "up",
    }  # fmt: skip
    assert {h.address: h.hostnames for h in found.hosts}["fd00::1"] == ["six.example"]
    assert found.summary == "portbook done: 100 ports scanned in 1.50 seconds"


@pytest.mark.parametrize(("partial", "ended"), [(None, ("success", None)), ("cancelled", ("error", "cancelled"))])
def test_a_partial_scan_is_marked_in_xml(partial, ended):
    from xml.etree import ElementTree

    (finished,) = ElementTree.fromstring(xml(ANSWERS, partial=partial)).iter("finished")
    assert (finished.get("exit"), finished.get("errormsg")) == ended


def from_xml(text):
    """Port to state and reason, with those that stand in ranges, by the standard library."""
    from xml.etree import ElementTree

    states = []
    for host in ElementTree.fromstring(text).iter("host"):
        address = host.find("address").get("addr")
        for port in host.iter("port"):
            state = port.find("state")
            states.append((address, int(port.get("portid")), state.get("state"), state.get("reason")))
        for extra in host.iter("extraports"):
            reasons = list(extra.iter("extrareasons"))
            assert int(extra.get("count")) == sum(int(r.get("count")) for r in reasons)
            for reason in reasons:
                named = [p.split("-") for p in reason.get("ports").split(",")]
                ports = [n for ends in named for n in range(int(ends[0]), int(ends[-1]) + 1)]
                assert len(ports) == int(reason.get("count"))
                states += [(address, port, extra.get("state"), reason.get("reason")) for port in ports]
    return states


def test_no_port_is_lost_in_ranges():
    text = xml(MANY_ANSWERS)
    found = from_xml(text)
    assert Counter((address, port) for address, port, _, _ in found) == Counter(
        (a.address, a.port) for a in MANY_ANSWERS if a.address
    )
    states = {(address, port): state for address, port, state, _ in found}
    for a in MANY_ANSWERS:
        if a.address:
            assert states[a.address, a.port] == nmap_xml.STATES[a.outcome]
    assert text.count("<extraports ") == 2
    assert 'specification="nonesuch"' in text


@pytest.mark.parametrize(
    ("evidence", "outcome", "reason"),
    [
        (Evidence("syn-ack"), "open", "syn-ack"),
        (Evidence("rst"), "closed", "conn-refused"),
        (Evidence("reply"), "open", "udp-response"),
        (SILENCE, "open|filtered", "no-response"),
        (Evidence("icmp", icmp_type=3, icmp_code=3, sender="10.0.0.1"), "closed", "port-unreach"),
        (Evidence("icmp", icmp_type=3, icmp_code=13, sender="10.0.0.9"), "filtered", "admin-prohibited"),
        (Evidence("icmp", icmp_type=3, icmp_code=10), "filtered", "host-prohibited"),
        (Evidence("icmp", icmp_type=11, icmp_code=0), "unreachable", "time-exceeded"),
        (Evidence("icmp", icmp_type=1, icmp_code=4, sender="fd00::1"), "closed", "port-unreach"),
        (Evidence("icmp", icmp_type=1, icmp_code=1, sender="fd00::1"), "filtered", "admin-prohibited"),
        (Evidence("icmp", icmp_type=3, icmp_code=0, sender="fd00::9"), "unreachable", "time-exceeded"),
        (Evidence("errno", 113, "EHOSTUNREACH"), "unreachable", "host-unreach"),
        (Evidence("errno", 24, "EMFILE"), "error", "unknown-response"),
    ],
)
def test_reasons_are_words_that_nmap_uses(evidence, outcome, reason):
    protocol = "udp" if outcome == "open|filtered" or evidence.kind == "reply" else "tcp"
    text = xml([answer(9, outcome, evidence, address="10.0.0.1", protocol=protocol)], protocol=protocol)
    ((_, _, _, found),) = from_xml(text)
    assert found == reason
    sender = evidence.sender
    assert (f'reason_ip="{sender}"' in text) is (sender not in (None, "10.0.0.1"))


def test_characters_that_xml_cannot_hold_are_replaced():
    text = xml(
        [
            answer(
                53, evidence=Evidence("reply"), service="a\0\x1b<&>\"'\ud800\n", service_origin="reply", protocol="udp"
            )
        ],
        protocol="udp",
    )
    from xml.etree import ElementTree

    (service,) = ElementTree.fromstring(text).iter("service")
    assert service.get("name") == "a\ufffd\ufffd<&>\"'\ufffd\n"
    assert (service.get("method"), service.get("conf")) == ("probed", "10")


def test_many_hosts_are_written_before_the_end(monkeypatch):
    monkeypatch.setattr(nmap_xml, "MOST_HOSTS", 10)
    parts: list[bytes] = []
    writer = NmapXml(parts.append, "tcp", [1], "", BEGAN)
    for n in range(100):
        writer.add(answer(1, address=f"10.0.0.{n}"))
    assert b"".join(parts).count(b"<host>") >= 90
    writer.finish(report())
    assert {a for a, _, _, _ in from_xml(b"".join(parts).decode())} == {f"10.0.0.{n}" for n in range(100)}


# --- memory --------------------------------------------------------------------------------------------------------


def held(form, count, outcome, evidence):
    """The most memory that a writer holds while so many answers pass through."""
    answers = (answer(n % 65535 + 1, outcome, evidence, f"10.0.0.{n // 65535}", "10.0.0.0/24") for n in range(count))
    if form == "people":
        parts = scan.people(answers, Style(80))
    elif form == "xml":
        parts = iter(lambda: None, None)
        writer = NmapXml(lambda part: None, "tcp", [1], "", BEGAN)
        parts = (writer.add(one) for one in answers)
    else:
        parts = scan_formats.FORMATS[form](answers, report)
    tracemalloc.start()
    for _ in parts:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("form", ["people", "json", "jsonl", "csv", "xml"])
@pytest.mark.parametrize("outcome", ["closed", "filtered", "open"])
def test_memory_does_not_grow_with_the_number_of_answers(monkeypatch, form, outcome):
    """But for a few bytes a port, for the ranges of XML and of open ports beyond the limit; an answer has 150."""
    monkeypatch.setattr(scan, "MOST_ROWS", 1000)
    evidence = {"closed": RST, "filtered": SILENCE, "open": SYN_ACK}[outcome]
    small, large = held(form, 5_000, outcome, evidence), held(form, 25_000, outcome, evidence)
    assert large < small + 20_000 * 50
