"""The unit of ``packaging/systemd`` under a real systemd, with everything that it forbids."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from portbook.system import capabilities
from portbook.watching import privileges
from tests.components import need
from tests.conftest import REPOSITORY
from tests.systemd_lab import Lab, running_systemd

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != "linux", reason="systemd")]

UNIT = os.path.join(REPOSITORY, "packaging", "systemd", "portbook-watch.service")
NAME = "portbook-watch.service"
MOST_EXPOSURE = 3.6  # of 10, as systemd-analyze counts; what is left is explained in the unit
LIMIT_S = 30.0
# The state and the settings of the machine stay as they are; the root of its control groups is there as outside.
PREPARE = r"""
for place in /var/lib /var/log /var/cache; do mount -t tmpfs tmpfs "$place"; done
mkdir -p /run/etc/upper /run/etc/work /run/cgroup2
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
mkdir -p /etc/portbook
mount -t tracefs tracefs /sys/kernel/tracing  # as sys-kernel-tracing.mount does
for place in /sys/fs/cgroup /sys/fs/cgroup/unified; do
    if [ "$(stat -f -c %T "$place")" = cgroup2fs ]; then mount --bind "$place" /run/cgroup2; fi
done
"""
CONFIG = """
policy = "/etc/portbook/policy.toml"
grace = 0.1
[[sink]]
type = "jsonl"
target = "/var/log/portbook/events.jsonl"
severity = "quiet"
"""
SERVER = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"


class Service:
    """The unit in a running systemd."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def path(self, inside: str) -> str:
        return f"/proc/{self.lab.pid}/root{inside}"

    def write(self, inside: str, text: str) -> None:
        with open(self.path(inside), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path(inside), 0o644)

    def show(self, name: str) -> str:
        return self.lab.systemctl("show", "--value", f"--property={name}", NAME)

    def events(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError), open(self.path("/var/log/portbook/events.jsonl"), "rb") as file:
            return [json.loads(line) for line in file.read().splitlines() if line.endswith(b"}")]
        return []

    def wait_for(self, fits: Callable[[], Any]) -> Any:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if found := fits():
                return found
            time.sleep(0.02)
        raise AssertionError((self.lab.systemctl("status", NAME, check=False), self.events()[-5:]))

    def wait_for_event(self, kind: str, **fields: object) -> dict[str, Any]:
        def find() -> dict[str, Any] | None:
            for event in self.events():
                if event["event"] == kind and all(event.get(name) == value for name, value in fields.items()):
                    return event
            return None

        return self.wait_for(find)


def here() -> str:
    """Settings with which the unit finds portbook, which is not installed for this machine."""
    places = " ".join(dict.fromkeys((REPOSITORY, sys.prefix, sys.base_prefix)))
    return f"Environment=PYTHONPATH={REPOSITORY}/src PYTHONDONTWRITEBYTECODE=1\nBindReadOnlyPaths={places}\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_systemd(PREPARE) as running:
        yield running


@pytest.fixture
def service(lab: Lab) -> Iterator[Service]:
    """The unit as it is, but for where the program is."""
    made = Service(lab)
    shutil.rmtree(made.path("/var/log/portbook"), ignore_errors=True)
    made.write("/etc/portbook/watch.toml", CONFIG)
    made.write("/etc/portbook/policy.toml", "version = 1\ndefault = 'allow'\n")
    with open(UNIT, encoding="utf-8") as file:
        made.write(
            f"/run/systemd/system/{NAME}", re.sub("^After=.*|^Before=.*|^Wants=.*", "", file.read(), flags=re.MULTILINE)
        )
    os.makedirs(made.path(f"/run/systemd/system/{NAME}.d"), exist_ok=True)
    made.write(
        f"/run/systemd/system/{NAME}.d/here.conf",
        f"[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=\n"
        f"ExecStart={sys.executable} -m portbook watch --config /etc/portbook/watch.toml\n"
        f"{here()}RestartSec=100ms\n",
    )
    lab.systemctl("daemon-reload")
    yield made
    lab.systemctl("stop", NAME, check=False)
    lab.systemctl("reset-failed", NAME, check=False)


