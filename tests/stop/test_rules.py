"""What is judged from records alone: the supervisor of a process, refusals, the result of a bind. On any system."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from portbook.addresses import DUAL, EVERYWHERE, Endpoint
from portbook.bind.attempt import BindAttempt
from portbook.managers import control, relay, supervisor
from portbook.managers.supervisor import Supervisor
from portbook.records import SCHEMA, Gap, Holding, Socket
from portbook.stop import plan, protected, result, supervision
from portbook.stop.bindable import Bindable, combine
from portbook.stop.records import StopTarget
from tests.managers.test_supervisor import ID, NOW, holder, looked_after, owner

COMMAND = Supervisor("systemd", "a.service", ("systemctl", "stop", "a.service"))


def listening(*owners, address="127.0.0.1", state="LISTEN", **more):
    family = "ipv6" if ":" in address else "ipv4"
    return Socket("tcp", family, address, 8080, state=state, owners=tuple(owners), **more)


# --- what systemctl prints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Restart=no\nTriggeredBy=\n", False),
        ("Restart=on-watchdog\nTriggeredBy=a.timer\n", False),
        ("Restart=always\n", True),
        ("Restart=on-failure\n", None),
        ("Restart=on-abnormal\n", None),
        ("Restart=no\nTriggeredBy=a.timer a.socket\n", True),
        ("", None),
    ],
)
def test_whether_systemd_starts_it_again(text, answer):
    assert control.restart_policy(control.properties(text))[0] is answer


# systemctl list-sockets --show-types --no-legend --full of systemd 252, as the test with a real one has it.
SOCKETS = """\
/run/systemd/journal/stdout    Stream         systemd-journald.socket systemd-journald.service
[::]:22                        Stream         ssh.socket              ssh.service
0.0.0.0:123                    Datagram       ntp.socket              ntp.service
127.0.0.1:8080                 Stream         web.socket
[::]:2222                      Stream         a.socket                a.service, b.service
"""


@pytest.mark.parametrize(
    ("port", "protocol", "units"),
    [
        (22, "tcp", ("ssh.socket", "ssh.service")),
        (22, "udp", None),
        (123, "udp", ("ntp.socket", "ntp.service")),
        (8080, "tcp", ("web.socket", "")),
        (80, "tcp", None),
        (2222, "tcp", ("a.socket", "a.service")),
    ],
)
def test_which_unit_a_socket_is_held_for(port, protocol, units):
    assert control.listening_units(SOCKETS, port, protocol) == units


@given(st.text(max_size=300))
def test_whatever_a_command_prints_is_read_without_an_error(text):
    control.restart_policy(control.properties(text))
    control.listening_units(text, 80, "tcp")


def test_docker_names_the_container_behind_its_proxy(monkeypatch):
    """Composed: docker is not run here. The relay's own command line has addresses, not the container."""
    said = {"ps": control.CommandResult(0, ID), "inspect": control.CommandResult(0, "/web|always")}
    monkeypatch.setattr(control, "run_command", lambda command, _: said[command[1]])
    proxy = owner(exe="/usr/bin/docker-proxy", name="docker-proxy", user="root", cgroup="/system.slice/docker.service")
    found = control.query_manager(looked_after(holder(proxy), "linux", 0), 8080, "tcp")
    assert (found.kind, found.command, found.restarts) == ("docker", ("docker", "stop", "web"), True)
    said["ps"] = control.CommandResult(0, f"{ID}\n{ID}")
    found = control.query_manager(looked_after(holder(proxy), "linux", 0), 8080, "tcp")
    assert found.command is None
    assert "docker ps" in found.advice


