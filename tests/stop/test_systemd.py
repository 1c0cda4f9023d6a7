"""A real systemd with real units, whose ports portbook frees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.components import need
from tests.rounds import until
from tests.systemd_lab import Lab, running_systemd

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != "linux", reason="systemd")]

SERVER = "import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.BaseHTTPRequestHandler).serve_forever()"
ACTIVATED = "import socket, time; one = socket.socket(fileno=3); one.accept(); time.sleep(600)"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_systemd() as running:
        yield running


def service(port: int, more: str) -> str:
    return f'[Service]\n{more}\nExecStart={sys.executable} -I -S -c "{SERVER.format(port=port)}"'


def wait_for(lab: Lab, port: int) -> None:
    row = f":{port:04X} 00000000:0000 0A"
    until(lambda: row in lab.run("cat", "/proc/net/tcp").stdout, f"listening on {port}")


def is_executed(lab: Lab, pid: int) -> bool:
    """Whether the program of a unit runs: before, its process is a copy of systemd."""
    return pid != 0 and "accept" in lab.run("cat", f"/proc/{pid}/cmdline").stdout


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
    until(lambda: is_executed(activated, activated.main_pid("late.service")), "the service to be executed")
    pid = activated.main_pid("late.service")
    code, answer = activated.stop(8005, "--yes")
    assert {t["holder"]["owner"]["pid"] for t in answer["targets"]} == {1, pid}
    assert (code, {r["code"] for r in answer["refusals"]}) == (1, {"managed"})
    reasons = [refusal["why"] for refusal in answer["refusals"]]
    assert any("late.socket starts it with the next connection" in why for why in reasons), reasons
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
Slice=user-0.slice
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
    until(lambda: lab.run(*runtime, "start", "mine.service", check=False).returncode == 0, "the start of mine.service")
    wait_for(lab, 8007)
    code, answer = lab.stop(8007, "--yes")
    assert (code, answer["refusals"][0]["hint"]) == (1, "systemctl --user stop mine.service")
    assert "Restart=always" in answer["refusals"][0]["why"]
    code, answer = lab.stop(8007, "--yes", "--via-manager")
    assert (code, answer["result"]) == (0, "stopped")
    assert lab.run(*runtime, "is-active", "mine.service", check=False).stdout == "inactive\n"


# --- what is in a unit, and not its service ------------------------------------------------------------------------

LAUNCHER = """
import os, subprocess, sys, time
if len(sys.argv) > 2:
    with open("/proc/self/comm", "w") as file:
        file.write(sys.argv[2])
