"""Real containers: a static busybox under podman and runc, with the host's network and with none.

Everything made here is removed at the end, also after a failure; names carry this process's id.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from portbook import sources, take, who
from portbook.enrich import cgroup
from portbook.managers import container, runtimes
from portbook.records import Owner
from portbook.sources import sockdiag
from portbook.sources.base import Wanted
from portbook.watching.evidence import Collector
from portbook.watching.judge import judge
from portbook.watching.policy import learning, parse
from tests.components import need
from tests.rounds import until

pytestmark = pytest.mark.root

TIME_LIMIT_S = 60
NAME = f"portbook-test-{os.getpid()}"
IMAGE = f"localhost/{NAME}:latest"
# Without limits of their own, containers ask for more than a limited caller may give.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


class Running(NamedTuple):
    name: str
    id: str
    pid: int
    conmon: int
    port: int


def podman(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    if check and done.returncode:
        pytest.fail(f"podman {' '.join(arguments)}: {done.stderr.strip()}", pytrace=False)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[str]:
    need(hasattr(os, "geteuid") and os.geteuid() == 0, "root, to run containers")
    for program in ("podman", "runc"):
        need(shutil.which(program) is not None, program)
    busybox = shutil.which("busybox")
    need(busybox is not None and _is_static(busybox), "a static busybox (Debian: busybox-static)")
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
    try:
        podman("import", "--quiet", str(archive), IMAGE)
        yield IMAGE
    finally:
        podman("rmi", "--force", IMAGE, check=False)


def _is_static(program: str) -> bool:
    """A dynamic program names its interpreter, /lib…/ld-….so."""
    with open(program, "rb") as file:
        return b"/ld-linux" not in file.read(4096)


@pytest.fixture
def run(image) -> Iterator[Callable[..., Running]]:
    """Run a web server in a container; all of them end with the test."""
    started: list[str] = []

    def start(*options: str, address: str = "127.0.0.1") -> Running:
        name = f"{NAME}-{len(started)}"
        port = _free_port()
        started.append(name)
        server = ("/bin/busybox", "httpd", "-f", "-p", f"{address}:{port}")
        podman("--runtime", "runc", "run", "--detach", "--name", name, *LIMITS, *options, image, *server)
        found = json.loads(podman("inspect", name))[0]
        _wait_for_listener(found["State"]["Pid"], port)
        return Running(name, found["Id"], found["State"]["Pid"], found["State"]["ConmonPid"], port)

    try:
        yield start
    finally:
        for name in started:
            podman("rm", "--force", "--time", "0", name, check=False)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _wait_for_listener(pid: int, port: int) -> None:
    """Look in the container's own network namespace: that of its process."""
    row = f":{port:04X} 00000000:0000 0A"

    def is_listed() -> bool:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/tcp", encoding="ascii") as table:
            return row in table.read()
        return False

    until(is_listed, f"listening on {port} in the container")


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(runtimes, "_answers", {})


def labels(*pids: int) -> list[str | None]:
    owners, gaps = container.enrich([Owner(pid, cgroup=cgroup.of_pid(pid)) for pid in pids])
    assert gaps == []
    return [owner.container for owner in owners]


@pytest.mark.parametrize("options", [("--network", "host"), ("--network", "none"), ("--network", "none", "--rm")])
def test_a_process_in_a_container_carries_the_containers_name(run, options):
    running = run(*options)
    assert labels(running.pid, running.conmon, os.getpid()) == [f"podman:{running.name}", None, None]


def test_two_containers_are_distinguished(run):
    first, second = run("--network", "none"), run("--network", "host")
    assert labels(first.pid, second.pid) == [f"podman:{first.name}", f"podman:{second.name}"]


def test_the_id_stays_when_podmans_lists_cannot_be_found(run, monkeypatch, tmp_path):
    running = run("--network", "none")
    monkeypatch.setattr(runtimes, "_podman_lists", lambda _: [str(tmp_path / "none.json")])
    monkeypatch.setattr(runtimes, "_podman_socket", lambda _: str(tmp_path / "none.sock"))
    assert labels(running.pid) == [f"podman:{running.id[:12]}"]


def test_a_socket_leads_to_its_container_without_its_owner(run):
    """What an unprivileged user has: the cgroup id that sock_diag gives of anybody's socket."""
    running = run("--network", "host")
    raw = sockdiag.read(Wanted(("tcp",), ("ipv4",), frozenset(("LISTEN",)), ((running.port, running.port),)))
    (found,) = [s for s in sockdiag.parse(raw).sockets if s.local_port == running.port]
    paths = cgroup.paths_by_id({found.cgroup_id})
    need(found.cgroup_id in paths and paths[found.cgroup_id] != "/", "a runtime that uses the cgroup v2 tree")
    assert container.labels(paths.values())[0] == {paths[found.cgroup_id]: f"podman:{running.name}"}


