"""Cgroup paths as container runtimes make them, and what they are understood as.

The shapes are public: the runtimes' documentation named in ``portbook.managers.container``, and the threads and files
named beside a path. The ids are made up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.managers import container, runtimes
from portbook.managers.container import Container, identify, label
from portbook.records import Owner
from tests.components import need

ID = "1f2e3d4c5b6a79880718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e"
INNER = "c0ffee00" * 8
POD = "2c48913c-b29f-11e7-9350-020968147796"
POD_ = POD.replace("-", "_")
USER = "/user.slice/user-1000.slice/user@1000.service"
TASK = "0f9e8d7c6b5a49382716051423324150"

CONTAINERS = [
    # docker: the cgroupfs and the systemd driver (https://docs.docker.com/engine/containers/runmetrics)
    (f"/docker/{ID}", Container("docker", ID)),
    (f"/system.slice/docker-{ID}.scope", Container("docker", ID)),
    (f"/system.slice/docker-{ID}.scope/init", Container("docker", ID)),
    (f"/actions_job/{ID}", Container("docker", ID)),
    (f"/build.slice/docker-{ID}.scope", Container("docker", ID)),
    # rootless docker (https://docs.docker.com/engine/security/rootless)
    (f"{USER}/user.slice/docker-{ID}.scope", Container("docker", ID, daemon=1000)),
    # "slice:prefix:name" taken for a path (https://github.com/containerd/cri/pull/290 has the notation)
    (f"/system.slice:docker:{ID}", Container("docker", ID)),
    # podman (podman-run(1), --cgroups); crun makes "container" below
    (f"/machine.slice/libpod-{ID}.scope", Container("podman", ID)),
    (f"/machine.slice/libpod-{ID}.scope/container", Container("podman", ID)),
    (f"/libpod_parent/libpod-{ID}", Container("podman", ID)),
    (f"/libpod_parent/{INNER}/libpod-{ID}", Container("podman", ID)),
    (f"/machine.slice/machine-libpod_pod_{INNER}.slice/libpod-{ID}.scope", Container("podman", ID)),
    (f"{USER}/user.slice/libpod-{ID}.scope/container", Container("podman", ID, daemon=1000)),
    (
        f"/system.slice/nginx.service/libpod-payload-{ID}",
        Container("podman", ID, delegated="/system.slice/nginx.service"),
    ),
    (f"{USER}/app.slice/redis.service/libpod-payload-{ID}", Container("podman", ID, daemon=1000)),
    # containerd: ctr and nerdctl
    (f"/default/{ID}", Container("containerd", ID)),
    (f"/system.slice/nerdctl-{ID}.scope", Container("containerd", ID)),
    # Kubernetes, systemd driver and cgroupfs driver, guaranteed, burstable and best effort
    # (https://kubernetes.io/docs/concepts/architecture/cgroups, pkg/kubelet/cm/pod_container_manager_linux.go)
    (f"/kubepods.slice/kubepods-pod{POD_}.slice/cri-containerd-{ID}.scope", Container("containerd", ID, POD)),
    (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice/cri-containerd-{ID}.scope",
        Container("containerd", ID, POD),
    ),
    (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_}.slice/crio-{ID}.scope/container",
        Container("crio", ID, POD),
    ),
    (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_}.slice/docker-{ID}.scope",
        Container("docker", ID, POD),
    ),
    (f"/kubepods/burstable/pod{POD}/{ID}", Container("kubernetes", ID, POD)),
    (f"/kubepods/besteffort/pod{POD}/crio-{ID}", Container("crio", ID, POD)),
    (f"/kubepods/burstable/pod{TASK}/{ID}", Container("kubernetes", ID, TASK)),  # a static pod
    (f"/kubepods/pod{POD}", Container("kubernetes", "", POD, None)),
    # cgroup drivers that do not match: https://github.com/kubernetes/kubernetes/issues/106514 and 36807
    (
        f"/system.slice/docker.service/BestEffort.slice/BestEffort-pod{POD_}.slice/{ID}",
        Container("kubernetes", ID, POD),
    ),
    (
        f"/system.slice/containerd.service/kubepods-burstable-pod{POD_}.slice:cri-containerd:{ID}",
        Container("containerd", ID, POD),
    ),
    # LXC 4, LXD, Incus (lxc.container.conf(5), lxc.cgroup.dir.container), before, and Proxmox
    ("/lxc.payload.web", Container("lxc", "web")),
    ("/lxc.payload.my-web/system.slice/nginx.service", Container("lxc", "my-web")),
    ("/lxc.payload/web", Container("lxc", "web")),
    ("/lxc/web", Container("lxc", "web")),
    ("/lxc/101/ns/system.slice/nginx.service", Container("lxc", "101")),
    (f"{USER}/user.slice/lxc.payload.mine", Container("lxc", "mine", daemon=1000)),
    (r"/machine.slice/machine-lxc\x2d4242\x2dweb\x2d1.scope", Container("lxc", "web-1")),  # libvirt
    # systemd-nspawn(1), systemd-machined(8)
    ("/machine.slice/machine-web.scope/payload/system.slice/nginx.service", Container("nspawn", "web")),
    (r"/machine.slice/machine-my\x2dweb.scope", Container("nspawn", "my-web")),
    ("/machine.slice/systemd-nspawn@web.service/payload", Container("nspawn", "web")),
    # Amazon ECS: on EC2 (https://github.com/aws/amazon-ecs-agent/issues/1119), with cgroup v2, and on Fargate
    # (https://github.com/open-telemetry/opentelemetry-js-contrib/pull/2855)
    (f"/ecs/{TASK}/{ID}", Container("docker", ID)),
    (f"/ecstasks.slice/ecstasks-{TASK}.slice/docker-{ID}.scope", Container("docker", ID)),
    (f"/ecs/{TASK}/{TASK}-1234567890", Container("ecs", f"{TASK}-1234567890")),
    # a parent of somebody's own: docker run --cgroup-parent
    (f"/batch/{ID}", Container("container", ID, delegated="/batch")),
    (f"/some.slice/other-{ID}.scope", Container("container", ID)),
    # nested: the innermost, which the daemon out here does not know
    (f"/docker/{ID}/docker/{INNER}", Container("docker", INNER, daemon=None)),
    (f"/system.slice/docker-{ID}.scope/docker/{INNER}", Container("docker", INNER, daemon=None)),
    (f"/lxc.payload.web/system.slice/docker-{ID}.scope", Container("docker", ID, daemon=None)),
    ("/lxc/outer/ns/lxc/inner", Container("lxc", "inner", daemon=None)),
    # kind, Kubernetes in docker (https://kind.sigs.k8s.io)
    (
        f"/docker/{ID}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
        f"kubelet-kubepods-burstable-pod{POD_}.slice/cri-containerd-{INNER}.scope",
        Container("containerd", INNER, POD, None),
    ),
    (f"/kubepods/burstable/pod{POD}/{ID}/docker/{INNER}", Container("docker", INNER, None, None)),
]

NONE = [
    "",
    "/",
    "/init.scope",
    "/system.slice/docker.service",
    "/system.slice/containerd.service",
    "/kubepods.slice/kubepods-burstable.slice",
    "/kubepods/burstable/podcast",
    "/docker",
    "/docker/buildx",
    "/lxc.monitor.web",
    "/lxc.monitor/101",
    "/lxc",
    "/libpod_parent/conmon",
    f"/libpod_parent/{ID}",
    f"/machine.slice/libpod-conmon-{ID}.scope",
    f"{USER}/user.slice/libpod-conmon-{ID}.scope",
    f"/kubepods.slice/crio-conmon-{ID}.scope",
    "/system.slice/nginx.service/runtime",
    "/machine.slice/machine-web.scope/supervisor",
    "/machine.slice/systemd-nspawn@web.service/supervisor",
    r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator",
    "/system.slice/machine-web.scope",
    "/ecs/not-a-task",
    f"/system.slice/docker-{ID[:63]}.scope",
    f"/system.slice/docker-{ID[:63]}g.scope",
    USER + "/app.slice/app-flatpak-org.example.App-4242.scope",
]


@pytest.mark.parametrize(("cgroup", "expected"), CONTAINERS)
def test_a_container_is_identified(cgroup, expected):
    assert identify(cgroup) == expected


@pytest.mark.parametrize("cgroup", NONE)
def test_what_is_no_container_is_none(cgroup):
    assert identify(cgroup) is None


DELEGATED = [
    # What an ordinary user may make below a unit that was delegated to that user, or below a directory that is theirs.
    f"/system.slice/app.service/docker-{ID}.scope",
    f"/system.slice/app.service/system.slice/docker-{ID}.scope",
    f"/system.slice/app.service/docker/{ID}",
    f"/system.slice/app.service/{ID}",
    f"/system.slice/app.service/kubepods/burstable/pod{POD}/{ID}",
    f"/system.slice/app.service/pod{POD}",
    "/system.slice/app.service/lxc.payload.web",
    f"/system.slice/app.service/docker.service/kubepods/pod{POD}/{ID}",
    "/system.slice/app.service/machine.slice/machine-web.scope",
    f"/system.slice/run-1.scope/docker-{ID}.scope",
    f"/user.slice/user-1000.slice/session-3.scope/libpod-{ID}.scope",
    f"/user.slice/user-1000.slice/user@1001.service/docker-{ID}.scope",  # not systemd's name for this place
    f"/system.slice/user@0.service/docker-{ID}.scope",
    f"/slurm/uid_1000/docker/{ID}",
    f"/slurm/uid_1000/system.slice/docker-{ID}.scope",
]


@pytest.mark.parametrize("cgroup", DELEGATED)
def test_a_container_in_a_place_that_a_user_may_have_is_believed_if_root_made_it(cgroup, monkeypatch):
    found = identify(cgroup)
    assert found.delegated is not None
    assert cgroup.startswith(found.delegated)
    assert container.labels([cgroup]) == ({}, [])  # there is no such directory
    monkeypatch.setattr(container, "_is_roots", lambda path: path == found.delegated)
    monkeypatch.setattr(runtimes, "LOOKUPS", {})
    assert cgroup in container.labels([cgroup])[0]


def test_what_is_in_the_tree_of_a_user_is_that_users(monkeypatch):
    def never(_daemon, _ids):
        raise AssertionError("asked")

    monkeypatch.setattr(runtimes, "LOOKUPS", {"docker": never, "podman": never})
    path = f"/user.slice/user-4000001.slice/user@4000001.service/app.slice/sshd.service/docker/{ID}"
    assert identify(path).daemon == 4000001
    assert container.labels([path])[0] == {path: f"docker:{ID[:12]}"}


@pytest.mark.root
@pytest.mark.skipif(not os.path.isdir("/sys/fs/cgroup"), reason="cgroups")
def test_the_owner_of_the_directory_decides():
    """In a hierarchy of this machine: a directory of root, then of a user, then one that anybody may write."""
    need(os.geteuid() == 0, "root, to make a cgroup")
    places = [place for place in container.HIERARCHIES[1:] if os.access(f"{place}/cgroup.procs", os.W_OK)]
    place = (places or ["/sys/fs/cgroup"])[0]
    name = f"portbook-test-{os.getpid()}.service"
    os.mkdir(f"{place}/{name}")
    path = f"/{name}/docker-{ID}.scope"
    try:
        assert container.labels([path])[0] == {path: f"docker:{ID[:12]}"}
        os.chown(f"{place}/{name}", 65534, 65534)
        assert container.labels([path])[0] == {}
        os.chown(f"{place}/{name}", 0, 0)
        os.chmod(f"{place}/{name}", 0o777)
        assert container.labels([path])[0] == {}
    finally:
        os.rmdir(f"{place}/{name}")


SHAPES = st.sampled_from(
    [
        ID,
        INNER,
        f"docker-{ID}.scope",
        f"pod{POD}",
        "docker",
        "lxc",
        "ecs",
        f"{TASK}-1",
        "user@1000.service",
        "supervisor",
    ]
)


@given(st.lists(st.text(st.characters()) | SHAPES).map("/".join))
def test_any_path_is_understood_or_none(cgroup):
    found = identify(cgroup)
    if found:
        assert label(found)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Container("docker", ID), "docker:1f2e3d4c5b6a"),
        (Container("docker", INNER), "docker:web"),
        (Container("podman", ID), "podman:1f2e3d4c5b6a"),
        (Container("containerd", ID, POD), f"kubernetes:pod{POD}/1f2e3d4c5b6a"),
        (Container("containerd", INNER, POD), f"kubernetes:pod{POD}/c0ffee00c0ff"),
        (Container("kubernetes", "", POD, None), f"kubernetes:pod{POD}"),
        (Container("lxc", "a-rather-long-name"), "lxc:a-rather-long-name"),
        (Container("ecs", f"{TASK}-1234567890"), f"ecs:{TASK[:12]}"),
    ],
)
def test_label(found, text):
    assert label(found, {INNER: "web"}) == text


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(runtimes, "_answers", {})


@pytest.fixture
def nobody_home(monkeypatch):
    """No daemon and no list anywhere; tests put theirs in."""
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [])
    monkeypatch.setattr(runtimes, "_podman_lists", lambda _: [])
    monkeypatch.setattr(runtimes, "_podman_socket", lambda _: "/nonexistent/podman.sock")


@contextlib.contextmanager
def daemon(path: str, answer: bytes | None) -> Iterator[list[bytes]]:
    """Answer every request at a Unix socket with ``answer``; None: never."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with contextlib.ExitStack() as hanging, contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    asked.append(connection.recv(4096))
                    if answer is None:
                        hanging.enter_context(connection)
                        continue
                    with connection, contextlib.suppress(OSError):
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ok(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body


LISTED = b'[{"Id":"%s","Names":["/other/alias","/web"],"State":"running"},{"Id":"%s","Names":null}]'
STORED = b'[{"id":"%s","names":["web"],"image":"x","flags":{}},{"id":"%s"}]'
DOCKER = f"/system.slice/docker-{ID}.scope"
PODMAN = f"/machine.slice/libpod-{ID}.scope/container"


def test_docker_is_queried_for_names_once_for_each_take(nobody_home, tmp_path, monkeypatch):
    path = str(tmp_path / "docker.sock")
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: ["/nonexistent", path])
    with daemon(path, ok(LISTED % (ID.encode(), INNER.encode()))) as asked:
        owners, gaps = container.enrich([Owner(1), Owner(2, cgroup=DOCKER), Owner(3, cgroup=DOCKER)])
        again, _ = container.labels([DOCKER, "/"])
    assert [owner.container for owner in owners] == [None, "docker:web", "docker:web"]
    assert gaps == []
    assert again == {DOCKER: "docker:web"}
    assert len(asked) == 1
    assert asked[0].startswith(b"GET /containers/json?all=0 HTTP/1.0\r\n")


