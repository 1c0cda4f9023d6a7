"""Which processes hold a socket: what /proc shows, against processes that the test started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from portbook import take
from portbook.testing import child
from tests.components import need
from tests.conftest import NOBODY, ROOT

if sys.platform != "linux":
    pytest.skip("descriptors are read from Linux's /proc", allow_module_level=True)

from portbook.enrich import descriptors
from portbook.enrich.descriptors import OwnerPids, Search, find_owners

pytestmark = pytest.mark.usefixtures("own_network")

INHERIT = "opened = socket.socket(fileno=int(sys.argv[1]))\nsay()\nwait()\n"
MANY = """
opened = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(sys.argv[1]))]
say([os.fstat(one.fileno()).st_ino for one in opened])
wait()
"""


def inode(opened):
    return os.fstat(opened.fileno()).st_ino


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def proc_mount():
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if line.split()[4] == "/proc"]


@pytest.fixture(scope="module", autouse=True)
def the_machines_own_proc_is_left_alone():
    """To remount /proc with hidepid, in whatever mount namespace, would hide processes from the whole machine."""
    before = proc_mount()
    yield
    assert proc_mount() == before


# --- one table -----------------------------------------------------------------------------------------------------


def test_every_process_that_inherited_a_socket_holds_it(listener):
    with ExitStack() as hold:
        others = [
            hold.enter_context(child(INHERIT, str(listener.fileno()), pass_fds=[listener.fileno()])) for _ in range(5)
        ]
        found = find_owners({inode(listener)})
        assert set(found.pids_by_inode[inode(listener)]) == {os.getpid(), *(one.pid for one in others)}
        assert len(found.pids_by_inode[inode(listener)]) == 6
        assert found.by_thread == frozenset()


def test_a_process_that_got_a_socket_sent_to_it_holds_it():
    """SCM_RIGHTS, unix(7): no common ancestor is needed."""
    script = """
channel = socket.socket(fileno=int(sys.argv[1]))
message, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
say()
wait()
"""
    left, right = socket.socketpair()
    with left, right, socket.create_server(("127.0.0.1", 0)) as opened:
        socket.send_fds(left, [b"x"], [opened.fileno()])
        number = inode(opened)
        with child(script, str(right.fileno()), pass_fds=[right.fileno()]) as one:
            assert set(find_owners({number}).pids_by_inode[number]) == {os.getpid(), one.pid}
            opened.close()
            assert find_owners({number}).pids_by_inode[number] == (one.pid,)


def test_a_socket_with_several_descriptors_in_one_process_has_one_holder(listener):
    with listener.dup(), listener.dup():
        assert find_owners({inode(listener)}).pids_by_inode == {inode(listener): (os.getpid(),)}


def test_only_the_wanted_inodes_are_answered(listener):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert find_owners({inode(listener)}).pids_by_inode.keys() == {inode(listener)}
        assert find_owners({inode(listener), inode(other)}).pids_by_inode.keys() == {inode(listener), inode(other)}


def test_the_search_can_be_narrowed_to_some_processes(listener):
    with child(INHERIT, str(listener.fileno()), pass_fds=[listener.fileno()]) as one:
        assert find_owners({inode(listener)}, [one.pid]).pids_by_inode == {inode(listener): (one.pid,)}
        assert find_owners({inode(listener)}, []).pids_by_inode == {}


def test_a_socket_that_is_closed_has_no_holder(listener):
    number = inode(listener)
    listener.close()
    assert find_owners({number}).pids_by_inode == {}


@pytest.mark.parametrize("nothing", [set(), {0}, []])
def test_nothing_is_read_when_nothing_is_wanted(monkeypatch, nothing):
    def poisoned():
        raise AssertionError("processes were listed")

    monkeypatch.setattr(descriptors, "process_ids", poisoned)
    assert find_owners(nothing) == OwnerPids({}, frozenset(), 0)


def test_nothing_is_read_when_nothing_matched(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    monkeypatch.setattr(descriptors, "process_ids", lambda: 1 / 0)
    assert take(f"port:{port}").sockets == ()


# --- threads -------------------------------------------------------------------------------------------------------

LEADERLESS = """
import ctypes, time
def serve():
    opened = socket.create_server(("127.0.0.1", 0))
    for _ in range(1000):
        with open(f"/proc/self/task/{os.getpid()}/stat", "rb") as file:
            if b") Z " in file.read():
                break
        time.sleep(0.01)
    say(os.fstat(opened.fileno()).st_ino)
    wait()
    os._exit(0)
