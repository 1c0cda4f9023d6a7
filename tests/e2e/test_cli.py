"""The command line as a user runs it: another process, its exit code, and what it wrote."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import version

import psutil
import pytest

from portbook import sources, testing
from portbook.escaping import safe
from portbook.testing import child, ports_of
from tests.components import need
from tests.conftest import unheld_port
from tests.e2e import terminal
from tests.e2e.terminal import ENVIRONMENT, assert_complaint, without_colour

pytestmark = pytest.mark.usefixtures("own_network")

COMMAND = [sys.executable, "-m", "portbook"]
on_unix = pytest.mark.skipif(os.name != "posix", reason="pipes, signals and terminals of Unix")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="process names that Linux lets a process choose")


def run(*arguments, env=None, text=True, **more):
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        env={**ENVIRONMENT, **(env or {})},
        **({"encoding": "utf-8"} if text else {}),
        **more,
    )


def good(*arguments, **more):
    """The output of a run, whose only gaps may be owners that are not visible here."""
    done = run(*arguments, **more)
    assert (done.returncode, "Traceback" in str(done.stderr)) == (0, False), done.stderr
    return done.stdout


def listing(*arguments):
    return json.loads(good(*arguments, "--json"))


def listing_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def key(row):
    names = ("protocol", "family", "local_address", "local_port", "remote_address", "remote_port", "state")
    return tuple(row[name] for name in names)


@pytest.fixture(scope="module")
def animals(zoo):
    return [expected for kind in zoo.values() for expected in kind]


@pytest.fixture(scope="module")
def everything(animals):
    """The whole listing, taken while the zoo is open."""
    return listing("--all")


def of_the_zoo(rows, animals):
    opened = {e.identity for e in animals}
    return [row for row in rows if key(row) in opened]


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("--nonesuch", "--nonesuch", "see portbook list --help"),
    ("list --nonesuch", "--nonesuch", "see portbook list --help"),
    ("who 80 --nonesuch", "--nonesuch", "see portbook who --help"),
    ("-x", "-x", "see portbook list --help"),
    ("--jsn", "--jsn", "did you mean --json? see portbook list --help"),
    ("-tulpn", "-l", "listening ports are what is listed without options"),
    ("-ano", "-n", "numbers and owners are always shown"),
    ("who 53 -u", "-u", "write portbook who 53/udp"),
    ("stop -9 80", "-9", "write portbook stop --force 80"),
    ("who tcp 53", "behind the port", "write 53/tcp"),
    ("stop UDP 53", "behind the port", "write 53/udp"),
    ("wait 80 --timeout 1s", "'1s' is not a valid number", "see portbook wait --help"),
    ("free -n many", "'many' is not a valid whole number", "see portbook free --help"),
    ("who -p", "requires an argument", "see portbook who --help"),
    ("--por 80", "--por", "--port"),
    ("nonesuch", "nonesuch", "did you mean portbook list nonesuch? see portbook --help"),
    ("kill 8080", "'kill'", "did you mean portbook stop 8080? see portbook --help"),
    ("stpo 8080 --yes", "'stpo'", "did you mean portbook stop 8080 --yes?"),
    ("netstat -an", "'netstat'", "did you mean portbook list -a?"),
    ("version", "'version'", "did you mean portbook --version?"),
    ("/?", "'/?'", "did you mean portbook help?"),
    ("help kill", "'kill'", "did you mean portbook help stop? see portbook --help"),
    ("help nonesuch", "'nonesuch'", "valid commands are list, who"),
    ("127.1", "'127.1'", "write 127.0.0.1"),
    ("010.91.0.254:80", "read as 10.91.0.254 or as 8.91.0.254", "write the one that is meant"),
    ("example.org:443", "not an address of this machine", "portbook dial example.org:443"),
    ("-p 0", "port '0'", "1 to 65535"),
    ("--port 65536", "port '65536'", "1 to 65535"),
    ("--port 80-70", "port '80-70'", "70-80"),
    ("--port abc", "port 'abc'", "write 8080"),
    ("--port 80,", "port ''", "1 to 65535"),
    ("--remote-port 0", "remote-port '0'", "1 to 65535"),
    ("--port", "--port", "requires an argument"),
    ("list port:0", "port '0'", "1 to 65535"),
    ("list 65536", "port '65536'", "1 to 65535"),
    ("list 80-70", "port '80-70'", "70-80"),
    ("list colour:red", "colour", "port, remote-port"),
    ("colour:red", "colour", "port, remote-port"),
    ('list "process:x', "quote", 'field:"a value"'),
    ("--state open", "state 'open'", "listen, "),
    ("-s listen,open", "state 'open'", "listen, "),
    ("--reach far", "reach 'far'", "loopback, address, any"),
    ("--address localhost", "address 'localhost'", "127.0.0.1"),
    ("--pid me", "pid 'me'", "0 to "),
    ("--user=", "user is empty", ""),
    ("--process=", "process is empty", ""),
    ("--source nonesuch", "source 'nonesuch'", "sockdiag"),
    ("who 80 --source nonesuch", "source 'nonesuch'", "sockdiag"),
    ("--sort colour", "'colour'", "port, protocol"),
    ("--sort=", "''", "port, protocol"),
    ("--json=yes", "--json", "does not take a value"),
    ("who", "PORT", "--help"),
    ("who 0", "port '0'", "1 to 65535"),
    ("who 65536", "port '65536'", "1 to 65535"),
    ("who 80-70", "port '80-70'", "70-80"),
    ("who abc", "port 'abc'", "portbook list abc"),
    ("stop nginx", "port 'nginx'", "portbook list nginx"),
    ("completion bash", "'completion'", "_PORTBOOK_COMPLETE=bash_source"),
    ("who -- -80", "port '-80'", "write 1-80"),
    ("who 80 abc", "port 'abc'", "portbook list abc"),
    ("who example.org:443", "not an address of this machine", "portbook dial example.org:443"),
    ("who 203.0.113.77:443", "not an address of this machine", "portbook dial 203.0.113.77:443"),
    ("who 80/sctp", "'sctp'", "tcp, udp"),
    ("who 80/", "''", "tcp, udp"),
    ("who /tcp", "'/tcp' has no port", "write 8080"),
    ("sources extra", "extra", "--help"),
    ("man extra", "extra", "--help"),
]


@pytest.mark.parametrize(("line", "wrong", "valid"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(line, wrong, valid):
    assert_complaint(run(*line.split(" ", 1 if '"' in line else -1)), wrong, valid)


@pytest.mark.parametrize("name", [n for n in sources.SOURCES if sources.missing(n) is not None])
def test_a_source_that_is_not_here_is_one_line_and_exit_code_5(name):
    done = run("--source", name)
    assert (done.returncode, done.stdout) == (5, "")
    assert len(done.stderr.splitlines()) == 1


def test_what_was_typed_is_escaped_in_the_complaint():
    done = run("who", "\x1b[31m8\u202e0\n")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["", "list", "who", "sources", "man"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_has_examples(command, option):
    text = good(*command.split(), option)
    examples = [line for line in text.splitlines() if line.strip().startswith("portbook ")]
    assert len(examples) >= 2
    assert run("who", "--help").returncode == 0


@pytest.mark.parametrize("command", ["list", "who", "sources", "man"])
def test_the_examples_of_the_help_can_be_run(command):
    """Each is a command line that portbook understands: it answers yes or no."""
    lines = [line.strip() for line in good(command, "--help").splitlines() if line.strip().startswith("portbook ")]
    for line in lines:
        words = shlex.split(re.split(r" +[|>]| {3,}|\|\|", line)[0])
        answer = run(*words[1:])
        # Not every machine has the user of an example, or a history.
        lacks = any(each in answer.stderr for each in ("unknown user", "there is no history"))
        assert answer.returncode in (0, 1) or lacks, line


# --- how a run ends ------------------------------------------------------------------------------------------------


THREE_THOUSAND = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4000, hard) if hard > 0 else 4000, hard))
opened = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3000)]
for port, one in enumerate(opened, 10000):  # not among the ports that others get
    one.bind((f"127.102.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}", port))
say()
wait()
"""


