"""Sockets that no descriptor leads to: the kernel's own, those registered with io_uring, those that have gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from portbook import sources, take, who, why
from portbook.testing import child
from tests import netlab
from tests.components import need
from tests.conftest import NOBODY, ROOT, as_user

if sys.platform != "linux":
    pytest.skip("io_uring, and what the kernel itself has, are of Linux", allow_module_level=True)

from portbook.enrich import descriptors, owners, unowned
from portbook.records import Socket

BY_INODE = [name for name in ("bpf", "sockdiag", "procfs") if sources.missing(name) is None]
PORT = 14789


@pytest.fixture(scope="module")
def tunnel():
    """A namespace with a vxlan interface, whose name is hostile, and nothing else."""
    name = "vx\u202e0"
    with netlab.namespace() as space:
        space.run("ip", "link", "add", name, "type", "vxlan", "id", "7", "dstport", str(PORT), "dev", "lo")
        space.run("ip", "link", "set", name, "up")
        yield space, f"vxlan {name}"


@pytest.mark.parametrize("source", BY_INODE)
def test_the_kernels_own_socket_has_a_name_and_is_no_gap(tunnel, source):
    namespace, name = tunnel
    listing = namespace.call(_take, source)
    assert [(s.kernel, s.owners) for s in listing.sockets] == [(name, ())] * len(listing.sockets)
    assert listing.sockets
    assert listing.gaps == ()


def _take(source):
    return take(f"port:{PORT} protocol:udp", source=source)


INSIDE = """
import ctypes
if ctypes.CDLL(None).setns(os.open(sys.argv[1], os.O_RDONLY), 0x40000000):  # CLONE_NEWNET
    raise SystemExit("setns")
say()
wait()
"""


def test_it_has_a_name_from_another_namespace_too(tunnel):
    need("bpf" in BY_INODE, "the bpf source")
    namespace, name = tunnel
    netns = os.fstat(namespace.descriptor).st_ino
    with child(INSIDE, namespace.path):  # through which it is entered
        answer = who(PORT)
    assert {s.kernel for s in answer.sockets_elsewhere if s.netns == netns} == {name}
    assert [gap for gap in answer.gaps if gap.what == "owner"] == []


def test_who_and_why_and_list_say_it(tunnel):
    namespace, _ = tunnel
    shown = r"vxlan vx\u202e0"
    run = namespace.run(sys.executable, "-m", "portbook", "who", f"{PORT}/udp")
    assert f"port {PORT}/udp is held by the kernel: {shown}" in run
    assert f"kernel: {shown}" in namespace.run(sys.executable, "-m", "portbook", "list", "-p", str(PORT))
    verdict = namespace.run(sys.executable, "-m", "portbook", "why", f"{PORT}/udp", check=False)
    assert f"the kernel ({shown}) is bound to 0.0.0.0:{PORT}/udp" in verdict
    assert "end it where it is configured; or use another port" in verdict, "a strange name is not put into a command"
    (holding,) = [json.loads(namespace.run(sys.executable, "-m", "portbook", "who", f"{PORT}/udp", "--json"))]
    assert {s["kernel"] for s in holding["sockets"]} == {"vxlan vx\u202e0"}


def test_the_remedy_names_the_interface():
    with netlab.namespace() as space:
        space.run("ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", str(PORT), "dev", "lo")
        space.run("ip", "link", "set", "vx0", "up")
        verdict = space.call(_why)
    (remedy,) = [finding.remedy for finding in verdict.findings if finding.remedy]
    assert remedy.startswith("end it where it is configured: ip link delete vx0;")


def _why():
    return why(PORT, "udp")


# --- io_uring ------------------------------------------------------------------------------------------------------

# A listener among the registered files of a ring, whose descriptor is closed: include/uapi/linux/io_uring.h.
RING = """
import ctypes
syscall = ctypes.CDLL(None, use_errno=True).syscall
SETUP, REGISTER, REGISTER_FILES = 425, 427, 2
ring = syscall(SETUP, 4, ctypes.create_string_buffer(120))
if ring < 0:
    raise SystemExit(os.strerror(ctypes.get_errno()))
listener = socket.create_server(("127.0.0.1", 0))
other = os.open("/dev/null", os.O_RDONLY)
files = (ctypes.c_int * 3)(other, -1, listener.fileno())
if syscall(REGISTER, ring, REGISTER_FILES, files, 3) < 0:
    raise SystemExit(os.strerror(ctypes.get_errno()))
