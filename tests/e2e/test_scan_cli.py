"""``portbook scan`` as a user runs it, against listeners on loopback."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import warnings
from contextlib import ExitStack
from xml.etree import ElementTree

import pytest

from portbook.cli.progress import format_progress
from portbook.cli.scan import command as scan_command
from portbook.cli.survey import Interrupt
from tests.components import need
from tests.e2e.terminal import ENVIRONMENT, assert_complaint, shown, without_colour
from tests.listeners import peer_may_vanish

COMMAND = [sys.executable, "-m", "portbook", "scan"]
on_unix = pytest.mark.skipif(os.name != "posix", reason="signals, links and terminals of Unix")
NO_NAME = "nosuch.invalid"  # RFC 6761 section 6.4: never resolves


def run(*arguments, **more):
    more = {"capture_output": True, "timeout": 120, "encoding": "utf-8", "env": ENVIRONMENT, **more}
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **more)


@pytest.fixture(scope="module")
def ports():
    """Twenty ports with a listener and twenty without, all on an address of their own."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server((HOST, 0), backlog=128)) for _ in range(20)]
        listening = [server.getsockname()[1] for server in servers]
        with ExitStack() as free:
            some = [free.enter_context(socket.create_server((HOST, 0))) for _ in range(20)]
            closed = [server.getsockname()[1] for server in some]
        yield listening, closed


HOST = "127.45.67.89"


def listed(*groups):
    return ",".join(str(port) for group in groups for port in group)


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("", "TARGET", "--help"),
    ("0.0.0.0/0", "4,294,967,296 addresses", "/8"),
    ("10.0.0.20-10.0.0.1", "runs backwards", "10.0.0.1-10.0.0.20"),
    ("10.0.0.300", "not an address", "0 to 255"),
    ("127.0.0.1:80 127.0.0.2:443", "the same ports for every target", "portbook scan 127.0.0.1 127.0.0.2 -p PORTS"),
    ("127.0.0.1/33", "not a network", "10.0.0.0/24"),
    ("fe80::1", "its interface", "fe80::1%eth0"),
    ("@/nonesuch", "'/nonesuch'", "No such file"),
    ("8.8.8.8", "globally routable", "--allow-public"),
    ("8.8.8.0/24 -p 80", "globally routable", "--allow-public"),
    ("127.0.0.1 -p 0", "port '0'", "1 to 65535"),
    ("127.0.0.1 -p 65536", "port '65536'", "1 to 65535"),
    ("127.0.0.1 -p 80-70", "port '80-70'", "70-80"),
    ("127.0.0.1 -p nosuch", "port 'nosuch'", "write 8080"),
    ("127.0.0.1 -p @nonesuch", "'@nonesuch'", "@web, @db"),
    ("127.0.0.1 --udp -p @mail", "'@mail' over UDP", "@web"),
    ("127.0.0.1 --timeout 0", "timeout 0", "above 0"),
    ("127.0.0.1 --timeout soon", "'soon'", "--help"),
    ("127.0.0.1 --rate -5", "rate -5", "above 0"),
    ("127.0.0.1 --deadline nan", "deadline", "nan"),
    ("127.0.0.1 --retries -1", "retries -1", "0 to 1000"),
    ("127.0.0.1 --concurrency 0", "concurrency 0", "1 or more"),
    ("127.0.0.1 --json --nmap-xml -", "--json and --nmap-xml -", "file"),
    ("127.0.0.1 --nonesuch", "--nonesuch", "see portbook scan --help"),
]


