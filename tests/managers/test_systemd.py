"""Cgroup paths as systemd makes them, and the unit that a user would expect to be told."""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.enrich import service
from portbook.managers.systemd import unescape, unit_of
from portbook.records import Owner

ID = "3fd1a4ac81b9bd22ac4d1e7d2b0d9b1f6a9f1a2b3c4d5e6f708192a3b4c5d6e7"
USER = "/user.slice/user-1000.slice/user@1000.service"

UNITS = [
    # systemd.slice(5): a unit's cgroup lies below that of its slice.
    ("/system.slice/ssh.service", "ssh.service"),
    ("/system.slice/system-postgresql.slice/postgresql@15-main.service", "postgresql@15-main.service"),
    ("/system.slice/cups.socket", "cups.socket"),
    ("/system.slice/var-lib-data.mount", "var-lib-data.mount"),
    ("/system.slice/dev-sda2.swap", "dev-sda2.swap"),
    ("/system.slice/run-r0123456789abcdef.service", "run-r0123456789abcdef.service"),
    # A service with a subtree of its own (https://systemd.io/CGROUP_DELEGATION, "Delegate=").
    ("/system.slice/nginx.service/workers/1", "nginx.service"),
    ("/system.slice/systemd-udevd.service/udev", "systemd-udevd.service"),
    # systemd-escape(1): a dash in a path is \x2d. The name is UTF-8, byte by byte.
    (r"/system.slice/system-openvpn.slice/openvpn@my\x2dvpn.service", "openvpn@my-vpn.service"),
    (r"/system.slice/dev-disk-by\x2duuid-1234.swap", "dev-disk-by-uuid-1234.swap"),
    (r"/system.slice/caf\xc3\xa9.service", "café.service"),
    # cg_escape() in systemd's src/basic/cgroup-util.c: names that the kernel could mistake get an underscore.
    ("/system.slice/_cgroup.service", "cgroup.service"),
    # A user's manager builds the same tree again (user@.service(5)).
    (USER + "/app.slice/foo.service", "foo.service"),
    (USER + "/app.slice/app-foo.slice/app-foo@1.service", "app-foo@1.service"),
    (USER + "/session.slice/dbus.service", "dbus.service"),
    (USER + "/dbus.socket", "dbus.socket"),
    (USER, "user@1000.service"),
    (USER + "/init.scope", "user@1000.service"),
    # podman-systemd.unit(5): Quadlet runs the container inside the unit's own cgroup.
    (f"/system.slice/nginx.service/libpod-payload-{ID}", "nginx.service"),
    ("/system.slice/nginx.service/runtime", "nginx.service"),
    (f"{USER}/app.slice/redis.service/libpod-payload-{ID}", "redis.service"),
    (f"/system.slice/box.service/libpod-payload-{ID}/init.scope", "box.service"),
    # The outermost counts: names below a delegated unit are chosen by whoever it runs as.
    ("/system.slice/app.service/sshd.service", "app.service"),
    ("/system.slice/app.service/system.slice/sshd.service", "app.service"),
    ("/system.slice/app.service/x.scope/sshd.service", "app.service"),
    ("/system.slice/app.service/x.slice", "app.service"),
    ("/system.slice/app.service/user.slice/user-0.slice/user@0.service/app.slice/sshd.service", "app.service"),
    (f"/system.slice/app.service/docker-{ID}.scope/system.slice/sshd.service", "app.service"),
    (f"/system.slice/app.service/libpod-payload-{ID}/system.slice/sshd.service", "app.service"),
    ("/system.slice/app.service/lxc.payload.x/system.slice/sshd.service", "app.service"),
    ("/system.slice/app.service/docker.service/x.slice", "app.service"),
    ("/system.slice/user@0.service/app.slice/sshd.service", "user@0.service"),
    (USER + "/app.slice/foo.service/bar.service", "foo.service"),
    # systemd inside a container: its unit is what listens.
    (f"/system.slice/docker-{ID}.scope/system.slice/nginx.service", "nginx.service"),
    ("/lxc.payload.web/system.slice/nginx.service", "nginx.service"),
    ("/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service", "nginx.service"),
    ("/machine.slice/systemd-nspawn@web.service/payload/init.scope", "systemd-nspawn@web.service"),
]

