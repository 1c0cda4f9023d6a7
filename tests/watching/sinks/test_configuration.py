"""Sinks as people write them, and secrets."""

from __future__ import annotations

import os
import pickle
import tomllib

import pytest

from portbook.errors import PortbookError, StoreError, UsageError
from portbook.watching.sinks import SINKS, configuration, secret
from portbook.watching.sinks.configuration import parse_table, parse_text
from portbook.watching.sinks.secret import Secret
from tests.components import need
from tests.conftest import NOBODY, ROOT
from tests.watching.sinks.events import settings


@pytest.mark.parametrize(
    ("text", "kind", "target", "severity"),
    [
        ("text:/var/log/portbook.log", "text", "/var/log/portbook.log", "info"),
        ("jsonl:-", "jsonl", "-", "quiet"),
        ("syslog:unix", "syslog", "unix", "info"),
        ("syslog:tcp://127.0.0.1:514", "syslog", "tcp://127.0.0.1:514", "info"),
        ("journald", "journald", "", "info"),
        ("webhook:https://example.org/x", "webhook", "https://example.org/x", "info"),
        ("command:/usr/local/bin/hook arg", "command", "/usr/local/bin/hook arg", "info"),
    ],
)
def test_a_word_of_the_command_line(text, kind, target, severity):
    sink = parse_text(text, "--sink")
    assert (sink.kind, sink.target, sink.severity, sink.place) == (kind, target, severity, "--sink")


@pytest.mark.parametrize("text", ["", "https://user:hunter2@example.org/", "Text:/x", "jsonl2:/x", ":x"])
def test_an_unknown_kind_says_what_is_valid(text):
    with pytest.raises(UsageError, match=f"valid kinds are {', '.join(SINKS)}") as refused:
        parse_text(text, "--sink")
    assert "hunter2" not in str(refused.value)


def test_a_misspelt_kind_is_guessed():
    with pytest.raises(UsageError, match=r"--sink: there is no sink 'jsonll'; did you mean 'jsonl'\?"):
        parse_text("jsonll:/x", "--sink")


TABLE = """
type = "syslog"
target = "udp://127.0.0.1:514"
severity = "warning"
facility = "local3"
max_bytes = 1024
"""


def test_a_table():
    sink = parse_table(tomllib.loads(TABLE), "watch.toml:1")
    assert (sink.kind, sink.target, sink.severity) == ("syslog", "udp://127.0.0.1:514", "warning")
    assert (sink.options["facility"], sink.options["max_bytes"], sink.options["hostname"]) == ("local3", 1024, None)
    assert sink.given == {"facility", "max_bytes"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'the sink has no type; write type = "text"'),
        ("type = 1", "the sink has no type"),
        ('type = "sislog"', "there is no sink 'sislog'; did you mean 'syslog'"),
        ('type = "syslog"\nfacilty = "x"', "unknown key 'facilty' of the sink syslog; did you mean facility"),
        (
            'type = "journald"\nzzz = 1',
            "unknown key 'zzz' of the sink journald; valid keys of journald are type, target",
        ),
        ('type = "text"\ntarget = 1', "target = 1 is not a text"),
        ('type = "text"\ntarget = "a\\nb"', "target has an unprintable character"),
        ('type = "text"\nseverity = "loud"', "'loud' is no severity; valid values are quiet, info, warning, critical"),
        ('type = "text"\nrotate_bytes = "1M"', "rotate_bytes = '1M' is not a whole number"),
        ('type = "text"\nrotate_bytes = true', "rotate_bytes = true is not a whole number"),
        ('type = "text"\nrotate_bytes = -1', "rotate_bytes = -1 is out of range"),
        ('type = "text"\nkeep = 0', "keep = 0 is out of range; valid are 1 to 10,000"),
        ('type = "syslog"\nfacility = "local9"', "facility = 'local9' is not valid; valid values are kern, user"),
        ('type = "webhook"\ninsecure = 1', "insecure = 1 is not true or false"),
        ('type = "webhook"\nsecret = "hunter2"', "unknown key 'secret' of the sink webhook"),
        ('type = "command"\nenvironment = "HOME"', "environment = 'HOME' is not a list of texts"),
        ('type = "command"\nenvironment = [1]', "is not a list of texts"),
        ('type = "command"\ntimeout_s = 0', "timeout_s = 0 is out of range"),
    ],
)
def test_a_table_that_is_not_valid_names_the_line_of_the_key(text, words):
    lines = {line.partition(" ")[0]: number for number, line in enumerate(text.splitlines(), 8)}
    with pytest.raises(UsageError) as refused:
        parse_table(tomllib.loads(text), "watch.toml:7", lambda key: f"watch.toml:{lines.get(key, 7)}")
    message = str(refused.value)
    assert words in message
    assert message.startswith(f"watch.toml:{7 + len(text.splitlines()) if len(lines) > 1 else message[11]}")
    assert "hunter2" not in message