threading.Thread(target=serve).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)  # exit(2): of this thread alone
"""
# Three threads; the middle one takes a table of its own (unshare(2), CLONE_FILES) and opens a socket in it.
OWN_TABLE = """
import ctypes
def idle():
    threading.Event().wait()
def serve():
    if ctypes.CDLL(None).unshare(0x400):
        os._exit(3)
    opened = socket.create_server(("127.0.0.1", 0))
    say(os.fstat(opened.fileno()).st_ino)
    wait()
    os._exit(0)
threading.Thread(target=idle, daemon=True).start()
threading.Thread(target=serve).start()
threading.Thread(target=idle, daemon=True).start()
"""


# As above, and the thread starts another one, which gets its table.
SHARED_TABLE = OWN_TABLE.replace("    say(os", "    threading.Thread(target=idle, daemon=True).start()\n    say(os")
SCRIPTS = [LEADERLESS, OWN_TABLE, SHARED_TABLE]
IDS = ["leader-has-exited", "own-table", "table-of-two-threads"]


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_what_only_a_thread_holds(script):
    with child(script) as one:
        found = find_owners({one.said})
        assert found.pids_by_inode == {one.said: (one.pid,)}
        assert found.by_thread == {one.said}


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_what_only_a_thread_holds_also_on_a_machine_without_kcmp(script, monkeypatch):
    monkeypatch.setattr(descriptors, "SYS_KCMP", {})
    with child(script) as one:
        assert find_owners({one.said}).pids_by_inode == {one.said: (one.pid,)}


def test_threads_that_share_the_table_are_no_further_holders(listener):
    script = """