said = [listener.getsockname()[1], os.fstat(listener.fileno()).st_ino]
listener.close()
say(said)
wait()
"""


@pytest.fixture(scope="module")
def ring(own_network):
    try:
        with child(RING) as one:
            with open(f"/proc/{one.pid}/fdinfo/3", "rb") as file:
                names = b"socket:[" in file.read()
            need(names, "Linux 6.8, which names the sockets of a ring")
            yield one
    except RuntimeError:
        need(False, "io_uring, which this machine does not permit")


@pytest.mark.parametrize("source", BY_INODE)
def test_a_listener_in_a_ring_has_its_owner(ring, source):
    port, inode = ring.said
    listing = take(f"port:{port}", source=source)
    assert [(s.state, s.inode) for s in listing.sockets] == [("LISTEN", inode)]
    assert [(o.pid, o.how) for o in listing.sockets[0].owners] == [(ring.pid, "io-uring")]
    assert [gap for gap in listing.gaps if gap.what == "owner"] == []


@pytest.mark.parametrize("source", BY_INODE)
def test_it_is_found_by_its_pid(ring, source):
    assert [s.local_port for s in take(f"pid:{ring.pid} state:listen", source=source).sockets] == [ring.said[0]]
    assert take(f"pid:{os.getpid()} port:{ring.said[0]}", source=source).sockets == ()


def test_who_names_the_process(ring):
    (holder,) = who(ring.said[0]).holders
    assert holder.owner.pid == ring.pid


def test_a_ring_of_another_users_process_is_not_read(ring, as_nobody):
    script = (
        "from portbook.enrich.descriptors import find_in_rings; import sys; print(find_in_rings([int(sys.argv[1])]))"
    )
    assert as_nobody(sys.executable, "-c", script, str(ring.said[1])).stdout == "{}\n"


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (
            b"UserFiles:\t2\n    0: /dev/null\n    2: socket:[7]\nUserBufs:\t1\n    0: socket:[8]\n",
            [b"/dev/null", b"socket:[7]"],
        ),
        (b"UserFiles:\t0\nUserBufs:\t0\n", []),
        (b"UserFiles:\t9\n", []),
        (b"", []),
        (b"UserFiles:\t1\n    0: a: b\n", [b"a: b"]),
    ],
)
def test_registered_files(monkeypatch, tmp_path, text, paths):
    import builtins

    (tmp_path / "info").write_bytes(b"pos:\t0\nflags:\t02\n" + text)
    opened = builtins.open
    monkeypatch.setattr(builtins, "open", lambda _, mode: opened(tmp_path / "info", mode))
    assert list(descriptors._registered(1, "3")) == paths


# --- what has gone -------------------------------------------------------------------------------------------------


def test_a_socket_that_vanished_is_neither_shown_nor_a_gap(own_network):
    need(ROOT, "root, who reads every process")
    netns = os.stat("/proc/self/ns/net").st_ino
    with socket.create_server(("127.0.0.1", 0)) as gone, socket.create_server(("127.0.0.1", 0)) as there:
        rows = [
            Socket("tcp", "ipv4", "127.0.0.1", one.getsockname()[1], state="LISTEN",
                   inode=os.fstat(one.fileno()).st_ino, netns=netns)
            for one in (gone, there)
        ]  # fmt: skip
        gone.close()
        completed, gaps = owners.complete(rows)
        assert [(s.inode, [o.pid for o in s.owners]) for s in completed] == [(rows[1].inode, [os.getpid()])]
        assert gaps == []


def test_a_process_that_does_not_run_for_some_milliseconds_while_it_ends_is_waited_for(monkeypatch):
    """The kernel has closed its descriptors and not its sockets yet; nothing else ends meanwhile."""
    need(ROOT, "root, which alone waits")
    s = Socket("tcp", "ipv4", "127.0.0.1", 1, None, None, "LISTEN", inode=unowned._newest_inode())
    looks = [
        unowned.SecondLook({}, frozenset(), frozenset()),
        unowned.SecondLook({}, frozenset([s.inode]), frozenset()),
    ]
    monkeypatch.setattr(unowned, "process_ids", lambda: [1])
    monkeypatch.setattr(unowned, "look_again", lambda _: looks.pop(0))
    assert unowned.wait_for_end([s]) == {s.inode}


def test_a_socket_of_a_namespace_that_is_gone_is_no_gap(own_network):
    need(ROOT, "root, who reads every process")
    _, gaps = owners.complete([Socket("tcp", "ipv4", "127.0.0.1", 9, state="LISTEN", inode=7, netns=7)])
    assert gaps == []


def test_a_socket_that_nobody_is_seen_to_have_is_a_gap_without_a_remedy_on_the_host(own_network):
    """In flight between processes: SCM_RIGHTS of unix(7)."""
    need(ROOT, "root, who reads every process")
    sender, receiver = socket.socketpair()
    with sender, receiver, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        socket.send_fds(sender, [b"x"], [listener.fileno()])
        listener.close()
        for source in BY_INODE:
            listing = take(f"port:{port}", source=source)
            (gap,) = [gap for gap in listing.gaps if gap.what == "owner"]
            if source == "bpf":  # a security module may keep the descriptors of some process from the others
                assert gap.why == (
                    "no process has a descriptor of 1 socket: held by the kernel, or in flight between processes"
                )
            assert gap.hint is None
        run = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "portbook", "who", str(port)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "run on the host, outside of this container" in run.stderr
        run = as_user(NOBODY, sys.executable, "-m", "portbook", "who", str(port))
        assert "run with sudo" in run.stderr