@pytest.mark.parametrize(("line", "wrong", "valid"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(line, wrong, valid):
    assert_complaint(run(*line.split()), wrong, valid)


def test_the_examples_of_the_help_are_understood():
    examples = re.findall(r"^ *portbook scan (.*)$", scan_command.help.partition("Examples:")[2], re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        assert scan_command.make_context("scan", shlex.split(example)).params["targets"]


# --- answers -------------------------------------------------------------------------------------------------------


def test_people_get_a_table_and_a_summary(ports):
    listening, closed = ports
    done = run(HOST, "-p", listed(listening, closed))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == HOST
    assert lines[1].split() == ["PORT", "PROTOCOL", "STATE", "SERVICE", "EVIDENCE", "RTT", "PROCESS"]
    rows = [line.split() for line in lines[2:22]]
    assert [int(row[0]) for row in rows] == sorted(listening)
    assert {row[2] for row in rows} == {"open"}
    assert re.fullmatch(r"20 closed \(RST.*\)", lines[22])
    assert lines[24].startswith("20 open, 20 closed: 40 ports of 1 address in ")
    assert lines[-1] == "self-check: found 4 of 4 canaries, 20 of 20 listening ports"


def test_a_minus_is_every_port_as_in_nmap():
    done = run(HOST, "-p-", "--open", "--deadline", "0.05")
    assert done.returncode in (0, 1)
    assert ": 65,535 ports of 1 address in " in done.stdout


def test_without_an_open_port_the_exit_code_is_1(ports):
    done = run(HOST, "-p", listed(ports[1]))
    assert (done.returncode, done.stderr) == (1, "")
    assert "20 closed" in done.stdout


def test_only_open(ports):
    done = run(HOST, "-p", listed(*ports), "--open", "--jsonl")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(row["port"] for row in rows) == sorted(ports[0])


def test_all_formats_have_the_same_answers(ports):
    listening, closed = ports
    arguments = [HOST, "-p", listed(listening, closed)]
    whole = json.loads(run(*arguments, "--json").stdout)
    lines = [json.loads(line) for line in run(*arguments, "--jsonl").stdout.splitlines()]
    cells = list(csv.DictReader(io.StringIO(run(*arguments, "--csv").stdout, newline="")))
    expected = dict.fromkeys(listening, "open") | dict.fromkeys(closed, "closed")
    for rows in (whole["answers"], lines, cells):
        assert {int(row["port"]): row["outcome"] for row in rows} == expected
        assert len(rows) == len(expected)
        assert {(row["target"], row["address"], row["protocol"]) for row in rows} == {(HOST, HOST, "tcp")}
    assert {row["evidence"]["kind"] for row in lines} == {"syn-ack", "rst"}
    assert {row["evidence"] for row in cells} == {"syn-ack", "rst"}
    report = whole["report"]
    assert (report["outcomes"], report["partial"]) == ({"open": 20, "closed": 20}, None)
    assert (report["self_check"]["canaries_missed"], report["self_check"]["known_missed"]) == (0, 0)


def test_a_network_and_a_file_of_targets(ports, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text(f"# ours\n{HOST}/30\n")
    done = run(f"@{hosts}", HOST, "-p", ports[0][0], "--jsonl")
    rows = {row["address"]: row["outcome"] for row in map(json.loads, done.stdout.splitlines())}
    assert rows == {f"127.45.67.{n}": "open" if n == 89 else "closed" for n in (88, 89, 90, 91)}


@pytest.mark.skipif(not socket.has_ipv6, reason="IPv6")
def test_ipv6():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        done = run("::1", "-p", server.getsockname()[1], "--jsonl")
    assert (json.loads(done.stdout)["address"], json.loads(done.stdout)["outcome"]) == ("::1", "open")


def test_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as gone:
        server.bind((HOST, 0))
        gone.bind((HOST, 0))
        answering, closed = server.getsockname()[1], gone.getsockname()[1]
        gone.close()

        def answer():
            for _ in range(10):
                data, sender = server.recvfrom(4096)
                if not data and sender[1] == answering:
                    return
                with peer_may_vanish():
                    server.sendto(b"hello", sender)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            done = run(HOST, "--udp", "-p", f"{answering},{closed}", "--json")
        finally:
            server.sendto(b"", (HOST, answering))
            thread.join(10)
    whole = json.loads(done.stdout)
    assert {row["port"]: (row["protocol"], row["outcome"]) for row in whole["answers"]} == {
        answering: ("udp", "open"),
        closed: ("udp", "closed"),
    }
    check = whole["report"]["self_check"]
    assert (check["canaries"], check["canaries_missed"], check["known"]) == (4, 0, None)
    assert done.returncode == 0


def test_a_name_without_address_is_reported_and_exits_with_5_when_alone(ports):
    alone = run(NO_NAME, "-p", 80)
    assert alone.returncode == 5
    assert alone.stdout.startswith(f"{NO_NAME}: ")
    beside = run(NO_NAME, HOST, "-p", ports[0][0], "--open", "--jsonl")
    with pytest.raises(socket.gaierror) as caught:
        socket.getaddrinfo(NO_NAME, 80)
    # Where no resolver can be reached, nobody knows that there is no such name.
    failed = "name-not-found" if caught.value.errno == socket.EAI_NONAME else "lookup-failed"
    assert [json.loads(line)["outcome"] for line in beside.stdout.splitlines()] == [failed, "open"]
    assert beside.returncode == 0


@on_unix
def test_a_miss_is_named():
    """A listener whose queue is full does not answer: the tables list it, the scan does not find it."""
    with socket.socket() as deaf, ExitStack() as stack:
        deaf.bind((HOST, 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        for _ in range(4):  # the queue takes one more than it says (listen(2)), and then SYNs are dropped
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((HOST, port))
        done = run(HOST, "-p", port, "--timeout", 0.2, "--retries", 0)
    assert done.returncode == 1
    assert "found 4 of 4 canaries, 0 of 1 listening port" in done.stdout
    assert done.stderr == f"portbook: missed on this machine itself: {HOST}:{port}\n"


def test_a_deadline_makes_it_partial(ports):
    arguments = [HOST, "-p", "1-1000", "--rate", 20, "--deadline", 0.5]
    done = run(*arguments, "--json")
    report = json.loads(done.stdout)["report"]
    assert report["partial"] == "deadline"
    assert report["skipped"] == 1000 - report["asked"] > 0
    people = run(*arguments)
    assert re.search(r"^partial: the time was up; \d+ ports left$", people.stdout, re.MULTILINE)


def test_json_lines_that_are_partial_are_reported():
    done = run(HOST, "-p", "1-1000", "--rate", 20, "--deadline", 0.3, "--jsonl")
    assert done.stderr.startswith("portbook: partial: the time was up; ")


def test_the_deadline_is_reported_once():
    """Canaries sit on some of so many ports, which would be asked when they are gone."""
    report = json.loads(run(HOST, "-p", "1-65535", "--rate", 50, "--deadline", 0.3, "--json").stdout)["report"]
    assert [event["kind"] for event in report["events"]] == ["deadline"]
    assert (report["partial"], report["skipped"]) == ("deadline", 65535 - report["asked"])


# --- Ctrl-C --------------------------------------------------------------------------------------------------------


def interrupted(*arguments):
    """Run slowly, and press Ctrl-C when the scan is under way: when the third of some listeners was connected to.

    Return what it wrote, and the ports of the first two.
    """
    with ExitStack() as stack:
        servers = {}
        for _ in range(20):
            server = stack.enter_context(socket.create_server((HOST, 0), backlog=64))
            servers[server.fileno()] = server
        listening = [server.getsockname()[1] for server in servers.values()]
        process = stack.enter_context(
            subprocess.Popen(
                [*COMMAND, HOST, "-p", f"1-400,{listed(listening)}", "--rate", "100", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                env=ENVIRONMENT,
            )
        )
        found = []
        while len(found) < 3:
            ready, _, _ = select.select(list(servers), [], [], 60)
            assert ready, "it connects"
            found += [servers.pop(ready[0]).getsockname()[1]]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return output, errors, set(found[:2])


@on_unix
def test_ctrl_c_shows_people_what_is_known():
    output, _, found = interrupted()
    assert found <= {int(port) for port in re.findall(r"^ *(\d+) +tcp +open ", output, re.MULTILINE)}
    assert re.search(r"^partial: interrupted; \d+ ports left$", output, re.MULTILINE)


@on_unix
def test_ctrl_c_leaves_whole_json():
    output, _, found = interrupted("--json")
    whole = json.loads(output)
    assert whole["report"]["partial"] == "cancelled"
    opened = [row["port"] for row in whole["answers"] if row["outcome"] == "open"]
    assert found <= set(opened)
    assert whole["report"]["outcomes"]["open"] == len(opened)
    assert whole["report"]["asked"] == len(whole["answers"]) < 420


@on_unix
@pytest.mark.parametrize("form", ["--jsonl", "--csv"])
def test_ctrl_c_leaves_whole_lines_and_reports_that_some_are_missing(form):
    output, errors, found = interrupted(form)
    if form == "--jsonl":
        rows = [json.loads(line) for line in output.splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(output, newline="")))
        assert all(row["service"] is not None for row in rows), "no line is cut"
    assert found <= {int(row["port"]) for row in rows if row["outcome"] == "open"}
    assert errors.startswith("portbook: partial: interrupted; ")


@on_unix
def test_ctrl_c_leaves_whole_xml(tmp_path):
    path = tmp_path / "scan.xml"
    _, _, found = interrupted("--nmap-xml", path)
    root = ElementTree.parse(path).getroot()
    assert found <= {int(p.get("portid")) for p in root.iter("port") if p.find("state").get("state") == "open"}
    assert root.find("runstats/finished").get("exit") == "error"


class Running:
    """A scan whose third answer is still to come when Ctrl-C is pressed."""

    def __init__(self):
        self.latest = None
        self.closed = False

    def __next__(self):
        self.latest = f"answer {1 if self.latest is None else int(self.latest[-1]) + 1}"
        if self.latest == "answer 3":
            raise KeyboardInterrupt
        return self.latest

    def close(self):
        self.closed = True


def test_an_answer_that_was_on_its_way_is_not_lost():
    running, interrupt = Running(), Interrupt()
    assert list(interrupt.until(running)) == ["answer 1", "answer 2", "answer 3"]
    assert running.closed


@on_unix
def test_what_is_being_written_is_completed_and_a_second_ctrl_c_waits_for_nothing():
    running = Running()
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        stream = interrupt.until(running)
        assert next(stream) == "answer 1"
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        assert list(stream) == []
        assert running.closed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# --- nmap's XML ----------------------------------------------------------------------------------------------------


def parsed(path):
    need(importlib.util.find_spec("libnmap") is not None, "python-libnmap")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libnmap's own
        from libnmap.parser import NmapParser

        return NmapParser.parse_fromfile(str(path))


def test_libnmap_reads_the_same_answers(ports, tmp_path):
    listening, closed = ports
    path = tmp_path / "scan.xml"
    done = run(f"{HOST}-90", "-p", listed(listening, closed), "--jsonl", "--nmap-xml", path)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = parsed(path)
    assert {h.address for h in found.hosts} == {HOST, "127.45.67.90"}
    (host,) = [h for h in found.hosts if h.address == HOST]
    assert host.status == "up"
    assert {(s.port, s.protocol, s.state) for s in host.services} == {
        (row["port"], row["protocol"], row["outcome"]) for row in rows if row["address"] == HOST
    }
    assert {row["outcome"] for row in rows if row["address"] != HOST} == {"closed"}
    assert found.commandline.endswith(f"--nmap-xml {path}")
    assert sorted(os.listdir(tmp_path)) == ["scan.xml"]


def test_xml_instead_of_anything_else(ports):
    done = run(HOST, "-p", listed(ports[0]), "--nmap-xml", "-")
    root = ElementTree.fromstring(done.stdout)
    assert {int(p.get("portid")) for p in root.iter("port")} == set(ports[0])
    assert (done.returncode, done.stderr) == (0, "")


@on_unix
def test_the_file_replaces_an_older_one_and_keeps_its_permissions(ports, tmp_path):
    path = tmp_path / "scan.xml"
    path.write_text("old")
    path.chmod(0o600)
    assert run(HOST, "-p", ports[0][0], "--nmap-xml", path).returncode == 0
    assert path.read_text().startswith("<?xml")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_scan_that_cannot_begin_leaves_the_older_file(tmp_path):
    path = tmp_path / "scan.xml"
    path.write_text("old")
    assert run("8.8.8.8", "-p", 80, "--nmap-xml", path).returncode == 2
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["scan.xml"]


@on_unix
def test_while_the_scan_runs_the_older_file_is_there(tmp_path):
    path = tmp_path / "scan.xml"
    path.write_text("old")
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        arguments = [HOST, "-p", f"{port},1-500", "--rate", "200", "--nmap-xml", str(path)]
        with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
            server.accept()[0].close()
            assert path.read_text() == "old"
            process.kill()
    assert path.read_text() == "old"


@pytest.fixture
def shared(tmp_path):
    """A directory that everybody can write, as /tmp."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


@on_unix
def test_a_symbolic_link_in_a_shared_directory_is_not_followed(shared, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (shared / "scan.xml").symlink_to(victim)
    done = run("127.0.0.1", "-p", 1, "--nmap-xml", shared / "scan.xml")
    assert (done.returncode, done.stdout) == (5, "")
    (said,) = done.stderr.splitlines()
    assert "link" in said
    assert victim.read_text() == "precious"


@on_unix
def test_a_symbolic_link_of_the_user_is_followed(ports, tmp_path):
    real = tmp_path / "real.xml"
    real.write_text("old")
    (tmp_path / "scan.xml").symlink_to("real.xml")
    assert run(HOST, "-p", ports[0][0], "--nmap-xml", tmp_path / "scan.xml").returncode == 0
    assert (tmp_path / "scan.xml").is_symlink()
    assert real.read_text().startswith("<?xml")


@on_unix
@pytest.mark.parametrize("path", ["/nonesuch/scan.xml", "/dev/null", "/", ""])
def test_a_file_that_cannot_be_written_is_one_line_and_5(path):
    done = run("127.0.0.1", "-p", 1, "--nmap-xml", path)
    assert (done.returncode, done.stdout) == (5, "")
    assert len(done.stderr.splitlines()) == 1


# --- pipes and terminals -------------------------------------------------------------------------------------------


@on_unix
def test_a_closed_pipe_ends_it_quietly():
    with subprocess.Popen(
        [*COMMAND, HOST, "-p", "1-20000", "--jsonl"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert len(os.read(process.stdout.fileno(), 10)) == 10
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0
    assert errors == b""


@on_unix
def test_a_full_disk_is_one_line_and_5():
    need(os.path.exists("/dev/full"), "/dev/full")
    with open("/dev/full", "wb") as full:
        done = run(HOST, "-p", "1-2000", "--jsonl", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1


@on_unix
@pytest.mark.parametrize("columns", [80, 200])
def test_lines_fit_the_terminal(ports, columns):
    text = shown([*COMMAND, HOST, "-p", listed(*ports)], columns)[0]
    assert "\x1b[1m" in text
    lines = without_colour(text).splitlines()
    assert lines[0] == HOST
    assert sum(" open " in line for line in lines) == 20
    assert max(map(len, lines)) <= columns


class Half:
    """Something half done."""

    total, done, found = 2000, 1000, 3


@pytest.mark.parametrize(
    ("total", "elapsed_s", "words"),
    [
        (2000, 0.0, "1,000 of 2,000, 3 open"),
        (2000, 10.0, "1,000 of 2,000, 3 open, 100/s, 0:00:10 left"),
        (2000, 7322.0, "1,000 of 2,000, 3 open, 0/s, 2:02:02 left"),
        (None, 1.0, "looking up names"),
    ],
)
def test_progress_in_words(monkeypatch, total, elapsed_s, words):
    monkeypatch.setattr(Half, "total", total)
    assert format_progress(Half(), elapsed_s) == words


@on_unix
def test_progress_is_on_a_terminal_only(ports):
    slow = [HOST, "-p", listed(*ports), "--rate", 60]
    progress, _ = shown([*COMMAND, *slow, "--jsonl"], 120, "stderr")
    assert " of 40, " in progress
    assert "/s, 0:00:0" in progress
    assert run(*slow).stderr == ""


def test_without_a_terminal_nothing_heavy_is_imported(ports):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], HOST, "-p", str(ports[0][0])],
        capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "portbook.scanner.run" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("rich", "asyncio", "psutil", "xml")}