def test_every_option_of_every_kind_can_be_given():
    for kind in SINKS:
        row = configuration.load(kind, "test")
        values = {"number": 5, "text": "x", "flag": True, "texts": ["x"]}
        given = {name: values[option.type] for name, option in row.options.items()}
        given.update({name: option.words[0] for name, option in row.options.items() if option.words})
        given.update({name: option.least for name, option in row.options.items() if option.least > 5})
        sink = parse_table({"type": kind, **given}, "test")
        assert sink.given == row.options.keys()


# --- secrets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"hunter2\r\n")
    path.chmod(0o600)
    return path


def read(path=None, **options):
    return secret.read(
        settings("webhook", "https://127.0.0.1/", **options, **({"secret_file": str(path)} if path else {})), "secret"
    )


def test_a_secret_from_a_file(path):
    assert read(path).reveal() == b"hunter2"


def test_a_secret_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME", "hunter2")
    assert read(secret_env="SOME").reveal() == b"hunter2"
    monkeypatch.delenv("PORTBOOK_WEBHOOK_SECRET", raising=False)
    assert read() is None


def test_a_variable_that_was_named_must_be_there(monkeypatch):
    monkeypatch.delenv("SOME", raising=False)
    table = {"type": "webhook", "target": "https://127.0.0.1/", "secret_env": "SOME"}
    with pytest.raises(UsageError, match="the environment has no SOME"):
        secret.read(parse_table(table, "test"), "secret")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_file_that_others_may_read_is_refused(path, mode):
    path.chmod(mode)
    with pytest.raises(StoreError, match=f"others may read the secret .*chmod 600 {path}"):
        read(path)


def test_a_file_that_is_not_ours_is_refused(path):
    need(ROOT, "root, to give a file away")
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(StoreError, match="belongs to another user"):
        read(path)


def test_a_link_to_a_secret_is_refused(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StoreError, match="is a link"):
        read(tmp_path / "link")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    for place in (tmp_path / "fifo", tmp_path, tmp_path / "none", "/dev/zero"):
        with pytest.raises(StoreError):
            read(place)


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b"\r\n", "is empty"), (b"x" * 5000, "longer than")])
def test_a_secret_has_a_reasonable_length(path, content, words):
    path.write_bytes(content)
    with pytest.raises(StoreError, match=words) as refused:
        read(path)
    assert "xxx" not in str(refused.value)


def test_a_secret_is_never_printed_or_pickled():
    one = Secret(b"hunter2")
    assert "hunter2" not in f"{one!r} {one} {[one]} {(one,)!s}"
    assert not hasattr(one, "__dict__")
    with pytest.raises(TypeError):
        pickle.dumps(one)


def test_errors_of_sinks_are_errors_of_portbook():
    for kind in (UsageError, StoreError):
        assert issubclass(kind, PortbookError)