server = "import http.server as h; h.HTTPServer(('127.0.0.1', PORT), h.BaseHTTPRequestHandler).serve_forever()"
server = server.replace("PORT", sys.argv[1])
subprocess.Popen([sys.executable, "-I", "-S", "-c", server], start_new_session=True)
time.sleep(600)
"""


def launcher(lab: Lab, unit: str, port: int, more: str = "", name: str = "") -> int:
    """A service whose main process starts a server and does something else; the main pid."""
    script = f"/run/{unit}.py"
    with open(f"/proc/{lab.pid}/root{script}", "w", encoding="utf-8") as file:
        file.write(LAUNCHER)
    lab.unit(unit, f"[Service]\n{more}\nExecStart={sys.executable} -I -S {script} {port} {name}")
    lab.systemctl("start", unit)
    wait_for(lab, port)
    return lab.main_pid(unit)


@pytest.mark.parametrize(
    ("port", "unit", "more", "name"),
    [
        (8011, "agent.service", "KillMode=process\nRestart=always", "agent"),  # cron, CI agents
        (8012, "tunnel.service", "", "sshd"),  # never the unit of a process that is protected
        (8013, "ssh.service", "", "server"),  # as a name, where systemd is not asked
    ],
)
def test_a_server_that_a_service_only_started_is_ended_and_the_service_stays(lab, port, unit, more, name):
    main = launcher(lab, unit, port, more, name)
    code, answer = lab.stop(port, "--yes", "--via-manager")
    assert (code, answer["result"], answer["ended"][0]["by"]) == (0, "stopped", ["SIGTERM"])
    assert lab.main_pid(unit) == main
    assert lab.systemctl("is-active", unit) == "active"
    lab.systemctl("stop", unit)


def test_a_server_below_the_script_of_a_unit_is_the_service(lab):
    """As npm, or a shell script without exec: systemd starts the script again, and stops both."""
    launcher(lab, "script.service", 8014, "Restart=always")
    code, answer = lab.stop(8014, "--yes")
    assert (code, [r["code"] for r in answer["refusals"]]) == (1, ["managed"])
    code, answer = lab.stop(8014, "--yes", "--via-manager")
    assert (code, answer["result"], answer["ended"][0]["by"]) == (0, "stopped", ["systemctl stop script.service"])
    assert lab.systemctl("is-active", "script.service", check=False) in ("inactive", "failed")


TERMINAL = """
import pty, sys, time
server = "import http.server as h; h.HTTPServer(('127.0.0.1', PORT), h.BaseHTTPRequestHandler).serve_forever()"
pid, ours = pty.fork()
if pid == 0:
    import os
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", server.replace("PORT", sys.argv[1])])
time.sleep(600)
"""


def test_a_server_in_a_terminal_of_a_unit_is_not_the_service(lab):
    """A terminal multiplexer or an editor that is a unit: to stop it would end every other terminal."""
    with open(f"/proc/{lab.pid}/root/run/terminal.py", "w", encoding="utf-8") as file:
        file.write(TERMINAL)
    lab.unit("tmux.service", f"[Service]\nRestart=always\nExecStart={sys.executable} -I -S /run/terminal.py 8021")
    lab.systemctl("start", "tmux.service")
    wait_for(lab, 8021)
    code, answer = lab.stop(8021, "--yes", "--via-manager")
    assert (code, answer["result"], answer["ended"][0]["by"]) == (0, "stopped", ["SIGTERM"])
    assert lab.systemctl("is-active", "tmux.service") == "active"
    lab.systemctl("stop", "tmux.service")


ORPHAN = """
import os, sys, time
server = "import http.server as h; h.HTTPServer(('127.0.0.1', PORT), h.BaseHTTPRequestHandler).serve_forever()"
server = server.replace("PORT", sys.argv[1])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", server])
    os._exit(0)
os.wait()
time.sleep(600)
"""


def test_a_server_that_left_its_parents_is_not_the_service(lab):
    with open(f"/proc/{lab.pid}/root/run/orphan.py", "w", encoding="utf-8") as file:
        file.write(ORPHAN)
    lab.unit("orphan.service", f"[Service]\nRestart=always\nExecStart={sys.executable} -I -S /run/orphan.py 8015")
    lab.systemctl("start", "orphan.service")
    wait_for(lab, 8015)
    main = lab.main_pid("orphan.service")
    code, answer = lab.stop(8015, "--yes", "--via-manager")
    assert (code, answer["result"], answer["ended"][0]["by"]) == (0, "stopped", ["SIGTERM"])
    assert answer["targets"][0]["supervisor"]["why"].endswith(f"(pid {main})")
    assert lab.main_pid("orphan.service") == main
    lab.systemctl("stop", "orphan.service")


NESTED = """
import os, sys
with open("/proc/self/cgroup") as file:
    own = next(line for line in file if "name=systemd" in line or line.startswith("0::")).strip().rpartition(":")[2]
