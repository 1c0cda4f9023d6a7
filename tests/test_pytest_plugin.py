"""The fixtures that pytest finds in an environment with portbook, in runs of pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]

TESTS = '''
import socket, sys
import pytest

def server(port):
    with socket.create_server(("", port)), socket.socket(socket.AF_INET6) as six:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        six.bind(("::", port))

def test_nothing_was_imported_yet():
    """Before a fixture is used."""
    ours = {name for name in sys.modules if name.partition(".")[0] == "portbook"}
    assert ours <= {"portbook", "portbook.pytest_plugin"}
    assert not {"msgspec", "psutil", "asyncio"} & set(sys.modules)

GIVEN = []

@pytest.mark.parametrize("round", range(50))
def test_a_free_port_can_be_bound_and_is_given_once(free_port, round):
    server(free_port)
    assert free_port not in GIVEN
    GIVEN.append(free_port)

KEPT = []

def test_a_leased_socket_is_held(leased_socket):
    port = leased_socket.getsockname()[1]
    assert leased_socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError):
        server(port)
    with socket.create_connection(("127.0.0.1", port)):
        leased_socket.accept()[0].close()
    KEPT.append(leased_socket)

def test_several(lease_port):
    one, two, three = lease_port(), lease_port(protocols=("tcp", "udp")), lease_port(address=None)
    assert len({one.port, two.port, three.port}) == 3
    assert [len(held.sockets) for held in (one, two, three)] == [1, 2, 2]
    KEPT.extend(one.sockets + two.sockets + three.sockets)

def test_all_were_closed():
    assert len(KEPT) == 6
    assert all(sock.fileno() == -1 for sock in KEPT)
'''


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """What installing portbook puts beside it: the entry points of pyproject.toml."""
    info = tmp_path / "site" / "portbook-0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: portbook\nVersion: 0\n")
    rows = [f"[{group}]\n{name} = {home}" for group, row in ENTRY_POINTS.items() for name, home in row.items()]
    info.joinpath("entry_points.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def run(where: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (where / "test_ports.py").write_text(TESTS)
    path = os.pathsep.join([str(where / "site"), str(ROOT / "src")])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options, str(where)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=where,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


def test_the_fixtures(installed):
    done = run(installed, "-p", "no:hypothesispytest")
    assert done.stdout.splitlines()[-1].startswith("54 passed"), done.stdout


def test_switched_off(installed):
    done = run(installed, "-p", "no:portbook")
    assert "fixture 'free_port' not found" in done.stdout
    assert "fixture 'leased_socket' not found" in done.stdout


def test_an_unused_plugin_imports_nothing(installed):
    done = run(installed, "-k", "imported")
    assert done.stdout.splitlines()[-1].startswith("1 passed"), done.stdout
