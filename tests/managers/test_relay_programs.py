"""The real programs that forward ports, each in a network of its own: what is behind the port, and that it is served.

A program that is started under another name would pass a table of names; these are the programs themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from portbook.holding import who
from portbook.managers.relay import Relay, behind
from portbook.managers.supervisor import find_supervisor
from portbook.records import Holder
from portbook.stop.run import plan_stop
from tests.components import need
from tests.conftest import NOBODY, ROOT
from tests.rounds import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("own_network"),
    pytest.mark.skipif(sys.platform != "linux", reason="programs of Linux"),
]
LIMIT_S = 30


@pytest.fixture
def run() -> Iterator:
    """Start programs, each in a session of its own, and end them."""
    need(ROOT, "root")
    started: list[subprocess.Popen[bytes]] = []

    def begin(*command: str, **more) -> subprocess.Popen[bytes]:
        need(shutil.which(command[0]) is not None, command[0])
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **more}
        started.append(subprocess.Popen(command, start_new_session=True, **more))
        return started[-1]

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def program_of(process: subprocess.Popen[bytes]) -> str:
    """What the process runs now: not what it was forked from."""
    return os.path.basename(os.readlink(f"/proc/{process.pid}/exe"))


def relay_of(port: int, protocol: str = "tcp") -> Relay:
    """What is behind the port, once a relay listens; another program may have reserved the port before."""
    holders: tuple[Holder, ...] = ()
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        holders = who(port, protocol).holders
        for holder in holders:
            found = behind(holder.owner, port, protocol)
            if found is not None:
                return found
        time.sleep(0.02)
    raise AssertionError(f"no relay holds {port}/{protocol}: {holders}")


@pytest.mark.parametrize(
    ("command", "to"),
    [
        ("socat TCP-LISTEN:8080,fork,bind=127.0.0.1 TCP:127.0.0.1:80", "TCP:127.0.0.1:80"),
        ("socat tcp4-l:8080,fork exec:cat", "exec:cat"),
        ("redir -n 127.0.0.1:8080 127.0.0.1:80", "127.0.0.1:80"),
        ("tcpsvd -v 127.0.0.1 8080 cat", "cat, which it starts for each connection"),
        ("tcpserver -v 127.0.0.1 8080 cat", "cat, which it starts for each connection"),
        ("qemu-system-x86_64 -S -display none -M pc -netdev user,id=n,hostfwd=tcp:127.0.0.1:8080-:22 "
         "-device e1000,netdev=n", "port 22 of a virtual machine"),
    ],
)  # fmt: skip
def test_a_program_whose_command_line_has_the_target(run, command, to):
    run(*command.split())
    assert relay_of(8080).to == to
    assert bool(plan_stop(8080).forbidden()) is command.startswith("qemu")  # a tunnel is ended as any other process


def test_udpsvd(run):
    run("udpsvd", "-l", "here", "-v", "127.0.0.1", "8080", "cat")
    assert relay_of(8080, "udp").to == "cat, which it starts for each connection"


HAPROXY = """
defaults
 mode tcp
 timeout connect 1s
 timeout client 1s
 timeout server 1s
frontend f
 bind 127.0.0.1:8080
 default_backend b
backend b
 server s1 127.0.0.1:80
