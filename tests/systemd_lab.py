"""A real systemd, as the first process of namespaces of its own, for tests that need units.

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

from tests.components import need
from tests.conftest import REPOSITORY

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
exec unshare --cgroup --pid --fork --kill-child --mount-proc --net --uts --ipc sh -ec "$2" sh "$3"
"""
INSIDE = r"""
ip link set lo up
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/lock
mount -t tmpfs tmpfs /etc/systemd
eval "$1"
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
        """``portbook stop`` with its answer."""
        done = self.run(sys.executable, "-m", "portbook", "stop", *map(str, arguments), "--json", check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    def main_pid(self, unit: str) -> int:
        return int(self.systemctl("show", "--value", "--property=MainPID", unit))


@contextlib.contextmanager
def running_systemd(prepare: str = "") -> Iterator[Lab]:
    """Start one; skip the test if this machine cannot.

    :param prepare: shell that runs in its namespaces before it does
    """
    need(os.geteuid() == 0 and os.path.exists(SYSTEMD), "root and systemd")
    for program in ("systemctl", "unshare", "nsenter"):
        need(shutil.which(program) is not None, program)
    name = f"portbook-test-{os.getpid()}"
    command = ["unshare", "--mount", "sh", "-c", OUTSIDE, "sh", name, INSIDE, prepare]
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