def test_without_an_answer_of_systemd_no_unit_is_stopped(monkeypatch):
    """Its main process may be one that the machine needs."""
    monkeypatch.setattr(control, "BOOTED", "/")
    for text in ("", "LoadState=not-found\nActiveState=inactive\n", "Failed to connect to bus"):
        monkeypatch.setattr(control, "run_command", lambda _, __, text=text: control.CommandResult(1, text))
        found = control.query_manager(COMMAND, 8080, "tcp")
        assert (found.command, found.advice) == (None, "systemctl stop a.service")
    removed = "LoadState=not-found\nActiveState=active\nMainPID=7\nKillMode=mixed\nRestart=no\n"
    monkeypatch.setattr(control, "run_command", lambda _, __: control.CommandResult(0, removed))
    found = control.query_manager(COMMAND, 8080, "tcp")
    assert (found.command, found.main_pid, found.kill_mode) == (("systemctl", "stop", "a.service"), 7, "mixed")


ASKED = replace(COMMAND, restarts=True, main_pid=70, control_pid=0, kill_mode="control-group")


@pytest.mark.parametrize(
    ("known", "parents", "holding", "main", "supervises"),
    [
        (replace(ASKED, main_pid=100), [], [], None, True),  # the service itself
        (replace(ASKED, control_pid=100, kill_mode="process"), [], [], None, True),
        (replace(ASKED, main_pid=0), [], [], None, True),  # all of the unit is the service
        (replace(ASKED, main_pid=0, kill_mode="process"), [], [], None, False),
        (ASKED, [70], [], "npm", True),  # a script that runs the server
        (ASKED, [], [70], "nginx", True),  # workers of a server
        (ASKED, [], [], "agent", False),  # it left its parents
        (ASKED, [70], [], "sshd", False),
        (ASKED, [70], [70], "dockerd", False),
        (replace(ASKED, kill_mode="process"), [70], [], "cron", False),
        (replace(ASKED, kill_mode="none"), [70], [70], "x", False),
        (replace(ASKED, main_pid=None), [], [], None, True),  # no unit, or without an answer
    ],
)
def test_what_systemd_supervises(known, parents, holding, main, supervises):
    one = holder(owner(), *[owner(pid) for pid in parents])
    process = owner(70, name=main, exe=None) if main else None
    found = supervision.judge(known, one, holding, process)
    assert (found == known) is supervises
    if not supervises:
        assert (found.command, found.restarts) == (None, False)
        assert refused(one.owner, found=found) == []


@pytest.mark.parametrize(
    ("unit", "name", "is_supervised"),
    [
        ("ssh.service", "sshd", True),
        ("ssh.service", "python3", False),
        ("sshd@3-127.0.0.1:22.service", "node", False),
        ("cron.service", "node", False),
        ("getty@tty1.service", "node", False),
        ("actions.runner.acme-web.box.service", "node", False),
        ("sshguard.service", "node", True),
    ],
)
def test_units_that_only_start_what_others_ask_for_are_known_by_name(unit, name, is_supervised):
    one = owner(name=name, exe=f"/usr/bin/{name}", cgroup=f"/system.slice/{unit}")
    assert (looked_after(holder(one), "linux", 0) is not None) is is_supervised


# --- what is refused -----------------------------------------------------------------------------------------------


def refused(one, platform="linux", found=None, **situation):
    known = {"pid": 5, "ancestors": frozenset((4, 3)), **situation}
    known["supervisors"] = {one.pid: found} if found else {}
    listing = listening(one)
    made = plan.make_plan(
        Holding(SCHEMA, 8080, "tcp", True, (holder(one, sockets=[listing]),), (listing,)), "tcp", True,
        plan.StopContext(platform, **known),
    )  # fmt: skip
    return [(r.code, r.overridden_by) for r in made.targets[0].refusals]


KNOW, VIA = ("override",), ("via-manager",)