@pytest.fixture(scope="class")
def three_thousand():
    """A child with three thousand sockets."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    need(hard == resource.RLIM_INFINITY or hard > 3100, "a hard limit of more than 3100 descriptors")
    with child(THREE_THOUSAND):
        yield


@on_unix
@pytest.mark.usefixtures("three_thousand")
class TestPipes:
    """With more output than a pipe takes."""

    @staticmethod
    def start(*arguments):
        return subprocess.Popen(
            [*COMMAND, "--all", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        )

    @pytest.mark.parametrize("form", ["--json", "--jsonl", "--csv", "--wide", "--tcp --udp"])
    def test_a_reader_that_has_seen_enough_ends_it_quietly(self, form):
        """portbook --all --json | head -c 10"""
        with self.start(*form.split()) as process:
            assert len(os.read(process.stdout.fileno(), 10)) == 10
            process.stdout.close()
            errors = process.stderr.read()
            assert process.wait(30) == 0
        assert complaints(errors) == []

    @pytest.mark.parametrize("form", ["--json", "--csv", "--wide"])
    def test_ctrl_c_is_130_without_a_traceback(self, form):
        """It hangs in writing, because the pipe is full and has no reader: there the signal reaches it."""
        with self.start(form) as process:
            assert select.select([process.stdout], [], [], 30)[0], "it writes"
            until_it_sleeps(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            errors = process.stderr.read()
        assert complaints(errors) == []


def until_it_sleeps(pid):
    """A signal that comes between Python's look for signals and the system call is seen only after that call."""
    for _ in range(3000):
        if psutil.Process(pid).status() == psutil.STATUS_SLEEPING:
            return
        time.sleep(0.01)
    raise AssertionError("it never waited for its reader")


def complaints(errors):
    """What stood on standard error besides owners that this user cannot see, and what other namespaces have."""
    lines = errors.decode().splitlines()
    return [line for line in lines if "not visible" not in line and "--netns all shows" not in line]