def test_it_is_ready_when_it_sees_and_ends_cleanly(service):
    service.lab.systemctl("start", NAME)
    assert service.show("ActiveState") == "active", "start returns when the watch is ready"
    assert re.match(r"sees by \w+, [\d,]+ listeners?, 0 violations, ", service.show("StatusText"))
    enter = ["nsenter", f"--target={service.lab.pid}", "--net", "--pid"]
    with subprocess.Popen([*enter, sys.executable, "-c", SERVER.format(port=8301)]):
        opened = service.wait_for_event("opened", local_port=8301)
        service.lab.run("kill", str(opened["pid"]))
    assert opened["name"].startswith("python")
    service.wait_for(lambda: [e for e in service.events() if e.get("local_port") == 8301 and e["event"] != "opened"])
    service.lab.systemctl("stop", NAME)
    assert (service.show("ActiveState"), service.show("Result"), service.show("ExecMainStatus")) == (
        "inactive", "success", "0",
    )  # fmt: skip
    assert service.events()[-1]["event"] == "stopped"
    assert os.path.exists(service.path("/var/lib/portbook/history.db"))


def test_the_feed_of_old_kernels_works_with_the_drop_in_that_the_unit_names(service):
    """In the pid namespace of this systemd the feed is never bpf, which has to see every process."""
    with open(UNIT, encoding="utf-8") as file:
        assert "needs a drop-in with ProtectKernelTunables=no" in file.read()
    service.write(f"/run/systemd/system/{NAME}.d/old.conf", "[Service]\nProtectKernelTunables=no\n")
    service.lab.systemctl("daemon-reload")
    try:
        service.lab.systemctl("start", NAME)
        started = service.wait_for_event("started")
        assert started["feed"] == "tracefs", started["reason"]
        assert not [event for event in service.events() if event["event"] in ("gap", "blind")]
    finally:
        os.unlink(service.path(f"/run/systemd/system/{NAME}.d/old.conf"))


def test_it_has_the_capabilities_of_the_table_and_no_more(service):
    service.lab.systemctl("start", NAME)
    pid = service.show("MainPID")
    status = dict(
        line.split(":\t", 1)
        for line in service.lab.run("cat", f"/proc/{pid}/status").stdout.splitlines()
        if ":\t" in line
    )
    kept = sum(1 << capabilities.NUMBERS[name] for name in privileges.KEPT)
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {kept}
    assert (int(status["CapInh"], 16), int(status["CapAmb"], 16)) == (0, 0)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_a_reload_reads_the_policy_again_and_a_broken_one_changes_nothing(service):
    service.lab.systemctl("start", NAME)
    pid = service.show("MainPID")
    service.write("/etc/portbook/policy.toml", "version = 1\n[[alow]]\nport = 1\n")
    service.lab.systemctl("reload", NAME)
    refused = service.wait_for_event("policy_refused")
    assert "/etc/portbook/policy.toml:2" in refused["reason"]
    os.replace(service.path("/var/log/portbook/events.jsonl"), service.path("/var/log/portbook/events.old"))
    service.write("/etc/portbook/policy.toml", "version = 1\n[[require]]\nport = 1\n")
    service.lab.systemctl("reload", NAME)
    service.wait_for_event("requirement_lost")
    assert service.events()[0]["event"] in ("policy_loaded", "policy_refused"), "the log was opened again"
    assert (service.show("ActiveState"), service.show("MainPID")) == ("active", pid)


def test_a_policy_that_is_broken_at_the_start_is_not_tried_again_and_again(service):
    service.write("/etc/portbook/policy.toml", "version = 1\n[[alow]]\n")
    service.lab.systemctl("start", NAME, check=False)
    service.wait_for(lambda: service.show("ActiveState") == "failed")
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("2", "0")


