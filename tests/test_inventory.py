"""The pipeline: which source is used, what is kept, and the gaps for what could not be known."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

import portbook
from portbook import listeners, take
from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing, SourceTimeout, UsageError
from portbook.records import STATES, Gap, Owner, Socket
from portbook.sources.base import Wanted
from portbook.testing import FakeSource, child, identity, only_sources, ports_of
from tests.cgroups import leave_v1_groups
from tests.components import need
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("own_network")

WEB = Socket("tcp", "ipv4", "0.0.0.0", 8080, state="LISTEN", reach="any")
DNS = Socket("udp", "ipv4", "127.0.0.1", 53, reach="loopback")
CLIENT = Socket("tcp", "ipv6", "::1", 40000, "::1", 8080, "ESTABLISHED", reach="loopback")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="descriptors and cgroups of Linux")


def bare(listing):
    """The sockets without what enrichment adds."""
    return [identity(s) for s in listing.sockets]


# --- the listing ---------------------------------------------------------------------------------------------------


def test_a_listing_has_host_platform_and_time():
    before = datetime.now(UTC)
    listing = take("port:1")
    assert before <= listing.taken_at <= datetime.now(UTC)
    assert listing.taken_at.tzinfo is UTC
    assert listing.schema == 1
    assert listing.host == platform.node()
    assert listing.platform == {"linux": "linux", "win32": "windows", "darwin": "macos"}[sys.platform]
    assert listing.source == portbook.sources.names()[0]
    assert listing.complete is (not listing.gaps)


def test_listeners_are_what_waits(zoo):
    animals = [e for kind in zoo.values() for e in kind if "bound" not in e.needs]
    seen = {identity(s) for s in listeners().sockets}
    for expected in animals:
        assert (expected.identity in seen) is (expected.state in ("LISTEN", None)), expected


def test_an_empty_query_selects_every_socket(zoo):
    opened = {e.identity for kind in zoo.values() for e in kind}
    assert opened <= {identity(s) for s in take().sockets}


def test_a_query_may_be_given_as_text_or_as_a_query(zoo):
    port = min(ports_of(zoo["tcp4-listening"]))
    text = f"port:{port} state:listen"
    assert bare(take(text)) == bare(take(portbook.parse(text))) == [e.identity for e in zoo["tcp4-listening"]]


# --- which source --------------------------------------------------------------------------------------------------


def test_the_first_source_is_taken():
    one, other = FakeSource([WEB], name="one"), FakeSource([DNS], name="other")
    with only_sources(one, other):
        listing = take()
    assert (listing.source, bare(listing), other.requests) == ("one", [identity(WEB)], [])


@pytest.mark.parametrize("error", [SourceMissing, SourceDenied, SourceGarbled, SourceTimeout])
def test_when_a_source_fails_the_next_is_used_and_a_gap_reports_it(error):
    with only_sources(FakeSource(fails=error("no luck", "try harder"), name="one"), FakeSource([WEB], name="other")):
        listing = take()
    assert (listing.source, bare(listing), listing.complete) == ("other", [identity(WEB)], False)
    told = [gap.why for gap in listing.gaps if gap.what == "source"]
    assert len(told) == 1
    assert "one" in told[0]
    assert "no luck" in told[0]


def test_when_every_source_fails_the_error_names_them_all():
    missing = FakeSource(fails=SourceMissing("not there"), name="one")
    denied = FakeSource(fails=SourceDenied("no"), name="two")
    with only_sources(missing, denied), pytest.raises(SourceError) as caught:
        take()
    message = str(caught.value)
    assert all(word in message for word in ("one", "not there", "two", "no"))
    assert "\n" not in message
    assert caught.value.exit_code == 5


def test_a_requested_source_is_the_only_one_tried():
    other = FakeSource([WEB], name="other")
    with only_sources(FakeSource(fails=SourceMissing("not there"), name="one"), other):
        with pytest.raises(SourceMissing, match="not there"):
            take(source="one")
        assert other.requests == []
        assert take(source="other").source == "other"


def test_an_unknown_source_is_a_usage_error_that_names_the_valid_ones():
    with (
        only_sources(FakeSource(name="one"), FakeSource(name="two")),
        pytest.raises(UsageError, match="valid values are one, two"),
    ):
        take(source="three")


def test_an_error_in_a_source_that_is_a_bug_is_not_hidden():
    broken = FakeSource(name="one")
    broken.source = replace(broken.source, read=lambda _: 1 / 0)
    with only_sources(broken, FakeSource([WEB], name="other")), pytest.raises(ZeroDivisionError):
        take()


# --- what is asked of it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "protocols", "families", "states", "ports"),
    [
        ("", ("tcp", "udp"), ("ipv4", "ipv6"), {*STATES, None}, None),
        ("protocol:udp", ("udp",), ("ipv4", "ipv6"), {*STATES, None}, None),
        ("protocol:udp,tcp family:ipv6", ("tcp", "udp"), ("ipv6",), {*STATES, None}, None),
        ("state:listening", ("tcp", "udp"), ("ipv4", "ipv6"), {"LISTEN", "BOUND", None}, None),
        ("-state:time_wait", ("tcp", "udp"), ("ipv4", "ipv6"), {*STATES, None} - {"TIME_WAIT"}, None),
        ("80,8000-8100", ("tcp", "udp"), ("ipv4", "ipv6"), {*STATES, None}, ((80, 80), (8000, 8100))),
        ("-port:80", ("tcp", "udp"), ("ipv4", "ipv6"), {*STATES, None}, None),
        ("process:x", ("tcp", "udp"), ("ipv4", "ipv6"), {*STATES, None}, None),
    ],
)
def test_a_source_is_requested_only_what_the_query_needs(query, protocols, families, states, ports):
    source = FakeSource([WEB, DNS, CLIENT])
    with only_sources(source):
        take(query)
    assert source.requests == [Wanted(protocols, families, states, ports)]


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", [WEB, DNS, CLIENT]),
        ("protocol:udp", [DNS]),
        ("8080", [WEB]),
        ("-state:listen", [DNS, CLIENT]),
        ("port:1", []),
    ],
)
def test_what_a_source_returned_beyond_the_query_is_left_out(query, kept):
    with only_sources(FakeSource([WEB, DNS, CLIENT])):
        assert bare(take(query)) == [identity(s) for s in kept]


def test_nothing_is_read_for_a_query_that_makes_no_sense():
    source = FakeSource([WEB])
    with only_sources(source), pytest.raises(UsageError):
        take("port:0")
    assert source.requests == []


def test_the_gaps_of_a_source_are_the_listings():
    gap = Gap("socket", 3, "three were lost", "look again")
    with only_sources(FakeSource([DNS], [gap])):
        listing = take()
    assert gap in listing.gaps
    assert not listing.complete


# --- owners --------------------------------------------------------------------------------------------------------


def test_owners_that_a_source_names_are_completed():
    row = Socket("tcp", "ipv4", "127.0.0.1", 8080, state="LISTEN", owners=(Owner(os.getpid(), how="fake"),))
    with only_sources(FakeSource([row])):
        (seen,) = take().sockets
    (owner,) = seen.owners
    assert (owner.pid, owner.how, owner.confidence, owner.name is None) == (os.getpid(), "fake", "certain", False)
    assert seen.service_name == "http-alt"


def test_sockets_for_which_a_source_that_knows_pids_gives_none_are_a_gap():
    with only_sources(FakeSource([WEB, DNS, CLIENT])):
        listing = take()
    assert [(gap.what, gap.count) for gap in listing.gaps] == [("owner", 3)]


def test_a_connection_in_time_wait_has_no_owner_and_that_is_no_gap():
    row = Socket("tcp", "ipv4", "127.0.0.1", 8080, "127.0.0.1", 9, "TIME_WAIT")
    with only_sources(FakeSource([row])):
        listing = take()
    assert (listing.gaps, listing.complete) == ((), True)


@on_linux
def test_time_wait_and_unaccepted_connections_leave_a_listing_complete(zoo, brief_zoo):
    ports = ports_of([*brief_zoo["tcp4-time-wait"], *zoo["tcp4-not-accepted"], *brief_zoo["tcp4-syn-recv"]])
    listing = take(f"port:{','.join(map(str, ports))}")
    assert {s.owners == () for s in listing.sockets} == {True, False}
    assert (listing.gaps, listing.complete) == ((), True)


@on_linux
def test_a_socket_in_flight_has_no_holder_and_is_a_gap():
    """Not received yet, and closed by its sender: the kernel alone has it (unix(7), SCM_RIGHTS)."""
    left, right = socket.socketpair()
    with left, right:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            socket.send_fds(left, [b"x"], [listener.fileno()])
        listing = take(f"port:{port}")
    need(ROOT, "root, who sees every process: to others it might be held by somebody they cannot see")
    assert [(s.state, s.owners) for s in listing.sockets] == [("LISTEN", ())]
    ((what, count, why),) = [(gap.what, gap.count, gap.why) for gap in listing.gaps]
    assert (what, count, listing.complete) == ("owner", 1, False)
    if all_can_be_read() or listing.source == "bpf":
        assert why.startswith("no process has a descriptor of 1 socket: ")
    else:
        assert why == "owners of 1 socket are not visible to uid 0"


def all_can_be_read():
    """Whether root may look into every process: not where some have capabilities that this root lacks."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                os.readlink(f"/proc/{name}/fd/{os.listdir(f'/proc/{name}/fd')[0]}")
            except PermissionError:
                return False
            except (OSError, IndexError):
                continue
    return True


