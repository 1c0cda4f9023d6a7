"""``portbook history`` and ``portbook who --at``: what they print, and how they end."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from portbook.cli import exits
from portbook.store.sqlite import Writer
from tests.store import samples
from tests.store.samples import event, socket_event

FORMULA = "=cmd|calc"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Three hours: a server, another one after it, an interruption, a failed bind, a hostile name."""
    file = str(tmp_path_factory.mktemp("history") / "history.db")
    with pytest.MonkeyPatch.context() as patch, Writer(file) as writer:
        patch.setattr(samples, "T0", datetime.now(UTC) - timedelta(hours=3))
        begin = samples.at(-3 * 86400)
        sshd = {"port": 22, "exe": "/usr/sbin/sshd", "pid": 22, "cookie": 1, "process_started": begin}
        node = {"exe": "/usr/bin/node", "pid": 40, "cookie": 2}
        apache = {"exe": "/usr/sbin/apache2", "pid": 50, "cookie": 3, "service": "apache2.service"}
        hostile = {"port": 3000, "exe": f"/tmp/{FORMULA}", "name": f"{FORMULA}\x1b[31m", "pid": 60, "cookie": 4}
        writer.append(
            [
                event("started", 0),
                socket_event("present", 0, **sshd),
                socket_event("opened", 600, **node),
                socket_event("opened", 1200, **hostile),
                socket_event("closed", 1260, **hostile),
                socket_event("closed", 3600, **node),
                socket_event("opened", 3700, **apache),
                socket_event("bind_failed", 3800, **node | {"cookie": 9}, error="EADDRINUSE"),
                event("stopped", 5000),
                event("started", 7000),
                socket_event("present", 7000, **sshd),
                socket_event("present", 7000, **apache),
                event("stopped", 10000),
            ]
        )
    return file


