"""Running netsh, a shell script in its place: real processes, pipes, time limits. The real one is in tests/windows."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing, SourceTimeout
from portbook.netconfig.facts import DynamicRange, ExcludedRange, PortProxy
from portbook.netconfig.windows import netsh, portproxy, reservations
from portbook.netconfig.windows.netsh import NetshCommand
from portbook.system.console import Console
from tests.netconfig.windows.reading import dynamic_ranges, excluded_ranges, port_proxies

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there netsh itself is run, in tests/windows")


class Scripted:
    """Stands in for Windows: a program of this machine is run in the place of netsh, with real processes."""

    def __init__(self, monkeypatch, directory: Path) -> None:
        directory.chmod(0o755)
        monkeypatch.setattr(netsh.console, "console", lambda: Console(str(directory), "cp850"))
        monkeypatch.setattr(netsh.program, "DIRECTORIES", (str(directory),))
        self.program = directory / "netsh.exe"

    def says(self, script: str) -> None:
        self.program.write_text(f"#!/bin/sh\n{script}\n")
        self.program.chmod(0o755)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    return Scripted(monkeypatch, tmp_path)


def test_all_four_commands_run_at_the_same_time(scripted, tmp_path):
    # Each waits until all four have begun: one after the other they would never end.
    scripted.says(f'echo "$@" >>{tmp_path}/log; until [ $(wc -l <{tmp_path}/log) -eq 4 ]; do sleep 0.01; done\n' + ROWS)
    found = excluded_ranges()
    assert [(r.family, r.protocol) for r in found] == [
        ("ipv4", "tcp"),
        ("ipv4", "udp"),
        ("ipv6", "tcp"),
        ("ipv6", "udp"),
    ]
    assert sorted((tmp_path / "log").read_text().splitlines()) == [
        f"interface {family} show excludedportrange protocol={protocol}"
        for family in ("ipv4", "ipv6")
        for protocol in ("tcp", "udp")
    ]


ROWS = "printf '%s\\r\\n' '----------    --------' '      5357        5357'"


def test_only_what_is_wanted_is_read(scripted, tmp_path):
    scripted.says(f'echo "$@" >>{tmp_path}/log\nprintf "a: 1024\\nb: 5\\n"')
    assert dynamic_ranges(["udp"], ["ipv6"]) == (DynamicRange("ipv6", "udp", 1024, 5),)
    assert (tmp_path / "log").read_text() == "interface ipv6 show dynamicport udp\n"


def test_the_error_of_an_empty_output_names_the_command(scripted):
    scripted.says("exit 0")
    with pytest.raises(SourceGarbled, match=r"^netsh interface ipv4 show excludedportrange protocol=tcp: neither"):
        excluded_ranges()


def test_a_command_that_fails_does_not_hide_the_others(scripted):
    scripted.says(f'[ "$2" = ipv6 ] && exit 1\n{ROWS}')
    answers = netsh.run_commands(netsh.excluded_commands(["tcp"], ["ipv4", "ipv6"]))
    assert answers[0] == (ExcludedRange("ipv4", "tcp", 5357, 5357, administered=False),)
    assert isinstance(answers[1], SourceMissing)
    assert "ended with exit code 1" in str(answers[1])
    with pytest.raises(SourceMissing):
        excluded_ranges()


def test_a_program_that_is_not_there(scripted):
    with pytest.raises(SourceMissing, match="not installed"):
        excluded_ranges()


def test_no_answer_in_time_and_nothing_is_left_running(scripted, monkeypatch, tmp_path):
    scripted.says(f"echo $$ >{tmp_path}/pid.$5; exec sleep 60")
    monkeypatch.setattr(netsh, "TIMEOUT_S", 1.0)
    with pytest.raises(SourceTimeout, match="did not finish within 1 s"):
        excluded_ranges(families=["ipv4"])
    pids = [path.read_text().strip() for path in tmp_path.glob("pid.*")]
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_an_interrupt_leaves_nothing_running(scripted, tmp_path):
    scripted.says(f"echo $$ >{tmp_path}/pid; sleep 0.5; kill -INT $PPID; exec sleep 60")
    with pytest.raises(KeyboardInterrupt):
        excluded_ranges(["tcp"], ["ipv4"])
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_nothing_is_kept_open(scripted):
    scripted.says(f'[ "$2" = ipv6 ] && exit 1\n{ROWS}')
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        netsh.run_commands(netsh.excluded_commands(["tcp", "udp"], ["ipv4", "ipv6"]))
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


def test_output_that_a_descendant_keeps_open(scripted):
    scripted.says(f"sleep 3 & {ROWS}")
    assert len(excluded_ranges(["tcp"], ["ipv4"])) == 1


def test_output_without_end(scripted):
    scripted.says("exec yes 80")
    with pytest.raises(SourceGarbled, match="printed more than"):
        excluded_ranges(["tcp"], ["ipv4"])


def test_standard_input_is_empty(scripted):
    scripted.says(f"cat\n{ROWS}")
    assert len(excluded_ranges(["tcp"], ["ipv4"])) == 1


def test_a_command_of_its_own(scripted):
    scripted.says('printf "%s" "$*"')
    (answer,) = netsh.run_commands([NetshCommand(("a b", 'c"d'), lambda output: (output.data,))])
    assert answer == (b'a b c"d',)


# --- all of it -----------------------------------------------------------------------------------------------------


def test_everything_at_once_with_what_is_missing(scripted, monkeypatch):
    monkeypatch.setattr(portproxy, "read", lambda: (portproxy.ProxyValue("v4tov4", "*/80", "192.0.2.1/8080"),))
    scripted.says(
        f'case "$*" in http*) exit 0;; *ipv6*) exit 1;; *dynamic*) printf "a: 1024\\nb: 5\\n";; *) {ROWS};; esac'
    )
    found = reservations.take()
    assert [len(part) if part is not None else None for part in found[:4]] == [2, 2, 1, None]
    assert len(found.gaps) == 5
    assert {gap.what for gap in found.gaps} == {"reservation"}
    assert any("http show servicestate" in gap.why for gap in found.gaps)


def test_for_udp_neither_queues_nor_proxies_are_read(scripted, tmp_path):
    scripted.says(f'echo "$*" >>{tmp_path}/log; exit 1')
    found = reservations.take(["udp"], ["ipv4"])
    assert found[:4] == (None, None, (), ())
    assert len(found.gaps) == 2
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_if_the_registry_cannot_be_read_netsh_is_run(scripted, monkeypatch):
    def refuse():
        raise SourceDenied("HKLM cannot be read", "run as administrator")

    monkeypatch.setattr(portproxy, "read", refuse)
    row = "'--------------- ----------  --------------- ----------' '* 80 192.0.2.1 8080'"
    scripted.says(f'[ "$4" = v4tov4 ] && printf "%s\\r\\n" {row}; exit 0')
    answers = portproxy.take()
    assert answers[0] == (PortProxy("v4tov4", "*", 80, "192.0.2.1", 8080),)
    assert all(isinstance(answer, SourceError) for answer in answers[1:])
    with pytest.raises(SourceError):
        port_proxies()