@pytest.mark.parametrize(
    ("one", "platform", "expected"),
    [
        (owner(), "linux", []),
        (owner(0), "linux", [("kernel", ())]),
        (owner(0, name="System Idle Process"), "windows", [("kernel", ())]),
        (owner(4, name="System"), "windows", [("kernel", ())]),
        (owner(2, name="kthreadd", exe=None, command_line=()), "linux", [("kernel", ())]),
        (owner(9, name="nfsd", exe=None, command_line=(), ppid=2), "linux", [("kernel", ())]),
        (owner(1, name="tini"), "linux", [("protected", KNOW)]),
        (owner(1, name="launchd"), "macos", [("protected", KNOW)]),
        (owner(5), "linux", [("self", ())]),
        (owner(3), "linux", [("ancestor", KNOW)]),
        (owner(name="x", exe="/usr/sbin/sshd"), "linux", [("protected", KNOW)]),
        (owner(name="lsass.exe", exe=r"C:\Windows\System32\lsass.exe"), "windows", [("protected", KNOW)]),
        (owner(name="LSASS.EXE", exe=None), "windows", [("protected", KNOW)]),
        (owner(name="svchost.exe", exe=None), "windows", [("protected", KNOW)]),
        (owner(name="lsass.exe"), "linux", []),
        (owner(4), "macos", [("ancestor", KNOW)]),
        (owner(started=None), "linux", [("unknown", ())]),
    ],
)
def test_what_is_refused(one, platform, expected):
    assert refused(one, platform) == expected


@pytest.mark.parametrize(
    ("one", "found", "expected"),
    [
        (owner(), COMMAND, [("managed", VIA + KNOW)]),
        (owner(), Supervisor("systemd", "a", ("x",), restarts=False), []),
        (owner(), Supervisor("kubernetes", "a"), [("managed", KNOW)]),
        (owner(1, name="systemd"), COMMAND, [("managed", VIA)]),
        (owner(70, name="systemd", exe="/usr/lib/systemd/systemd"), COMMAND, [("managed", VIA)]),
        (owner(1, name="systemd"), Supervisor(supervisor.ACTIVATION, ""), [("protected", KNOW), ("managed", KNOW)]),
        (owner(name="sshd"), COMMAND, [("protected", KNOW), ("managed", VIA + KNOW)]),
        (
            owner(exe="/usr/bin/conmon"),
            Supervisor("podman", "a", ("podman", "stop", "a"), restarts=False),
            [("managed", VIA + KNOW)],
        ),
    ],
)
def test_what_a_manager_looks_after_is_its_business(one, found, expected):
    assert refused(one, found=found) == expected


RELAYS = [
    name for name, row in relay.PROGRAMS.items() if row.kind == "container" and row.to and name not in protected.UNIX
]


@pytest.mark.parametrize("name", [*RELAYS, "pasta", "passt.avx2", "pasta.avx2"])
def test_what_holds_a_container_s_port_is_not_ended_for_it(name):
    """Also an ordinary user's, whose service manager would be told to stop all of docker."""
    one = owner(exe=f"/usr/bin/{name}", user="somebody", cgroup="/user@1000.service/app.slice/docker.service")
    found = looked_after(holder(one), "linux", 0)
    assert (found.kind, found.command) == ("relay", None)
    assert refused(one, found=found) == [("managed", ("override",))]


@pytest.mark.parametrize(
    ("exe", "line", "expected"),
    [
        ("/usr/sbin/inetd", "inetd", [("managed", KNOW)]),
        ("/usr/sbin/xinetd", "xinetd -dontfork", [("managed", KNOW)]),
        ("/usr/bin/passt.avx2", "pasta -t 8080:80 x", [("managed", KNOW)]),
        ("/usr/bin/qemu-system-x86_64", "qemu -netdev user,id=n,hostfwd=tcp::8080-:22", [("managed", KNOW)]),
        ("/usr/bin/qemu-system-x86_64", "qemu -vnc :2180", []),
        ("/usr/bin/socat", "socat TCP-LISTEN:8080 TCP:db:80", []),
        ("/usr/bin/ssh", "ssh -L 8080:db:80 box", []),
        ("/usr/bin/busybox", "busybox tcpsvd 0 8080 cat", []),
        ("/usr/sbin/haproxy", "haproxy -f /etc/haproxy.cfg", []),
    ],
)
def test_a_relay_that_others_need_is_refused_and_a_tunnel_ended(exe, line, expected):
    one = owner(name=exe.rpartition("/")[2], exe=exe, command_line=tuple(line.split()))
    assert refused(one, found=looked_after(holder(one), "linux", 0), port=8080) == expected