def test_a_new_container_is_queried(nobody_home, tmp_path, monkeypatch):
    path = str(tmp_path / "docker.sock")
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [path])
    with daemon(path, ok(LISTED % (ID.encode(), INNER.encode()))) as asked:
        container.labels([DOCKER])
        container.labels([f"/docker/{INNER}"])
    assert len(asked) == 2


def test_a_runtime_without_containers_is_not_queried(monkeypatch):
    def never(_daemon, _ids):
        raise AssertionError("asked")

    monkeypatch.setattr(runtimes, "LOOKUPS", {"docker": never, "podman": never})
    paths = ["/", f"/kubepods/pod{POD}/docker-{ID}.scope", f"/docker/{ID}/docker/{INNER}", "/lxc.payload.web"]
    assert set(container.labels(paths)[0].values()) == {
        f"kubernetes:pod{POD}/{ID[:12]}",
        f"docker:{INNER[:12]}",
        "lxc:web",
    }


def test_the_daemon_of_another_user_is_not_queried(monkeypatch):
    def never(_daemon, _ids):
        raise AssertionError("asked")

    monkeypatch.setattr(runtimes, "LOOKUPS", {"docker": never})
    uid = os.geteuid() + 9
    path = f"/user.slice/user-{uid}.slice/user@{uid}.service/user.slice/docker-{ID}.scope"
    assert container.labels([path])[0] == {path: "docker:1f2e3d4c5b6a"}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"HTTP/1.0 404 Not Found\r\n\r\n[]",
        b"HTTP/1.0 200 OK\r\n\r\n",
        ok(b"{}"),
        ok(b"[1]"),
        ok(b'[{"Id":1}]'),
        ok(b"[" * 100_000),
        ok(b'"\xff"'),
        ok(b" " * (runtimes.MOST_BYTES + 10)),
    ],
)
def test_a_daemon_that_talks_nonsense_costs_the_name_only(nobody_home, tmp_path, monkeypatch, answer):
    path = str(tmp_path / "docker.sock")
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [path])
    with daemon(path, answer):
        found, gaps = container.labels([DOCKER])
    assert found == {DOCKER: "docker:1f2e3d4c5b6a"}
    assert [(gap.what, gap.count) for gap in gaps] == [("container", 1)]
    assert path in gaps[0].why