NO_UNIT = [
    "",
    "/",
    "/init.scope",  # pid 1
    "/user.slice/user-1000.slice/session-3.scope",
    "/user.slice/user-1000.slice",
    # https://systemd.io/DESKTOP_ENVIRONMENTS: applications, started by the desktop and not by the user's manager
    USER + r"/app.slice/app-gnome-org.mozilla.firefox-4242.scope",
    USER + r"/app.slice/app-org.gnome.Terminal.slice/vte-spawn-0f0f.scope",
    USER + "/app.slice",
    USER + "/user.slice",
    # containers
    f"/system.slice/docker-{ID}.scope",
    f"/machine.slice/libpod-{ID}.scope/container",
    f"{USER}/user.slice/libpod-{ID}.scope/container",
    f"{USER}/user.slice/docker-{ID}.scope",
    f"/kubepods.slice/kubepods-besteffort.slice/cri-containerd-{ID}.scope",
    f"/kubepods.slice/kubepods-besteffort.slice/crio-{ID}.scope",
    f"/docker/{ID}",
    "/lxc.payload.web",
    "/machine.slice/machine-web.scope",
    # Cgroup drivers that do not match: https://github.com/kubernetes/kubernetes/issues/106514 and 36807
    f"/system.slice/containerd.service/kubepods-burstable-pod{ID[:32]}.slice:cri-containerd:{ID}",
    f"/system.slice/docker.service/BestEffort.slice/BestEffort-pod0d33f94b_ab1a_11e6_9e1a_68f7281d8004.slice/{ID}",
    "/system.slice/.service.d",
    # units are below slices only, and a scope has none below it
    "/mine/sshd.service",
    "/user.slice/user-1000.slice/session-3.scope/sshd.service",
    USER + "/app.slice/app-x.scope/sshd.service",
]


@pytest.mark.parametrize(("cgroup", "unit"), UNITS)
def test_a_unit_is_named(cgroup, unit):
    assert unit_of(cgroup) == unit


@pytest.mark.parametrize("cgroup", NO_UNIT)
def test_what_is_no_service_is_none(cgroup):
    assert unit_of(cgroup) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (r"a\x2db", "a-b"),
        (r"a\x2", r"a\x2"),
        (r"a\xzz", r"a\xzz"),
        (r"a\x 2", r"a\x 2"),
        (r"\x5cx2d", r"\x2d"),
        (r"a\xff", "a\N{REPLACEMENT CHARACTER}"),
        ("__a", "_a"),
    ],
)
def test_unescape(name, text):
    assert unescape(name) == text


@given(st.text(st.characters()) | st.text(st.sampled_from("/\\x2d_.:@-abcservicescopeslice\x00\x1b\n")))
def test_any_text_is_understood_or_none(text):
    unit = unit_of(text)
    assert unit is None or unit.endswith((".service", ".socket", ".mount", ".swap"))


def test_owners_keep_their_order_and_get_their_unit():
    owners = [Owner(1), Owner(2, cgroup="/system.slice/ssh.service"), Owner(3, cgroup="/init.scope")]
    completed, gaps = service.enrich(owners)
    assert [(owner.pid, owner.service) for owner in completed] == [(1, None), (2, "ssh.service"), (3, None)]
    assert gaps == []


def test_on_windows_the_service_control_manager_gets_the_request(monkeypatch):
    asked = types.ModuleType("windows")
    asked.enrich = lambda owners: ([Owner(owner.pid, service="Dnscache") for owner in owners], [])
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "portbook.enrich.service.windows", asked)
    monkeypatch.setattr(service, "windows", asked, raising=False)
    assert service.enrich([Owner(4)]) == ([Owner(4, service="Dnscache")], [])
