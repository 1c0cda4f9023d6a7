"""Sockets as columns of text."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from portbook.records import Owner, Socket
from portbook.render import plain
from portbook.render.text import Style

NODE = Owner(812, "node", "/usr/bin/node", "ann", command_line=("/usr/bin/node", "server.js", "--port", "80"))
WEB = Socket("tcp", "ipv4", "0.0.0.0", 80, state="LISTEN", reach="any", uid=0, user="root", inode=7, owners=(NODE,))


def cells(s, **options):
    """The cells of the one row of a table, by the titles of their columns."""
    title, line = plain.lines([s], Style(**options))
    starts = [title.index(word) for word in title.split()] + [None]
    return {word: line[a:b].strip() for word, a, b in zip(title.split(), starts[:-1], starts[1:], strict=True)}


def test_the_user_is_that_of_the_process():
    assert cells(WEB)["USER"] == "ann"


def test_the_user_of_a_socket_without_a_visible_owner_is_in_parentheses():
    hidden = replace(WEB, owners=())
    assert cells(hidden)["USER"] == "(root)"
    assert cells(replace(hidden, user=None, uid=4711))["USER"] == "(4711)"
    assert "USER" not in cells(replace(hidden, user=None, uid=None))


@pytest.mark.parametrize("state", ["suspended", "traced", "uninterruptible", "zombie"])
def test_a_process_that_does_not_run_is_marked(state):
    assert cells(replace(WEB, owners=(replace(NODE, state=state),)))["PROCESS"] == f"node ({state})"
    assert cells(replace(WEB, owners=(replace(NODE, state="running"),)))["PROCESS"] == "node"


@pytest.mark.parametrize(
    ("reach", "shown"),
    [("none", "none"), ("multicast", "a multicast group"), ("broadcast", "broadcasts"), ("any", "every network")],
)
def test_reach_in_words(reach, shown):
    assert cells(replace(WEB, reach=reach))["REACH"] == shown


# --- the command ---------------------------------------------------------------------------------------------------


def test_a_wide_terminal_shows_the_command():
    assert cells(WEB, width=120)["COMMAND"] == "node server.js --port 80"


@pytest.mark.parametrize("width", [None, 80])
def test_elsewhere_it_is_not_shown(width):
    assert "COMMAND" not in cells(WEB, width=width)


def test_the_command_is_cut_to_the_width():
    long = replace(WEB, owners=(replace(NODE, command_line=("node", "x" * 70_000)),))
    _, line = plain.lines([long], Style(120))
    assert len(line) == 120
    assert line.endswith("x…")


@pytest.mark.parametrize(
    ("command_line", "shown"),
    [
        (("java", "-Da=b", "-Xmx1g", "-jar", "shop.jar"), "java -jar shop.jar"),
        (("nginx: master process /usr/sbin/nginx",), "nginx: master process /usr/sbin/nginx"),
        ((r"C:\Python\python.exe", "app.py"), "python.exe app.py"),
        (("-bash",), "-bash"),
        ((), ""),
        (None, ""),
        (("a\x1b[2J", "\u202e"), r"a\x1b[2J \u202e"),
    ],
)
def test_commands(command_line, shown):
    row = cells(replace(WEB, owners=(replace(NODE, command_line=command_line),)), width=150)
    assert row.get("COMMAND", "") == shown


# --- wide ----------------------------------------------------------------------------------------------------------

ALL = replace(
    WEB, owners=(replace(NODE, directory="/srv/shop", project="/srv/shop"),), accept_queue=1, backlog=128
)  # fmt: skip


def test_wide_without_a_limit_is_one_table():
    title, line = plain.lines([ALL], Style(), wide=True)
    assert {"PIDS", "INODE", "QUEUES", "EXECUTABLE", "DIRECTORY", "PROJECT", "COMMAND"} <= set(title.split())
    assert line.endswith("/usr/bin/node server.js --port 80")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_wide_fits_the_terminal_and_cuts_nothing(width):
    long = replace(ALL, owners=(replace(ALL.owners[0], command_line=("node", *["--option"] * 500)),))
    lines = plain.lines([ALL, long], Style(width), wide=True)
    assert max(map(len, lines)) <= max(width, len(lines[0]))  # a table does not become narrower than its titles
    text = " ".join(line.strip() for line in lines)
    assert "pids 812; inode 7; queues 1/128; executable /usr/bin/node; directory /srv/shop; project shop" in text
    assert text.count("--option") == 500


# --- relays --------------------------------------------------------------------------------------------------------


def test_a_relay_has_what_is_behind_it_as_its_service():
    proxy = Owner(9, "docker-proxy", service="docker.service")
    relayed = replace(WEB, owners=(proxy, NODE))
    title, line = plain.lines([relayed], Style(), targets={(9, 80, "tcp"): "docker:web\x1b"})
    assert line[title.index("SERVICE") :].startswith(r"to docker:web\x1b ")
    assert "docker.service" not in line
    title, line = plain.lines([relayed], Style(), targets={(9, 81, "tcp"): "docker:web"})
    assert line[title.index("SERVICE") :].startswith("docker.service ")