def test_a_session_of_sshd_is_not_called_the_server():
    session = owner(name="sshd", exe="/usr/sbin/sshd", command_line=("sshd: me@notty",))
    assert "session" in protected.reason(session, "linux")
    assert "reachable" in protected.reason(owner(name="sshd", command_line=("sshd", "-D")), "linux")


def test_what_may_not_be_signalled_may_still_be_stopped_by_its_manager():
    denied = frozenset((100,))
    assert refused(owner(), denied=denied) == [("not-permitted", ())]
    found = Supervisor("systemd", "a", ("x",), restarts=False)
    assert refused(owner(), found=found, denied=denied) == [("not-permitted", VIA)]


def test_every_reason_names_what_ends():
    assert all(len(why) > 10 for table in (protected.UNIX, protected.WINDOWS) for why in table.values())
    assert all(name == name.lower() for name in protected.WINDOWS)


# --- who has it then -----------------------------------------------------------------------------------------------

SHELL, SUPERVISOR, FIRST = owner(50, name="bash"), owner(60, name="loop"), owner(1, name="init")


def then(found, *, inodes=frozenset((7,)), **more):
    """The result when ``found`` has the port, and a process with pid 10 below a supervisor was to end."""
    old = holder(owner(10, **more), SUPERVISOR, SHELL, FIRST, sockets=[listening(inode=7)])
    return result.classify([found], [StopTarget(old, 0)], inodes)


@pytest.mark.parametrize(
    ("found", "result", "by"),
    [
        (holder(owner(10), SUPERVISOR, sockets=[listening(inode=7)]), "still-held", None),
        (holder(owner(10), SUPERVISOR, sockets=[listening(inode=8)]), "still-held", None),  # it has opened it anew
        (holder(owner(11), SUPERVISOR, SHELL, sockets=[listening(inode=7)]), "still-held", None),
        (holder(owner(11), SUPERVISOR, SHELL, sockets=[listening(inode=8)]), "restarted", SUPERVISOR),
        (holder(owner(11), owner(61), SHELL, sockets=[listening(inode=8)]), "restarted", SHELL),
        (holder(owner(11, service="a.service"), FIRST, sockets=[listening(inode=8)]), "restarted", None),
        (holder(owner(11, service="b.service"), FIRST, sockets=[listening(inode=8)]), "taken", None),
        (holder(owner(11), FIRST, sockets=[listening(inode=8)]), "taken", None),
        (holder(owner(10, started=NOW.replace(day=3)), FIRST, sockets=[listening(inode=8)]), "taken", None),
        (holder(owner(11), FIRST, sockets=[listening(inode=8, state="ESTABLISHED")]), "still-held", None),
        (holder(owner(11), FIRST, sockets=[listening(inode=None)]), "taken", None),
    ],
)
def test_who_has_it_then(found, result, by):
    assert then(found, service="a.service") == (result, by)


def test_without_inodes_nothing_is_inherited():
    found = holder(owner(11), FIRST, sockets=[listening(inode=None)])
    assert then(found, inodes=frozenset()).result == "taken"


# --- which processes count -------------------------------------------------------------------------------------------


def made(*sockets, held=True, gaps=()):
    owners = {o.pid: o for s in sockets for o in s.owners}
    holders = tuple(holder(o, sockets=[s for s in sockets if o in s.owners]) for o in owners.values())
    return plan.make_plan(
        Holding(SCHEMA, 8080, "tcp", True, holders, tuple(sockets), tuple(gaps)), "tcp", held,
        plan.StopContext("linux", 5, frozenset()),
    )  # fmt: skip


