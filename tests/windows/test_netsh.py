"""netsh, really run: Wine's stub, and answers replayed by a program of the same name; and the registry of port proxies.

PORTBOOK_REPLAY=1 says that netsh.exe of this system is replay.py (see tests/winlab), which prints the files that the
variables name.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from portbook import why
from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing, SourceTimeout
from portbook.netconfig.facts import DynamicRange, PortProxy
from portbook.netconfig.windows import httpsys, netsh, portproxy, reservations
from tests.netconfig.windows import test_httpsys
from tests.netconfig.windows.reading import dynamic_ranges, excluded_ranges, http_queues, port_proxies
from tests.netconfig.windows.test_netsh import DATA, DYNAMIC, EXCLUDED, shown
from tests.windows.conftest import WINE

if sys.platform == "win32":
    import winreg

REPLAY = os.environ.get("PORTBOOK_REPLAY") == "1"
replayed = pytest.mark.skipif(not REPLAY, reason="netsh.exe is not the one that replays")


# --- not replayed --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(REPLAY or not WINE, reason="netsh.exe is not the one of Wine")
def test_the_stub_of_wine_does_not_say_that_nothing_is_reserved():
    for look in (excluded_ranges, dynamic_ranges, http_queues):
        with pytest.raises(SourceGarbled):
            look()
    found = reservations.take()
    assert (found.excluded, found.dynamic, found.queues) == (None, None, None)
    assert len(found.gaps) == 9


@pytest.mark.skipif(REPLAY or WINE, reason="netsh.exe is not the one of Windows")
def test_netsh_of_windows():
    found = reservations.take()
    assert found.dynamic is not None
    assert all(r.count > 0 for r in found.dynamic)
    assert found.excluded is not None
    assert found.queues is not None


def test_a_program_that_is_not_there(monkeypatch):
    monkeypatch.setattr(netsh, "PROGRAM", "portbook-has-no-such-program.exe")
    with pytest.raises(SourceMissing, match="not installed"):
        excluded_ranges()


# --- replayed ------------------------------------------------------------------------------------------------------


@pytest.fixture
def replay(monkeypatch):
    """Say what the program shall print, and how it shall end. Python starts slower than netsh."""
    monkeypatch.setattr(netsh, "TIMEOUT_S", 50.0)

    def say(**variables: str | Path) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"PORTBOOK_REPLAY_{name.upper()}", str(value))

    say(
        netsh_excludedportrange=DATA / "excluded.english.cp437.txt",
        netsh_dynamicport=DATA / "dynamic.english.cp437.txt",
        netsh_servicestate=DATA / "queues.english.cp437.txt",
    )
    return say


@pytest.fixture
def codec(monkeypatch):
    """The code page of a Windows in another language."""
    real = netsh.console.console()

    def use(name: str) -> None:
        monkeypatch.setattr(netsh.console, "console", lambda: real._replace(codec=name.rpartition(".")[2]))

    return use


@replayed
@pytest.mark.parametrize("name", EXCLUDED)
def test_excluded_ranges_in_every_language_through_a_real_process(replay, codec, name):
    replay(netsh_excludedportrange=DATA / f"excluded.{name}.txt")
    codec(name)
    assert shown(excluded_ranges(["tcp"], ["ipv4"])) == EXCLUDED[name]


@replayed
def test_why_reports_what_netsh_printed_even_if_the_bind_contradicts_it(replay):
    """Nothing is really excluded here, so that the bind succeeds; what was read is still reported."""
    replay(netsh_excludedportrange=DATA / "excluded.german.cp850.txt")
    verdict = why(49750)
    found = [f for f in verdict.findings if f.code == "excluded-range"]
    assert {(f.evidence["first"], f.evidence["last"], f.evidence["family"]) for f in found} == {
        (49711, 49810, "ipv4"),
        (49711, 49810, "ipv6"),
    }
    assert (verdict.can_have, verdict.foreseen) == (True, False)
    assert [f.code for f in why(49700).findings if f.code == "excluded-range"] == []


@replayed
@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_ranges_in_every_language_through_a_real_process(replay, codec, name):
    replay(netsh_dynamicport=DATA / f"dynamic.{name}.txt")
    codec(name)
    assert dynamic_ranges(["udp"], ["ipv6"]) == (DynamicRange("ipv6", "udp", *DYNAMIC[name]),)


@replayed
@pytest.mark.parametrize("name", test_httpsys.LANGUAGES)
def test_queues_in_every_language_through_a_real_process(replay, codec, name):
    replay(netsh_servicestate=DATA / f"queues.{name}.txt")
    codec(name)
    assert http_queues() == test_httpsys.EXPECTED


@replayed
@pytest.mark.parametrize("name", ["german.cp850", "japanese.cp932", "korean.cp949", "chinese.cp936"])
def test_utf8_while_the_code_page_is_another(replay, codec, tmp_path, name):
    text = (DATA / f"excluded.{name}.txt").read_bytes().decode(name.rpartition(".")[2])
    (tmp_path / "utf8.txt").write_bytes(text.encode())
    replay(netsh_excludedportrange=tmp_path / "utf8.txt")
    codec(name)
    assert shown(excluded_ranges(["tcp"], ["ipv4"])) == EXCLUDED[name]


@replayed
def test_bytes_arrive_as_they_are(replay):
    (raw,) = netsh.read([httpsys.SHOW_QUEUES])
    assert not isinstance(raw, SourceError)
    assert raw.data == (DATA / "queues.english.cp437.txt").read_bytes()
    assert raw.codec.removeprefix("cp").isdigit()


@replayed
def test_all_commands_run_at_the_same_time_with_the_documented_arguments(replay, tmp_path):
    replay(log=tmp_path, netsh_together="9")  # one after the other, the first would wait beyond the time limit
    found = reservations.take()
    assert found.gaps == ()
    assert [len(part) if part is not None else None for part in found[:4]] == [40, 4, 0, 6]
    lists = [(family, protocol) for family in ("ipv4", "ipv6") for protocol in ("tcp", "udp")]
    assert sorted(file.read_text().strip() for file in tmp_path.iterdir()) == sorted(
        [f"netsh.exe interface {family} show excludedportrange protocol={protocol}" for family, protocol in lists]
        + [f"netsh.exe interface {family} show dynamicport {protocol}" for family, protocol in lists]
        + ["netsh.exe http show servicestate view=requestq"]
    )


@replayed
def test_a_program_of_that_name_elsewhere_is_not_run(replay, monkeypatch, tmp_path):
    (tmp_path / "netsh.exe").write_bytes(b"not a program")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SystemRoot", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert netsh.console.console().directory.lower().endswith("\\system32")
    assert str(tmp_path) not in netsh.console.console().directory


@replayed
def test_one_list_that_fails_is_a_gap_beside_the_others(replay, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"\r\n")
    replay(netsh_ipv6=tmp_path / "empty.txt")
    found = reservations.take(["tcp"], queues=False)
    assert found.excluded is not None
    assert {r.family for r in found.excluded} == {"ipv4"}
    assert [gap.what for gap in found.gaps] == ["reservation"] * 2
    with pytest.raises(SourceGarbled, match="ipv6"):
        excluded_ranges()


@replayed
def test_an_exit_code_that_means_failure(replay):
    replay(netsh_exit="1")
    with pytest.raises(SourceMissing, match="ended with exit code 1"):
        dynamic_ranges()


@replayed
def test_no_answer_in_time(replay, monkeypatch):
    replay(netsh_sleep_s="4")
    monkeypatch.setattr(netsh, "TIMEOUT_S", 1.0)
    started = time.monotonic()
    with pytest.raises(SourceTimeout, match="did not finish within 1 s"):
        http_queues()
    assert time.monotonic() - started < 15


@replayed
def test_an_answer_that_is_too_long(replay, monkeypatch):
    monkeypatch.setattr(netsh, "MOST_BYTES", 100)
    with pytest.raises(SourceGarbled, match="more than 100 bytes"):
        http_queues()


# --- registry ------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[object]:
    """Writes port proxies; afterwards there are none, as before. Only Wine's: on Windows they would be real."""
    if not WINE:
        pytest.skip("it would forward ports of this machine")
    assert portproxy.read() == ()

    def write(kind: str, **values: object) -> None:
        with winreg.CreateKey(winreg.HKEY_LOCAL_MACHINE, f"{portproxy.KEY}\\{kind}\\tcp") as key:
            for name, value in values.items():
                winreg.SetValueEx(key, name, 0, winreg.REG_SZ if isinstance(value, str) else winreg.REG_DWORD, value)

    yield write
    for key in (*(f"\\{kind}{tcp}" for kind in portproxy.KINDS for tcp in ("\\tcp", "")), ""):
        with suppress(FileNotFoundError):
            winreg.DeleteKey(winreg.HKEY_LOCAL_MACHINE, portproxy.KEY + key)