"""


@pytest.mark.parametrize("mode", ["-db", "-W"])
def test_haproxy(run, tmp_path, mode):
    path = tmp_path / "haproxy.cfg"
    path.write_text(HAPROXY)
    run("haproxy", mode, "-f", str(path))
    assert relay_of(8080).to == f"the servers of its configuration {path}"


def test_rinetd(run, tmp_path):
    path = tmp_path / "rinetd.conf"
    path.write_text("127.0.0.1 8080 127.0.0.1 80\n")
    run("rinetd", "-f", "-c", str(path))
    assert relay_of(8080).to == f"the servers of its configuration {path}"


def test_stunnel(run, tmp_path):
    path = tmp_path / "stunnel.conf"
    path.write_text("foreground = yes\npid =\n[a]\nclient = yes\naccept = 127.0.0.1:8080\nconnect = 127.0.0.1:80\n")
    run("stunnel4", str(path))
    assert relay_of(8080).to == f"the servers of its configuration {path}"


PROXYD = """
import os, socket, sys
one = socket.create_server(("127.0.0.1", 8080))
os.dup2(one.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[1], [sys.argv[1], "127.0.0.1:80"])
"""


def test_systemd_socket_proxyd(run):
    path = "/lib/systemd/systemd-socket-proxyd"
    need(os.path.exists(path), "systemd-socket-proxyd")
    process = run(sys.executable, "-I", "-S", "-c", PROXYD, path)
    until(lambda: program_of(process) == "systemd-socket-proxyd", "systemd-socket-proxyd")
    assert relay_of(8080).to == "127.0.0.1:80"


def test_docker_proxy(run):
    """It says on descriptor 3 that it has started: cmd/docker-proxy in moby."""
    flags = "-proto tcp -host-ip 127.0.0.1 -host-port 8080 -container-ip 127.0.0.1 -container-port 80"
    script = 'exec docker-proxy "$@" 3>/dev/null'
    need(shutil.which("docker-proxy") is not None, "docker-proxy (Debian: docker.io)")
    run("sh", "-c", script, "sh", *flags.split())
    found = relay_of(8080)
    assert (found.to, found.address, found.port) == ("container 127.0.0.1:80", "127.0.0.1", 80)
    assert {refusal.code for refusal in plan_stop(8080).forbidden()} == {"managed"}


# --- rootless ------------------------------------------------------------------------------------------------------


@pytest.fixture
def route() -> Iterator[None]:
    """Pasta and passt need an interface with a default route; this one leads nowhere."""
    for line in (
        "link add pb0 type veth peer name pb1",
        "address add 192.0.2.5/24 dev pb0",
        "link set pb0 up",
        "link set pb1 up",
        "route add default via 192.0.2.1",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    yield
    subprocess.run(["ip", "link", "delete", "pb0"], check=True)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(
    ("command", "to"),
    [
        ("pasta --foreground -t 8080:80 -- sleep 60", "port 80 of its network namespace, mostly a rootless container"),
        ("passt --foreground -t 8080:22 --socket {}/passt.sock", "port 22 of a virtual machine"),
    ],
)
def test_pasta_and_passt(run, shared_path, command, to):
    """As passt.avx2 on processors with AVX2: arch.c in passt executes it."""
    os.chmod(shared_path, 0o777)
    run(*command.format(shared_path).split())
    found = relay_of(8080)
    assert (found.program, found.to) == ("passt", to)
    assert {refusal.code for refusal in plan_stop(8080).forbidden()} == {"managed"}


def test_slirp4netns(run, tmp_path):
    inside = run("unshare", "-Urn", "sleep", "60")
    path = str(tmp_path / "api")
    until(lambda: program_of(inside) == "sleep", "sleep in the namespaces")
    run("slirp4netns", "--configure", "--api-socket", path, str(inside.pid), "tap0")
    forward = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_port": 80}
    request = json.dumps({"execute": "add_hostfwd", "arguments": forward}).encode()

    def is_forwarded() -> bool:
        with socket.socket(socket.AF_UNIX) as api, suppress(FileNotFoundError, ConnectionRefusedError):
            api.connect(path)
            api.sendall(request)
            api.shutdown(socket.SHUT_WR)
            return b"return" in api.recv(1000)
        return False

    until(is_forwarded, "the answer of slirp4netns")
    assert relay_of(8080).to == "a rootless container"
    assert {refusal.code for refusal in plan_stop(8080).forbidden()} == {"managed"}


def test_rootlesskit(run, shared_path):
    """It needs subordinate ids, which are given in a mount namespace of the test's own."""
    ids = shared_path / "subuid"
    ids.write_text("nobody:100000:65536\n")
    os.chmod(shared_path, 0o777)
    for program in ("rootlesskit", "slirp4netns", "newuidmap"):
        need(shutil.which(program) is not None, program)
    script = f"""
        mount --bind {ids} /etc/subuid && mount --bind {ids} /etc/subgid
        export HOME={shared_path} XDG_RUNTIME_DIR={shared_path}
        exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups rootlesskit --net=slirp4netns \\
            --disable-host-loopback --port-driver=builtin --publish 127.0.0.1:8080:80/tcp sleep 60
    """
    run("unshare", "--mount", "sh", "-c", script, cwd="/")
    found = relay_of(8080)
    assert found.to == "port 80 of its network namespace"
    assert found.remedy.startswith("as nobody: docker ps")