def test_a_watch_that_hangs_is_started_again(service):
    """The watchdog of the unit is a minute; here it is a second."""
    service.write(f"/run/systemd/system/{NAME}.d/watchdog.conf", "[Service]\nWatchdogSec=1\n")
    service.lab.systemctl("daemon-reload")
    try:
        service.lab.systemctl("start", NAME)
        pid = service.show("MainPID")
        service.wait_for_event("started")
        service.lab.run("kill", f"-{int(signal.SIGSTOP)}", pid)
        service.wait_for(lambda: service.show("NRestarts") == "1" and service.show("ActiveState") == "active")
        assert service.show("MainPID") != pid
    finally:
        os.unlink(service.path(f"/run/systemd/system/{NAME}.d/watchdog.conf"))


# A service manager of root's own, in the pid namespace of the machine: there every feed works. Its unit is the same.
USERS_MANAGER = r"""
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/systemd/inaccessible/dir "$1/systemd/user"
cd /run/systemd/inaccessible
touch reg sock && mkfifo fifo && mknod chr c 0 0 && mknod blk b 0 0
printf '[Unit]\nDefaultDependencies=no\n' > "$1/systemd/user/lab.target"
cp "$2" "$1/systemd/user/portbook-watch.service"
mkdir "$1/systemd/user/portbook-watch.service.d"
printf '%s\n' "$3" > "$1/systemd/user/portbook-watch.service.d/here.conf"
chmod 700 "$1"
export XDG_RUNTIME_DIR=$1 XDG_CONFIG_HOME=/run/config XDG_STATE_HOME=/run/state XDG_CACHE_HOME=/run/cache
/lib/systemd/systemd --user --unit=lab.target --log-target=null < /dev/null &
manager=$!
for _ in $(seq 200); do systemctl --user is-active -q lab.target && break; sleep 0.02; done
systemctl --user start portbook-watch.service
systemctl --user show --property=ActiveState --property=StatusText portbook-watch.service
systemctl --user stop portbook-watch.service
systemctl --user show --property=Result portbook-watch.service
systemctl --user exit
wait $manager
"""


def test_the_feed_of_the_machine_works_with_everything_that_is_forbidden(tmp_path):
    outside = subprocess.run(
        [sys.executable, "-m", "portbook", "watch", "--self-test"],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/src"},
    )  # fmt: skip
    feed = outside.stdout.partition(": sees")[0].removeprefix("feed ")
    need(feed == "bpf", f"a machine on which bpf works (it is {feed})")
    unit = tmp_path / NAME
    with open(UNIT, encoding="utf-8") as file:
        text = re.sub("^(After|Before|Wants|ConditionPathExists)=.*", "", file.read(), flags=re.MULTILINE)
    unit.write_text(text.replace("DefaultDependencies=yes", "DefaultDependencies=no"))
    more = f"[Service]\nExecStart=\nExecStart={sys.executable} -m portbook watch --no-store\n{here()}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", USERS_MANAGER, "sh", "/run/manager", str(unit), more],
        capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    state = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert state.get("ActiveState") == "active", done
    assert state["StatusText"].startswith("sees by bpf, ")
    assert state["Result"] == "success"


def test_systemd_finds_nothing_wrong_with_the_unit_and_little_that_it_could_still_reach(tmp_path):
    need(shutil.which("systemd-analyze") is not None, "systemd-analyze")
    with open(UNIT, encoding="utf-8") as file:
        text = file.read()
    program = tmp_path / "portbook"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / NAME
    unit.write_text(text.replace("/usr/local/bin/portbook", str(program)))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False, timeout=60
    )
    assert [line for line in verified.stderr.splitlines() if NAME in line] == []
    assert verified.returncode == 0
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE * 10:.0f}", UNIT],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert rated.returncode == 0, rated.stdout[-300:]


def test_each_capability_of_the_unit_is_explained_and_is_one_of_the_table():
    with open(UNIT, encoding="utf-8") as file:
        text = file.read()
    allowed = set(re.search("^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)[1].split())
    assert allowed == {*privileges.KEPT, "CAP_SETPCAP"}
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert all(name in comments for name in allowed)