@on_unix
@pytest.mark.parametrize("arguments", ["", "--json", "--csv", "sources", "man", "--help", "--version"])
def test_a_reader_that_is_gone_from_the_start_ends_it_quietly(arguments, zoo):
    receiver, sender = os.pipe()
    os.close(receiver)
    command = [*COMMAND, *arguments.split()]
    try:
        done = subprocess.run(command, stdout=sender, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=60, check=False)
    finally:
        os.close(sender)
    assert (done.returncode, complaints(done.stderr)) == (0, [])


@on_unix
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", ["", "--json", "--csv", "who 1", "who 1 --json", "sources", "man", "--version", "--help"]
)
def test_a_full_disk_is_one_line_and_not_a_success(arguments, unbuffered, zoo):
    need(os.path.exists("/dev/full"), "/dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
            check=False,
        )
    said = complaints(done.stderr)
    assert done.returncode == 5
    assert len(said) == 1
    assert os.strerror(errno.ENOSPC) in said[0]


# --- JSON ----------------------------------------------------------------------------------------------------------

TEXT, NUMBER, MOMENT = "text", "number", "moment"
NULL = None
LISTING = {
    "schema": {1}, "host": TEXT, "platform": {"linux", "windows", "macos"}, "taken_at": MOMENT, "source": TEXT,
    "complete": {True, False}, "sockets": list, "gaps": list,
}  # fmt: skip
SOCKET = {
    "protocol": {"tcp", "udp"}, "family": {"ipv4", "ipv6"}, "local_address": TEXT, "local_port": NUMBER,
    "remote_address": (TEXT, NULL), "remote_port": (NUMBER, NULL),
    "state": {
        "LISTEN", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
        "LAST_ACK", "CLOSING", "BOUND", "UNKNOWN", None,
    },
    "uid": (NUMBER, NULL), "inode": (NUMBER, NULL), "owners": list, "zone": (TEXT, NULL),
    "reach": {"loopback", "address", "any", "none", "multicast", "broadcast"},
    "netns": (NUMBER, NULL), "netns_name": (TEXT, NULL),
}  # fmt: skip
OWNER = {
    "pid": NUMBER, "name": (TEXT, NULL), "exe": (TEXT, NULL), "user": (TEXT, NULL), "started": (MOMENT, NULL),
    "service": (TEXT, NULL), "container": (TEXT, NULL), "how": TEXT, "confidence": {"certain", "likely"},
}  # fmt: skip
GAP = {"what": TEXT, "count": (NUMBER, NULL), "why": TEXT, "hint": (TEXT, NULL)}
A_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def fits(value, kind):
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    if isinstance(kind, set):
        return value in kind
    if kind is MOMENT:
        return isinstance(value, str) and A_MOMENT.fullmatch(value) is not None
    if kind is NUMBER:
        return type(value) is int and value >= 0
    if kind is TEXT:
        return isinstance(value, str) and value != ""
    return value is None if kind is NULL else isinstance(value, kind)


def check(record, fields):
    for name, kind in fields.items():
        assert name in record
        assert fits(record[name], kind), (name, record[name])


def test_json_is_the_contract(everything):
    check(everything, LISTING)
    assert list(everything)[: len(LISTING)] == list(LISTING)
    assert everything["complete"] is (not everything["gaps"])
    for gap in everything["gaps"]:
        check(gap, GAP)
    for row in everything["sockets"]:
        check(row, SOCKET)
        assert list(row)[:7] == list(SOCKET)[:7]
        assert (row["remote_address"] is None) is (row["remote_port"] is None)
        assert row["protocol"] == "tcp" or row["state"] in (None, "ESTABLISHED")
        assert row["protocol"] == "udp" or row["state"] is not None
        if row["state"] in ("LISTEN", "BOUND", None):
            assert row["remote_address"] is None
        else:
            assert row["remote_address"] is not None
        assert not set("[]%") & set(row["local_address"])
        for owner in row["owners"]:
            check(owner, OWNER)
            assert list(owner)[:5] == list(OWNER)[:5]


def test_json_has_every_socket_of_the_zoo(everything, animals):
    rows = {key(row) for row in everything["sockets"]}
    assert {e.identity for e in animals} <= rows
    for row in of_the_zoo(everything["sockets"], animals):
        group = [e for e in animals if e.identity == key(row)]
        assert {owner["pid"] for owner in row["owners"]} <= {pid for e in group for pid in e.pids}
        if sys.platform == "linux" and row["inode"]:
            (expected,) = [e for e in group if e.inode == row["inode"]]
            assert {owner["pid"] for owner in row["owners"]} == set(expected.pids)


def test_without_all_only_what_waits_is_shown(animals):
    rows = listing()["sockets"]
    assert {row["state"] for row in rows} <= {"LISTEN", "BOUND", None}
    waiting = {e.identity for e in animals if e.state in ("LISTEN", "BOUND", None)}
    assert {key(row) for row in of_the_zoo(rows, animals)} == waiting
    assert {key(row) for row in of_the_zoo(listing("list")["sockets"], animals)} == waiting