@pytest.fixture
def run(capfd, path):
    """Runs a command with the history; returns the exit code, the output and the errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = exits.run([*arguments, "--db", path])
        written = capfd.readouterr()
        return code, written.out, written.err

    return call


def test_a_table_of_what_was_held(run):
    code, out, err = run("history")
    assert code == 0
    title, *rows = out.splitlines()
    assert title.split()[:3] == ["ENDPOINT", "PROCESS", "PID"]
    assert [row.split()[:2] for row in rows[:-1]] == [
        ["0.0.0.0:22/tcp", "sshd"],
        ["0.0.0.0:8080/tcp", "node"],
        ["0.0.0.0:3000/tcp", "=cmd|calc\\x1b[31m"],
        ["0.0.0.0:8080/tcp", "apache2"],
    ]
    assert rows[-1] == "~ inferred: at this time or later"
    assert err.count("the watch did not run") == 1


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (("8080",), ["node", "apache2"]),
        (("8000-9000", "service:apache2"), ["apache2"]),
        (("process:ssh*",), ["sshd"]),
        (("-8080", "-process:=cmd*"), ["sshd"]),
        (("udp",), []),
        (("reach:any", "address:0.0.0.0", "port:22"), ["sshd"]),
        (("127.0.0.1:8080",), ["node", "apache2"]),
        (("user:root", "22,3000"), ["sshd", f"{FORMULA}\x1b[31m"]),
    ],
)
def test_a_query_selects_intervals(run, query, names):
    code, out, _ = run("history", *query, "--jsonl")
    assert (code, [json.loads(line)["name"] for line in out.splitlines()]) == (0, names)


def test_what_was_held_at_a_moment(run):
    assert [json.loads(line)["name"] for line in run("history", "--at", "150 min ago", "--jsonl")[1].splitlines()] == [
        "sshd",
        "node",
    ]
    code, out, _ = run("history", "--since", "121 min ago", "--until", "110 min ago", "--json")
    answer = json.loads(out)
    assert (code, answer["complete"], answer["gaps"]) == (0, True, [])
    assert [i["name"] for i in answer["intervals"]] == ["sshd", "node", "apache2"]


def test_json_is_one_object_also_without_an_answer(run):
    answer = json.loads(run("history", "port:1", "--json")[1])
    assert (answer["intervals"], answer["events"]) == ([], [])
    code, out, err = run("history", "port:1")
    assert (code, out) == (0, "")
    assert "nothing in the history matches" in err


def test_events_of_a_kind(run):
    code, out, _ = run("history", "event:bind_failed", "8080", "--jsonl")
    (failed,) = map(json.loads, out.splitlines())
    assert (code, failed["event"], failed["name"], failed["error"]) == (0, "bind_failed", "node", "EADDRINUSE")
    kinds = [json.loads(line)["event"] for line in run("history", "-event:present,opened", "--jsonl")[1].splitlines()]
    assert kinds == ["started", "closed", "closed", "bind_failed", "stopped", "started", "stopped"]
    assert len(json.loads(run("history", "--events", "--json")[1])["events"]) == 13
    assert "\x1b" not in run("history", "--events")[1]


def test_csv_has_no_formula(run):
    rows = list(csv.DictReader(io.StringIO(run("history", "3000", "--csv")[1])))
    assert [row["name"] for row in rows] == [f"'{FORMULA}\\x1b[31m"]
    rows = list(csv.DictReader(io.StringIO(run("history", "3000", "--events", "--csv")[1])))
    assert [row["event"] for row in rows] == ["opened", "closed"]
    assert all(row["name"].startswith("'=") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--at", "2999-01-01"), "is in the future"),
        (("--at", "soon"), "'soon' is not a time; write 14:03"),
        (("--at", "1h", "--since", "2h"), "--at is one moment"),
        (("--since", "1h", "--until", "2h"), "--since is not before --until"),
        (("event:exploded",), "unknown event 'exploded'"),
        (("event:bind_faild",), "did you mean event:bind_failed?"),
        (("remote-port:80",), "the history does not have the field 'remote-port'"),
        (("event:opened", "--at", "1h"), "events have times"),
        (("verify", "8080"), "'8080' is too much"),
        (("verify", "--anchor", "1:zz"), "'1:zz' is not an anchor"),
        (("--anchor", "1:00"), "an anchor is checked by verify"),
    ],
)
def test_wrong_usage_is_one_line_with_what_to_do(run, arguments, message):
    code, out, err = run("history", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_strict_says_that_some_time_was_not_watched(run):
    assert run("history", "--strict")[0] == 3
    assert run("history", "--since", "170 min ago", "--until", "160 min ago", "--strict")[0] == 0


# --- who --at ------------------------------------------------------------------------------------------------------


def test_who_held_a_port_then(run):
    code, out, err = run("who", "8080", "--at", "150 min ago")
    assert (code, err) == (0, "")
    assert out.startswith("port 8080 was held by node (pid 40) at ")
    assert "  executable  /usr/bin/node\n" in out


def test_who_when_nobody_held_it(run):
    code, out, _ = run("who", "8080", "--at", "175 min ago")
    assert code == 1
    assert out.startswith("nobody held port 8080 at ")


@pytest.mark.parametrize(("port", "code"), [("9", 1), ("22", 0)])
def test_who_when_nobody_watched(run, port, code):
    """What was there before and after an interruption is taken for having been there; of the rest nothing is known."""
    result, out, err = run("who", port, "--at", "80 min ago")
    assert result == code
    assert ("as far as is known" if code == 0 else "it is not known who held port 9") in out
    assert "the watch did not run" in err
    assert run("who", port, "--at", "80 min ago", "--strict")[0] == 3


def test_who_answers_a_range_and_json(run):
    code, out, _ = run("who", "8000-9000", "--at", "150 min ago", "--json")
    (answer,) = map(json.loads, out.splitlines())
    assert (code, answer["port"], answer["held"], answer["watched"]) == (0, 8080, True, True)
    assert [i["name"] for i in answer["intervals"]] == ["node"]
    assert run("who", "53/udp", "--at", "150 min ago")[0] == 1
    assert run("who", "8080", "--at", "150 min ago", "--source", "procfs")[0] == 2


def test_db_without_at_is_a_mistake(capfd, path):
    assert exits.run(["who", "8080", "--db", path]) == 2
    assert "give --at too" in capfd.readouterr().err


# --- verify --------------------------------------------------------------------------------------------------------


def test_verify_and_its_anchor(run):
    anchor = run("history", "--anchor")[1].strip()
    code, out, _ = run("history", "verify", "--anchor", anchor)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "the anchor is in it: nothing before the anchor was altered",
        f"anchor: {anchor}",
    ]
    wrong = f"{anchor[:-1]}{'1' if anchor[-1] == '0' else '0'}"
    code, out, _ = run("history", "verify", "--anchor", wrong)
    assert code == 1
    assert "it is not the row of the anchor" in out
    assert run("history", "verify", "--anchor", f"99:{'0' * 64}")[0] == 1
    answer = json.loads(run("history", "verify", "--json")[1])
    assert (answer["whole"], answer["head"], answer["rows"]) == (True, anchor, 13)


def test_verify_names_what_was_altered(path, tmp_path, capfd):
    copy = tmp_path / "copy.db"
    copy.write_bytes(Path(path).read_bytes())
    with sqlite3.connect(copy) as database:
        database.execute("UPDATE events SET body = replace(body, 'node', 'evil') WHERE sequence = 6")
    database.close()
    assert exits.run(["history", "verify", "--db", str(copy)]) == 1
    out = capfd.readouterr().out
    assert "is not as it was written: event 6 (" in out
    assert "it was altered, or inserted" in out


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_history(tmp_path, capfd):
    other = tmp_path / "other.db"
    other.write_text("text\n" * 1000)
    for arguments in (["history"], ["history", "verify"], ["who", "80", "--at", "1h"], ["history", "--anchor"]):
        assert exits.run([*arguments, "--db", str(other)]) == 5
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        assert "is not a history; move it away, or name another with --db" in err
    assert exits.run(["history", "--db", str(tmp_path / "none.db")]) == 5
    assert "there is no history at" in capfd.readouterr().err
    assert exits.run(["history", "--db", str(tmp_path)]) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of Unix")
@pytest.mark.parametrize(("columns", "encoding"), [(80, "utf-8"), (200, "utf-8"), (80, "ascii")])
def test_the_picture_fits_a_terminal(path, columns, encoding):
    import pty
    import subprocess
    import termios

    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (50, columns))
    environment = os.environ | {"PYTHONIOENCODING": encoding, "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "portbook", "history", "--db", path]
    done = subprocess.run(command, stdout=follower, stderr=subprocess.DEVNULL, env=environment, timeout=60, check=True)
    os.close(follower)
    text = os.read(leader, 1 << 16).decode(encoding)
    os.close(leader)
    lines = text.splitlines()
    assert done.returncode == 0
    assert max(map(len, lines)) <= columns
    bar = "├node─" if encoding == "utf-8" else "|node-"
    assert any(line.startswith(" 8080/tcp") and bar in line for line in lines)
    assert any("not watched" in line for line in lines)
