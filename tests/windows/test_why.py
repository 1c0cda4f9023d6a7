"""Binds of Windows: what the system says to them, and what is made of it.

PORTBOOK_EXCLUDED=4000-4699 says that this system refuses these ports as it refuses excluded ones (tests/winlab).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from portbook import UsageError, why
from portbook.netconfig.facts import DynamicRange, ExcludedRange, HttpQueue
from portbook.netconfig.windows.reservations import Reservations
from portbook.verdict import windows as gather
from tests.verdict.verdicts import codes, finding
from tests.windows.test_iphlpapi import touch

NOTHING_KEPT = Reservations((), (), (), (), ())
EXCLUDED = os.environ.get("PORTBOOK_EXCLUDED")
excluding = pytest.mark.skipif(not EXCLUDED, reason="no port of this system is excluded for the test")
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from portbook.__main__ import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def no_lists(monkeypatch):
    """What netsh says has tests of its own."""
    monkeypatch.setattr(gather, "read_reservations", lambda request, sockets: NOTHING_KEPT)


def held(address: str = "0.0.0.0", exclusive: bool = False, kind=socket.SOCK_STREAM) -> socket.socket:
    one = socket.socket(socket.AF_INET, kind)
    if exclusive:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    one.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        one.listen()
    return touch(one)


def refused(port: int) -> int | None:
    """The error of an exclusive bind of the test's own; None if it succeeds."""
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        try:
            mine.bind(("0.0.0.0", port))
        except OSError as error:
            return error.winerror
    return None


def free_port() -> int:
    with held() as one:
        return one.getsockname()[1]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_free_port_can_be_bound(protocol):
    verdict = why(free_port(), protocol)
    assert (verdict.platform, verdict.can_have, verdict.findings) == ("windows", True, ())
    unlisted = [gap for gap in verdict.gaps if "bound and do not listen" not in gap.why]  # by Wine
    assert unlisted == []
    assert verdict.free == ("0.0.0.0", "[::]")


def test_an_ordinary_holder_is_10048():
    with held() as one:
        port = one.getsockname()[1]
        verdict = why(port)
        assert refused(port) == 10048
    found = finding(verdict, "listener")
    assert (verdict.can_have, codes(verdict, "blocks")) == (False, ["listener"])
    assert found.evidence["owners"][0]["pid"] == os.getpid()
    assert (verdict.tried[0].error, verdict.tried[0].error_name) == (10048, "WSAEADDRINUSE")
    assert verdict.free == ("[::]",)


def test_an_exclusive_holder_is_10013():
    with held(exclusive=True) as one:
        port = one.getsockname()[1]
        verdict = why(port)
        assert refused(port) == 10013
    assert codes(verdict, "blocks") == ["listener", "exclusive-holder"]
    assert finding(verdict, "exclusive-holder").evidence == {"error": 10013}


def test_a_udp_holder():
    with held(kind=socket.SOCK_DGRAM) as one:
        verdict = why(one.getsockname()[1], "udp")
    assert (verdict.can_have, codes(verdict, "blocks")) == (False, ["udp-socket"])
    assert finding(verdict, "udp-socket").evidence["owners"][0]["pid"] == os.getpid()


def test_a_single_address_against_the_wildcard():
    with held("127.0.0.1") as one:
        verdict = why(one.getsockname()[1])
    assert (verdict.can_have, verdict.taken) == (False, ("0.0.0.0",))
    assert codes(verdict) == ["listener", "wildcard-shadow"]


def test_a_port_is_never_taken_from_its_holder():
    """SO_REUSEADDR would do that here."""
    with held() as one:
        why(one.getsockname()[1])
        with socket.create_connection(("127.0.0.1", one.getsockname()[1])) as client:
            accepted, _ = one.accept()
            accepted.close()
            assert client.recv(1) == b""


def test_an_address_that_is_not_on_this_machine():
    verdict = why(free_port(), address="192.0.2.1")
    assert (verdict.can_have, verdict.tried[0].error) == (False, 10049)
    assert codes(verdict, "blocks")


def test_an_option_that_windows_does_not_have():
    with pytest.raises(UsageError, match="SO_REUSEPORT"):
        why(free_port(), reuse_port=True)


def test_the_command_and_its_exit_codes():
    source = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "src"))
    with held() as one:
        for port, code in ((one.getsockname()[1], 1), (free_port(), 0)):
            command = [sys.executable, "-c", START, source, "why", str(port)]
            for form in ([], ["--json"]):
                done = subprocess.run(
                    [*command, *form], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
                )
                assert done.returncode == code, done.stderr
                if form:
                    assert json.loads(done.stdout)["can_have"] is (code == 0)
                else:
                    assert b"with SO_EXCLUSIVEADDRUSE" in done.stdout


def test_the_process_behind_a_queue_of_http_sys_has_a_name(monkeypatch):
    port = free_port()
    kept = NOTHING_KEPT._replace(queues=(HttpQueue("demo", (f"HTTP://+:{port}/", "HTTP://+:1/"), (os.getpid(),)),))
    monkeypatch.setattr(gather, "read_reservations", lambda request, sockets: kept)
    verdict = why(port)
    assert (
        f"python.exe (pid {os.getpid()}) on HTTP://+:{port}/ (request queue demo)" in finding(verdict, "http-sys").text
    )
    assert verdict.can_have  # the list is composed, and the bind wins


@excluding
def test_a_refused_port_without_a_holder_is_unexplained():
    low = int(EXCLUDED.partition("-")[0])
    verdict = why(low)
    assert (verdict.can_have, verdict.foreseen) == (False, True)
    assert {f.code for f in verdict.findings} == {"unexplained"}
    assert {(t.error, t.error_name) for t in verdict.tried} == {(10013, "WSAEACCES")}
    assert "excludedportrange" in verdict.findings[0].remedy


@excluding
def test_the_list_of_excluded_ranges_explains_it(monkeypatch):
    low, high = map(int, EXCLUDED.split("-"))
    families = ("ipv4", "ipv6")
    kept = NOTHING_KEPT._replace(
        excluded=tuple(ExcludedRange(family, "tcp", low, high, administered=False) for family in families),
        dynamic=tuple(DynamicRange(family, "tcp", 1024, 64511) for family in families),
    )
    monkeypatch.setattr(gather, "read_reservations", lambda request, sockets: kept)
    verdict = why(low + 5)
    assert (verdict.can_have, verdict.foreseen) == (False, False)
    assert codes(verdict, "blocks") == ["excluded-range", "excluded-range"]
    assert {f.evidence["dynamic_start"] for f in verdict.findings if f.severity == "blocks"} == {1024}
    assert why(high + 1).can_have
