"""``portbook policy`` with real sockets: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from portbook.cli import exits
from portbook.store.sqlite import Writer
from portbook.watching.policy import parse
from portbook.watching.policy.file import default_path
from tests.components import need
from tests.conftest import ROOT, unheld_port
from tests.store import samples
from tests.store.samples import event, socket_event

pytestmark = pytest.mark.usefixtures("own_network")
EXE = os.path.realpath(sys.executable)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command; return the exit code, the output and the errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = exits.run(["policy", *map(str, arguments)])
        written = capfd.readouterr()
        return code, written.out, written.err

    return call


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which this process listens, TCP and UDP, loopback only."""
    number = unheld_port()
    with socket.create_server(("127.0.0.1", number)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", number))
        yield number


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*lines: str, name: str = "policy.toml", default: str = "allow") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(["version = 1", f'default = "{default}"', *lines, ""]))
        path.chmod(0o600)
        return path

    return make


# --- check ---------------------------------------------------------------------------------------------------------


def test_a_violation_is_exit_code_4_and_says_what_and_why(run, write, port):
    path = write("[[deny]]", f"port = {port}", f'exe = "{EXE}"', 'comment = "no servers"', 'owner = "ops"')
    code, out, _ = run("check", path)
    assert code == 4
    lines = out.splitlines()
    assert lines[0].startswith(f"violation (warning): tcp 127.0.0.1:{port}, ")
    assert f"(pid {os.getpid()}), {EXE}" in lines[0]
    assert lines[1:4] == [f"  deny[1] ({path}:3) denies it", "  comment: no servers", "  responsible: ops"]
    assert lines[4].startswith(f"violation (warning): udp 127.0.0.1:{port}, ")
    assert lines[-1].endswith("2 violations")


def test_what_is_allowed_is_exit_code_0_and_shown_on_request(run, write, port):
    path = write("[[deny]]", f"port = {port}", 'user = "nobody-of-this-name"')
    code, out, _ = run("check", "--policy", path)
    assert (code, len(out.splitlines())) == (0, 1)
    code, out, _ = run("check", path, "--all")
    assert code == 0
    assert f"allowed: tcp 127.0.0.1:{port}" in out


def test_a_requirement_that_is_not_met_is_exit_code_4(run, write, port):
    free = unheld_port()
    path = write("[[require]]", f'port = [{port}, "{free}/tcp"]', 'severity = "critical"')
    code, out, _ = run("check", path)
    assert code == 4
    assert f"requirement not met (critical): {free}/tcp" in out
    assert out.splitlines()[-1].endswith("1 of 2 requirements met")


def test_a_socket_that_is_only_bound_is_judged_like_one_that_listens(run, write):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        number = bound.getsockname()[1]
        code, out, _ = run("check", write("[[deny]]", f"port = {number}"))
    if "(bound)" not in out:
        pytest.skip("this data source does not see sockets that are only bound")
    assert (code, f"tcp 127.0.0.1:{number} (bound)" in out) == (4, True)


@pytest.mark.parametrize("form", ["json", "sarif", "junit"])
def test_formats(run, write, port, form):
    code, out, _ = run("check", write("[[deny]]", f"port = {port}"), f"--{form}")
    assert code == 4
    if form == "json":
        report = json.loads(out)
        judged = [each for each in report["sockets"] if each["result"] == "violation"]
        assert (report["passed"], [each["socket"]["local_port"] for each in judged]) == (False, [port, port])
        assert report["counts"]["violation"] == 2
    elif form == "sarif":
        (log,) = json.loads(out)["runs"]
        assert [(each["ruleId"], each["level"]) for each in log["results"]] == [("deny[1]", "warning")] * 2
    else:
        assert out.count("<failure ") == 2