def test_without_the_key_there_is_no_proxy(registry):
    assert port_proxies() == ()


def test_proxies_of_every_kind(registry):
    registry("v4tov4", **{"*/8080": "192.0.2.7/80", "127.0.0.1/2222": "wsl.example/22"})
    registry("v6tov4", **{"::1/443": "127.0.0.1/8443"})
    registry("v4tov6", **{"0.0.0.0/53": "2001:db8::1/5353"})
    registry("v6tov6")
    assert set(port_proxies()) == {
        PortProxy("v4tov4", "*", 8080, "192.0.2.7", 80),
        PortProxy("v4tov4", "127.0.0.1", 2222, "wsl.example", 22),
        PortProxy("v6tov4", "::1", 443, "127.0.0.1", 8443),
        PortProxy("v4tov6", "0.0.0.0", 53, "2001:db8::1", 5353),
    }


def test_a_value_that_is_no_proxy_does_not_hide_the_others(registry):
    registry("v4tov4", **{"*/8080": "192.0.2.7/80", "*/81": 7, "nonsense": "x"})
    answers = portproxy.take()
    assert [answer for answer in answers if not isinstance(answer, SourceError)] == [
        (PortProxy("v4tov4", "*", 8080, "192.0.2.7", 80),)
    ]
    assert len(answers) == 3
    with pytest.raises(SourceGarbled):
        port_proxies()


def test_a_registry_that_changes_while_it_is_read(registry, monkeypatch):
    """The number of values is known before they are read; a value that is gone by then ends the list."""
    registry("v4tov4", **{"*/8080": "192.0.2.7/80"})
    monkeypatch.setattr(winreg, "QueryInfoKey", lambda key: (0, 3, 0))
    assert port_proxies() == (PortProxy("v4tov4", "*", 8080, "192.0.2.7", 80),)


@pytest.fixture
def refusing(monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Access is denied", None, 5)

    monkeypatch.setattr(winreg, "OpenKey", refuse)


def test_a_registry_that_may_not_be_read(refusing):
    with pytest.raises(SourceDenied, match=r"run as administrator"):
        portproxy.read()


@replayed
def test_then_netsh_is_run(refusing, replay):
    replay(netsh_v4tov4=DATA / "portproxy.english.cp437.txt", netsh=DATA / "portproxy.none.cp437.txt")
    found = reservations.take(["tcp"], ["ipv4"], queues=False)
    assert found.proxies is not None
    assert [proxy.listen_port for proxy in found.proxies] == [3000, 8081]
    assert len(found.gaps) == 4  # three kinds of which netsh says nothing, and the registry
    with pytest.raises(SourceError):
        port_proxies()
