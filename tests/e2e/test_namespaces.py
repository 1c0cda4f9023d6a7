"""The output about other network namespaces: a line below a listing, a column if they are requested."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from portbook import sources
from portbook.testing import child
from tests.components import need
from tests.conftest import ROOT

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]

SERVE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if len(sys.argv) > 1:
    with open(f"/run/netns/{sys.argv[1]}") as there:
        failed = libc.setns(there.fileno(), 0x40000000)
else:
    failed = libc.unshare(0x40000000)  # CLONE_NEWNET
if failed:
    raise SystemExit(os.strerror(ctypes.get_errno()))
listener = socket.create_server(("", 0))
say([listener.getsockname()[1], os.stat("/proc/self/ns/net").st_ino])
wait()
"""


@pytest.fixture
def named():
    """A listener in a namespace that has a name: the name, its port, its pid."""
    need(ROOT and sys.platform == "linux", "root on Linux, to make network namespaces")
    why = sources.missing("bpf")
    need(why is None, f"a kernel that takes the program: {why}")
    name = f"portbook-e2e-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
    try:
        with child(SERVE, name) as one:
            yield name, one.said[0], one.pid
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=30)


def portbook(*arguments):
    command = [sys.executable, "-m", "portbook", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_listing_counts_what_it_does_not_show(named):
    _, port, _ = named
    run = portbook()
    assert f" {port} " not in run.stdout
    assert "NETNS" not in run.stdout
    (line,) = [line for line in run.stderr.splitlines() if "--netns all" in line]
    assert "listener" in line
    listing = json.loads(portbook("--json").stdout)
    assert listing["listeners_elsewhere"] >= 1
    assert listing["namespaces_elsewhere"] >= 1


@pytest.mark.parametrize("spelling", ["all", "name", "inode", "query"])
def test_another_namespace_is_shown_with_its_name(named, spelling):
    name, port, pid = named
    inode = os.stat(f"/run/netns/{name}").st_ino
    asked = {"all": ["--netns", "all"], "name": ["--netns", name], "inode": ["--netns", str(inode)]}
    run = portbook("--tcp", *asked.get(spelling, [f"netns:{name}"]))
    header, *rows = run.stdout.splitlines()
    assert header.split()[:2] == ["NETNS", "PROTO"]
    (row,) = [row.split() for row in rows if row.startswith(name)]
    assert (row[1], row[3]) == ("tcp", str(port))
    assert str(pid) in row
    assert "--netns all shows" not in run.stderr
    if spelling != "all":
        assert len(rows) == 1


def test_json_has_the_namespace_on_every_row(named):
    name, port, _ = named
    rows = json.loads(portbook("--netns", "all", "--json").stdout)["sockets"]
    assert all(row["netns"] for row in rows)
    (row,) = [row for row in rows if row["netns_name"] == name]
    assert (row["local_port"], row["netns"]) == (port, os.stat(f"/run/netns/{name}").st_ino)


def test_a_namespace_without_a_name_has_its_inode(named):
    with child(SERVE) as other:
        port, inode = other.said
        run = portbook("--netns", "all", "-p", str(port))
    rows = [row.split() for row in run.stdout.splitlines()]
    assert [str(inode), "tcp"] in [row[:2] for row in rows]


def test_who_answers_for_here_and_tells_of_elsewhere(named):
    name, port, pid = named
    run = portbook("who", str(port))
    assert run.returncode == 1, "the port is free in this namespace"
    assert run.stdout.startswith(f"nobody holds port {port} in this network namespace\n")
    (line,) = [line for line in run.stdout.splitlines() if name in line]
    assert line.split()[0] == "elsewhere"
    assert f"(pid {pid}) in network namespace {name}: 0.0.0.0:{port}/tcp LISTEN" in line
    answer = json.loads(portbook("who", str(port), "--json").stdout)
    assert (answer["held"], answer["holders"], answer["sockets"]) == (False, [], [])
    mine = [h for h in answer["holders_elsewhere"] if h["owner"]["pid"] == pid]
    assert [s["netns_name"] for h in mine for s in h["sockets"]] == [name]


MANY = """
import ctypes
listeners = []
for _ in range(12):
    if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET
        raise SystemExit("unshare")
    listeners.append(socket.create_server(("0.0.0.0", 4711)))
say()
wait()
"""


def test_who_names_some_of_many_listeners_elsewhere():
    with child(MANY):
        run = portbook("who", "4711")
        rows = [line for line in run.stdout.splitlines() if line.split()[:1] == ["elsewhere"]]
        answer = json.loads(portbook("who", "4711", "--json").stdout)
    assert len(rows) == 11
    assert "and 2 more; --json has them" in rows[-1]
    assert len(answer["sockets_elsewhere"]) == 12


def test_a_namespace_that_is_not_there(named):
    run = portbook("--netns", "no-such-namespace")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("portbook: unknown network namespace 'no-such-namespace'; ")
