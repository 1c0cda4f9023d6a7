"""``portbook probe``, with output for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest

from portbook.cli import COMMANDS
from portbook.cli.exits import run
from tests import netlab
from tests.netlab import TARGET, Lab
from tests.scanner.udp.test_engine import REPLY, Responder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")

QUICK = ("--timeout", "0.2")


@pytest.fixture(scope="module")
def lab():
    """Port 4000 answers, 2000 is silent, 2100 is forbidden, others are closed."""
    with netlab.pair() as made:
        made.target.sysctl("net.ipv4.icmp_ratemask", 0)
        made.target.nft("udp dport 2000 drop", "udp dport 2100 reject with icmpx type admin-prohibited")
        with Responder(made.target, [4000]):
            yield made


@pytest.fixture
def probe(lab: Lab, capsys):
    """Run the command in the client's namespace: exit code, stdout, stderr."""
    assert "probe" in COMMANDS

    def call(*words: str) -> tuple[int, str, str]:
        with lab.client:
            code = run(["probe", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_table_for_people(probe) -> None:
    code, table, summary = probe(TARGET, "2000,2100,3000,4000", *QUICK)
    rows = [line.split() for line in table.splitlines()]
    assert code == 0
    assert ["4000", "udp", "open"] in [row[:3] for row in rows]
    assert ["2000", "udp", "open|filtered"] in [row[:3] for row in rows]
    assert any(row[:3] == ["2100", "udp", "filtered"] and "3/13" in row for row in rows)
    assert "1 closed (ICMP 3/3 from 10.77.0.2)" in table
    assert "something of its own" in table
    assert summary.startswith("portbook: 1 open, 1 open|filtered, 1 filtered, 1 closed: 4 ports of 1 address")


def test_json(probe) -> None:
    code, text, _ = probe(TARGET, "3000,4000", "--json", *QUICK)
    result = json.loads(text)
    assert code == 0
    assert {(a["port"], a["outcome"], a["protocol"]) for a in result["answers"]} == {
        (3000, "closed", "udp"),
        (4000, "open", "udp"),
    }
    assert result["report"]["outcomes"] == {"open": 1, "closed": 1}


def test_lines_of_json_and_only_open_ports(probe) -> None:
    code, text, _ = probe(TARGET, "3000,4000", "--jsonl", "--open", *QUICK)
    (answer,) = map(json.loads, text.splitlines())
    assert (code, answer["port"]) == (0, 4000)
    assert answer["evidence"]["text"] == f"{len(REPLY)} bytes: {REPLY.decode()}"


def test_csv(probe) -> None:
    _, text, _ = probe(TARGET, "3000", "--csv", *QUICK)
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["port"], row["outcome"], row["icmp_type"], row["sender"]) == ("3000", "closed", "3", TARGET)


def test_no_open_port_is_exit_code_1(probe) -> None:
    assert probe(TARGET, "3000-3003", *QUICK)[0] == 1


def test_silent_ports_are_shown_at_the_deadline(probe) -> None:
    code, table, summary = probe(TARGET, "2000,4000", "--deadline", "0.5", "--retries", "50")
    assert code == 0
    assert "no answer: the time was up" in table
    assert "partial: the time was up" in summary


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("8.8.8.8", "53"), 2, "8.8.8.8 is globally routable"),
        (("2606:4700:4700::1111", "53"), 2, "--allow-public"),
        (("127.0.0.1", "53-"), 2, "write 53-65535"),
        (("127.0.0.1", "90-80"), 2, "write 80-90"),
        (("127.0.0.1", "53", "--timeout", "-1"), 2, "timeout -1 is invalid"),
        (("nosuchname.invalid", "53"), 5, "nosuchname.invalid: EAI_"),
    ],
)
def test_an_error_is_one_line(probe, words, code, message) -> None:
    exit_code, output, error = probe(*words)
    assert (exit_code, output) == (code, "")
    assert message in error
    assert len(error.splitlines()) == 1


def test_every_address_of_a_name_is_probed(probe) -> None:
    _, text, _ = probe("localhost", "9", "--jsonl", *QUICK)
    addresses = {json.loads(line)["address"] for line in text.splitlines()}
    assert addresses == {place.address for place in look_up("localhost")}


def look_up(name: str):
    from portbook.probe.resolve import look_up

    return look_up(name)
