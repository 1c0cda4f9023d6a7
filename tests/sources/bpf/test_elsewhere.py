"""Every network namespace of the machine is found, and what vanishes while it is read is no gap."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from portbook.errors import SourceMissing
from portbook.testing import PRELUDE, child
from tests.components import need
from tests.conftest import ROOT
from tests.rounds import rounds

if sys.platform != "linux":
    pytest.skip("namespaces are a part of Linux", allow_module_level=True)

from portbook import sources, take, who
from portbook.records import Gap
from portbook.sources import bpf
from portbook.sources.bpf import census, elsewhere, program
from portbook.sources.bpf.btf import Layout
from portbook.sources.bpf.elsewhere import MachineNamespaces
from portbook.system import namespaces

OWN = 1


# --- the census ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def works():
    need(ROOT and (why := sources.missing("bpf")) is None, f"the bpf source: {why if ROOT else 'root'}")
    need(census.build(bpf._layout()) is not None, "Linux 6.4, whose programs may count")


AWAY = """
import ctypes
if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET
    raise SystemExit("unshare")
say(os.stat("/proc/self/ns/net").st_ino)
wait()
"""


def test_the_census_lists_a_namespace_while_it_is_used(works):
    layout = bpf._layout()
    with child(AWAY) as one:
        inhabited = namespaces.inhabited().keys()
        during = census.read(layout)
        assert {one.said, os.stat("/proc/self/ns/net").st_ino} <= during
        assert during >= inhabited & (census.read(layout) or set())
    deadline = time.monotonic() + 10
    while one.said in census.read(layout):
        assert time.monotonic() < deadline, "the process that was in it has ended"


def test_the_census_is_the_same_from_inside_another_namespace(works):
    """It begins with the reader's own place in the list, wherever that is."""
    layout = bpf._layout()
    with child(AWAY) as one, child(AWAY) as two:
        path = f"/proc/{one.pid}/ns/net"
        (inside,) = namespaces.visit({one.said: path}, lambda _: census.read(layout)).values()
        assert {one.said, two.said} <= inside


def test_a_kernel_without_what_the_census_needs_has_none(monkeypatch):
    assert census.build(Layout(dict.fromkeys(program.PATHS), {})) is None
    assert census.read(Layout(dict.fromkeys(program.PATHS), {})) is None


def test_records_of_the_census():
    row = census.RECORD.pack
    assert census.parse(row(7, 1) + row(8, 0) + row(9, 5)) == {7, 9}
    assert census.parse(b"") is None, "our own is always there"
    assert census.parse(row(7, 1) * census.MOST) is None, "there may be more"


def test_without_a_census_every_file_is_read_and_nothing_is_lost(works, monkeypatch):
    monkeypatch.setattr(census, "build", lambda _: None)
    with child(AWAY + "", "") as one, child(LEFT) as left:
        port, netns = left.said
        assert one.said != netns
        assert netns in {s.netns for s in who(port).sockets_elsewhere}
        listing = take(f"netns:all port:{port}")
        assert netns in {s.netns for s in listing.sockets}
        assert listing.gaps == ()


LEFT = """
import ctypes
libc = ctypes.CDLL(None)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.unshare(0x40000000)
listener = socket.create_server(("127.0.0.1", 0))
netns = os.stat("/proc/self/ns/net").st_ino
libc.setns(home, 0x40000000)
say([listener.getsockname()[1], netns])
wait()
"""


# --- what vanishes -------------------------------------------------------------------------------------------------


def machine(used, records=b""):
    """A machine whose namespaces in use are these, look after look; None: it cannot tell."""
    looks = iter(used)
    last = [None]

    def look():
        last[0] = next(looks, last[0])
        return last[0]

    return MachineNamespaces(OWN, look, lambda: records)


