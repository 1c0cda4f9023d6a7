"""A verdict in words: what people see, at every width and with hostile names."""

from __future__ import annotations

import re

import pytest

from portbook.addresses import Endpoint
from portbook.bind.attempt import BindAttempt, Options
from portbook.records import Owner, Socket
from portbook.render import verdict as render
from portbook.render.text import Style
from portbook.verdict.judge import judge
from portbook.verdict.situation import Situation

IN_USE = [BindAttempt(Endpoint("0.0.0.0"), 80, 98, "EADDRINUSE", "bind"), BindAttempt(Endpoint("::"), 80)]
EVIL = Owner(7, "x\n\x1b[2J\u202e", command_line=("a\rb",))
SOCKETS = (Socket("tcp", "ipv4", "127.0.0.1", 80, state="LISTEN", owners=(EVIL,)),)
NO = judge(Situation("linux", 80, sockets=SOCKETS, ephemeral=(1, 1000)), IN_USE)


def test_the_answer_comes_first():
    assert render.lines(NO, Style())[0] == "you cannot have port 80/tcp: 0.0.0.0:80 is in use, [::]:80 is free"
    yes = judge(Situation("linux", 80), [BindAttempt(Endpoint("0.0.0.0"), 80), BindAttempt(Endpoint("::"), 80)])
    assert render.lines(yes, Style())[0] == "you can have port 80/tcp: 0.0.0.0:80 and [::]:80 are free"
    unknown = judge(Situation("linux", 80, "udp"), [BindAttempt(Endpoint("::"), 80, 24, "EMFILE", "socket")])
    assert render.lines(unknown, Style())[0] == (
        "cannot tell whether you can have port 80/udp: [::]:80 cannot be bound (EMFILE)"
    )


def test_each_finding_has_its_remedy_and_each_bind_its_number():
    text = "\n".join(render.lines(NO, Style()))
    assert re.search(r"^  blocks   listener for 0\.0\.0\.0$", text, re.MULTILINE)
    assert re.search(r"^  warns    ephemeral-port$", text, re.MULTILINE)
    assert text.count("remedy: ") == 2
    assert "0.0.0.0:80 with SO_REUSEADDR: bind() failed with EADDRINUSE (98)" in text
    assert "[::]:80 with SO_REUSEADDR: bind() and listen() succeeded" in text


@pytest.mark.parametrize("width", [None, 20, 80, 200])
def test_nothing_a_process_chose_reaches_the_terminal(width):
    for line in render.lines(NO, Style(width=width)):
        assert line.isprintable()


def test_the_name_of_an_interface_is_escaped_too():
    where = Endpoint("fe80::1", "e\x1b[2J")
    situation = Situation("linux", 80, endpoints=(where,), foreign=("fe80::1",))
    for tried in (BindAttempt(where, 80), BindAttempt(where, 80, 99, "EADDRNOTAVAIL", "bind")):
        assert "\x1b" not in "".join(render.lines(judge(situation, [tried]), Style()))


@pytest.mark.parametrize("width", [80, 200])
def test_lines_fit(width):
    assert max(map(len, render.lines(NO, Style(width=width)))) <= width


def test_colour_is_by_severity_and_text_is_the_same():
    plain, coloured = render.lines(NO, Style(width=80)), render.lines(NO, Style(width=80, colour=True))
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == plain
    assert any("\x1b[31m  blocks" in line for line in coloured)


@pytest.mark.parametrize(
    ("platform", "options", "words"),
    [
        ("linux", Options(), "with SO_REUSEADDR:"),
        ("linux", Options(reuse_address=False), "0.0.0.0:80: bind() and listen() succeeded"),
        ("linux", Options(reuse_port=True), "with SO_REUSEADDR and SO_REUSEPORT:"),
        ("windows", Options(), "with SO_EXCLUSIVEADDRUSE:"),
        ("windows", Options("tcp", reuse_address=True), "with SO_REUSEADDR:"),
        ("linux", Options("udp"), "0.0.0.0:80: bind() succeeded"),
    ],
)
def test_the_options_of_the_bind_are_shown(platform, options, words):
    verdict = judge(Situation(platform, 80, options.protocol, options=options), [BindAttempt(Endpoint("0.0.0.0"), 80)])
    assert words in render.lines(verdict, Style())[-1]


def test_json_keeps_what_was_found():
    assert b'"name":"x\\n\\u001b[2J' in render.json(NO)
    assert render.json(NO).endswith(b"}\n")