TWO = """
one = socket.create_server(("127.0.0.1", 0))
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
other.bind(("127.0.0.1", 0))
say([one.getsockname()[1], other.getsockname()[1]])
wait()
"""


def test_the_sockets_of_a_process():
    with child(TWO) as one, child(TWO) as other:
        assert sorted(s.local_port for s in take(f"pid:{one.pid}").sockets) == sorted(one.said)
        both = take(f"pid:{one.pid},{other.pid} state:listen").sockets
        assert sorted(s.local_port for s in both) == sorted([one.said[0], other.said[0]])
        assert {o.pid for s in both for o in s.owners} == {one.pid, other.pid}
        ports = ",".join(map(str, (*one.said, *other.said)))
        rest = take(f"port:{ports} -pid:{one.pid}").sockets
        assert sorted(s.local_port for s in rest) == sorted(other.said)


def test_a_process_that_holds_nothing_has_no_sockets_and_leaves_no_gap():
    with child("say()\nwait()\n") as one:
        listing = take(f"pid:{one.pid}")
    assert (listing.sockets, listing.gaps) == ((), ())


def test_a_socket_shared_with_the_selected_process_shows_all_its_owners(zoo):
    need("shared-by-fork" in zoo, "descriptors that children inherit")
    (listener, _) = zoo["shared-by-fork"]
    other = next(pid for pid in listener.pids if pid != os.getpid())
    seen = take(f"pid:{other} protocol:tcp").sockets
    assert [(identity(s), {o.pid for o in s.owners}) for s in seen] == [(listener.identity, set(listener.pids))]