@pytest.fixture
def doors(monkeypatch):
    """What leads into namespaces, look after look: entrance to the answer that is got there."""

    def install(*inhabited, mounts=(), descriptors=(), mounted_elsewhere=(), is_whole=True):
        looks = list(inhabited)
        monkeypatch.setattr(namespaces, "inhabited", lambda: dict(looks.pop(0) if len(looks) > 1 else looks[0]))
        monkeypatch.setattr(namespaces, "kept_by_mounts", lambda w: {n: d for n, d in dict(mounts).items() if n in w})
        monkeypatch.setattr(
            namespaces, "kept_by_descriptors", lambda w: {n: d for n, d in dict(descriptors).items() if n in w}
        )
        monkeypatch.setattr(
            namespaces,
            "mounted_elsewhere",
            lambda w: ({n: p for n, p in dict(mounted_elsewhere).items() if n in w}, is_whole),
        )
        monkeypatch.setattr(
            namespaces, "visit", lambda doors, work, _: {n: door or work(n) for n, door in doors.items()}
        )

    return install


GONE = FileNotFoundError(errno.ENOENT, "No such file or directory")
ENDED = ProcessLookupError(0, "the namespace is gone")
REFUSED = PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("error", [GONE, ENDED])
def test_a_namespace_that_is_gone_is_left_out(doors, error):
    doors({OWN: "", 2: "", 3: error}, {OWN: "", 2: ""})
    assert elsewhere.read(machine([{OWN, 2}]), lambda n: -n).answers == {2: -2}
    assert elsewhere.read(machine([None]), lambda n: -n).answers == {2: -2}


def test_another_entrance_is_tried(doors):
    doors({OWN: "", 2: GONE}, {OWN: "", 2: ""})
    found = elsewhere.read(machine([{OWN, 2}]), lambda n: -n)
    assert (found.answers, found.is_whole) == ({2: -2}, True)


def test_a_namespace_that_came_meanwhile_is_read(doors):
    doors({OWN: ""}, {OWN: "", 2: ""})
    assert elsewhere.read(machine([{OWN, 2}]), lambda n: -n).answers == {2: -2}


def test_what_no_process_is_in_is_entered_by_what_keeps_it(doors):
    doors({OWN: ""}, mounts={2: ""}, descriptors={3: ""})
    found = elsewhere.read(machine([{OWN, 2, 3}]), lambda n: -n)
    assert (found.answers, found.is_whole) == ({2: -2, 3: -3}, True)


def test_what_is_in_use_and_cannot_be_entered_is_an_error(doors):
    doors({OWN: "", 2: REFUSED}, mounted_elsewhere={3: 77})
    found = elsewhere.read(machine([{OWN, 2, 3, 4}]), lambda n: -n)
    assert found.answers[2] is REFUSED
    assert str(found.answers[3]) == "only the mount namespace of process 77 leads into it"
    assert 4 not in found.answers, "nothing leads into it: it is about to end"
    assert not found.is_whole


def test_what_is_hidden_among_too_many_mounts_is_an_error(doors):
    doors({OWN: ""}, mounted_elsewhere={3: 77}, is_whole=False)
    found = elsewhere.read(machine([{OWN, 3, 4}]), lambda n: -n)
    assert str(found.answers[4]) == "other mount namespaces have more mounts than are searched for it"
    assert not found.is_whole


MOUNTS = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000) or libc.mount(None, b"/", None, 0x44000, None):  # CLONE_NEWNS; MS_PRIVATE | MS_REC
    raise SystemExit("unshare")
for _ in range(300):
    if libc.mount(b"none", sys.argv[1].encode(), b"tmpfs", 0, None):
        raise SystemExit("mount")
say()
wait()
"""


def test_the_mounts_of_strangers_are_read_within_limits(works, tmp_path, monkeypatch):
    nowhere = 1  # no namespace has this inode
    monkeypatch.setattr(namespaces, "MOST_BYTES_ELSEWHERE", 1 << 30)
    assert namespaces.mounted_elsewhere({nowhere}, limit_s=60.0) == ({}, True)
    with child(MOUNTS, str(tmp_path)):
        assert namespaces.mounted_elsewhere({nowhere}, limit_s=60.0) == ({}, True)
        assert namespaces.mounted_elsewhere({nowhere}, limit_s=-1.0) == ({}, False)
        monkeypatch.setattr(namespaces, "MOST_BYTES_ELSEWHERE", 10_000)
        assert namespaces.mounted_elsewhere({nowhere}) == ({}, False)


def test_a_source_that_fails_inside_is_an_error(doors):
    doors({OWN: "", 2: SourceMissing("nothing there")})
    assert isinstance(elsewhere.read(machine([{OWN, 2}]), lambda n: -n).answers[2], SourceMissing)


def test_a_namespace_that_only_another_mount_namespace_keeps(works, tmp_path):
    place = tmp_path / "place"
    place.write_bytes(b"")
    script = f"""
