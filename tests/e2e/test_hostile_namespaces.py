"""Root looks into the network namespace of an unprivileged user, who may do anything there (user_namespaces(7))."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from portbook import inventory, sources
from portbook.system import namespaces, netlink
from portbook.testing import child
from tests.components import need
from tests.conftest import NOBODY, ROOT

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]

if sys.platform != "linux":
    pytest.skip("namespaces are a part of Linux", allow_module_level=True)

STRANGER = f"""
import ctypes, errno, fcntl, re, resource, signal, struct, time
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1)  # PR_SET_DUMPABLE: else root has /proc/self, and nobody may write uid_map
if libc.unshare(0x50000000):  # CLONE_NEWUSER | CLONE_NEWNET
    raise SystemExit(os.strerror(ctypes.get_errno()))
for file, text in (("setgroups", "deny"), ("uid_map", "0 {NOBODY} 1"), ("gid_map", "0 {NOBODY} 1")):
    with open("/proc/self/" + file, "w") as map:
        map.write(text)
netns = os.stat("/proc/self/ns/net").st_ino
signal.alarm(60)
"""

SEQUENCE = 77  # of the first request, which a stranger may guess
# Sends to every netlink socket of the namespace that is not its own; counts in a file those that it has seen.
SPOOFER = (
    STRANGER
    + f"SEQUENCE = {SEQUENCE}\n"
    + """
mode, seen = sys.argv[1], open(int(sys.argv[2]), "wb", buffering=0)
sender = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)  # NETLINK_SOCK_DIAG
sender.setblocking(False)
sender.bind((os.getpid(), 0))
with socket.socket() as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(50)]
# A connection in TIME_WAIT has no file: for it the namespace is entered and its tables are read.
client = socket.socket()
client.connect(listeners[0].getsockname())
accepted, _ = listeners[0].accept()
client.close()
accepted.close()
row = struct.pack("=IHHIIBBBBHH16s16sIQIIIII", 88, 20, 2, SEQUENCE, 0, 2, 10, 0, 0, socket.htons(22), 0,
                  bytes(16), bytes(16), 0, 1, 0, 0, 128, 0, 4242)
done = struct.pack("=IHHIIi", 20, 3, 2, SEQUENCE, 0, 0)
garbage = struct.pack("=IHHII", 4, 20, 2, SEQUENCE, 0)
payload = {"short": b"abc", "garbage": garbage + done, "done": row + done, "flood": row * 200}[mode]
say([netns, sorted(one.getsockname()[1] for one in listeners)])
count = 0
table = open("/proc/net/netlink")
while True:
    table.seek(0)
    for line in table.read().splitlines()[1:]:
        words = line.split()
        if words[1] != "4" or int(words[2]) in (0, os.getpid()):
            continue
        count += 1
        seen.seek(0)
        seen.write(b"%d" % count)
        for _ in range(50):
            try:
                sender.sendto(payload, (int(words[2]), 0))
            except OSError as error:
                break
"""
)

VICTIM = """
import ctypes
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
    raise SystemExit("unshare")