def test_by_name_and_by_command_line():
    need(sys.platform == "linux", "Linux, where a process can name itself")
    script = "import ctypes\nctypes.CDLL(None).prctl(15, b'pb-unique-name', 0, 0, 0)\n" + TWO
    with child(script, "--an-argument=of-its-own") as one:
        for query in (
            "pb-unique-name",
            "process:PB-UNIQUE*",
            "command:an-argument=of-its",
            'command:"*--an-argument=of-its-own"',
        ):
            assert sorted(s.local_port for s in take(query).sockets) == sorted(one.said), query
        assert take("process:pb-unique").sockets
        assert not take("process:b-unique*").sockets
        assert not {s.local_port for s in take("-process:pb-unique-name").sockets} & set(one.said)


# --- a pid that went to another process ----------------------------------------------------------------------------


def row_of(pid, created, *more):
    owners = tuple(Owner(p, how="fake") for p in (pid, *more))
    return Socket("tcp", "ipv4", "127.0.0.1", 8080, state="LISTEN", owners=owners, created=created)


@pytest.fixture
def born():
    """A process and when it started."""
    with child("say()\nwait()\n") as one:
        row = row_of(one.pid, None)
        with only_sources(FakeSource([row])):
            (seen,) = take().sockets
        yield one.pid, seen.owners[0].started


@pytest.mark.parametrize("seconds", [1, 3600, 86400 * 365])
def test_an_owner_that_started_after_its_socket_is_another_process(born, seconds):
    pid, started = born
    with only_sources(FakeSource([row_of(pid, started - timedelta(seconds=seconds))])):
        listing = take()
    assert [s.owners for s in listing.sockets] == [()]
    assert ("owner", 1) in [(gap.what, gap.count) for gap in listing.gaps]
    assert not listing.complete


