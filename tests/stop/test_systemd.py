"""A real systemd, as the first process of namespaces of its own, with real units whose ports portbook frees.

Its control groups lie in one of the test's own in every hierarchy, and everything ends with its first process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.components import need
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != "linux", reason="systemd")]

SYSTEMD = "/lib/systemd/systemd"
LIMIT_S = 60
# Outside: a control group in each hierarchy, which becomes the root of what systemd sees. Inside: nothing but what the
# test gives it, no unit of the machine's, then systemd in place of the shell.
OUTSIDE = r"""
set -e
mount --make-rprivate /
for procs in $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs); do
    own=$(dirname "$procs")/$1
    if mkdir "$own" 2>&-; then
        if [ -e "$own/cpuset.mems" ]; then
            cat "$(dirname "$procs")/cpuset.cpus" > "$own/cpuset.cpus"
            cat "$(dirname "$procs")/cpuset.mems" > "$own/cpuset.mems"
        fi
        echo $$ > "$own/cgroup.procs"
    fi
done
exec unshare --cgroup --pid --fork --kill-child --mount-proc --net --uts --ipc sh -ec "$2"
"""
INSIDE = r"""
ip link set lo up
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/lock
mount -t tmpfs tmpfs /etc/systemd
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    umount -l /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    umount -l /sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
printf '[Unit]\nDefaultDependencies=no\n' > /run/systemd/system/lab.target
export container=portbook
exec /lib/systemd/systemd --system --unit=lab.target --log-target=null --show-status=no
"""
SERVER = "import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.BaseHTTPRequestHandler).serve_forever()"
ACTIVATED = "import socket, time; one = socket.socket(fileno=3); one.accept(); time.sleep(600)"


class Lab(NamedTuple):
    """The namespaces of a running systemd."""

    pid: int

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--net", "--cgroup", "--uts", "--ipc", "--"]
        done = subprocess.run(
            [*enter, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False,
            env={**os.environ, "PYTHONPATH": os.path.join(REPOSITORY, "src")},
        )  # fmt: skip
        assert not check or done.returncode == 0, done
        return done

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.run("systemctl", *arguments, check=check).stdout.strip()

    def unit(self, name: str, text: str) -> None:
        with open(f"/proc/{self.pid}/root/run/systemd/system/{name}", "w", encoding="utf-8") as file:
            file.write(f"[Unit]\nDefaultDependencies=no\n{text}\n")
        self.systemctl("daemon-reload")

    def stop(self, *arguments: object) -> tuple[int, dict[str, Any]]:
        done = self.run(sys.executable, "-m", "portbook", "stop", *map(str, arguments), "--json", check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    def main_pid(self, unit: str) -> int:
        return int(self.systemctl("show", "--value", "--property=MainPID", unit))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need(os.geteuid() == 0 and os.path.exists(SYSTEMD), "root and systemd")
    for program in ("systemctl", "unshare", "nsenter"):
        need(shutil.which(program) is not None, program)
    name = f"portbook-test-{os.getpid()}"
    command = ["unshare", "--mount", "sh", "-c", OUTSIDE, "sh", name, INSIDE]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        running = Lab(_first_process(process))
        for _ in range(200):
            state = running.systemctl("is-system-running", check=False)
            if state in ("running", "degraded"):
                break
            time.sleep(0.05)
        need(state in ("running", "degraded"), f"a systemd that runs in namespaces (it is {state!r})")
        yield running
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()
        _remove_groups(name)


def _first_process(process: subprocess.Popen[bytes]) -> int:
    """The child of unshare, once it is systemd."""
    for _ in range(400):
        if process.poll() is not None:
            need(False, f"namespaces for a systemd: {process.stderr.read().decode().strip()}")
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
            children = file.read().split()
        with contextlib.suppress(FileNotFoundError, IndexError):  # what prepares it comes and goes
            if os.path.basename(os.readlink(f"/proc/{children[0]}/exe")) == "systemd":
                return int(children[0])
        time.sleep(0.02)
    raise AssertionError("systemd did not start")


def _remove_groups(name: str) -> None:
    command = ["find", "/sys/fs/cgroup", "-depth", "-type", "d", "-path", f"*/{name}*"]
    for _ in range(100):
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        for path in found:
            subprocess.run(["rmdir", path], check=False, stderr=subprocess.DEVNULL)
        if not found:
            return
        time.sleep(0.05)


def service(port: int, more: str) -> str:
    return f'[Service]\n{more}\nExecStart={sys.executable} -I -S -c "{SERVER.format(port=port)}"'


def wait_for(lab: Lab, port: int) -> None:
    for _ in range(200):
        if f":{port:04X} 00000000:0000 0A" in lab.run("cat", "/proc/net/tcp").stdout:
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens on {port}")


def test_what_systemd_starts_again_is_refused_and_stopped_by_systemd(lab):
    lab.unit("web.service", service(8001, "Restart=always"))
    lab.systemctl("start", "web.service")
    wait_for(lab, 8001)
    pid = lab.main_pid("web.service")
    code, answer = lab.stop(8001, "--yes")
    (refusal,) = answer["refusals"]
    assert (code, refusal["code"], refusal["hint"]) == (1, "managed", "systemctl stop web.service")
    assert "Restart=always" in refusal["why"]
    assert lab.main_pid("web.service") == pid
    code, answer = lab.stop(8001, "--yes", "--via-manager")
    assert (code, answer["result"], answer["ended"][0]["by"]) == (0, "stopped", ["systemctl stop web.service"])
    assert lab.systemctl("is-active", "web.service", check=False) == "inactive"


def test_a_unit_ended_with_override_is_reported_as_restarted(lab):
    lab.unit("back.service", service(8002, "Restart=always"))
    lab.systemctl("start", "back.service")
    wait_for(lab, 8002)
    pid = lab.main_pid("back.service")
    code, answer = lab.stop(8002, "--yes", "--override")
    assert (code, answer["result"], answer["ended"][0]["fate"]) == (1, "restarted", "ended")
    assert answer["held_by"][0]["service"] == "back.service"
    assert answer["held_by"][0]["pid"] == lab.main_pid("back.service") != pid
    lab.systemctl("stop", "back.service")


def test_what_systemd_leaves_alone_is_ended_as_anything_else(lab):
    lab.unit("once.service", service(8003, "Restart=no"))
    lab.systemctl("start", "once.service")
    wait_for(lab, 8003)
    code, answer = lab.stop(8003, "--yes")
    assert (code, answer["result"], answer["ended"][0]["by"]) == (0, "stopped", ["SIGTERM"])
    assert answer["targets"][0]["supervisor"]["restarts"] is False


def test_an_escaped_name_reaches_systemd_as_it_is(lab):
    r"""systemd-escape(1): the unit is called with its \x2d."""
    name = r"web@a\x2db.service"
    lab.unit("web@.service", service(8004, "Restart=always"))
    lab.systemctl("start", name)
    wait_for(lab, 8004)
    code, answer = lab.stop(8004, "--yes", "--via-manager")
    assert (code, answer["result"]) == (0, "stopped")
    assert answer["targets"][0]["supervisor"]["command"] == ["systemctl", "stop", name]
    assert lab.systemctl("is-active", name, check=False) == "inactive"


@pytest.fixture
def activated(lab) -> Iterator[Lab]:
    lab.unit("late.socket", "[Socket]\nListenStream=127.0.0.1:8005")
    lab.unit("late.service", f'[Service]\nExecStart={sys.executable} -I -S -c "{ACTIVATED}"')
    lab.systemctl("start", "late.socket")
    yield lab
    lab.systemctl("stop", "late.socket", "late.service", check=False)


def test_a_socket_that_systemd_holds_for_a_unit_is_stopped_by_its_unit(activated):
    code, answer = activated.stop(8005, "--yes", "--override")
    (refusal,) = answer["refusals"]
    assert [t["holder"]["owner"]["pid"] for t in answer["targets"]] == [1]
    assert (code, refusal["code"], refusal["overridden_by"]) == (1, "managed", ["via-manager"])
    assert refusal["hint"] == "systemctl stop late.socket late.service"
    code, answer = activated.stop(8005, "--yes", "--via-manager")
    assert (code, answer["result"]) == (0, "stopped")
    assert activated.systemctl("is-active", "late.socket", check=False) == "inactive"


def test_a_unit_that_its_socket_has_started_ends_with_its_socket(activated):
    connect = "import socket; socket.create_connection(('127.0.0.1', 8005), 5)"
    activated.run(sys.executable, "-I", "-S", "-c", connect)
    pid = activated.main_pid("late.service")
    code, answer = activated.stop(8005, "--yes")
    assert {t["holder"]["owner"]["pid"] for t in answer["targets"]} == {1, pid}
    assert (code, {r["code"] for r in answer["refusals"]}) == (1, {"managed"})
    assert any("late.socket starts it with the next connection" in r["why"] for r in answer["refusals"])
    code, answer = activated.stop(8005, "--yes", "--via-manager")
    assert (code, answer["result"]) == (0, "stopped")
    for unit in ("late.socket", "late.service"):
        assert activated.systemctl("is-active", unit, check=False) in ("inactive", "failed")


def test_a_unit_that_cannot_be_stopped_is_a_failure_with_its_words(lab):
    lab.unit("firm.service", service(8006, "Restart=always").replace("[Service]", "RefuseManualStop=yes\n[Service]"))
    lab.systemctl("start", "firm.service")
    wait_for(lab, 8006)
    code, answer = lab.stop(8006, "--yes", "--via-manager", "--timeout", "1")
    assert (code, answer["result"]) == (1, "still-held")
    assert "systemctl stop firm.service failed with" in answer["note"]
    assert "may not be stopped" in answer["note"] or "refused" in answer["note"]


USER_MANAGER = """[Service]
Delegate=yes
Environment=XDG_RUNTIME_DIR=/run/user/0 HOME=/root
ExecStart=/lib/systemd/systemd --user --unit=lab.target --log-target=null"""


def test_a_users_unit_is_stopped_by_the_users_service_manager(lab):
    """Root's own: systemctl reaches another user's only through a bus, which is not here."""
    units = f"/proc/{lab.pid}/root/run/user/0/systemd/user"
    os.makedirs(units, mode=0o700)
    for name, text in (("lab.target", ""), ("mine.service", service(8007, "Restart=always"))):
        with open(f"{units}/{name}", "w", encoding="utf-8") as file:
            file.write(f"[Unit]\nDefaultDependencies=no\n{text}\n")
    lab.unit("user@0.service", USER_MANAGER)
    lab.systemctl("start", "user@0.service")
    runtime = ("env", "XDG_RUNTIME_DIR=/run/user/0", "systemctl", "--user")
    for _ in range(100):
        if lab.run(*runtime, "start", "mine.service", check=False).returncode == 0:
            break
        time.sleep(0.05)
    wait_for(lab, 8007)
    code, answer = lab.stop(8007, "--yes")
    assert (code, answer["refusals"][0]["hint"]) == (1, "systemctl --user stop mine.service")
    assert "Restart=always" in answer["refusals"][0]["why"]
    code, answer = lab.stop(8007, "--yes", "--via-manager")
    assert (code, answer["result"]) == (0, "stopped")
    assert lab.run(*runtime, "is-active", "mine.service", check=False).stdout == "inactive\n"