def test_a_daemon_that_hangs_costs_half_a_second_once(nobody_home, tmp_path, monkeypatch):
    path = str(tmp_path / "docker.sock")
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [path])
    with daemon(path, None) as asked:
        _, gaps = container.labels([DOCKER])
        container.labels([DOCKER])
    assert "did not answer within 0.5 s" in gaps[0].why
    assert len(asked) == 1


def test_a_socket_without_a_server_is_no_gap(nobody_home, tmp_path, monkeypatch):
    path = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [path])
    assert container.labels([DOCKER]) == ({DOCKER: "docker:1f2e3d4c5b6a"}, [])


def test_no_daemon_is_no_loss(nobody_home):
    assert container.labels([DOCKER, PODMAN]) == (
        {DOCKER: "docker:1f2e3d4c5b6a", PODMAN: "podman:1f2e3d4c5b6a"},
        [],
    )


def test_a_refusal_is_a_gap_with_the_remedy(nobody_home, monkeypatch):
    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: ["/run/docker.sock"])
    monkeypatch.setattr(runtimes, "_exchange", refuse)
    _, gaps = container.labels([DOCKER, f"/docker/{INNER}"])
    (gap,) = gaps
    assert gap.count == 2
    assert gap.why == "2 docker containers can be shown by id only: permission denied on /run/docker.sock"
    assert gap.hint == "run with sudo"