def test_jsonl_and_csv_say_the_same_as_json(animals):
    ports = ",".join(map(str, sorted(ports_of(animals))))
    whole = of_the_zoo(listing("--all", "-p", ports)["sockets"], animals)
    lines = [json.loads(line) for line in good("--all", "-p", ports, "--jsonl").splitlines()]
    order = lambda row: (key(row)[:4], str(key(row)), row["inode"] or 0)  # noqa: E731
    assert sorted(of_the_zoo(lines, animals), key=order) == sorted(whole, key=order)

    text = good("--all", "-p", ports, "--csv", text=False).decode()
    assert "\r\n" in text  # RFC 4180
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    shown = lambda value: "" if value is None else str(value)  # noqa: E731
    opened = {tuple(map(shown, e.identity)) for e in animals}
    cells = [row for row in table if key(row) in opened]
    assert len(cells) == len(whole)
    by_text = sorted((*key(row), row["inode"], row["uid"], row["pid"]) for row in cells)
    assert by_text == sorted(
        (*map(shown, key(row)), shown(row["inode"]), shown(row["uid"]), ";".join(str(o["pid"]) for o in row["owners"]))
        for row in whole
    )


def test_csv_without_a_row_still_has_its_titles():
    port = unheld_port()
    titles = next(csv.reader(io.StringIO(good("-p", str(port), "--csv"))))
    assert titles[:7] == list(SOCKET)[:7]
    assert listing("-p", str(port))["sockets"] == []
    assert good("-p", str(port), "--jsonl") == ""


LOOPBACK, MAPPED = ("127.0.0.1", "::1"), "::ffff:127.0.0.1"

# --- sorting and filters -------------------------------------------------------------------------------------------


def least(name):
    return lambda row: min((owner[name] or ("" if name != "pid" else 0) for owner in row["owners"]), default=None)


SORTS = {
    "port": lambda row: row["local_port"],
    "protocol": lambda row: row["protocol"],
    "address": lambda row: row["local_address"],
    "remote-port": lambda row: row["remote_port"] or 0,
    "remote-address": lambda row: row["remote_address"] or "",
    "state": lambda row: row["state"] or "",
    "reach": lambda row: row["reach"],
    "pid": lambda row: least("pid")(row) or 0,
    "process": lambda row: least("name")(row) or "",
    "user": lambda row: least("user")(row) or "",
    "inode": lambda row: row["inode"] or 0,
}


@pytest.mark.parametrize("field", SORTS)
def test_sorting(animals, field):
    ports = ",".join(map(str, sorted(ports_of(animals))))
    rows = [SORTS[field](row) for row in listing("--all", "-p", ports, "--sort", field)["sockets"]]
    assert rows == sorted(rows)
    assert len(rows) > 30
    backwards = [SORTS[field](row) for row in listing("--all", "-p", ports, f"--sort=-{field}")["sockets"]]
    assert backwards == sorted(backwards, reverse=True)


def test_people_get_it_by_port(animals):
    ports = ",".join(map(str, sorted(ports_of(animals))))
    lines = good("--all", "-p", ports).splitlines()
    column = lines[0].index("PORT")
    shown = [int(line[column:].split()[0]) for line in lines[1:]]
    assert shown == sorted(shown)
    assert len(shown) > 30


def filters(animals):
    ports = sorted(ports_of(animals))
    established = next(e for e in animals if e.state == "ESTABLISHED" and e.pids)
    other = next((pid for e in animals for pid in e.pids if pid != os.getpid()), os.getpid())
    pids = lambda row: {owner["pid"] for owner in row["owners"]}  # noqa: E731
    users = lambda row: {owner["user"] for owner in row["owners"]}  # noqa: E731
    me = next(iter(users(listing("-p", str(ports[0]), "--all")["sockets"][0])), None)
    return [
        ("--tcp", "protocol:tcp", lambda row: row["protocol"] == "tcp"),
        ("-u", "proto:udp", lambda row: row["protocol"] == "udp"),
        ("--tcp --udp", "protocol:udp,tcp", lambda row: True),
        ("--ipv4", "family:ipv4", lambda row: row["family"] == "ipv4"),
        ("-6", "family:ipv6", lambda row: row["family"] == "ipv6"),
        ("-4 -6", "family:ipv4 family:ipv6", lambda row: True),
        ("-t -6", "protocol:tcp family:ipv6", lambda row: row["protocol"] == "tcp" and row["family"] == "ipv6"),
        ("--state listen", "state:listen", lambda row: row["state"] == "LISTEN"),
        ("-s estab -s FIN-WAIT-2", "state:estab,fin_wait2", lambda row: row["state"] in ("ESTABLISHED", "FIN_WAIT2")),
        (f"-p {ports[0]}", f"{ports[0]}", lambda row: row["local_port"] == ports[0]),
        (
            f"--port {ports[0]},{ports[2]}-{ports[5]}",
            f"{ports[0]} port:{ports[2]}-{ports[5]}",
            lambda row: row["local_port"] == ports[0] or ports[2] <= row["local_port"] <= ports[5],
        ),
        (
            f"--remote-port {established.remote_port}",
            f"rport:{established.remote_port}",
            lambda row: row["remote_port"] == established.remote_port,
        ),
        ("--address 127.0.0.1", "address:127.0.0.1", lambda row: row["local_address"] in (MAPPED, "127.0.0.1")),
        ("--address ::1,0.0.0.0", "addr:[::1],0.0.0.0", lambda row: row["local_address"] in ("::1", "0.0.0.0")),
        ("--address *", "address:*", lambda row: row["local_address"] in ("::", "0.0.0.0")),
        ("--remote-address ::1", "raddr:::1", lambda row: row["remote_address"] == "::1"),
        ("--reach any", "reach:any", lambda row: row["reach"] == "any"),
        ("--reach loopback", "-reach:any,address,none", lambda row: row["reach"] == "loopback"),
        (f"--pid {other}", f"pid:{other}", lambda row: other in pids(row)),
        ("--process python", "python", lambda row: any("python" in f"{o['name']} {o['exe']}" for o in row["owners"])),
        (f"--user {me}", f"user:{me}", lambda row: me in users(row)),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(21))
