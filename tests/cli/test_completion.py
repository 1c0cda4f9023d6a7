"""Completion in real shells: bash and zsh on a terminal, with keys; fish asked for its completions."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest

from portbook import cli, query, records, sources, testing
from portbook.cli import completion
from portbook.query import grammar
from tests.components import need
from tests.conftest import unheld_port

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells of Unix")

COMMAND = os.path.join(os.path.dirname(sys.executable), "portbook")
LIMIT_S = 60.0
LISTENER = """
port = int(sys.argv[1])
server = socket.create_server(("127.0.0.1", port))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", port))
say()
wait()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home directory with hosts that ssh knows, some of them dangerous to a shell."""
    path = tmp_path_factory.mktemp("home")
    (path / ".ssh").mkdir()
    (path / ".ssh" / "known_hosts").write_text(
        "zeta-db.example,192.0.2.7 ssh-ed25519 AAAA\n|1|hashed= ssh-ed25519 AAAA\n"
        "zeta-$(touch${IFS}bad) ssh-ed25519 AAAA\n@revoked zeta-revoked ssh-ed25519 AAAA\n"
    )
    (path / ".ssh" / "config").write_text("Host zeta-web *.example !zeta-not\n  HostName x\n")
    return path


@pytest.fixture(scope="module")
def environment(home):
    path = os.path.dirname(COMMAND) + os.pathsep + os.environ["PATH"]
    plain = {name: os.environ[name] for name in ("SYSTEMROOT", "VIRTUAL_ENV") if name in os.environ}
    return {
        **plain,
        "PATH": path,
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture(scope="module")
def listener():
    """A process with a port for TCP and UDP: the port and the pid."""
    port = unheld_port()
    with testing.child(LISTENER, str(port)) as child:
        yield port, child.pid


# --- fish: the completion engine itself, without a terminal --------------------------------------------------------


@pytest.fixture(scope="module")
def fish(environment):
    need(shutil.which("fish") is not None, "fish")

    def ask(*lines: str) -> list[dict[str, str]]:
        """Value to description, for each command line."""
        script = "_PORTBOOK_COMPLETE=fish_source portbook | source\n"
        script += "\n".join(f"complete -C '{line}'; echo ----" for line in lines)
        done = subprocess.run(
            ["fish", "--no-config", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
        assert done.stderr == ""
        answers = done.stdout.split("----\n")[: len(lines)]
        return [dict(row.partition("\t")[::2] for row in answer.splitlines()) for answer in answers]

    return ask


def test_fish_shows_whole_descriptions(fish):
    commands, states = fish("portbook ", "portbook list --st")
    assert set(commands) == set(cli.COMMANDS)
    for name, about in commands.items():
        help_text = cli.portbook.get_command(click.Context(cli.portbook), name).help
        assert about
        assert " ".join(help_text.split()).startswith(about)
    assert states["--state"] == "listen, established, time_wait, …, or listening, connected, all"


def test_fish_completes_values(fish, listener):
    port, pid = listener
    stop, word, first, state, term, group, host, more = fish(
        f"portbook stop {port}", "portbook list state:time", f"portbook {port}", "portbook --state=time",
        "portbook list proto", "portbook scan -p @we", "portbook dial zeta-", f"portbook why 80,{port}",
    )  # fmt: skip
    assert set(stop) == {str(port), f"{port}/udp"}
    assert all(f"(pid {pid})" in about for about in stop.values())
    assert list(word) == ["state:time_wait"]
    assert str(port) in first
    assert list(state) == ["--state=time_wait"]
    assert list(term) == ["protocol:"]
    assert group == {"@web": "HTTP, over TLS too, on registered and on customary ports"}
    assert list(host) == ["zeta-db.example", "zeta-web"]
    assert set(more) == {f"80,{port}", f"80,{port}/udp"}


def test_fish_completes_options_of_commands_that_others_need(fish):
    source, sort, reach, topic, address = fish(
        "portbook who 1 --source proc", "portbook --sort re", "portbook list --reach lo", "portbook help le",
        "portbook why 1 --address local",
    )  # fmt: skip
    assert list(source) == ["procfs"] or sys.platform != "linux"
    assert {"remote-port", "remote-address", "reach"} <= set(sort)
    assert reach == {"loopback": "from this machine only"}
    assert list(topic) == ["lease"]
    assert list(address) == ["localhost"]


# --- bash and zsh: keys on a terminal ------------------------------------------------------------------------------

START = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "PS1='> '; eval \"$(_PORTBOOK_COMPLETE=bash_source portbook)\"; bind 'set bell-style none'; "
        'bind \'set show-all-if-ambiguous on\'; bind -x \'"\\C-t": printf "<%s>\\n" "$READLINE_LINE"\'; '
        "echo rea''dy\n",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PS1='> '; autoload -Uz compinit; compinit -u -D; eval \"$(_PORTBOOK_COMPLETE=zsh_source portbook)\"; "
        "setopt no_beep no_always_last_prompt; show() { print -r -- $'\\n'\"<$BUFFER>\" }; zle -N show; "
        "bindkey '^T' show; "
        "echo rea''dy\n",
    ),
}


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, shell: str, environment: dict[str, str]) -> None:
        import fcntl
        import pty
        import struct
        import termios

        arguments, start = START[shell]
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        self.process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        os.write(self.ours, start.encode())
        self.read_until("ready")

    def read_until(self, text: str) -> str:
        seen = b""
        deadline = time.monotonic() + LIMIT_S
        while text.encode() not in seen:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {seen!r}"
            seen += os.read(self.ours, 65536)
        return seen.decode("utf-8", "replace")

    def complete(self, line: str) -> tuple[str, str]:
        """Type a line and Tab: the line then, and what was shown meanwhile. Ctrl-T shows the line, Ctrl-U clears it."""
        os.write(self.ours, f"{line}\t\x14".encode())
        seen = ""
        while "<portbook" not in seen:
            seen += self.read_until(">\r\n")
        os.write(self.ours, b"\x15")
        return seen.rpartition("<portbook")[2].partition(">")[0], seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)
        os.close(self.ours)


@pytest.fixture(params=["bash", "zsh"], scope="module")
def terminal(request, environment):
    need(shutil.which(request.param) is not None, request.param)
    opened = Terminal(request.param, environment)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("portbook wh", "portbook wh"),  # who and why
        ("portbook len", "portbook len"),
        ("portbook leas", "portbook lease "),
        ("portbook list --stat", "portbook list --state "),
        ("portbook list --state time", "portbook list --state time_wait "),
        ("portbook list --state=time", "portbook list --state=time_wait "),
        ("portbook --state time", "portbook --state time_wait "),
        ("portbook list --state listen,time", "portbook list --state listen,time_wait "),
        ("portbook list state:time", "portbook list state:time_wait "),
        ("portbook list proto", "portbook list protocol:"),
        ("portbook scan localhost -p @we", "portbook scan localhost -p @web "),
        ("portbook scan zeta-d", "portbook scan zeta-db.example "),
        ("portbook list --sort remote-p", "portbook list --sort remote-port "),
        ("portbook help sour", "portbook help sources "),
    ],
)
def test_a_word_is_completed(terminal, typed, completed):
    assert terminal.complete(typed)[0] == completed.removeprefix("portbook")


def test_ports_that_are_held_now(terminal, listener):
    port, pid = listener
    line, seen = terminal.complete(f"portbook stop {port}")
    assert line == f" stop {port}"  # TCP or UDP
    assert f"{port}/udp" in seen
    assert terminal.complete(f"portbook stop {port}/u")[0] == f" stop {port}/udp "
    assert terminal.complete(f"portbook dial localhost:{port}")[0] == f" dial localhost:{port} "
    if terminal.process.args[0] == "zsh":
        assert f"(pid {pid})" in seen


# --- the tables ----------------------------------------------------------------------------------------------------


def parameters() -> set[tuple[str, str]]:
    found = set()
    for command in commands():
        found |= {(command.name, parameter.name) for parameter in command.params}
    return found


def commands() -> Iterator[click.Command]:
    """Every command, and the commands of groups."""
    for name in cli.COMMANDS:
        command = cli.portbook.get_command(click.Context(cli.portbook), name)
        yield command
        if isinstance(command, click.Group):
            yield from (command.get_command(click.Context(command), each) for each in command.summaries)


def test_the_summaries_of_a_group_are_those_of_its_commands():
    for group in filter(lambda each: isinstance(each, click.Group), commands()):
        found = {name: group.get_command(None, name).get_short_help_str() for name in group.list_commands(None)}
        assert found == group.summaries


def test_every_parameter_in_the_tables_exists():
    known = parameters()
    for command, name in (*completion.VALUES, *completion.FILES):
        assert (command, name) in known or (command == "" and any(name == n for _, n in known)), (command, name)


def test_the_summaries_are_those_of_the_commands():
    context = click.Context(cli.portbook)
    summaries = {name: cli.portbook.get_command(context, name).get_short_help_str() for name in cli.COMMANDS}
    assert summaries == completion.SUMMARIES


def test_the_tables_are_those_of_the_query_and_the_sources():
    assert list(completion.STATES) == [state.lower() for state in records.STATES]
    assert list(completion.STATE_GROUPS) == [group.lower() for group in query.STATE_GROUPS]
    assert {name: field.about for name, field in query.FIELDS.items()} == completion.FIELDS
    assert {word: f"{name}:{value}" for word, (name, value) in grammar.WORDS.items()} == completion.WORDS
    assert {name: sources.load(name).sees for name in sources.SOURCES} == completion.SOURCES


@pytest.mark.parametrize("value", ["$(id)", "`id`", "a b", "a;b", "a'b", "-\x1b[2J", "a\nb", "ü"])
def test_a_value_that_a_shell_may_act_upon_is_not_offered(value):
    assert list(completion._items([(value, ""), ("fine", "a\x1b[2Jb\n")], "", "")) != []
    (item,) = completion._items([(value, ""), ("fine", "a\x1b[2Jb\n")], "", "")
    assert item.value == "fine"
    assert "\x1b" not in item.help
    assert "\n" not in item.help


@pytest.mark.parametrize(
    "line", ["", "portbook", 'portbook list "', "portbook who 80,", "portbook \\", "portbook list state:", "portbook -"]
)
def test_any_line_is_answered_without_an_error(line, monkeypatch, capfd):
    monkeypatch.setenv("COMP_LINE", line)
    assert completion.run(cli.portbook, "portbook", "_PORTBOOK_COMPLETE", "bash_complete") == 0
    assert capfd.readouterr().err == ""


def test_the_words_of_a_script_of_click_are_taken_too(monkeypatch, capfd):
    monkeypatch.delenv("COMP_LINE", raising=False)
    monkeypatch.setenv("COMP_WORDS", "portbook list --sta")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert completion.run(cli.portbook, "portbook", "_PORTBOOK_COMPLETE", "bash_complete") == 0
    assert capfd.readouterr().out == "plain,--state\n"


def test_what_cannot_be_read_is_not_completed(monkeypatch):
    def fails(*_):
        raise OSError("nothing to read")

    monkeypatch.setitem(completion.VALUES, ("who", "ports"), fails)
    assert completion.complete_value(click.Context(click.Command("who"), info_name="who"), "ports", "") == []