@pytest.mark.parametrize("seconds", [0, 1, 3600])
def test_an_owner_that_was_there_before_its_socket_is_kept(born, seconds):
    pid, started = born
    with only_sources(FakeSource([row_of(pid, started + timedelta(seconds=seconds))])):
        listing = take()
    assert [[o.pid for o in s.owners] for s in listing.sockets] == [[pid]]
    assert listing.gaps == ()


def test_of_several_owners_only_the_late_one_is_dropped(born):
    pid, started = born
    with only_sources(FakeSource([row_of(os.getpid(), None)])):
        (mine,) = take().sockets
    between = mine.owners[0].started + (started - mine.owners[0].started) / 2
    with only_sources(FakeSource([row_of(pid, between, os.getpid())])):
        (seen,) = take().sockets
    assert [o.pid for o in seen.owners] == [os.getpid()]


# --- named by the creator's cgroup ---------------------------------------------------------------------------------

CONTAINER = "3f" * 32
UNACCEPTED = """
wait_for_move = sys.stdin.buffer.readline()
one = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(one.getsockname())
print(json.dumps([os.getpid(), one.getsockname()[1]]), flush=True)
wait()
"""


def cgroup2():
    """Where the v2 hierarchy is mounted so that we may make a cgroup."""
    with open("/proc/self/mounts") as file:
        points = [line.split()[1] for line in file if line.split()[2] == "cgroup2"]
    return next((point for point in points if os.access(point, os.W_OK)), None)


@contextmanager
def moved_to(path, pid):
    """Move a process into a new cgroup, and remove that when the process has ended."""
    made = []
    try:
        at = cgroup2()
        for part in path.split("/"):
            at = f"{at}/{part}"
            os.mkdir(at)
            made.append(at)
        with open(f"{at}/cgroup.procs", "w") as file:
            file.write(str(pid))
        leave_v1_groups(pid)
        yield
    finally:
        for directory in reversed(made):
            with suppress(OSError):
                os.rmdir(directory)


@on_linux
@pytest.mark.parametrize(
    ("path", "service", "container"),
    [
        ("portbook-test.slice/portbook-web@1.service", "portbook-web@1.service", None),
        (f"portbook-test.slice/libpod-{CONTAINER}.scope", None, f"podman:{CONTAINER[:12]}"),
    ],
)
def test_a_socket_without_a_visible_owner_is_named_by_its_creators_cgroup(path, service, container, as_nobody):
    need(cgroup2() is not None, "a cgroup2 file system to make a cgroup in")
    with ExitStack() as hold:
        one = hold.enter_context(child("say()\n" + UNACCEPTED))
        hold.enter_context(moved_to(path, one.pid))
        hold.callback(one.process.wait, 10)
        hold.callback(one.process.stdin.close)
        one.process.stdin.write(b"go on\n")
        one.process.stdin.flush()
        _, port = json.loads(one.process.stdout.readline())
        rows = take(f"port:{port}").sockets
        script = f"from portbook import take; found = take('port:{port}').sockets; "
        printed = "print([(s.owners, s.service, s.container) for s in found])"
        of_nobody = as_nobody(sys.executable, "-c", script + printed)
    ((_, by_owner),) = [(s, s.owners[0]) for s in rows if s.owners]
    assert (by_owner.service, by_owner.container) == (service, container)
    unaccepted = [(s.service, s.container) for s in rows if not s.owners]
    assert unaccepted == [(service, container)]
    assert of_nobody.stdout.strip() == repr([((), service, container)] * 2), of_nobody.stderr


def test_a_socket_that_a_table_shows_twice_is_listed_once_as_seen_last():
    """A table that changes while it is read may show one socket in two states; those without an inode are many."""
    first = Socket("tcp", "ipv4", "127.0.0.1", 9, state="ESTABLISHED", inode=5)
    last = Socket("tcp", "ipv4", "127.0.0.1", 9, state="CLOSE_WAIT", inode=5)
    gone = Socket("tcp", "ipv4", "127.0.0.1", 9, "127.0.0.1", 8, state="TIME_WAIT", inode=0)
    table = FakeSource([first, gone, gone, last])
    table.source = replace(table.source, capabilities=frozenset(("tcp", "inode")))
    with only_sources(table):
        _, found, _ = portbook.inventory.select(portbook.Query())
    assert [s.state for s in found] == ["TIME_WAIT", "TIME_WAIT", "CLOSE_WAIT"]