root = "/sys/fs/cgroup/systemd" if os.path.isdir("/sys/fs/cgroup/systemd") else "/sys/fs/cgroup"
inner = f"{root}{own}/victim.service"
os.mkdir(inner)
with open(f"{inner}/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
server = "import http.server as h; h.HTTPServer(('127.0.0.1', PORT), h.BaseHTTPRequestHandler).serve_forever()"
server = server.replace("PORT", sys.argv[1])
os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", server])
"""


def test_a_name_below_a_delegated_unit_is_no_unit(lab):
    """Whoever the outer unit runs as chooses it: it could be that of any other service."""
    lab.unit("victim.service", "[Service]\nExecStart=sleep 600")
    lab.systemctl("start", "victim.service")
    with open(f"/proc/{lab.pid}/root/run/nested.py", "w", encoding="utf-8") as file:
        file.write(NESTED)
    nested = f"[Service]\nDelegate=yes\nRestart=always\nExecStart={sys.executable} -I -S /run/nested.py 8016"
    lab.unit("outer.service", nested)
    lab.systemctl("start", "outer.service")
    wait_for(lab, 8016)
    with open(f"/proc/{lab.pid}/root/proc/{lab.main_pid('outer.service')}/cgroup", encoding="ascii") as file:
        assert "outer.service/victim.service" in file.read()
    code, answer = lab.stop(8016, "--yes", "--via-manager")
    assert (code, answer["ended"][0]["by"]) == (0, ["systemctl stop outer.service"])
    assert answer["targets"][0]["holder"]["owner"]["service"] == "outer.service"
    assert lab.systemctl("is-active", "victim.service") == "active"
    lab.systemctl("stop", "victim.service")


SSHD = """Port 2222
ListenAddress 127.0.0.1
HostKey {0}/host
AuthorizedKeysFile {0}/id.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
"""
OVER_SSH = 'nohup {} -I -S -c "{}" >/dev/null 2>&1 </dev/null &'


def test_a_server_that_was_started_over_ssh_is_ended_and_sshd_stays(lab, tmp_path):
    """Without pam_systemd there is no session: it is in ssh.service, as Debian has that, and outlives its login."""
    need(os.path.exists("/usr/sbin/sshd"), "sshd")
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    (tmp_path / "sshd_config").write_text(SSHD.format(tmp_path))
    unit = "KillMode=process\nRestart=on-failure\nRuntimeDirectory=sshd\n"
    lab.unit("ssh.service", f"[Service]\n{unit}ExecStart=/usr/sbin/sshd -D -f {tmp_path}/sshd_config")
    lab.systemctl("start", "ssh.service")
    wait_for(lab, 2222)
    options = f"-F none -p 2222 -i {tmp_path}/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null".split()
    server = OVER_SSH.format(sys.executable, SERVER.format(port=8020))
    lab.run("ssh", *options, "root@127.0.0.1", server)
    wait_for(lab, 8020)
    main = lab.main_pid("ssh.service")
    code, answer = lab.stop(8020, "--yes", "--via-manager")
    assert answer["targets"][0]["holder"]["owner"]["service"] == "ssh.service"
    assert (code, answer["result"], answer["ended"][0]["by"]) == (0, "stopped", ["SIGTERM"])
    assert lab.main_pid("ssh.service") == main
    lab.systemctl("stop", "ssh.service")


# --- what is known beforehand --------------------------------------------------------------------------------------


def test_a_unit_that_systemd_will_start_again_later_is_no_success(lab):
    """As on a slow machine: when stop has looked long enough, the port is still free."""
    lab.unit("later.service", service(8017, "Restart=always\nRestartSec=60"))
    lab.systemctl("start", "later.service")
    wait_for(lab, 8017)
    code, answer = lab.stop(8017, "--yes")
    assert "RestartSec=1min" in answer["refusals"][0]["why"]
    code, answer = lab.stop(8017, "--yes", "--override")
    assert (code, answer["result"]) == (1, "will-restart")
    assert "systemctl stop later.service" in answer["note"]
    lab.systemctl("stop", "later.service")


STORING = """
import array, os, socket, sys, time
one = socket.create_server(("127.0.0.1", int(sys.argv[1])))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
    to.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()]))]
    to.sendmsg([b"FDSTORE=1\\nFDNAME=web\\nREADY=1"], rights)
if sys.argv[2:] == ["close"]:
    one.close()
time.sleep(600)
"""


@pytest.mark.parametrize(("port", "how"), [(8018, "close"), (8019, "")])
def test_a_socket_in_the_store_of_a_unit_is_freed_by_stopping_the_unit(lab, port, how):
    """systemd.service(5), FileDescriptorStoreMax=; sd_notify(3), FDSTORE=1. The first process holds it, too."""
    with open(f"/proc/{lab.pid}/root/run/store.py", "w", encoding="utf-8") as file:
        file.write(STORING)
    unit = f"store{port}.service"
    text = "[Service]\nType=notify\nNotifyAccess=all\nFileDescriptorStoreMax=4\n"
    lab.unit(unit, f"{text}ExecStart={sys.executable} -I -S /run/store.py {port} {how}")
    lab.systemctl("start", unit)
    wait_for(lab, port)
    code, answer = lab.stop(port, "--yes", "--override")
    assert (code, answer["result"]) == (1, "refused")
    first = next(t for t in answer["targets"] if t["holder"]["owner"]["pid"] == 1)
    assert first["refusals"][0]["hint"] == f"systemctl stop {unit}"
    assert "file descriptor store" in first["supervisor"]["why"]
    code, answer = lab.stop(port, "--yes", "--via-manager")
    assert (code, answer["result"]) == (0, "stopped")
    assert lab.systemctl("is-active", unit, check=False) in ("inactive", "failed")
