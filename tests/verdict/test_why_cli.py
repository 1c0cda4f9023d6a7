"""``portbook why`` as it is run: exit codes, formats, invalid arguments."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from portbook import UsageError, why
from tests.conftest import unheld_port

pytestmark = [
    pytest.mark.usefixtures("own_network"),
    pytest.mark.skipif(sys.platform != "linux", reason="each system shares ports by its own rules"),
]


def portbook(*arguments: str, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "portbook", "why", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


def test_a_free_port_is_yes():
    port = unheld_port()
    run = portbook(str(port))
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"you can have port {port}/tcp: 0.0.0.0:{port} and [::]:{port} are free\n")


def test_a_port_that_is_held_is_no(listener):
    port = listener.getsockname()[1]
    run = portbook(str(port))
    assert run.returncode == 1
    assert f"(pid {os.getpid()}, user " in run.stdout
    assert portbook(str(port), "--address", "127.0.0.2").returncode == 0
    assert portbook(f"{port}/udp").returncode == 0
    assert portbook(str(port), "--dual").returncode == 1
    assert portbook(str(port), "--reuseport").returncode == 1


def test_json_is_the_verdict_of_the_library(listener):
    port = listener.getsockname()[1]
    run = portbook(str(port), "--json", "--no-reuse")
    told = json.loads(run.stdout)
    assert (run.returncode, told["can_have"], told["taken"]) == (1, False, ["0.0.0.0"])
    assert told["options"]["reuse_address"] is False
    mine = why(port, reuse_address=False)
    assert [f["code"] for f in told["findings"]] == [f.code for f in mine.findings]
    assert [t["error"] for t in told["tried"]] == [98, None]


def test_what_cannot_be_determined_exits_with_5():
    script = (
        "import resource, sys\n"
        "from portbook import why\n"
        "from portbook.__main__ import main\n"
        "why(1)\n"  # everything is imported
        "import portbook.cli.why, portbook.render.verdict\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "sys.argv = ['portbook', 'why', '7777']\n"
        "sys.exit(main())\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 5, run.stderr
    assert run.stdout.startswith("cannot tell whether you can have port 7777/tcp: ")
    assert "EMFILE" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["0"], "1 to 65535"),
        (["65536"], "1 to 65535"),
        (["1-65535"], "at most 100"),
        (["80/sctp"], "tcp, udp"),
        (["80", "--address", "nowhere"], "not an"),
        (["80", "--address", "127.0.0.1", "--dual"], "dual"),
        ([], "missing argument"),
    ],
)
def test_invalid_arguments_exit_with_2(arguments, complaint):
    run = portbook(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert complaint in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_the_library_gives_the_same_verdict(port):
    with pytest.raises(UsageError, match="1 to 65535"):
        why(port)
    with pytest.raises(UsageError, match="tcp, udp"):
        why(80, "sctp")  # type: ignore[arg-type]


def test_strict_is_about_gaps():
    assert portbook(str(unheld_port()), "--strict").returncode == 0
