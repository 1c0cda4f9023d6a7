"""The supervisor of a process, found from its record alone. On any system."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.managers import supervisor
from portbook.records import Holder, Owner
from portbook.system.users import user_name

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ID = "0123456789abcdef" * 4
ROOT_UID, USER_UID, NO_UID = 0, 1000, 4_000_000_001  # the last has no name anywhere


def owner(pid=100, **more):
    return Owner(
        pid, **{"name": "server", "started": NOW, "exe": "/usr/bin/server", "command_line": ("server",), **more}
    )


def holder(one=None, *parents, sockets=()):
    return Holder(one or owner(), 1.0, tuple(parents), tuple(sockets), ())


def looked_after(one, platform, uid):
    return supervisor.find_supervisor(one.owner, one.parents, platform, uid)


SYSTEM = "/system.slice/web.service"
USERS = f"/user.slice/user-{USER_UID}.slice/user@{USER_UID}.service/app.slice/web.service"
UNNAMED = f"/user.slice/user-{NO_UID}.slice/user@{NO_UID}.service/app.slice/web.service"
WITHIN = f"/docker/{ID}/system.slice/web.service"


@pytest.mark.parametrize(
    ("cgroup", "uid", "command"),
    [
        (SYSTEM, ROOT_UID, "systemctl stop web.service"),
        (SYSTEM, USER_UID, "systemctl stop web.service"),
        (USERS, USER_UID, "systemctl --user stop web.service"),
        (UNNAMED, USER_UID, None),
        ("/system.slice/system-web.slice/web@a\\x2db.service", 0, "systemctl stop web@a\\x2db.service"),
        ("/system.slice/_web.service", 0, "systemctl stop web.service"),
        ("/system.slice/-.mount", 0, None),
        ("/system.slice/a b.service", 0, None),
        ("/system.slice/--now.service", 0, None),
        ("/user.slice/user-0.slice/session-1.scope", 0, ""),
        (f"/system.slice/docker-{ID}.scope", 0, f"docker stop {ID[:12]}"),
        (f"/machine.slice/libpod-{ID}.scope", 0, f"podman stop {ID[:12]}"),
        (WITHIN, 0, f"docker stop {ID[:12]}"),
        (f"/docker/{ID}/docker/{ID}", 0, None),
        (f"/kubepods/pod0123456789abcdef0123456789abcdef/{ID}", 0, None),
        (f"/system.slice/crio-{ID}.scope", 0, None),
        ("/lxc.payload.box", 0, None),
        ("/", 0, ""),
    ],
)
def test_a_cgroup_names_the_supervisor_of_a_process(cgroup, uid, command):
    found = looked_after(holder(owner(cgroup=cgroup)), "linux", uid)
    if command == "":
        assert found is None
    else:
        assert (" ".join(found.command) if found.command else None) == command
        assert command is not None or found.advice or found.kind == "systemd"


def test_the_advice_names_the_user_whose_podman_it_is():
    cgroup = f"/user.slice/user-{NO_UID}.slice/user@{NO_UID}.service/user.slice/libpod-{ID}.scope"
    found = looked_after(holder(owner(cgroup=cgroup)), "linux", ROOT_UID)
    assert found.command is None
    assert str(NO_UID) in found.advice


CONMON = ("/usr/bin/conmon", "--api-version", "1", "-c", ID, "-n", "web")


@pytest.mark.parametrize(
    ("more", "command"),
    [
        ({}, ("podman", "stop", ID[:12])),
        ({"user": "somebody"}, None),  # anybody may start conmon with anybody's id
        ({"exe": "/tmp/x"}, None),
        ({"command_line": ("conmon", "-c", "../../x")}, None),
        ({"command_line": ("conmon", "-c")}, None),
    ],
)
def test_conmon_is_believed_when_it_is_roots(more, command):
    known = {"exe": "/usr/bin/conmon", "name": "conmon", "user": user_name(0), "command_line": CONMON}
    found = looked_after(holder(owner(**{**known, **more})), "linux", ROOT_UID)
    assert (found.command if found else None) == command


def test_a_supervisor_is_known_by_its_name():
    found = looked_after(holder(None, owner(7, name="supervisord"), owner(1)), "linux", 0)
    assert (found.kind, found.command, found.advice) == ("supervisor", None, "supervisorctl stop NAME")
    assert looked_after(holder(None, owner(7, name="bash"), owner(8, name="supervisord")), "linux", 0) is None
    pm2 = looked_after(holder(None, owner(7, name="PM2 v5.3.0: God")), "macos", 0)
    assert pm2.advice == "pm2 stop NAME"
    # As nodemon 3.1.14 runs: a script of node, which is the name of its process.
    nodemon = owner(7, name="node", command_line=("node", "/usr/lib/node_modules/.bin/nodemon", "server.js"))
    assert looked_after(holder(None, nodemon), "linux", 0).name == "nodemon"
    assert looked_after(holder(None, owner(7, name="node", command_line=("node",))), "linux", 0) is None


@pytest.mark.parametrize(
    ("service", "command"),
    [
        ("Spooler", ("Stop-Service", "-Name", "Spooler")),
        ("MSSQL$SQLEXPRESS", ("Stop-Service", "-Name", "MSSQL$SQLEXPRESS")),
        ("Dnscache, CryptSvc", None),
        ('x" & calc', None),
        ("-Force", None),
        ("/x", None),
    ],
)
def test_a_windows_service_is_stopped_by_name(service, command):
    assert looked_after(holder(owner(service=service)), "windows", 0).command == command


def test_airplay_is_named():
    found = looked_after(holder(owner(name="ControlCenter")), "macos", 501)
    assert "AirPlay Receiver" in found.advice


@given(st.text(max_size=80))
def test_no_name_of_a_unit_can_be_an_option_or_two_arguments(name):
    found = supervisor.unit_supervisor(name, None, 0)
    if found.command is not None:
        assert found.command == ("systemctl", "stop", name)
        assert not name.startswith("-")
        assert not set(name) & set(" \t\n;|&$`'\"/*?")


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (Owner(1, "systemd"), True),
        (Owner(1, "init", exe="/usr/lib/systemd/systemd"), True),
        (Owner(800, "systemd", cgroup="/user.slice/user-1000.slice/user@1000.service/init.scope"), True),
        (Owner(800, "systemd", cgroup="/system.slice/web.service"), False),  # any process can choose this name
        (Owner(1, "nginx", exe="/usr/sbin/nginx"), False),  # in a container
    ],
)
def test_a_service_manager_is_systemd(owner, expected):
    assert supervisor.is_service_manager(owner) is expected
