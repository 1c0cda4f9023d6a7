"""``scan`` and ``probe`` as another program starts them: formats, files, exit codes."""

from __future__ import annotations

import csv
import io
import json
import socket
from xml.etree import ElementTree

import pytest

from tests.listeners import listening, portbook, refusing

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def ports():
    """Open and closed ones."""
    with listening(HOST, each=5) as places, refusing() as (_, closed):
        yield [port for _, port in places], closed


def asked(ports):
    return ",".join(map(str, (*ports[0], ports[1])))


def test_a_table_for_people(ports):
    done = portbook("scan", HOST, "-p", asked(ports))
    rows = [line.split() for line in done.stdout.splitlines()]
    assert {int(row[0]) for row in rows if row[1:3] == ["tcp", "open"]} == set(ports[0])
    assert "5 open, 1 closed: 6 ports of 1 address in " in done.stdout
    assert "self-check: found 4 of 4 canaries, 5 of 5 listening ports" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_json_lines_csv_and_json_have_the_same_answers(ports):
    expected = dict.fromkeys(ports[0], "open") | {ports[1]: "closed"}
    lines = [json.loads(line) for line in portbook("scan", HOST, "-p", asked(ports), "--jsonl").stdout.splitlines()]
    cells = list(csv.DictReader(io.StringIO(portbook("scan", HOST, "-p", asked(ports), "--csv").stdout)))
    whole = json.loads(portbook("scan", HOST, "-p", asked(ports), "--json").stdout)
    for rows in (lines, cells, whole["answers"]):
        assert {int(row["port"]): row["outcome"] for row in rows} == expected
    assert {row["evidence"]["error"] for row in lines if row["outcome"] == "closed"} <= {
        "ERROR_CONNECTION_REFUSED",
        "WSAECONNREFUSED",
    }


def test_nmaps_xml_takes_the_place_of_an_older_file(ports, tmp_path):
    path = tmp_path / "scan.xml"
    path.write_text("old")
    assert portbook("scan", HOST, "-p", asked(ports), "--nmap-xml", path).returncode == 0
    root = ElementTree.parse(path).getroot()
    assert {int(p.get("portid")) for p in root.iter("port") if p.find("state").get("state") == "open"} == set(ports[0])


def test_udp_ports_that_are_closed():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((HOST, 0))
        port = holder.getsockname()[1]
    for words in (["scan", HOST, "--udp", "-p", port], ["probe", HOST, port]):
        done = portbook(*words, "--jsonl")
        (answer,) = map(json.loads, done.stdout.splitlines())
        assert (answer["protocol"], answer["port"], answer["outcome"], done.returncode) == ("udp", port, "closed", 1)


def test_only_open_ports_and_no_open_port(ports):
    done = portbook("scan", HOST, "-p", asked(ports), "--open", "--jsonl")
    assert {json.loads(line)["port"] for line in done.stdout.splitlines()} == set(ports[0])
    assert portbook("scan", HOST, "-p", ports[1]).returncode == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("8.8.8.8", "-p", "53"), 2, "--allow-public"),
        ((HOST, "-p", "80-70"), 2, "70-80"),
        (("a" * 64 + ".invalid", "-p", "80", "--json"), 2, "is too long"),
        (("127.1", "-p", "80"), 2, "write 127.0.0.1"),
    ],
)
def test_exit_codes(words, code, said):
    done = portbook("scan", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1 if said else 0)
    assert said in done.stderr


def test_a_deadline_is_kept_and_reported():
    done = portbook("scan", HOST, "-p", "1-1000", "--rate", "20", "--deadline", "0.5", "--json")
    report = json.loads(done.stdout)["report"]
    assert report["partial"] == "deadline"
    assert report["skipped"] == 1000 - report["asked"] > 0