opened = socket.socket(fileno=int(sys.argv[1]))
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
say()
wait()
"""
    with child(script, str(listener.fileno()), pass_fds=[listener.fileno()]) as one:
        found = find_owners({inode(listener)})
        assert set(found.pids_by_inode[inode(listener)]) == {os.getpid(), one.pid}
        assert found.by_thread == frozenset()


# --- a second reader -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd():
    """Three processes with more descriptors than one reader reads alone: inode to pid."""
    with ExitStack() as hold:
        several = [hold.enter_context(child(MANY, "900")) for _ in range(3)]
        yield {number: (one.pid,) for one in several for number in one.said}


def two_readers():
    need(len(os.sched_getaffinity(0)) > 1, "two processors")
    need(len(os.listdir("/proc/self/task")) == 1, "a test process without threads, which may fork")


def test_two_readers_find_what_one_finds(crowd, monkeypatch):
    two_readers()
    monkeypatch.setattr(descriptors, "FORK_FROM", 10**9)
    with Search() as alone:
        assert alone.child is None
        assert alone.finish(crowd).pids_by_inode == crowd
    monkeypatch.setattr(descriptors, "FORK_FROM", 2_000)
    with Search() as together:
        assert together.child is not None
        assert together.finish(crowd).pids_by_inode == crowd
    assert find_owners(crowd).pids_by_inode == crowd


def test_a_socket_whose_holders_two_readers_found_has_them_all(crowd, listener):
    two_readers()
    with ExitStack() as hold:
        others = [
            hold.enter_context(child(INHERIT, str(listener.fileno()), pass_fds=[listener.fileno()])) for _ in range(10)
        ]
        expected = {os.getpid(), *(one.pid for one in others)}
        for _ in range(10):
            with Search() as together:
                found = together.finish([inode(listener)])
            assert set(found.pids_by_inode[inode(listener)]) == expected
            assert len(found.pids_by_inode[inode(listener)]) == len(expected)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_processes_handed_out_in_batches_are_all_read(crowd, monkeypatch, tokens):
    two_readers()
    monkeypatch.setattr(descriptors, "MOST_TOKENS", tokens)
    assert find_owners(crowd).pids_by_inode == crowd


def test_when_the_second_reader_dies_the_first_reads_all(crowd):
    two_readers()
    with Search() as together:
        os.kill(together.child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, together.child.pid, os.WEXITED | os.WNOWAIT)
        assert together.finish(crowd).pids_by_inode == crowd


def test_a_search_that_is_given_up_leaves_neither_a_process_nor_a_descriptor(crowd):
    two_readers()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        pid = 0
        with suppress(ZeroDivisionError), Search() as together:
            pid = together.child.pid
            raise ZeroDivisionError
        assert pid
        assert not os.path.exists(f"/proc/{pid}")
    with Search() as together:
        pid = together.child.pid
        together.finish(crowd)
    assert not os.path.exists(f"/proc/{pid}")
    assert os.listdir("/proc/self/fd") == before


TAKE = """
import json, resource, socket, sys
opened = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2500)]
opened[0].bind(("127.0.0.1", 0))
from portbook import take
before()
listing = take("protocol:udp state:all")
mine = [s for s in listing.sockets if s.local_port == opened[0].getsockname()[1]]
print(json.dumps([[owner.pid for owner in s.owners] for s in mine] == [[__import__("os").getpid()]]))
"""


def test_a_program_that_ignores_its_children_can_take_a_listing():
    """Its children are reaped by the kernel, and waiting for one fails (wait(2), SIGCHLD)."""
    script = "def before():\n    import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + TAKE
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout.strip(), run.stderr) == ("true", "")


def test_a_user_who_may_start_no_further_process_can_take_a_listing(as_nobody):
    script = "def before():\n    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n" + TAKE
    run = as_nobody(sys.executable, "-c", script)
    assert (run.stdout.strip(), run.stderr) == ("true", "")


# --- what vanishes -------------------------------------------------------------------------------------------------


def test_processes_that_come_and_go_meanwhile_do_no_harm(listener):
    running = []
    try:
        for round_ in range(60):
            running += [subprocess.Popen(["sleep", "60"]) for _ in range(4)]
            for one in running[: 3 if round_ % 2 else 5]:
                one.kill()
            found = find_owners({inode(listener)})
            assert os.getpid() in found.pids_by_inode[inode(listener)]
            for one in running[: 3 if round_ % 2 else 5]:
                one.wait()
            running = running[3 if round_ % 2 else 5 :]
    finally:
        for one in running:
            one.kill()
            one.wait()


def test_processes_that_are_gone_when_they_are_read_hold_nothing(listener):
    ended = subprocess.Popen(["true"])
    ended.wait()
    found = find_owners({inode(listener)}, [ended.pid, os.getpid(), 2**22 + 1])
    assert found.pids_by_inode == {inode(listener): (os.getpid(),)}
    assert found.denied == 0


# --- what may not be seen ------------------------------------------------------------------------------------------

AS_JSON = "import sys, json, portbook; from portbook.render.machine import json as j; "
AS_JSON += "sys.stdout.buffer.writelines(j(portbook.take(sys.argv[1])))"


@pytest.fixture
def twelve():
    """A query for twelve sockets of this user."""
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(12)]
    yield "port:" + ",".join(str(one.getsockname()[1]) for one in opened)
    for one in opened:
        one.close()


def listing_of(run):
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_without_privilege_owners_of_others_are_a_gap_with_the_remedy(twelve, as_nobody):
    listing = listing_of(as_nobody(sys.executable, "-c", AS_JSON, twelve))
    assert [s["owners"] for s in listing["sockets"]] == [[]] * 12
    assert [s["uid"] for s in listing["sockets"]] == [os.getuid()] * 12
    assert listing["complete"] is False
    assert listing["gaps"] == [
        {
            "what": "owner",
            "count": 12,
            "why": f"owners of 12 sockets are not visible to uid {NOBODY}",
            "hint": "run with sudo",
        }
    ]


def test_one_socket_is_not_sockets(as_nobody, listener):
    listing = listing_of(as_nobody(sys.executable, "-c", AS_JSON, f"port:{listener.getsockname()[1]}"))
    assert [gap["why"] for gap in listing["gaps"]] == [f"owners of 1 socket are not visible to uid {NOBODY}"]


def test_without_privilege_ones_own_sockets_have_owners_and_there_is_no_gap(as_nobody):
    script = "import socket\nopened = socket.create_server(('127.0.0.1', 0))\n"
    script += "sys_argv = ['', f'port:{opened.getsockname()[1]}']\nimport sys\nsys.argv = sys_argv\n" + AS_JSON
    listing = listing_of(as_nobody(sys.executable, "-c", script))
    assert [[owner["user"] for owner in s["owners"]] for s in listing["sockets"]] == [["nobody"]]
    assert (listing["gaps"], listing["complete"]) == ([], True)


def test_a_search_for_another_users_pid_is_a_gap(as_nobody, listener):
    listing = listing_of(as_nobody(sys.executable, "-c", AS_JSON, f"pid:{os.getpid()}"))
    assert listing["sockets"] == []
    assert [(gap["what"], gap["hint"]) for gap in listing["gaps"]] == [("owner", "run with sudo")]
    assert listing["complete"] is False


def test_hidepid_is_named_as_the_reason(twelve, as_nobody):
    """A /proc of its own, in a mount namespace."""
    run = as_nobody(sys.executable, "-c", AS_JSON, twelve, before="mount -t proc -o hidepid=2 proc /proc\n")
    listing = listing_of(run)
    assert len(listing["sockets"]) == 12
    assert listing["complete"] is False
    ((what, count, why, hint),) = [tuple(gap.values()) for gap in listing["gaps"]]
    assert (what, count, hint) == ("owner", 12, "run with sudo")
    assert f"owners of 12 sockets are not visible to uid {NOBODY}" in why
    assert "hidepid" in why


def test_hidepid_does_not_trouble_root(listener):
    need(ROOT, "root, for a mount namespace")
    port = listener.getsockname()[1]
    script = f"from portbook import take; print([[o.pid for o in s.owners] for s in take('port:{port}').sockets])"
    command = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh"]
    run = subprocess.run(
        [*command, sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout.strip(), run.stderr) == (f"[[{os.getpid()}]]", "")


def test_without_a_free_descriptor_it_could_not_find_out():
    """Not "nobody holds it": that would be a guess."""
    script = (
        "import os, resource, socket, sys\n"
        "from portbook.enrich.descriptors import find_owners\n"
        "from portbook.errors import SourceDenied\n"
        "one = socket.socket()\n"
        "inode = os.fstat(one.fileno()).st_ino\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "taken = []\n"
        "try:\n"
        "    while True: taken.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: os.close(taken.pop())\n"  # one is left, for /proc itself; then none
        "pids = [int(n) for n in os.listdir('/proc') if n.isdecimal()]\n"
        "taken.append(os.open('/dev/null', os.O_RDONLY))\n"
        "try: find_owners({inode}, pids)\n"
        "except SourceDenied as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "ulimit" in run.stdout, run.stderr


def test_a_table_with_holes_is_read_whole():
    """Numbers are tried before anything is listed: what is beyond them must come all the same, and once."""
    with socket.socket() as one, socket.socket() as other:
        high = os.dup2(other.fileno(), 500)
        try:
            directory = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
            try:
                names = [n for n in descriptors._names(directory) if os.path.lexists(f"/proc/self/fd/{n}")]
            finally:
                os.close(directory)
            inodes = {os.fstat(one.fileno()).st_ino, os.fstat(high).st_ino}
            assert str(high) in names
            assert str(one.fileno()) in names
            assert len(names) == len(set(names))
            assert find_owners(inodes).pids_by_inode == dict.fromkeys(inodes, (os.getpid(),))
        finally:
            os.close(high)
