"""What people type who know other programs: the message shows the command to type, and portbook accepts that one."""

from __future__ import annotations

import shlex

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook import cli
from portbook.cli import habits, mistakes

# What was typed behind "portbook", and the command line in the message.
LINES = [
    ("-tulpn", "list -t -u"),
    ("-ano", "list -a"),
    ("-i :8080", "list 8080"),
    ("-iTCP:8080", "list 8080/tcp"),
    ("ss -tulpn", "list -t -u"),
    ("ss -ltnp 8080", "list -t 8080"),
    ("netstat -anp tcp", "list -a tcp"),
    ("netstat -ano", "list -a"),
    ("lsof -nP -iTCP:8080 -sTCP:LISTEN", "list 8080/tcp"),
    ("lsof -t -i:8080", "list 8080"),
    ("lsof -i udp:53", "list 53/udp"),
    ("lsof -p 1234", "list --pid 1234"),
    ("Get-NetTCPConnection -LocalPort 8080 -State Listen", "list 8080 --state Listen"),
    ("fuser 8080/tcp", "who 8080/tcp"),
    ("fuser -n udp 53", "who 53/udp"),
    ("fuser -k 8080/tcp", "stop 8080/tcp"),
    ("fuser -k -n tcp 8080", "stop 8080/tcp"),
    ("who -u 53", "who 53/udp"),
    ("why --udp 53", "why 53/udp"),
    ("kill -9 8080", "stop --force 8080"),
    ("stop -9 8080", "stop --force 8080"),
    ("stop udp 53 -9", "stop 53/udp --force"),
    ("kill-port 8080 --method tcp", "stop 8080"),
    ("taskkill /F /PID 1234", "stop"),  # the number is no port
    ("dial -zv localhost 8080", "dial localhost 8080"),
    ("nc -zv -w 5 localhost 8080", "dial --timeout 5 localhost 8080"),
    ("nc -w5 localhost 8080", "dial --timeout 5 localhost 8080"),
    ("nc -zvu localhost 53", "probe localhost 53"),
    ("tcping -n 3 localhost 8080", "dial --count 3 localhost 8080"),
    ("tcping -t localhost 8080", "dial localhost 8080"),
    ("Test-NetConnection -ComputerName localhost -Port 8080", "dial localhost 8080"),
    ("openssl s_client -connect localhost:443 -servername x", "dial --tls localhost:443 --server-name x"),
    ("nmap -sT -p- localhost", "scan -p 1-65535 localhost"),
    ("nmap -sV -Pn localhost -p 22", "scan --banner localhost -p 22"),
    ("scan localhost -oX x.xml", "scan localhost --nmap-xml x.xml"),
    ("scan --top-ports 10 localhost", "scan localhost"),
    ("wait -t 5 8080", "wait --timeout 5 8080"),
    ("wait-for-it localhost:8080 -t 5 -- true", "wait localhost:8080 --timeout 5 -- true"),
    ("free --count 3", "free -n 3"),
]


def parse(arguments: list[str]) -> None:
    with cli.portbook.make_context("portbook", list(arguments)) as context:
        # click 8.2 deprecates the name without the underscore, which is the only one in 8.1.
        protected = context._protected_args if hasattr(context, "_protected_args") else context.protected_args
        name, command, rest = cli.portbook.resolve_command(context, [*protected, *context.args])
        command.make_context(name, rest, parent=context)


def complaint(arguments: list[str]) -> str:
    with pytest.raises(click.UsageError) as raised:
        parse(arguments)
    return mistakes.describe(raised.value, arguments)


@pytest.mark.parametrize(("typed", "meant"), LINES)
def test_the_message_shows_a_command_that_is_accepted(typed, meant):
    message = complaint(shlex.split(typed))
    shown = message.partition("; see ")[0].partition("? see ")[0]
    assert shown.rpartition("portbook ")[2] == meant
    name, *words = shlex.split(meant)
    command = cli.portbook.get_command(click.Context(cli.portbook), name)
    before = words[: words.index("--")] if "--" in words else words
    command.make_parser(click.Context(command)).parse_args(before)  # raises UsageError


WORDS = st.sampled_from(
    sorted({w for table in habits.OF_COMMANDS.values() for w in table} | set("123u") | {"--", "-p"})
)


@given(st.sampled_from(sorted(cli.COMMANDS)), st.sampled_from(["", *habits.OF_PROGRAMS]), st.lists(WORDS, max_size=6))
def test_any_words_have_a_translation_that_is_accepted_or_none(name, program, words):
    command = cli.portbook.get_command(click.Context(cli.portbook), name)
    translated = habits.translate(program, command, words)
    if translated is not None:
        before = translated[: translated.index("--")] if "--" in translated else translated
        command.make_parser(click.Context(command)).parse_args(list(before))