listener = socket.create_server(("", 0))
say([os.stat("/proc/self/ns/net").st_ino, listener.getsockname()[1]])
wait()
"""


@pytest.fixture(autouse=True)
def privileged():
    need(ROOT, "root, to enter other network namespaces")
    why = sources.missing("bpf")
    need(why is None, f"a kernel that takes the program: {why}")


def portbook(*arguments):
    command = [sys.executable, "-m", "portbook", *arguments]
    return subprocess.run(command, capture_output=True, timeout=30, check=False)


# --- messages in place of the kernel's -------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch):
    """Each netlink socket is open for a while before it is used, so that a stranger surely finds it."""
    connect = netlink.connect

    def connect_and_wait(protocol):
        channel = connect(protocol)
        time.sleep(0.1)
        return channel

    monkeypatch.setattr(netlink, "connect", connect_and_wait)
    monkeypatch.setattr(os, "urandom", lambda size: (SEQUENCE - 1).to_bytes(size, "big"))


@pytest.mark.parametrize("mode", ["short", "garbage", "done", "flood"])
def test_what_a_stranger_sends_to_our_netlink_sockets_changes_nothing(mode, tmp_path, slow, monkeypatch):
    seen = tmp_path / "seen"
    seen.write_text("0")
    with (
        open(seen, "r+b") as file,
        child(SPOOFER, mode, str(file.fileno()), pass_fds=[file.fileno()]) as spoofer,
        child(VICTIM) as victim,
    ):
        netns, ports = spoofer.said
        doors = {there: f"/proc/{one.pid}/ns/net" for there, one in ((netns, spoofer), (victim.said[0], victim))}
        monkeypatch.setattr(namespaces, "inhabited", lambda: doors)  # not those of whatever else runs here
        listing = inventory.take("netns:all", source="bpf")
        spoofer.process.kill()
    assert int(seen.read_text()), "no socket of ours was seen, so that nothing was tried"
    rows = [(s.netns, s.local_port) for s in listing.sockets if s.state == "LISTEN"]
    assert [s.state for s in listing.sockets if s.netns == netns and s.state != "LISTEN"] == ["TIME_WAIT"]
    assert sorted(port for there, port in rows if there == netns) == ports
    assert tuple(victim.said) in rows
    assert not any("sock_diag" in gap.why or "netlink" in gap.why for gap in listing.gaps)


# --- names of interfaces ---------------------------------------------------------------------------------------------

NAME = b"e\x1b[1m\xff\xe2\x80\xae\xc2\x9b"  # an escape, a byte that is not UTF-8, a bidirectional override, CSI
NAMED = (
    STRANGER
    + f"NAME = {NAME!r}\n"
    + """
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
def request(kind, flags, body):
    link.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    number = -struct.unpack_from("=i", link.recv(65536), 16)[0]
    if number:
        raise OSError(number, os.strerror(number))
interface = struct.pack("=BxHiII", 0, 0, 1, 0, 0)
request(16, 0x5, interface + attribute(3, NAME + bytes(1)))  # RTM_NEWLINK, IFLA_IFNAME
request(16, 0x5, struct.pack("=BxHiII", 0, 0, 1, 1, 1))  # up
address = socket.inet_pton(socket.AF_INET6, "fe80::1")
request(20, 0x605, struct.pack("=BBBBI", socket.AF_INET6, 64, 0x82, 0, 1) + attribute(2, address))  # without DAD
scoped = socket.socket(socket.AF_INET6)
scoped.bind(("fe80::1", 0, 0, 1))
port = scoped.getsockname()[1]
scoped.listen()
bound = socket.socket()
bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, NAME + bytes(1))
bound.bind(("", port + 1 if port < 65535 else port - 1))
bound.listen()
say([netns, port, bound.getsockname()[1]])
wait()
"""
)


@pytest.fixture(scope="module")
def named():
    need(ROOT, "root, to enter other network namespaces")
    with child(NAMED) as stranger:
        yield stranger.said


@pytest.mark.parametrize(
    "command", ["who PORT", "--netns all PORTS", "--netns all --wide PORTS", "--netns all --csv PORTS"]
)
def test_the_name_of_an_interface_does_not_reach_the_terminal(named, command):
    _, port, device_port = named
    command = command.replace("PORTS", f"-p {port},{device_port}").replace("PORT", str(port))
    run = portbook(*command.split())
    text = run.stdout.decode() + run.stderr.decode()
    assert text.replace("\r\n", "").replace("\n", "").isprintable()
    assert text.count(r"e\x1b[1m\ufffd\u202e\x9b".replace(r"\ufffd", "\ufffd")) == (1 if "who" in command else 2)


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_the_name_of_an_interface_leaves_json_whole(named, form):
    netns, port, device_port = named
    run = portbook("--netns", "all", form, "-p", f"{port},{device_port}")
    rows = (
        [json.loads(line) for line in run.stdout.splitlines()]
        if form == "--jsonl"
        else json.loads(run.stdout)["sockets"]
    )
    names = {
        (row["netns"], row["local_port"]): row["zone"] or row["interface"] for row in rows if row["netns"] == netns
    }
    assert names == dict.fromkeys([(netns, port), (netns, device_port)], NAME.decode(errors="replace"))