def test_a_containers_own_network_is_seen_from_outside_and_has_its_name(run):
    why = sources.missing("bpf")
    need(why is None, f"a kernel that takes the program: {why}")
    running, on_the_host = run("--network", "none"), run("--network", "host")
    netns = os.stat(f"/proc/{running.pid}/ns/net").st_ino
    (row,) = take(f"netns:podman:{running.name} state:listen").sockets
    assert (row.local_port, row.netns, row.netns_name) == (running.port, netns, f"podman:{running.name}")
    assert [(owner.pid, owner.container) for owner in row.owners] == [(running.pid, f"podman:{running.name}")]
    (other,) = take(f"netns:all port:{on_the_host.port} container:{on_the_host.name}").sockets
    assert (other.netns, other.netns_name) == (os.stat("/proc/self/ns/net").st_ino, None)
    answer = who(running.port)
    assert not answer.held
    assert [h.owner.pid for h in answer.holders_elsewhere if h.sockets[0].netns == netns] == [running.pid]
    assert who(on_the_host.port).holders[0].owner.container == f"podman:{on_the_host.name}"


@pytest.fixture
def api(tmp_path) -> Iterator[str]:
    """Podman's API, which answers as docker's does, at a socket of our own."""
    path = str(tmp_path / "podman.sock")
    process = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", f"unix://{path}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            until(lambda: os.path.exists(path), "the socket of podman")
            yield path
        finally:
            process.terminate()


def test_the_api_tells_the_same_names(run, api, monkeypatch):
    running = run("--network", "none")
    monkeypatch.setattr(runtimes, "_podman_lists", lambda _: [])
    monkeypatch.setattr(runtimes, "_podman_socket", lambda _: api)
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [api])
    monkeypatch.setattr(runtimes, "TIME_LIMIT_S", 10.0)  # its first answer is slow
    assert labels(running.pid) == [f"podman:{running.name}"]
    as_docker = f"/docker/{running.id}"
    assert container.labels([as_docker]) == ({as_docker: f"docker:{running.name}"}, [])


def test_the_image_of_a_container_is_known_from_podmans_lists_and_from_the_api(run, api, monkeypatch):
    running = run("--network", "none")
    number = json.loads(podman("inspect", running.name))[0]["Image"]
    found, gaps = runtimes.images()
    assert found[f"podman:{running.name}"] == found[f"podman:{running.id[:12]}"] == (IMAGE, f"sha256:{number}")
    monkeypatch.setattr(runtimes, "_podman_lists", lambda _: [])
    monkeypatch.setattr(runtimes, "_podman_socket", lambda _: api)
    monkeypatch.setattr(runtimes, "TIME_LIMIT_S", 10.0)
    found, gaps = runtimes.images()
    assert gaps == []
    assert found[f"podman:{running.name}"] == (IMAGE, f"sha256:{number}")


def test_a_rule_names_the_image_of_a_container(run):
    running = run("--network", "host")
    listing = take(f"port:{running.port}")
    for rule, expected in ((IMAGE.removesuffix(":latest"), True), (IMAGE, True), ("other", False)):
        policy = parse(f'version = 1\n[[allow]]\nport = {running.port}\nimage = "{rule}"\n')
        evidence = Collector(policy).collect(listing.sockets)
        assert judge(policy, listing.sockets[0], listing.taken_at, evidence).allowed is expected


def test_a_program_in_a_container_is_not_that_of_the_path_outside(run):
    running = run("--network", "host")
    listing = take(f"port:{running.port}")
    assert listing.sockets[0].owners[0].exe == "/bin/busybox"
    for keys, expected in (("", False), (f'container = "podman:{running.name}"', True)):
        policy = parse(f'version = 1\n[[allow]]\nport = {running.port}\nexe = "/bin/busybox"\n{keys}\n')
        evidence = Collector(policy).collect(listing.sockets)
        assert judge(policy, listing.sockets[0], listing.taken_at, evidence).allowed is expected


def test_a_policy_from_what_listens_allows_the_programs_of_containers(run):
    running = run("--network", "host")
    policy = parse(learning.from_now().text)
    listing = take(f"port:{running.port}")
    found = judge(policy, listing.sockets[0], listing.taken_at, Collector(policy).collect(listing.sockets))
    assert found.allowed, found.why
    (selector,) = [rule.selector for rule in policy.rules if rule is found.rule]
    assert [each.text for each in selector.container] == [f"podman:{running.name}"]