SERVER, CHILD, CLIENT = owner(10), owner(11), owner(12)


def pids(one):
    return [t.holder.owner.pid for t in one.targets]


def test_a_process_with_only_a_connection_is_no_holder_beside_a_listener():
    accepted = listening(CHILD, state="ESTABLISHED")
    assert pids(made(listening(SERVER), accepted)) == [10]
    alone = made(accepted)
    assert (pids(alone), [(r.code, r.overridden_by) for r in alone.forbidden()]) == ([11], [("connected", KNOW)])
    assert pids(made(listening(SERVER, state="TIME_WAIT"), held=False)) == []


def test_an_invisible_holder_is_a_refusal_with_the_remedy():
    gap = Gap("owner", 1, "owners of 1 socket are not visible to uid 1000", "run with sudo")
    (refusal,) = made(listening(), gaps=[gap]).refusals
    assert (refusal.code, refusal.hint) == ("not-visible", "run with sudo")
    assert "uid 1000" in refusal.why
    (refusal,) = made().refusals
    assert refusal.code == "not-found"


@pytest.mark.parametrize(
    ("sockets", "expected"),
    [
        ([], EVERYWHERE),
        ([listening(address="0.0.0.0")], EVERYWHERE[:1]),
        ([listening(address="::", v6only=True)], EVERYWHERE[1:]),
        ([listening(address="::", v6only=False)], DUAL),
        ([listening(address="::", v6only=None)], DUAL),  # a source that cannot tell: the stricter bind
        ([listening(), listening(), listening(address="::1")], (Endpoint("127.0.0.1"), Endpoint("::1"))),
        ([listening(address="fe80::1", zone="eth0")], (Endpoint("fe80::1", "eth0"),)),
        ([listening(), listening(address="10.0.0.1", state="ESTABLISHED")], (Endpoint("127.0.0.1"),)),
    ],
)
def test_the_port_is_bound_where_it_was_held(sockets, expected):
    assert plan.bind_endpoints(sockets) == expected


HERE = Endpoint("127.0.0.1")


@pytest.mark.parametrize(
    ("names", "free", "noted"),
    [
        ([None], True, False),
        (["EADDRINUSE"], False, False),
        ([None, "EADDRINUSE"], False, False),
        (["WSAEADDRINUSE"], False, False),
        (["WSAEACCES"], False, False),
        (["EACCES"], True, True),
        (["EADDRNOTAVAIL", None], True, True),
        (["EACCES", "EADDRINUSE"], False, False),
    ],
)
def test_the_result_of_a_bind_decides(names, free, noted):
    bindable = combine(BindAttempt(HERE, 80, name and 1, name, name and "bind") for name in names)
    assert (bindable.free, bindable.note is not None) == (free, noted)
    assert noted or bindable == Bindable(free)


@pytest.mark.parametrize(
    ("creator", "user", "parents", "beside", "expected"),
    [
        ("root", "www-data", [], [], None),  # a server that gives up root
        ("me", "me", [], [], None),
        (None, "root", [], [], None),  # a source that cannot tell
        ("me", None, [], [], None),
        ("me", "root", [], [], "me"),
        ("me", "postgres", [], [], "me"),
        ("me", "root", [], [("me", 300)], "me"),
        ("me", "root", [300], [("me", 300)], None),  # as sudo, below a process that has the socket
        ("100000", "100033", [], [], None),  # a container without privilege
        ("100000", "root", [], [], "100000"),
    ],
)
def test_a_socket_that_another_user_made_was_handed_over_unless_it_was_inherited(
    creator, user, parents, beside, expected
):
    def having(one, *above):
        return holder(one, *above, sockets=[listening(one, user=creator, inode=7)])

    one = having(owner(user=user), *[owner(pid) for pid in parents])
    others = [having(owner(pid, user=name)) for name, pid in beside]
    assert plan.handed_over_by(one, [one, *others]) == expected
