from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceGarbled, SourceMissing, SourceTimeout
from portbook.records import Owner, Socket
from portbook.sources import lsof
from portbook.sources.base import Reading, Wanted
from portbook.sources.lsof import LsofOutput, parse, unescape
from portbook.system import program
from tests.components import need

DATA = Path(__file__).parents[1] / "data" / "lsof"
on_unix = pytest.mark.skipif(sys.platform == "win32", reason="lsof is for Unix")


def replay(name: str) -> dict[tuple, Socket]:
    reading = parse(LsofOutput((DATA / name).read_bytes()))
    assert reading.gaps == []
    found = {(s.protocol, s.local_address, s.local_port, s.remote_port): s for s in reading.sockets}
    assert len(found) == len(reading.sockets)
    return found


def shape(s: Socket) -> tuple:
    return (
        s.protocol,
        s.family,
        s.local_address,
        s.local_port,
        s.remote_address,
        s.remote_port,
        s.state,
        s.zone,
        s.reach,
    )


# --- replay --------------------------------------------------------------------------------------------------------


def test_linux_recorded():
    found = replay("linux/sockets.bin")
    connected = [s for s in found.values() if s.remote_port]
    client, mapped = (s for s in connected if "127.0.0.1" in s.local_address and 443 in (s.local_port, s.remote_port))
    six, closed = (s for s in connected if s.local_address == "::1" and s.protocol == "tcp")
    waiting = next(s for s in connected if s.remote_port == 80)
    assert {shape(s) for s in found.values()} == {
        ("tcp", "ipv4", "127.0.0.1", 8080, None, None, "LISTEN", None, "loopback"),
        ("tcp", "ipv4", "0.0.0.0", 80, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv4", "192.0.2.1", 22, None, None, "LISTEN", None, "address"),
        ("tcp", "ipv6", "::", 443, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv6", "::1", 5432, None, None, "LISTEN", None, "loopback"),
        ("tcp", "ipv6", "::", 9443, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv6", "fe80::5e:7", 7001, None, None, "LISTEN", None, "address"),
        ("tcp", "ipv4", "127.0.0.1", client.local_port, "127.0.0.1", 443, "ESTABLISHED", None, "loopback"),
        (
            *("tcp", "ipv6", "::ffff:127.0.0.1", 443),
            *("::ffff:127.0.0.1", client.local_port, "ESTABLISHED", None, "loopback"),
        ),
        ("tcp", "ipv6", "::1", six.local_port, "::1", 443, "FIN_WAIT2", None, "loopback"),
        ("tcp", "ipv6", "::1", 443, "::1", six.local_port, "CLOSE_WAIT", None, "loopback"),
        ("tcp", "ipv4", "127.0.0.1", waiting.local_port, "127.0.0.1", 80, "ESTABLISHED", None, "loopback"),
        ("udp", "ipv4", "0.0.0.0", 53, None, None, None, None, "any"),
        ("udp", "ipv6", "::", 5353, None, None, None, None, "any"),
        ("udp", "ipv6", "::1", 123, "::1", 5353, "ESTABLISHED", None, "loopback"),
        ("udp", "ipv4", "127.0.0.1", 1234, "127.0.0.1", 53, "ESTABLISHED", None, "loopback"),
    }
    assert mapped.family == "ipv6"
    assert closed.state == "CLOSE_WAIT"
    assert client.recv_queue == 10
    assert found["tcp", "0.0.0.0", 80, None].accept_queue == 1
    assert found["tcp", "0.0.0.0", 80, None].recv_queue is None
    assert all(s.inode for s in found.values())


def test_linux_recorded_a_socket_of_four_processes_is_one():
    shared = replay("linux/sockets.bin")["tcp", "127.0.0.1", 8080, None]
    assert [(owner.name, owner.user, owner.how) for owner in shared.owners] == [
        ("zoo-keeper-long", "root", "lsof"),
        ("a b\\c^X^A\né\N{REPLACEMENT CHARACTER}", "root", "lsof"),
        ("plain", "nobody", "lsof"),
        ("(sd-pam)", "daemon", "lsof"),
    ]
    assert len({owner.pid for owner in shared.owners}) == 4


def test_macos_composed():
    found = replay("macos/composed.bin")
    assert {shape(s) for s in found.values() if s.family == "ipv4"} == {
        ("tcp", "ipv4", "0.0.0.0", 22, None, None, "LISTEN", None, "any"),
        ("udp", "ipv4", "0.0.0.0", 5353, None, None, None, None, "any"),
        ("tcp", "ipv4", "0.0.0.0", 7000, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv4", "0.0.0.0", 5000, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv4", "127.0.0.1", 5500, None, None, "LISTEN", None, "loopback"),
        ("tcp", "ipv4", "127.0.0.1", 55737, "127.0.0.1", 55739, "FIN_WAIT2", None, "loopback"),
        ("tcp", "ipv4", "127.0.0.1", 55740, "127.0.0.1", 55741, "SYN_RECV", None, "loopback"),
        ("tcp", "ipv4", "127.0.0.1", 55742, "127.0.0.1", 55743, "CLOSE", None, "loopback"),
        ("tcp", "ipv4", "0.0.0.0", 60000, None, None, "BOUND", None, "none"),
    }
    assert {shape(s) for s in found.values() if s.family == "ipv6"} == {
        ("tcp", "ipv6", "::", 22, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv6", "fe80::aede:48ff:fe00:1122", 49154, None, None, "LISTEN", "4", "address"),
        (
            *("tcp", "ipv6", "fe80::aede:48ff:fe00:1122", 49153),
            *("fe80::aede:48ff:fe33:4455", 59602, "ESTABLISHED", "4", "address"),
        ),
        ("udp", "ipv6", "::", 5353, None, None, None, None, "any"),
        ("tcp", "ipv6", "::", 7000, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv6", "::", 5000, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv6", "::", 3000, None, None, "LISTEN", None, "any"),
        ("tcp", "ipv6", "::ffff:127.0.0.1", 3000, "::ffff:127.0.0.1", 55750, "ESTABLISHED", None, "loopback"),
        ("udp", "ipv6", "::1", 60001, "::1", 60002, "ESTABLISHED", None, "loopback"),
    }
    assert [owner.pid for owner in found["tcp", "::", 3000, None].owners] == [1300, 1301]
    assert [owner.pid for owner in found["tcp", "::", 22, None].owners] == [1]
    assert found["tcp", "127.0.0.1", 5500, None].owners[0].name == "Code Helper (Plugin)"
    assert found["tcp", "127.0.0.1", 55737, 55739].recv_queue == 1000
    assert all(s.inode is None and s.accept_queue is None for s in found.values())


# --- parse ---------------------------------------------------------------------------------------------------------


def rows(*files: str, process: str = "p7|cserver|Lroot") -> LsofOutput:
    return LsofOutput("".join(line.replace("|", "\0") + "\0\n" for line in (process, *files)).encode())


LISTENER = "f3|tIPv4|d4242|PTCP|n127.0.0.1:80|TST=LISTEN|TQR=0|TQS=0"


def test_without_root_what_it_cannot_see_is_a_gap():
    reading = parse(rows(LISTENER)._replace(sees_every_process=False))
    assert [gap.what for gap in reading.gaps] == ["socket"]
    assert reading.gaps[0].hint == "run with sudo"


def test_no_output_is_no_error():
    assert parse(LsofOutput(b"")) == Reading([], [])


@pytest.mark.parametrize(
    "row",
    [
        "f3|tIPv4|d1|PTCP|n127.0.0.1:http|TST=LISTEN",
        "f3|tIPv4|d1|PTCP|n127.0.0.1:65536|TST=LISTEN",
        "f3|tIPv4|d1|PTCP|nlocalhost:80|TST=LISTEN",
        "f3|tIPv4|d1|PTCP|n|TST=LISTEN",
        "f3|tIPv6|d1|PTCP|n[::1:80|TST=LISTEN".replace("::1", "::x"),
        "f3|tIPv4|d1|PTCP|n127.0.0.1:80->|TST=ESTABLISHED",
        "f3|tIPv4|d1|PTCP|n127.0.0.1:80|TST=LISTEN|TQR=many",
    ],
)
def test_a_row_that_cannot_be_read_is_counted(row):
    reading = parse(rows(LISTENER, row))
    assert len(reading.sockets) == 1
    assert [(gap.what, gap.count) for gap in reading.gaps] == [("socket", 1)]
    with pytest.raises(SourceGarbled, match="none of 1 rows"):
        parse(rows(row))


@pytest.mark.parametrize("row", ["f3|tunix|d1|n/run/x", "f3|tIPv4|d1|PSCTP|n*:9", "f3|tIPv4|d1|PTCP|n*:*|TST=CLOSED"])
def test_rows_without_a_port_or_of_other_protocols_are_ignored(row):
    reading = parse(rows(row))
    assert (reading.sockets, reading.gaps) == ([], [])


@pytest.mark.parametrize("output", [b"lsof: usage", b"f3\0tIPv4\0\n", b"\0\n", b"COMMAND  PID USER\n"])
def test_other_output_than_fields_is_garbled(output):
    with pytest.raises(SourceGarbled):
        parse(LsofOutput(output))


def test_an_unknown_state_is_kept_as_text():
    (found,) = parse(rows("f3|tIPv4|d1|PTCP|n127.0.0.1:80|TST=RESTING")).sockets
    assert (found.state, found.state_text) == ("UNKNOWN", "RESTING")


def test_without_a_device_rows_are_matched_by_endpoint_and_state():
    row = "f{}|tIPv4|d0x0|PTCP|n127.0.0.1:80|TST=LISTEN"
    second = rows(row.format(3), process="p8|cserver|Lroot").data
    (found,) = parse(LsofOutput(rows(row.format(3), row.format(4)).data + second)).sockets
    assert found.owners == (
        Owner(7, "server", user="root", how="lsof"),
        Owner(8, "server", user="root", how="lsof"),
    )


def test_a_zone_in_the_text_is_kept():
    (found,) = parse(rows("f3|tIPv6|d1|PUDP|n[fe80::1%lo0]:123")).sockets
    assert (found.local_address, found.zone, found.state) == ("fe80::1", "lo0", None)


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (rb"Code\x20H", "Code H"),
        (rb"a\\x41", r"a\x41"),
        (rb"\x5cx41", r"\x41"),
        (rb"\xc3\xa9", "é"),
        (rb"\xff", "\N{REPLACEMENT CHARACTER}"),
        (rb"\b\t\n\f\r", "\b\t\n\f\r"),
        (rb"\q\x4", r"\q\x4"),
        (b"\\", "\\"),
        (rb"\xg0", r"\xg0"),
        (b"^A", "^A"),
    ],
)
def test_unescape(escaped, text):
    assert unescape(escaped) == text


PIECES = st.sampled_from(
    b"p1 f3 tIPv4 tIPv6 d1 d0x0 PTCP PUDP n*:80 n[::1]:1->[::1]:2 n: n[:]:1 TST=LISTEN TQR=1 T cx\\x n1:1 n%:1 "
    b"n[::1%]:5 n\xff:1 n0.0.0.0:99999999999".split()
)


@given(st.binary() | st.lists(PIECES | st.just(b"\n") | st.binary(max_size=4)).map(b"\0".join))
def test_any_bytes_are_read_or_garbled(output):
    with contextlib.suppress(SourceGarbled):
        parse(LsofOutput(output))


# --- the real thing ------------------------------------------------------------------------------------------------


@on_unix
def test_our_own_sockets_are_listed():
    need(lsof.missing() is None, "lsof")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as accepted,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
    ):
        six.bind(("::1", 0))
        twice = os.dup(listener.fileno())
        try:
            reading = parse(lsof.read(Wanted()))
        finally:
            os.close(twice)
        found = {(s.protocol, s.local_port, s.remote_port): s for s in reading.sockets}
        port, client_port = listener.getsockname()[1], client.getsockname()[1]
        assert found["tcp", port, None].state == "LISTEN"
        assert found["tcp", port, client_port].state == "ESTABLISHED"
        assert found["tcp", client_port, port].state == "ESTABLISHED"
        assert found["udp", six.getsockname()[1], None].local_address == "::1"
        assert [owner.pid for owner in found["tcp", port, None].owners] == [os.getpid()]
        if sys.platform == "linux":
            assert found["tcp", port, None].inode == os.fstat(listener.fileno()).st_ino
            assert found["tcp", port, client_port].inode == os.fstat(accepted.fileno()).st_ino


@on_unix
def test_only_the_wanted_protocols_are_read():
    need(lsof.missing() is None, "lsof")
    with socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.bind(("127.0.0.1", 0))
        assert {s.protocol for s in parse(lsof.read(Wanted(("udp",)))).sockets} == {"udp"}
        assert lsof.read(Wanted(())) == LsofOutput(b"")


@on_unix
def test_a_process_with_an_odd_name(tmp_path):
    need(lsof.missing() is None, "lsof")
    need(sys.platform == "linux", "prctl(PR_SET_NAME)")
    child = (
        "import ctypes, socket, sys; ctypes.CDLL(None).prctl(15, b'a b\\\\c\\n\\xc3\\xa9', 0, 0, 0)\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            port = int(process.stdout.readline())
            (found,) = [s for s in parse(lsof.read(Wanted())).sockets if s.local_port == port]
            assert [(owner.pid, owner.name) for owner in found.owners] == [(process.pid, "a b\\c\né")]
        finally:
            process.kill()


@pytest.mark.root
@on_unix
def test_an_ordinary_user_gets_a_gap():
    need(lsof.missing() is None, "lsof")
    need(os.geteuid() == 0, "root, to become an ordinary user")
    code = (
        "import os; from portbook.sources import lsof; from portbook.sources.base import Wanted\n"
        "lsof.parse(lsof.read(Wanted()))  # all is imported: the user may not be able to read our modules\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "reading = lsof.parse(lsof.read(Wanted()))\n"
        "print([s.local_port for s in reading.sockets], reading.gaps[0].hint, sep='\\n')"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        port = listener.getsockname()[1]
    assert done.stderr == ""
    ports, hint = done.stdout.splitlines()
    assert str(port) not in ports
    assert hint == "run with sudo"


# --- running a program ---------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Put a shell script in the place of lsof."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(program, "DIRECTORIES", (str(tmp_path),))

    def write(text: str) -> None:
        path = tmp_path / "lsof"
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    return write


@on_unix
def test_the_program_runs_with_a_low_limit_of_descriptors(script):
    script('ulimit -Sn; echo "$LC_ALL $*"; pwd\n')
    assert lsof.read(Wanted()).data == b"1024\nC -n -P -w +c0 -F0pcLftdPnT -iTCP -iUDP\n/\n"


@on_unix
def test_a_program_that_hangs_is_ended(script, monkeypatch):
    script("echo p1; exec sleep 60\n")
    monkeypatch.setattr(lsof, "TIME_LIMIT_S", 0.3)
    with pytest.raises(SourceTimeout):
        lsof.read(Wanted())


@on_unix
def test_a_program_that_writes_without_end_is_ended(script, monkeypatch):
    script("exec yes\n")
    monkeypatch.setattr(lsof, "MOST_BYTES", 1 << 20)
    with pytest.raises(SourceGarbled):
        lsof.read(Wanted())


@on_unix
def test_a_complaint_without_output_is_an_error(script):
    script("echo 'lsof: no /proc' >&2; exit 1\n")
    with pytest.raises(SourceMissing, match="no /proc"):
        lsof.read(Wanted())


@on_unix
def test_nothing_to_list_is_no_error(script):
    script("exit 1\n")
    assert parse(lsof.read(Wanted())).sockets == []


def test_without_lsof_the_source_is_missing(monkeypatch):
    monkeypatch.setattr(program, "DIRECTORIES", ())
    assert lsof.SOURCE.missing() == "lsof is not installed"
    with pytest.raises(SourceMissing):
        lsof.read(Wanted())