def test_filters_as_options_and_as_text(everything, animals, number):
    cases = filters(animals)
    assert len(cases) == 21
    options, text, wanted = cases[number]
    expected = sorted(map(str, map(key, filter(wanted, of_the_zoo(everything["sockets"], animals)))))
    assert expected
    for arguments in (["list", *options.split()], ["list", "--", text]):
        rows = listing_of(run("list", "--all", "--json", *arguments[1:]))["sockets"]
        assert sorted(map(str, map(key, of_the_zoo(rows, animals)))) == expected, arguments
        assert all(wanted(row) for row in of_the_zoo(rows, animals))


def test_options_and_text_narrow_each_other(animals):
    ports = ",".join(map(str, sorted(ports_of(animals))))
    expected = [e for e in animals if (e.protocol, e.state) == ("tcp", "LISTEN") and e.local_address in LOOPBACK]
    for query in ([f"port:{ports} -reach:any state:listen"], ["--", f"port:{ports}", "-reach:any", "state:listen"]):
        rows = of_the_zoo(listing_of(run("list", "--tcp", "--json", *query))["sockets"], animals)
        assert sorted(map(str, map(key, rows))) == sorted(str(e.identity) for e in expected)


def test_a_query_may_be_one_argument_or_several(animals):
    port = min(ports_of(animals))
    assert good("list", f"{port} state:all", "--jsonl") == good("list", str(port), "state:all", "--jsonl")
    assert good("list", f"{port} state:all", "--jsonl") == good(str(port), "state:all", "--jsonl")


# --- for people ----------------------------------------------------------------------------------------------------


@on_unix
def test_columns_of_a_row():
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        ports = [s.getsockname()[1] for s in (one, other)]
        titles, *rows = good("--tcp", "-p", f"{ports[0]},{ports[1]}").splitlines()
    found = {line.split()[2]: line for line in rows}
    assert titles.split()[:3] == ["PROTO", "ADDRESS", "PORT"]
    assert {"STATE", "PID", "PROCESS", "USER", "REACH"} <= set(titles.split())
    for port, address, reach in ((ports[0], "127.0.0.1", "this machine"), (ports[1], "0.0.0.0", "every network")):
        line = found[str(port)]
        assert line.split()[:2] == ["tcp", address]
        assert str(os.getpid()) in line.split()
        assert "LISTEN" in line.split()
        assert line.endswith(reach)
    assert {line.index("LISTEN") for line in rows} == {titles.index("STATE")}


NAME = """
import ctypes
opened = socket.create_server(("127.0.0.1", 0))
if ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0):
    raise SystemExit("prctl")
say(opened.getsockname()[1])
wait()
"""
HOSTILE = {
    "newline": "two\nlines",
    "escape": "\x1b[31mred\x07",
    "bidi": "a\u202eexe.txt",
    "c1": "a\x9b31mb",
    "tab": "a\tb\rc",
    "not-ascii": "Grüße日本",
    "not-utf-8": "\udcff\udcfebad",
}


@pytest.fixture(scope="module")
def hostile():
    """A child with an odd name and odd arguments for each: port by key."""
    need(sys.platform == "linux", "Linux, where a process can name itself")
    with ExitStack() as hold:
        names = {k: os.fsencode(v) for k, v in HOSTILE.items()}
        yield {k: hold.enter_context(child(NAME, v.hex(), HOSTILE[k])).said for k, v in names.items()}


def shown(name):
    """The text that JSON has: bytes that are not UTF-8 as U+FFFD."""
    return os.fsencode(HOSTILE[name]).decode("utf-8", "replace")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("options", ["", "--wide"])
def test_no_process_can_write_to_the_terminal_through_its_name(hostile, name, options):
    text = good("--tcp", "-p", str(hostile[name]), *options.split())
    assert len(text.splitlines()) == 2, text
    assert all(c.isprintable() for c in text.replace("\n", ""))
    printable = shown(name)
    assert (printable in text) is printable.isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_nor_through_who(hostile, name):
    text = good("who", str(hostile[name]))
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert [line for line in text.splitlines() if line.strip().startswith("lines")] == []


