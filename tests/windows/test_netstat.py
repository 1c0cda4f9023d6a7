"""netstat and tasklist, really run: Wine's stubs, and answers replayed by programs of the same name.

PORTBOOK_REPLAY=1 says that netstat.exe and tasklist.exe of this system are replay.py (see tests/winlab), which prints
the files that the variables name.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from portbook.errors import SourceError, SourceGarbled, SourceMissing, SourceTimeout
from portbook.sources import netstat
from portbook.sources.base import Wanted
from portbook.system import console
from tests.sources.test_netstat import DATA, EXPECTED, SAMPLES
from tests.windows.conftest import WINE

REPLAY = os.environ.get("PORTBOOK_REPLAY") == "1"
replayed = pytest.mark.skipif(not REPLAY, reason="netstat.exe is not the one that replays")


@pytest.mark.skipif(REPLAY or not WINE, reason="netstat.exe is not the one of Wine")
def test_the_stubs_of_wine_are_not_an_empty_machine():
    with pytest.raises(SourceGarbled):
        netstat.parse(netstat.read(Wanted()))


@pytest.mark.skipif(REPLAY or WINE, reason="netstat.exe is not the one of Windows")
def test_netstat_of_windows():
    reading = netstat.parse(netstat.read(Wanted()))
    assert any(s.state == "LISTEN" and s.local_port == 135 for s in reading.sockets)
    assert any(owner.name for s in reading.sockets for owner in s.owners)


def test_the_code_page_is_the_oem_one():
    assert netstat.read(Wanted()).codec.removeprefix("cp").isdigit()


@pytest.fixture
def replay(monkeypatch):
    """Say what the programs shall print, and how they shall end."""

    def say(**variables: str | Path) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"PORTBOOK_REPLAY_{name.upper()}", str(value))

    say(netstat=DATA / "english.cp437.txt", tasklist=DATA / "english.cp437.tasklist.csv")
    return say


@replayed
@pytest.mark.parametrize("name", SAMPLES)
def test_every_language_through_a_real_process(replay, name):
    text, tasks = DATA / f"{name}.txt", DATA / f"{name}.tasklist.csv"
    replay(netstat=text, tasklist=tasks)
    raw = netstat.read(Wanted())
    assert (raw.netstat, raw.tasklist) == (text.read_bytes(), tasks.read_bytes())
    assert raw.gaps == ()
    assert netstat.parse(raw._replace(codec=name.rpartition(".")[2])).sockets == EXPECTED


@replayed
def test_the_arguments_are_the_documented_ones(replay, tmp_path):
    replay(log=tmp_path / "log.txt")
    netstat.read(Wanted())
    assert (tmp_path / "log.txt").read_text().splitlines() == ["netstat.exe -ano", "tasklist.exe /FO CSV /NH"]


@replayed
def test_a_program_of_that_name_elsewhere_is_not_run(replay, monkeypatch, tmp_path):
    (tmp_path / "netstat.exe").write_bytes(b"not a program")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert netstat.read(Wanted()).netstat == (DATA / "english.cp437.txt").read_bytes()


@replayed
def test_no_answer_in_time(replay, monkeypatch):
    replay(netstat_sleep_s="4")
    monkeypatch.setattr(netstat, "TIMEOUT_S", 1.0)
    started = time.monotonic()
    with pytest.raises(SourceTimeout, match="netstat"):
        netstat.read(Wanted())
    assert time.monotonic() - started < 15


@replayed
def test_an_exit_code_that_means_failure(replay):
    replay(netstat_exit="3")
    with pytest.raises(SourceMissing, match="ended with exit code 3"):
        netstat.read(Wanted())


@replayed
@pytest.mark.parametrize("how", [{"tasklist_exit": "1"}, {"tasklist": "Z:\\no\\such\\file"}])
def test_without_tasklist_there_are_sockets_without_names(replay, how):
    replay(**how)
    raw = netstat.read(Wanted())
    (gap,) = raw.gaps
    assert (gap.what, raw.tasklist) == ("process", b"")
    reading = netstat.parse(raw)
    assert [s.local_port for s in reading.sockets] == [s.local_port for s in EXPECTED]
    assert {owner.name for s in reading.sockets for owner in s.owners} == {None}
    assert reading.gaps == [gap]


def test_a_program_that_is_not_there(monkeypatch):
    monkeypatch.setattr(netstat, "NETSTAT", ("portbook-has-no-such-program.exe",))
    with pytest.raises(SourceMissing, match="not installed"):
        netstat.read(Wanted())


def test_without_the_system_directory_there_is_an_error():
    class Kernel32:
        def GetSystemDirectoryW(self, buffer, size):  # noqa: N802  # the name it has in Windows
            return 0

    with pytest.raises(SourceError):
        console.system_directory(Kernel32())
