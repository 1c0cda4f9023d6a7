"""No renderer lets a text of others through: to a terminal no control character, and machine formats stay valid."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from random import Random
from xml.etree import ElementTree

import pytest

from portbook.bind.free import Free
from portbook.dialing import Dial, DialedAddress
from portbook.escaping import safe
from portbook.probe.outcome import Answer
from portbook.records import Holding, Listing, Socket
from portbook.render import (
    dial,
    free,
    holding,
    machine,
    nmap_xml,
    plain,
    policy,
    policy_difference,
    policy_explanation,
    scan,
    scan_formats,
    scan_report,
    stop,
    verdict,
)
from portbook.render.text import BOLD, DIM, PLAIN, RED, YELLOW, Column, Style, table, wrap
from portbook.scanner.report import Report
from portbook.stop.records import StopPlan, StopReport
from portbook.verdict.judge import Verdict
from portbook.watching.assessment import PolicyReport
from portbook.watching.policy.difference import PolicyDifference
from portbook.watching.policy.explanation import PolicyExplanation
from tests.render import hostile

STYLES = [Style(), Style(80), Style(30, ellipsis="~"), Style(200, colour=True)]
SEEDS = range(10)
COLOURS = re.compile("|".join(map(re.escape, (BOLD, YELLOW, RED, DIM, PLAIN))))


def many(random: Random, kind: type, **fixed):
    return [hostile.record(random, kind, **fixed) for _ in range(random.randrange(4))]


def answers(random: Random):
    """A name without an address has no other outcome."""
    for answer in many(random, Answer):
        if (answer.address is None) == (answer.outcome == "name-not-found"):
            yield answer


def dialed(random: Random) -> Dial:
    """A name without an address has one entry too."""
    addresses = (hostile.record(random, DialedAddress), *many(random, DialedAddress))
    return hostile.record(random, Dial, addresses=addresses)


def summary(random: Random, style: Style) -> list[str]:
    report = hostile.record(random, Report, outcomes={"open": 5})
    return [*scan_report.summary(report), *map(safe, scan_report.notes(report))]  # the command escapes notes


def report(random: Random) -> PolicyReport:
    return hostile.record(random, PolicyReport, counts={"allowed": 1, "violation": 2, "undecided": 3})


LINES = {
    "list": lambda random, style: plain.lines(
        many(random, Socket) or [hostile.record(random, Socket)], style, netns=True
    ),
    "list-wide": lambda random, style: plain.lines([hostile.record(random, Socket)], style, wide=True),
    "who": lambda random, style: holding.lines(many(random, Holding), style),
    "why": lambda random, style: verdict.lines(hostile.record(random, Verdict), style),
    "stop-plan": lambda random, style: stop.plan_lines(hostile.record(random, StopPlan), (), style),
    "stop": lambda random, style: stop.lines(many(random, StopReport), style),
    "dial": lambda random, style: dial.lines(dialed(random), style),
    "scan": lambda random, style: [line for part in scan.people(answers(random), style) for line in part],
    "scan-report": summary,
    "table": lambda random, style: table([Column("A", 1), Column("B")], [[hostile.text(random)] * 2], style),
    "wrap": lambda random, style: wrap(hostile.text(random), style),
    "policy-check": lambda random, style: policy.lines(report(random), style, every=True),
    "policy-explain": lambda random, style: policy_explanation.lines(hostile.record(random, PolicyExplanation), style),
    "policy-diff": lambda random, style: policy_difference.lines(hostile.record(random, PolicyDifference), style),
    "free": lambda random, style: [free.caution(hostile.record(random, Free))],
}


@pytest.mark.parametrize("name", LINES)
def test_no_line_has_an_unprintable_character(name):
    written = 0
    for seed in SEEDS:
        for style in STYLES:
            for line in LINES[name](Random(seed), style):
                text = COLOURS.sub("", line) if style.colour else line
                assert text.isprintable(), f"seed {seed}: {text!r}"
                written += 1
    assert written


def in_utf8(parts: Iterable[bytes]) -> str:
    """The whole output as text without line ends, which is printable."""
    text = b"".join(parts).decode()
    assert text.endswith("\n")
    assert text.replace("\r\n", "").replace("\n", "").isprintable()
    return text


def objects(parts: Iterable[bytes]) -> list[object]:
    """Each line is an object, for a strict parser, which refuses NaN and lone surrogates."""
    found = []
    for line in in_utf8(parts).splitlines():
        found.append(json.loads(line, parse_constant=pytest.fail))
        json.dumps(found[-1], ensure_ascii=False).encode()
    return found


JSON_LINES = {
    "jsonl": (lambda records: machine.jsonl(hostile.record(Random(0), Listing, sockets=tuple(records))), Socket),
    "who": (holding.json, Holding),
    "why": (lambda records: map(verdict.json, records), Verdict),
    "stop": (stop.json, StopReport),
    "free": (lambda records: (part for one in records for part in free.json(one)), Free),
    "dial": (dial.json, Dial),
    "scan": (lambda records: scan_formats.jsonl(records, lambda: None), Answer),
    "policy-check": (lambda records: (part for one in records for part in policy.json(one)), PolicyReport),
    "policy-explain": (
        lambda records: (part for one in records for part in policy_explanation.json(one)),
        PolicyExplanation,
    ),
    "policy-diff": (
        lambda records: (part for one in records for part in policy_difference.json(one)),
        PolicyDifference,
    ),
    "sources": (lambda records: (machine.ENCODER.encode({"why_not": one.zone}) + b"\n" for one in records), Socket),
}


@pytest.mark.parametrize("name", JSON_LINES)
def test_lines_of_json_are_valid_to_the_end(name):
    write, kind = JSON_LINES[name]
    for seed in SEEDS:
        random = Random(seed)
        records = [hostile.record(random, kind) for _ in range(3)]
        assert len(objects(write(records))) == 3


def test_json_of_a_listing_is_valid_to_the_end():
    for seed in SEEDS:
        listing = hostile.record(Random(seed), Listing)
        whole = json.loads(in_utf8(machine.json(listing)))
        assert len(whole["sockets"]) == len(listing.sockets)
        assert len(whole["gaps"]) == len(listing.gaps)


def test_json_of_a_scan_is_valid_to_the_end():
    for seed in SEEDS:
        random = Random(seed)
        rows, report = many(random, Answer), hostile.record(random, Report)
        whole = json.loads(in_utf8(scan_formats.json(rows, lambda report=report: report)))
        assert len(whole["answers"]) == len(rows)


@pytest.mark.parametrize("part", [part for part in hostile.PARTS if not any("\ud800" <= c <= "\udfff" for c in part)])
def test_json_changes_no_text(part):
    """An escape is the same text for who parses it."""
    assert json.loads(machine.ENCODER.encode({part: [part]})) == {part: [part]}


def test_a_surrogate_is_a_replacement_character():
    assert json.loads(machine.ENCODER.encode(["a\udcffb", {"\ud800": 2**64 - 1}])) == [
        "a\ufffdb",
        {"\ufffd": 2**64 - 1},
    ]


CSV = {
    "list": (lambda records: machine.csv(hostile.record(Random(0), Listing, sockets=tuple(records))), Socket),
    "scan": (lambda records: scan_formats.csv(records, lambda: None), Answer),
}


@pytest.mark.parametrize("name", CSV)
def test_csv_is_valid_and_no_cell_is_a_formula(name):
    """A spreadsheet takes what begins with = + - or @ for a formula, which can run programs (OWASP, CSV Injection)."""
    write, kind = CSV[name]
    for seed in SEEDS:
        random = Random(seed)
        text = in_utf8(write([hostile.record(random, kind) for _ in range(3)]))
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        assert len(rows) == 3
        for row in rows:
            assert len(row) == len(header)
            assert not [cell for cell in row if cell[:1] in tuple("=+-@\t\r\n\uff1d") if cell]


def test_xml_is_valid_to_the_end():
    for seed in SEEDS:
        random = Random(seed)
        parts: list[bytes] = []
        writer = nmap_xml.NmapXml(parts.append, "tcp", [80], hostile.text(random), datetime.now(UTC))
        rows = [*answers(random)]
        for answer in rows:
            writer.add(answer)
        writer.finish(hostile.record(random, Report))
        root = ElementTree.fromstring(in_utf8(parts))
        assert root.tag == "nmaprun"
        assert root.find("runstats/finished") is not None