def test_a_socket_of_another_user_is_not_queried(nobody_home, tmp_path, monkeypatch):
    need(os.geteuid() == 0, "root, to give a socket away")
    path = str(tmp_path / "docker.sock")
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [path])
    with daemon(path, ok(LISTED % (ID.encode(), INNER.encode()))) as asked:
        os.chown(path, 4242, 4242)
        _, gaps = container.labels([DOCKER])
    assert asked == []
    assert gaps[0].why.endswith(f"{path}: belongs to another user")


def test_a_list_of_somebody_elses_is_not_read(nobody_home, tmp_path, monkeypatch):
    need(os.geteuid() == 0, "root, to give a file away")
    path = tmp_path / "containers.json"
    path.write_bytes(STORED % (ID.encode(), INNER.encode()))
    os.chown(path, 4242, 4242)
    monkeypatch.setattr(runtimes, "_podman_lists", lambda _: [str(path)])
    found, gaps = container.labels([PODMAN])
    assert found == {PODMAN: "podman:1f2e3d4c5b6a"}
    assert gaps[0].why.endswith(f"{path}: belongs to another user")


def test_docker_host_counts_for_ordinary_users_only(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///tmp/mine.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtimes._docker_sockets(0) == ["/run/docker.sock", "/var/run/docker.sock"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert runtimes._docker_sockets(0) == ["/tmp/mine.sock", "/run/docker.sock", "/var/run/docker.sock"]
    assert runtimes._docker_sockets(1000) == ["/tmp/mine.sock", "/run/user/1000/docker.sock"]
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    assert runtimes._docker_sockets(1000) == ["/run/user/1000/docker.sock"]


def test_podman_is_read_from_its_lists(nobody_home, tmp_path, monkeypatch):
    path = tmp_path / "containers.json"
    path.write_bytes(STORED % (ID.encode(), INNER.encode()))
    monkeypatch.setattr(runtimes, "_podman_lists", lambda _: [str(tmp_path / "none.json"), str(path)])
    assert container.labels([PODMAN]) == ({PODMAN: "podman:web"}, [])


def test_podmans_api_is_queried_for_what_the_lists_do_not_have(nobody_home, tmp_path, monkeypatch):
    path = str(tmp_path / "podman.sock")
    monkeypatch.setattr(runtimes, "_podman_socket", lambda _: path)
    with daemon(path, ok(LISTED % (ID.encode(), INNER.encode()))):
        assert container.labels([PODMAN]) == ({PODMAN: "podman:web"}, [])


@pytest.mark.parametrize(
    "content", [b"", b"[", b"{}", b'[{"id":[]}]', b"[" * 100_000, b" " * (runtimes.MOST_BYTES + 1)]
)
def test_an_unreadable_list_is_a_gap(nobody_home, tmp_path, monkeypatch, content):
    path = tmp_path / "containers.json"
    path.write_bytes(content)
    monkeypatch.setattr(runtimes, "_podman_lists", lambda _: [str(path)])
    found, gaps = container.labels([PODMAN])
    assert found == {PODMAN: "podman:1f2e3d4c5b6a"}
    assert str(path) in gaps[0].why


def test_links_and_fifos_are_not_followed(nobody_home, tmp_path, monkeypatch):
    target = tmp_path / "real.json"
    target.write_bytes(STORED % (ID.encode(), INNER.encode()))
    link = tmp_path / "containers.json"
    link.symlink_to(target)
    fifo = tmp_path / "fifo.json"
    os.mkfifo(fifo)
    monkeypatch.setattr(runtimes, "_podman_lists", lambda _: [str(link), str(fifo)])
    found, gaps = container.labels([PODMAN])
    assert found == {PODMAN: "podman:1f2e3d4c5b6a"}
    assert str(link) in gaps[0].why


def test_rootless_places_are_the_callers_own(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/home/u/.local/share")
    lists = list(runtimes._podman_lists(1000))
    assert lists[0] == "/home/u/.local/share/containers/storage/overlay-containers/containers.json"
    assert lists[2] == "/run/user/1000/containers/overlay-containers/volatile-containers.json"
    assert next(iter(runtimes._podman_lists(0))) == "/var/lib/containers/storage/overlay-containers/containers.json"