import subprocess
subprocess.run(["mount", "--bind", sys.argv[1], {str(place)!r}], check=True)
say()
wait()
"""
    with child(AWAY) as one:
        netns = one.said
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-I", "-S", "-c", PRELUDE + script]
        keeper = subprocess.Popen([*command, f"/proc/{one.pid}/ns/net"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pid, _ = json.loads(keeper.stdout.readline())
    with keeper:
        assert namespaces.mounted_elsewhere({netns}) == ({netns: pid}, True)
        reasons = [gap.why for gap in take("netns:all").gaps if gap.what == "socket"]
        keeper.stdin.close()
    assert any(f"only the mount namespace of process {pid} leads into it" in why for why in reasons)


OF_OTHERS = "only the mount namespace of process"  # what other tests of this machine may keep

CHURN = """
import ctypes, random, signal, time
libc = ctypes.CDLL(None)
def live():
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    libc.unshare(0x40000000)
    listener = socket.create_server(("127.0.0.1", 0))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    time.sleep(random.uniform(0.01, 0.1))
    os._exit(0)
say()
os.set_blocking(0, False)
living = started = 0
counter = int(sys.argv[1])
while True:
    try:
        if os.read(0, 1) == b"":
            break
    except BlockingIOError:
        pass
    while living < 5:
        living += 1
        started += 1
        os.pwrite(counter, b"%d" % started, 0)
        if os.fork() == 0:
            try:
                live()
            finally:
                os._exit(1)
    os.waitpid(-1, 0)
    living -= 1
while living:
    os.waitpid(-1, 0)
    living -= 1
"""


@pytest.mark.root
def test_containers_that_come_and_go_are_no_gap(works, own_network, tmp_path):
    gaps: list[Gap] = []
    seen = set()
    before = sum(gap.count or 0 for gap in take("netns:all").gaps if gap.what == "owner")  # of the machine itself
    started = tmp_path / "started"
    started.write_text("0")

    def was_lively():
        return int(started.read_text()) > 10 and len(seen) > 3

    with (
        open(started, "r+b") as counter,
        socket_on_a_port() as port,
        child(CHURN, str(counter.fileno()), pass_fds=[counter.fileno()]),
    ):
        for turn in rounds(was_lively, least=6):
            listing = take("netns:all") if turn % 2 else take(f"netns:all port:{port}")
            seen |= {s.netns for s in listing.sockets}
            answer = who(port)
            new = [gap for gap in (*listing.gaps, *answer.gaps) if OF_OTHERS not in gap.why]
            gaps += [gap for gap in new if gap.what != "owner" or gap.count > before]
            assert answer.held
    assert gaps == []


def socket_on_a_port():
    from contextlib import contextmanager
    from socket import create_server

    @contextmanager
    def opened():
        with create_server(("127.0.0.1", 0)) as one:
            yield one.getsockname()[1]

    return opened()


def test_a_socket_of_a_process_that_has_ended_leads_nowhere(works):
    with child(AWAY) as one:
        pid, netns = one.pid, one.said
    answers = namespaces.visit({netns: (pid, 3)}, lambda _: pytest.fail("it was entered"))
    assert elsewhere.has_vanished(answers[netns])


def test_a_descriptor_that_is_no_socket_is_not_entered(works):
    opened = os.open("/dev/null", os.O_RDONLY)
    try:
        answers = namespaces.visit({7: (os.getpid(), opened)}, lambda _: pytest.fail("it was entered"))
    finally:
        os.close(opened)
    assert isinstance(answers[7], OSError)