@pytest.mark.parametrize("arguments", [["check"], ["explain", "80", "--policy"], ["diff", "{other}"], ["learn"]])
def test_a_policy_that_is_not_valid_is_exit_code_2_with_every_mistake(run, write, arguments):
    path = write("[[allow]]", "prot = 80", "[[allow]]", "port = 0")
    other = write(name="other.toml")
    code, out, err = run(*(word.format(other=other) for word in arguments), path)
    assert (code, out) == (2, "")
    assert [line.split(": ")[1] for line in err.splitlines()] == [f"{path}:4", f"{path}:6"]
    assert "did you mean port?" in err


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of Unix")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.chmod(0o666), "every user may write it; chmod o-w"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is not a regular file"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"\n"), "longer than 1 MiB"),
        (lambda path: path.write_bytes(b"version = 1\n\xff"), ":2: it is not UTF-8"),
        (lambda path: os.chown(path, 65534, 65534) if ROOT else pytest.skip("needs root"), "belongs to uid 65534"),
    ],
)
def test_a_file_that_is_not_to_be_trusted_or_read(run, write, change, message):
    path = write()
    change(path)
    code, _, err = run("check", path)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_policy_as_windows_programs_write_it(run, write, encoding):
    path = write()
    path.write_text(path.read_text(), encoding=encoding)
    assert run("check", path)[0] == 0


@pytest.mark.root
def test_with_sudo_the_file_may_belong_to_the_user_who_called_it(run, write, monkeypatch):
    need(ROOT, "root, to give a file away")
    path = write()
    os.chown(path, 1234, 1234)
    code, _, err = run("check", path)
    assert (code, f"it belongs to uid 1234, who decides what is in it; chown root {path}" in err) == (2, True)
    monkeypatch.setenv("SUDO_UID", "1234")
    assert run("check", path)[0] == 0


def test_there_is_no_policy(run, tmp_path):
    code, _, err = run("check", tmp_path / "none.toml")
    assert code == 5
    assert f"make one: portbook policy init -o {tmp_path / 'none.toml'}" in err


# --- init ----------------------------------------------------------------------------------------------------------


def test_init_writes_a_policy_that_what_listens_now_passes(run, tmp_path, port):
    path = tmp_path / "new.toml"
    code, out, err = run("init", "-o", path)
    assert (code, out) == (0, "")
    assert f"wrote {path}" in err
    assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0
    text = path.read_text()
    rules = [rule.selector for rule in parse(text).rules]
    mine = [rule for rule in rules if (port, port) in rule.tcp]
    assert [[each.text for each in rule.exe] for rule in mine] == [[EXE]]
    assert mine[0].reach == ("loopback",)
    assert "since 2" in text
    code, out, _ = run("check", path, "--json")
    judged = {each["socket"]["local_port"]: each["result"] for each in json.loads(out)["sockets"]}
    assert judged[port] == "allowed"


def test_init_replaces_no_file_without_force(run, write):
    path = write()
    before = path.read_bytes()
    code, _, err = run("init", path)
    assert (code, path.read_bytes()) == (5, before)
    assert "exists; write --force to replace it" in err
    assert run("init", path, "--force")[0] == 0
    assert path.read_bytes() != before


@pytest.mark.skipif(sys.platform == "win32", reason="links of Unix")
def test_init_follows_no_link(run, tmp_path):
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    assert run("init", tmp_path / "link")[0] == 5
    assert not target.exists()


# --- explain, diff -------------------------------------------------------------------------------------------------


def test_explain_shows_the_rule_that_decides_and_what_the_others_say(run, write, port):
    path = write(
        "[[allow]]", f"port = {port}", 'exe = "/usr/bin/nothing"',
        "[[allow]]", f'port = "{port}-{port + 1}"', 'protocol = "tcp"',
        "[[allow]]", f"port = {port}", 'user = "x"', "until = 2020-01-01",
        default="deny",
    )  # fmt: skip
    code, out, err = run("explain", f"{port}/tcp", "--policy", path)
    assert (code, out.splitlines()[0].partition(" ")[0]) == (0, "allowed:")
    assert out.splitlines()[1:] == [
        f"  allow[2] ({path}:6) allows it",
        f"  - allow[1] ({path}:3) differs: it differs in the executable",
        f"  - allow[2] ({path}:6) matches: it is about this socket",
        f"  - allow[3] ({path}:9) ended: it ended with 2020-01-01",
    ]
    assert "allow[3] ended with 2020-01-01; renew it, or remove it" in err


