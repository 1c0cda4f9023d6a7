"""What somebody most likely meant by a command line that is wrong. Imported when there is a mistake."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence

import click

from portbook.errors import nearest

# Words that people know from other programs, by the command that does this here.
SYNONYMS = {
    "stop": "kill end terminate close killport kill-port fkill fuser stop-process taskkill release",
    "list": "ls ps show all ports status ss netstat lsof sockstat get-nettcpconnection tcpview",
    "who": "holder owner find which whoami whose pid process",
    "why": "explain diagnose doctor check-port blame reason",
    "dial": "ping connect telnet nc ncat netcat test check test-netconnection tnc tcping curl",
    "wait": "waitfor wait-for wait-for-it wait-on watch until",
    "free": "unused random get-port getport pick available",
    "lease": "reserve bind run exec hold",
    "scan": "nmap sweep masscan rustscan",
    "probe": "udp-scan udpscan snmp",
    "help": "/? usage commands",
    "--version": "version ver about",
}
COMMAND_OF = {word: command for command, words in SYNONYMS.items() for word in words.split()}
PROTOCOL = "write the protocol after the port: 8080/udp"
# Options of other programs: what to do instead of them. A command that has the option never comes here.
OPTIONS = {
    **dict.fromkeys(("-t", "--tcp", "-u", "--udp"), PROTOCOL),
    **dict.fromkeys(("-l", "--listening"), "listening ports are what is listed without options"),
    **dict.fromkeys(("-n", "--numeric", "-P", "-o", "-b"), "numbers and owners are always shown"),
    **dict.fromkeys(("-9", "-KILL", "-k", "--kill", "--signal"), "portbook stop PORT --force kills"),
    **dict.fromkeys(("-?", "--usage"), "did you mean --help?"),
}
COMPLETION = 'write eval "$(_PORTBOOK_COMPLETE=bash_source portbook)", or zsh_source, or fish_source'
MOST_WORDS, MOST_CHARACTERS = 6, 160  # of a command line that is repeated


def unknown_command(arguments: Sequence[str], commands: Iterable[str], default: str) -> str:
    """Say that a word is no command, with the command line that was probably meant."""
    word = arguments[0]
    if word.lower() in ("completion", "completions"):
        return f"no such command {word!r}; {COMPLETION}"
    meant = COMMAND_OF.get(word.lower()) or nearest(word.lower(), commands)
    words = [default, word] if meant is None else [meant]
    suggestion = _command_line([*words, *arguments[1:]])
    return f"no such command {word[:MOST_CHARACTERS]!r}; did you mean {suggestion}?"


def unknown_topic(name: str, commands: Sequence[str]) -> str:
    """Say that there is no help about a word, and about what there is."""
    meant = COMMAND_OF.get(name.lower()) or nearest(name.lower(), commands)
    message = f"no such command {name[:MOST_CHARACTERS]!r}"
    if meant in commands:
        return f"{message}; did you mean portbook help {meant}?"
    return f"{message}; valid commands are {', '.join(commands)}"


def _command_line(words: Sequence[str]) -> str:
    join = shlex.join
    if sys.platform == "win32":
        from subprocess import list2cmdline as join
    text = f"portbook {join(words)}"
    if len(words) > MOST_WORDS or len(text) > MOST_CHARACTERS:
        return f"portbook {words[0]}"
    return text


def describe(error: click.UsageError, arguments: Sequence[str]) -> str:
    """What is wrong, what was probably meant, and where the right usage is."""
    from portbook.cli import COMMANDS, DEFAULT

    path = f"portbook {next((word for word in arguments[:1] if word in COMMANDS), DEFAULT)}"
    if error.ctx is not None:
        path = error.ctx.command_path
    message = error.format_message().strip().rstrip(".")
    message = message[:1].lower() + message[1:]
    if isinstance(error, click.NoSuchOption):
        message = _unknown_option(error)
    return with_help(message, path)


def with_help(message: str, command_path: str) -> str:
    """The message, and where the right usage of a command is shown."""
    joint = "; see"
    if message.endswith("?"):
        joint = " see"
    return f"{message}{joint} {command_path} --help"


def _unknown_option(error: click.NoSuchOption) -> str:
    message = f"no such option {error.option_name[:MOST_CHARACTERS]}"
    options: list[str] = []
    if error.ctx is not None:
        options = [name for parameter in error.ctx.command.get_params(error.ctx) for name in parameter.opts]
    likely = nearest(error.option_name, [name for name in options if name.startswith("--")])
    hint = OPTIONS.get(error.option_name)
    if hint is not None:
        return f"{message}; {hint}"
    if likely is not None:
        return f"{message}; did you mean {likely}?"
    return message