# Everything that podman starts ends with the first process of its PID namespace.
APART = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
PODMAN = """
set -e
mount --bind $1/subuid /etc/subuid
mount --bind $1/subuid /etc/subgid
mount -t tmpfs tmpfs /run
mkdir -p $1/home /run/user/65534
chown 65534:65534 $1/home /run/user/65534
export HOME=$1/home XDG_RUNTIME_DIR=/run/user/65534
cd /
podman() {
    setpriv --reuid=65534 --regid=65534 --clear-groups podman --runtime runc --cgroup-manager cgroupfs \
        --events-backend file "$@"
}
podman import $1/image.tar image
podman run --detach --name web --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --network $2 \
    --publish 127.0.0.1:$3:80 image /bin/busybox httpd -f -p 80 > $1/id
read -r line
podman rm --force --time 0 web
"""


@pytest.mark.parametrize(
    ("network", "program", "port"),  # a port each: rootlessport ends a little later than its container
    [("slirp4netns", "rootlessport", 8082), ("slirp4netns:port_handler=slirp4netns", "slirp4netns", 8083)],
)
def test_rootless_podman(run, shared_path, network, program, port):
    for needed in ("podman", "runc", "slirp4netns", "newuidmap", "busybox"):
        need(shutil.which(needed) is not None, needed)
    (shared_path / "subuid").write_text("nobody:100000:65536\n")
    with tarfile.open(shared_path / "image.tar", "w") as archive:
        archive.add(os.path.realpath(shutil.which("busybox")), "bin/busybox")
    command = (
        "unshare",
        *APART,
        "sh",
        "-c",
        PODMAN,
        "sh",
        str(shared_path),
        network,
        str(port),
    )
    with open(shared_path / "log", "wb") as log:
        process = run(*command, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        for _ in range(LIMIT_S * 50):
            if process.poll() is not None or who(port, "tcp").held:
                break
            time.sleep(0.02)
        assert process.poll() is None, (shared_path / "log").read_text()
        found = relay_of(port)
        assert (found.program, found.kind) == (program, "container")
        assert found.remedy.startswith("as nobody: podman ")
    finally:
        process.communicate(b"\n", timeout=60)
    if program == "slirp4netns":
        assert found.container == f"podman:{(shared_path / 'id').read_text()[:12]}"


# --- ssh -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def box(run, tmp_path):
    """A host ``box`` in an ssh configuration; extra lines are added by the test."""
    need(os.path.exists("/usr/sbin/sshd"), "sshd")
    os.makedirs("/run/sshd", exist_ok=True)
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    server = tmp_path / "sshd_config"
    server.write_text(
        f"Port 2222\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/id.pub\n"
        "StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n"
    )
    run("/usr/sbin/sshd", "-D", "-f", str(server))
    for _ in range(LIMIT_S * 50):
        holders = who(2222, "tcp").holders
        if holders:
            break
        time.sleep(0.02)
    assert behind(holders[0].owner, 2222) is None  # the listener of sshd itself forwards nothing

    def configure(*lines: str) -> str:
        path = tmp_path / "ssh_config"
        common = f"HostName 127.0.0.1\nPort 2222\nUser root\nIdentityFile {tmp_path}/id\nStrictHostKeyChecking no\n"
        path.write_text("Host box\n" + common + "UserKnownHostsFile /dev/null\n" + "\n".join(lines) + "\n")
        return str(path)

    return configure


def test_ssh_with_a_forward_in_its_configuration(run, box):
    run("ssh", "-F", box("LocalForward 127.0.0.1:8080 127.0.0.1:80"), "-N", "box")
    found = relay_of(8080)
    assert found.to.startswith("a target of its configuration (LocalForward, DynamicForward)")
    assert found.to.endswith("through box")
    assert "ssh -G box" in found.remedy


def test_ssh_that_was_asked_through_its_control_socket(run, box, tmp_path):
    path = str(tmp_path / "control")
    options = ["-F", box("ControlMaster auto", f"ControlPath {path}", "ControlPersist 20")]
    subprocess.run(["ssh", *options, "box", "true"], check=True, capture_output=True, timeout=LIMIT_S)
    try:
        forward = ["ssh", *options, "-O", "forward", "-L", "127.0.0.1:8080:127.0.0.1:80", "box"]
        subprocess.run(forward, check=True, capture_output=True, timeout=LIMIT_S)
        found = relay_of(8080)
        assert f"control socket {path}" in found.to
        assert f"ssh -S {path} -O cancel" in found.remedy
    finally:
        subprocess.run(["ssh", *options, "-O", "exit", "box"], check=False, capture_output=True, timeout=LIMIT_S)


def test_autossh_ends_with_its_ssh(run, box):
    """After SIGTERM it does not start ssh again, autossh(1): it needs no row in the table of supervisors."""
    process = run("autossh", "-M", "0", "-F", box("LocalForward 127.0.0.1:8080 127.0.0.1:80"), "-N", "box")
    assert relay_of(8080).program == "ssh"
    (holder,) = who(8080, "tcp").holders
    assert find_supervisor(holder.owner, holder.parents, "linux", 0) is None
    os.kill(holder.owner.pid, signal.SIGTERM)
    assert process.wait(LIMIT_S) is not None


def test_a_session_of_sshd_holds_what_its_client_asked_for(run, box):
    run("ssh", "-F", box(), "-N", "-R", "127.0.0.1:8080:127.0.0.1:80", "box")
    assert relay_of(8080).to == "the SSH client of root (ssh -R or X11)"


# --- kubectl -------------------------------------------------------------------------------------------------------


class Cluster(BaseHTTPRequestHandler):
    """As much of a Kubernetes API as port-forward needs before it listens: a running pod, and an upgrade to SPDY."""

    protocol_version = "HTTP/1.1"
    POD: ClassVar = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Running"},
    }
    PODS: ClassVar = {"name": "pods", "singularName": "pod", "kind": "Pod", "namespaced": True, "verbs": ["get"]}
    DISCOVERY: ClassVar = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [PODS]},
    }

    def do_GET(self):
        if self.headers.get("Upgrade"):
            self.send_error(403)  # WebSocket, which newer versions of kubectl try first
            return
        body = json.dumps(self.DISCOVERY.get(self.path.partition("?")[0], self.POD)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.send_response(101)
        for name, text in (("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", "portforward.k8s.io")):
            self.send_header(name, text)
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        self.rfile.read()

    def log_message(self, *_):
        pass


def test_kubectl_port_forward(run, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        command = ["kubectl", "--server", address, "-n", "shop", "port-forward", "pod/web", "8080:80"]
        run(*command, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
        found = relay_of(8080)
        assert (found.to, found.port) == ("port 80 of pod/web in namespace shop", 80)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- super-servers -------------------------------------------------------------------------------------------------

XINETD = """
service echoer
{
    type = UNLISTED
    port = 8080
    bind = 127.0.0.1
    socket_type = stream
    protocol = tcp
    wait = no
    user = root
    server = /bin/cat
}
"""


def assert_freed_by_sighup(process: subprocess.Popen[bytes]) -> None:
    """The remedy that is given: the line is gone from the configuration, which is read again."""
    os.kill(process.pid, signal.SIGHUP)
    for _ in range(LIMIT_S * 50):
        if not who(8080, "tcp").held:
            break
        time.sleep(0.02)
    assert (who(8080, "tcp").held, process.poll()) == (False, None)


@pytest.mark.parametrize("program", ["inetd", "inetutils-inetd"])
def test_inetd(run, tmp_path, program):
    """Debian: openbsd-inetd and inetutils-inetd."""
    path = tmp_path / "inetd.conf"
    path.write_text("127.0.0.1:8080 stream tcp nowait root /bin/cat cat\n")
    process = run(program, "-d", str(path))
    found = relay_of(8080)
    assert (found.kind, found.to) == ("super-server", f"the program that {path} names for 8080/tcp")
    assert found.remedy.endswith(f"kill -HUP {process.pid}")
    assert [(refusal.code, refusal.hint) for refusal in plan_stop(8080).forbidden()] == [("managed", found.remedy)]
    path.write_text("")
    assert_freed_by_sighup(process)


def test_xinetd(run, tmp_path):
    path = tmp_path / "xinetd.conf"
    path.write_text(XINETD)
    process = run("xinetd", "-dontfork", "-f", str(path))
    found = relay_of(8080)
    assert (found.kind, found.to) == ("super-server", f"the program that {path} names for 8080/tcp")
    path.write_text(XINETD.replace("8080", "8081"))  # without any service it would end
    assert_freed_by_sighup(process)