def test_explain_where_nothing_listens(run, write):
    free = unheld_port()
    path = write("[[allow]]", f"port = {free}", 'exe = "/usr/sbin/nginx"', default="deny")
    code, out, _ = run("explain", free, "--policy", path)
    assert code == 0
    assert f"nothing waits on port {free}" in out
    assert f"- allow[1] ({path}:3): port {free}, exe /usr/sbin/nginx" in out
    code, out, _ = run("explain", unheld_port(), "--policy", write(default="deny"))
    assert "it would be denied by default: no rule of" in out
    answer = json.loads(run("explain", free, "--policy", path, "--json")[1])
    assert (answer["sockets"], answer["default"]) == ([], "deny")


def test_diff_compares_rules_and_on_request_what_listens(run, write, port):
    old = write("[[deny]]", f"port = {port}", name="old.toml")
    new = write("[[allow]]", f"port = {port}", "[[deny]]", "port = 1", 'user = "x"', name="new.toml", default="deny")
    code, out, _ = run("diff", old, new)
    assert code == 1
    assert out.splitlines() == [
        "~ default: allow, now deny",
        f"- deny[1] ({old}:3): port {port}",
        f"+ allow[1] ({new}:3): port {port}",
        f"+ deny[1] ({new}:5): port 1, user x",
    ]
    code, out, _ = run("diff", old, new, "--now")
    assert f"violation, now allowed: tcp 127.0.0.1:{port}" in out
    assert run("diff", old, old)[:2] == (0, "the policies say the same\n")


# --- learn ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An hour of two servers."""
    path = tmp_path / "history.db"
    monkeypatch.setattr(samples, "T0", datetime.now(UTC) - timedelta(hours=1))
    node = {"port": 8080, "exe": "/usr/bin/node", "pid": 40, "cookie": 2}
    nc = {"port": 4444, "exe": "/usr/bin/nc", "pid": 50, "cookie": 3}
    with Writer(str(path)) as writer:
        writer.append([event("started", 0), socket_event("opened", 60, **node), socket_event("opened", 70, **nc)])
    return path


def test_learn_adds_what_the_policy_does_not_allow_and_never_what_it_denies(run, write, history):
    path = write("# mine", "[[deny]]", 'exe = "/usr/bin/nc"', default="deny")
    before = path.read_text()
    code, out, err = run("learn", path, "--for", "7d", "--db", history)
    assert (code, path.read_text()) == (0, before), "it is shown only"
    assert "port = 8080" in out
    assert "4444" not in out
    assert f"not added: tcp 4444: deny[1] ({path}:4) denies it" in err
    assert run("learn", path, "--db", history, "--write")[0] == 0
    assert path.read_text().startswith(before)
    assert [rule.kind for rule in parse(path.read_text()).rules] == ["deny", "allow"]
    code, out, err = run("learn", path, "--db", history, "--write")
    assert (code, out) == (0, "")
    assert "nothing to add" in err


def test_learn_without_a_policy_makes_a_whole_one(run, tmp_path, history):
    path = tmp_path / "new.toml"
    code, out, _ = run("learn", path, "--db", history, "--write", "--for", "2h")
    assert (code, path.read_text()) == (0, out)
    assert len(parse(out).rules) == 2
    assert run("learn", path, "--db", history, "--for", "soon")[0] == 2


# --- the command ---------------------------------------------------------------------------------------------------


def test_without_a_command_it_says_which_there_are(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "valid commands are init, learn, check, explain, diff" in err


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    if sys.platform == "win32":
        assert default_path().endswith(r"portbook\policy.toml")
        return
    assert default_path() == f"{tmp_path}/portbook/policy.toml"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_path() == "/etc/portbook/policy.toml"
