"""Numbers of the command line: every option that has one, with everything that float() and int() read."""

from __future__ import annotations

import click
import pytest

import portbook
from portbook import cli
from portbook.cli import exits

DIGITS = "9" * 5000  # more than sys.get_int_max_str_digits()
NO_NUMBERS = ("nan", "-nan", "inf", "-inf", "infinity", "1e400", "1e308", "-1e-320", DIGITS, "", " ", "0x10", "1\0")


def number_options():
    context = click.Context(cli.portbook)
    for name in cli.COMMANDS:
        command = cli.portbook.get_command(context, name)
        for parameter in command.params:
            is_number = isinstance(parameter.type, click.types.FloatParamType | click.types.IntParamType)
            if is_number and isinstance(parameter, click.Option):
                yield name, parameter.opts[0]


def test_there_are_such_options():
    options = list(number_options())
    assert {("wait", "--timeout"), ("scan", "--deadline"), ("stop", "--timeout"), ("dial", "--count")} <= set(options)
    assert len(options) > 12


@pytest.mark.parametrize(("name", "option"), list(number_options()))
def test_what_is_no_usable_number_is_a_mistake(name, option, capsys):
    """Nothing is dialed, scanned or stopped."""
    arguments = {"scan": ["127.0.0.1", "-p", "1"], "free": [], "lease": ["--", "true"]}.get(name, ["127.0.0.1:1"])
    if name == "stop":
        arguments = ["1"]
    for text in NO_NUMBERS:
        assert exits.run([name, option, text, *arguments]) == exits.USAGE, text
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["dial", f"[fe80::1%{DIGITS}]:1"],
        ["why", "80", "--address", f"fe80::1%{DIGITS}", "--json"],
        ["free", "--address", f"fe80::1%{DIGITS}"],
        ["list", f"addr:fe80::1%{DIGITS}"],
        ["wait", f"[fe80::1%{DIGITS}]:1", "--timeout", "0.1"],
        ["scan", f"fe80::1%{DIGITS}", "-p", "1"],
        ["scan", f"127.0.0.{DIGITS}", "-p", "1"],
        ["scan", f"10.0.0.0/{DIGITS}", "-p", "1"],
        *([command, DIGITS] for command in ("who", "why", "stop")),
        *(["list", f"{field}:{DIGITS}"] for field in ("port", "pid", "inode", "netns", "user")),
    ],
    ids=lambda arguments: f"{arguments[0]}-{arguments[1][:6]}",
)
def test_five_thousand_digits_are_an_answer_or_a_mistake(arguments, monkeypatch):
    """int() raises ValueError for more than 4,300 digits: sys.set_int_max_str_digits()."""
    monkeypatch.setenv("COLUMNS", DIGITS)
    assert exits.run(arguments) in (0, 1, 2, 5)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1.0, 1e308, 10**400, "3"], ids=lambda value: str(value)[:9]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda value: portbook.dial("127.0.0.1:1", timeout_s=value),
        lambda value: portbook.wait_for("127.0.0.1:1", timeout_s=value),
        lambda value: portbook.scan("127.0.0.1", "1", limits=portbook.Limits(timeout_s=value)),
        lambda value: portbook.scan("127.0.0.1", "1", limits=portbook.Limits(rate=value)),
        lambda value: portbook.scan("127.0.0.1", "1", limits=portbook.Limits(deadline_s=value)),
        lambda value: portbook.scan("127.0.0.1", "1", limits=portbook.Limits(retries=value)),
    ],
    ids=["dial", "wait_for", "timeout", "rate", "deadline", "retries"],
)
def test_the_library_refuses_them_too(call, value):
    with pytest.raises(portbook.UsageError, match="is invalid"):
        call(value)