@pytest.mark.parametrize("name", HOSTILE)
def test_json_keeps_the_name_as_it_is(hostile, name):
    port = str(hostile[name])
    for arguments in (["--tcp", "-p", port, "--jsonl"], ["who", f"{port}/tcp", "--json"]):
        record = json.loads(good(*arguments, text=False).decode("utf-8"))
        owner = record["holders"][0]["owner"] if "holders" in record else record["owners"][0]
        assert owner["name"] == shown(name)
        assert owner["command_line"][-1] == shown(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_csv_has_the_name_as_people_see_it(hostile, name):
    text = good("--tcp", "-p", str(hostile[name]), "--csv", text=False).decode("utf-8")
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row["process"].lstrip("'") == safe(shown(name)).lstrip("'")


ENCODINGS = [
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "ascii"),
    ({"PYTHONIOENCODING": "ascii"}, "ascii"),
    ({"PYTHONIOENCODING": "cp1252"}, "cp1252"),
    ({"PYTHONIOENCODING": "cp437:strict"}, "cp437"),
    ({"PYTHONIOENCODING": "utf-8"}, "utf-8"),
]


@pytest.mark.parametrize(("env", "encoding"), ENCODINGS)
def test_an_encoding_that_lacks_characters_gets_them_escaped(hostile, env, encoding):
    for arguments in (
        ["-p", str(hostile["not-ascii"])],
        ["who", str(hostile["not-ascii"])],
        ["--wide"],
        ["sources"],
        ["man"],
    ):
        done = run(*arguments, env=env, text=False)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode(encoding)
        if arguments[0] in ("-p", "who"):
            name = shown("not-ascii").encode(encoding, "backslashreplace").decode(encoding)
            assert name in text
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("env", "encoding"), ENCODINGS)
def test_machine_formats_are_utf_8_whatever_the_encoding(hostile, env, encoding):
    for form in ("--json", "--jsonl", "--csv"):
        done = run("-p", str(hostile["not-ascii"]), form, env=env, text=False)
        assert done.returncode == 0
        assert shown("not-ascii") in done.stdout.decode("utf-8")


def test_a_complaint_can_be_written_in_any_encoding():
    done = run("who", "日本", env={"PYTHONIOENCODING": "ascii"}, text=False)
    assert done.returncode == 2
    assert done.stderr.isascii()
    assert len(done.stderr.splitlines()) == 1


# --- on a terminal -------------------------------------------------------------------------------------------------


def on_terminal(*arguments, columns=80, env=None):
    text, code = terminal.shown([*COMMAND, *arguments], columns, env=env)
    assert code == 0
    return text


def width(line):
    """Cells of a terminal (UAX #11)."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


LONG = "a-process-with-a-name-that-is-far-longer-than-any-column-should-be-allowed-to-be"


@pytest.fixture(scope="module")
def long_name(tmp_path_factory):
    """A port whose holder's name does not fit: the executable's, since the kernel cuts names."""
    need(sys.platform == "linux" and shutil.which("sleep") is not None, "Linux and sleep(1)")
    path = tmp_path_factory.mktemp("long") / LONG
    shutil.copy2(shutil.which("sleep"), path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(["sleep", "120"], executable=path, pass_fds=[listener.fileno()])
    yield port
    process.kill()
    process.wait()


@on_unix
@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("options", ["", "--all"])
def test_columns_fit_the_terminal(zoo, hostile, long_name, columns, options):
    ports = ",".join(map(str, (long_name, *hostile.values(), *ports_of([e for kind in zoo.values() for e in kind]))))
    lines = without_colour(on_terminal("-p", ports, *options.split(), columns=columns)).splitlines()
    assert len(lines) > 20
    assert max(map(width, lines)) <= columns


@on_unix
def test_what_fits_is_not_cut(long_name):
    assert LONG in without_colour(on_terminal("-p", str(long_name), columns=200))
    narrow = without_colour(on_terminal("-p", str(long_name), columns=80))
    assert LONG not in narrow
    assert "a-proc" in narrow
    assert "…" in narrow
    assert str(long_name) in narrow


@on_unix
def test_columns_in_the_environment_count_more_than_the_terminal(long_name):
    assert LONG in without_colour(on_terminal("-p", str(long_name), columns=80, env={"COLUMNS": "200"}))


@on_unix
def test_into_a_pipe_nothing_is_cut_and_nothing_coloured(long_name):
    text = good("-p", str(long_name))
    assert LONG in text
    assert "\x1b" not in text


@on_unix
@pytest.mark.parametrize(
    ("arguments", "stream"),
    [
        (["sources"], "stdout"),
        (["who", "PORT"], "stdout"),
        (["why", "PORT"], "stdout"),
        (["stop", "--dry-run", "PORT"], "stdout"),
        (["--port", "99999999"], "stderr"),
        (["--state", "nonesuch"], "stderr"),
        (["nonesuch-process"], "stderr"),
        (["free"], "stderr"),
    ],
)
@pytest.mark.parametrize("columns", [50, 80])
def test_prose_is_wrapped_at_the_width_of_the_terminal(server, arguments, stream, columns):
    """A word that is longer than a line stays whole: people copy paths and commands."""
    words = [str(server.said[0]) if word == "PORT" else word for word in arguments]
    text, _ = terminal.shown([*COMMAND, *words], columns, stream)
    assert text.strip()
    for line in without_colour(text).splitlines():
        assert len(line) <= columns or len(line.split()[-1]) > columns - 20, line


@on_unix
def test_wide_is_never_cut(long_name):
    assert without_colour(on_terminal("-p", str(long_name), "--wide", columns=80)).count(LONG) >= 2


@on_unix
@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_colour_on_a_terminal_and_nowhere_else(env, coloured):
    with socket.create_server(("", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert ("\x1b[" in on_terminal("-p", port, env=env)) is coloured
        assert ("\x1b[" in on_terminal("who", port, env=env)) is coloured
        assert "\x1b" not in on_terminal("-p", port, "--json", env=env)
        assert "\x1b" not in good("-p", port, env=env)


@on_unix
def test_an_ascii_terminal_gets_no_ellipsis(long_name):
    text = on_terminal("-p", str(long_name), env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"})
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_an_empty_listing_is_reported_and_is_no_error():
    port = unheld_port()
    done = run("-p", str(port))
    assert (done.returncode, done.stdout) == (0, "")
    assert "no socket" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- who -----------------------------------------------------------------------------------------------------------

SERVE = """
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(7)
second = socket.create_server(("127.0.0.1", 0))
waiting = [socket.create_connection(listener.getsockname()) for _ in range(2)]
say([listener.getsockname()[1], second.getsockname()[1]])
wait()
"""


@pytest.fixture(scope="module")
def server():
    with child(SERVE, "--of-the-test") as one:
        yield one


def test_who_shows_every_fact_about_the_holder(server):
    port, second = server.said
    done = run("who", str(port))
    assert done.returncode == 0
    text = done.stdout
    ((owner, holder),) = [(h["owner"], h) for h in json.loads(good("who", str(port), "--json"))["holders"]]
    for word in (
        f"port {port}",
        str(server.pid),
        owner["name"],
        owner["user"],
        owner["exe"],
        "--of-the-test",
        f"{second}/tcp",
    ):
        assert word in text, word
    for parent in holder["parents"]:
        assert f"({parent['pid']})" in text
    assert holder["parents"][0]["pid"] == os.getpid()
    if sys.platform == "linux":
        assert "accept queue 2 of 7" in text
    assert f"{datetime.fromisoformat(owner['started']).astimezone():%Y-%m-%d %H:%M:%S}" in text
    assert "ago" in text


HOLDING = {
    "schema": {1}, "port": NUMBER, "protocol": {"tcp", "udp", None}, "held": {True, False}, "holders": list,
    "sockets": list, "gaps": list,
}  # fmt: skip


def test_who_as_json(server):
    port, second = server.said
    for spelling, protocol in ((f"{port}", None), (f"{port}/tcp", "tcp"), (f"{port}/TCP", "tcp")):
        answer = json.loads(good("who", spelling, "--json"))
        check(answer, HOLDING)
        assert (answer["port"], answer["protocol"], answer["held"]) == (port, protocol, True)
        (holder,) = answer["holders"]
        check(holder["owner"], OWNER)
        assert holder["owner"]["pid"] == server.pid
        assert holder["other_ports"] == [f"{second}/tcp"]
        assert holder["age_s"] >= 0
        for parent in holder["parents"]:
            check(parent, {**OWNER, "how": str})
        for row in (*holder["sockets"], *answer["sockets"]):
            check(row, SOCKET)
            assert row["local_port"] == port


def test_who_answers_for_several_ports_one_line_each(server):
    done = run("who", *map(str, server.said), "--json")
    assert done.returncode == 0
    assert [json.loads(line)["port"] for line in done.stdout.splitlines()] == server.said


def test_who_exits_1_when_a_port_is_not_held(server):
    free = unheld_port()
    held = server.said[0]
    for arguments, code in (([free], 1), ([held], 0), ([held, free], 1), ([f"{held}/udp"], 1), ([f"{held}/tcp"], 0)):
        for form in ([], ["--json"]):
            assert run("who", *map(str, arguments), *form).returncode == code, arguments
    assert f"nobody holds port {free}" in run("who", str(free)).stdout


def test_a_client_is_not_reported_as_the_holder(server):
    script = 'client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))\nsay()\nwait()\n'
    with child(script, str(server.said[1])) as client:
        done = run("who", str(server.said[1]))
        assert done.returncode == 0
        assert str(server.pid) in done.stdout
        assert str(client.pid) not in done.stdout
        answer = json.loads(good("who", str(server.said[1]), "--json"))
        assert [h["owner"]["pid"] for h in answer["holders"]] == [server.pid]


def test_a_port_in_time_wait_is_not_held():
    with testing.zoo("tcp4-time-wait") as animals:  # of its own: it lasts a minute, TCP_TIMEWAIT_LEN
        (port,) = ports_of(animals["tcp4-time-wait"])
        done = run("who", f"{port}/tcp")
    assert done.returncode == 1
    assert "TIME_WAIT" in done.stdout


# --- sources, version ----------------------------------------------------------------------------------------------


def test_sources_shows_what_is_available_and_why_the_rest_is_not():
    rows = [json.loads(line) for line in good("sources", "--json").splitlines()]
    assert [row["name"] for row in rows] == list(sources.SOURCES)
    text = good("sources")
    for row in rows:
        reason = sources.missing(row["name"])
        assert (row["available"], row["why_not"]) == (reason is None, reason)
        assert row["name"] in text
        assert row["sees"] in text
        assert row["needs"] in text
        assert reason is None or reason in text


@pytest.mark.parametrize("name", [n for n in sources.names() if sources.missing(n) is None])
def test_every_available_source_can_be_requested(name, zoo):
    port = str(min(ports_of(zoo["tcp4-listening"])))
    answer = listing("--source", name, "--tcp", "-p", port)
    assert answer["source"] == name
    assert [key(row) for row in answer["sockets"]] == [e.identity for e in zoo["tcp4-listening"]]


def console_script():
    path = os.path.join(os.path.dirname(sys.executable), "portbook.exe" if os.name == "nt" else "portbook")
    need(os.path.exists(path), "the console script portbook beside this interpreter")
    return path


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option):
    for command in (COMMAND, [console_script()]):
        done = subprocess.run([*command, option], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"portbook {version('portbook')}\n", "")


# --- the manual page -----------------------------------------------------------------------------------------------


def documented_options(command):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", good(*command.split(), "--help")))


def test_the_manual_page_has_every_option_of_every_command():
    page = good("man")
    plain = page.replace("\\-", "-")
    for command in ("list", "who", "sources", "man"):
        section = plain.split(f".SS portbook {command}", 1)[1].split("\n.SS ", 1)[0]
        options = documented_options(command)
        assert options
        assert [option for option in options if option not in section] == []


def test_the_manual_page_renders_without_a_warning():
    need(shutil.which("groff") is not None, "groff")
    page = good("man", text=False)
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-K", "utf-8"], input=page, capture_output=True, timeout=60, check=False
    )
    assert done.stderr == b""
    text = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout.decode()).replace("\u2212", "-").replace("\u2010", "-")
    for word in ("PORTBOOK(1)", "NAME", "SYNOPSIS", "--remote-port", "portbook who 8080", "Exit codes", "130"):
        assert word in text, word


# --- completion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell(shell):
    done = subprocess.run(
        [console_script()], env={**ENVIRONMENT, "_PORTBOOK_COMPLETE": f"{shell}_source"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_PORTBOOK_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True, timeout=60)


# --- another user --------------------------------------------------------------------------------------------------


def test_an_ordinary_user_sees_sockets_and_what_is_missing(as_nobody, server):
    port = server.said[0]
    done = as_nobody(*COMMAND, "-p", str(port))
    assert done.returncode == 0
    (_, row) = done.stdout.splitlines()
    assert row.split()[:3] == ["tcp", "127.0.0.1", str(port)]
    assert "(root)" in row.split()
    assert done.stderr == "portbook: owners of 1 socket are not visible to uid 65534; run with sudo\n"


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--csv", "--wide"])
def test_strict_is_3_when_something_could_not_be_known(as_nobody, server, form):
    arguments = [*COMMAND, "-p", str(server.said[0]), form]
    assert as_nobody(*arguments).returncode == 0
    assert as_nobody(*arguments, "--strict").returncode == 3


def test_strict_is_0_when_all_is_known(server):
    done = run("-p", str(server.said[0]), "--strict")
    assert (done.returncode, done.stderr) == (0, "")


def test_who_for_an_ordinary_user(as_nobody, server):
    port = str(server.said[0])
    done = as_nobody(*COMMAND, "who", port)
    assert done.returncode == 0
    assert f"port {port} is held" in done.stdout
    assert "run with sudo" in done.stderr
    answer = json.loads(as_nobody(*COMMAND, "who", port, "--json").stdout)
    assert (answer["held"], answer["holders"], len(answer["sockets"]) > 0) == (True, [], True)
    assert as_nobody(*COMMAND, "who", port, "--strict").returncode == 3


def test_an_ordinary_user_finds_the_sockets_of_another_by_name(as_nobody, server):
    """The kernel reports the uid of a socket to every user."""
    done = as_nobody(*COMMAND, "-p", str(server.said[0]), "--user", "root", "--json")
    assert [row["local_port"] for row in json.loads(done.stdout)["sockets"]] == [server.said[0]]


# --- what is imported ----------------------------------------------------------------------------------------------


def imported(*arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "portbook", *arguments],
        capture_output=True, text=True, encoding="utf-8", errors="replace", env=ENVIRONMENT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    names = re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", done.stderr, re.MULTILINE)
    assert "portbook" in names
    return {name.split(".")[0] for name in names}


def test_the_version_costs_no_library():
    assert not imported("--version") & {"click", "msgspec", "psutil", "rich", "typing_extensions", "asyncio"}


@pytest.mark.parametrize("arguments", ["list", "list --all --json", "-p 80 --csv"])
def test_a_listing_imports_nothing_that_it_does_not_need(arguments):
    names = imported(*arguments.split())
    assert {"click", "msgspec"} <= names
    unneeded = {"rich", "asyncio", "subprocess"}
    if sys.platform == "linux":
        unneeded |= {"psutil", "ipaddress"}
    assert not names & unneeded
