"""What somebody most likely meant by a command line that is wrong. Imported when there is a mistake."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence

import click

from portbook.errors import nearest

# Words that people know from other programs, by the command that does this here.
SYNONYMS = {
    "stop": "kill end terminate close killport kill-port fkill stop-process taskkill release",
    "list": "ls ps show all ports status ss netstat lsof sockstat get-nettcpconnection tcpview",
    "who": "holder owner fuser find which whoami whose pid process",
    "why": "explain diagnose doctor check-port blame reason",
    "dial": "ping connect telnet nc ncat netcat test check test-netconnection tnc tcping curl openssl",
    "wait": "waitfor wait-for wait-for-it wait-on until",
    "free": "unused random get-port getport pick available",
    "lease": "reserve bind run exec hold",
    "scan": "nmap sweep masscan rustscan",
    "probe": "udp-scan udpscan snmp",
    "watch": "monitor follow observe tail log events solisten tcplife auditd",
    "policy": "allowlist allow-list whitelist rules compliance audit",
    "help": "/? usage commands",
    "--version": "version ver about",
}
COMMAND_OF = {word: command for command, words in SYNONYMS.items() for word in words.split()}
PROTOCOL = "write the protocol after the port: 8080/udp"
# Options of other programs: what to do instead of them. A command that has the option never comes here.
OPTIONS = {
    **dict.fromkeys(("-t", "--tcp", "-u", "--udp"), PROTOCOL),
    **dict.fromkeys(("-9", "-KILL", "-k", "--kill", "--signal"), "portbook stop PORT --force kills"),
    **dict.fromkeys(("-?", "--usage"), "did you mean --help?"),
}
OPTIONS_OF_LIST = {
    **OPTIONS,
    **dict.fromkeys(("-l", "--listening"), "listening ports are what is listed without options"),
    **dict.fromkeys(("-n", "--numeric", "-P", "-o", "-b"), "numbers and owners are always shown"),
}
COMPLETION = 'write eval "$(_PORTBOOK_COMPLETE=bash_source portbook)", or zsh_source, or fish_source'
MOST_WORDS, MOST_CHARACTERS = 6, 160  # of a command line that is repeated


def unknown_command(arguments: Sequence[str], commands: Iterable[str], default: str) -> str:
    """Say that a word is no command, with the command line that was probably meant."""
    word = arguments[0]
    if word.lower() in ("completion", "completions"):
        return f"no such command {word!r}; {COMPLETION}"
    meant = COMMAND_OF.get(word.lower()) or nearest(word.lower(), commands)
    if meant == "who" and "-k" in arguments:
        meant = "stop"  # fuser -k
    elif meant == "dial" and any(word in ("-u", "--udp", "-zvu", "-vzu", "-zu", "-uz", "-uzv") for word in arguments):
        meant = "probe"  # nc -u
    words = [default, word, *arguments[1:]] if meant is None else [meant, *_translated(word, meant, arguments[1:])]
    suggestion = _command_line(words)
    return f"no such command {word[:MOST_CHARACTERS]!r}; did you mean {suggestion}?"


def _translated(program: str, name: str, words: Sequence[str]) -> Sequence[str]:
    """Arguments of another program as those of a command, as far as there are any."""
    command = _command(name)
    if command is None:
        return words
    from portbook.cli import habits

    return habits.translate(program.lower(), command, words) or []


def _command(name: str) -> click.Command | None:
    from portbook.cli import portbook

    return portbook.get_command(click.Context(portbook), name)


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
        message = _unknown_option(error, arguments)
    return with_help(message, path)


def with_help(message: str, command_path: str) -> str:
    """The message, and where the right usage of a command is shown."""
    joint = "; see"
    if message.endswith("?"):
        joint = " see"
    return f"{message}{joint} {command_path} --help"


def _unknown_option(error: click.NoSuchOption, arguments: Sequence[str]) -> str:
    message = f"no such option {error.option_name[:MOST_CHARACTERS]}"
    options: list[str] = []
    if error.ctx is not None:
        options = [name for parameter in error.ctx.command.get_params(error.ctx) for name in parameter.opts]
    likely = nearest(error.option_name, [name for name in options if name.startswith("--")])
    command = error.ctx.command if error.ctx is not None else None
    is_list = command is not None and command.name == "list"
    hint = OPTIONS_OF_LIST.get(error.option_name) if is_list else OPTIONS.get(error.option_name)
    meant = _meant(command, arguments)
    if meant is not None:
        return f"{message}; {hint}: {meant}" if hint and is_list else f"{message}; write {meant}"
    if hint is not None:
        return f"{message}; {hint}"
    if likely is not None:
        return f"{message}; did you mean {likely}?"
    return message


def _meant(command: click.Command | None, arguments: Sequence[str]) -> str | None:
    """The command line with its foreign options translated; None if there is no translation."""
    if command is None or not command.name:
        return None
    from portbook.cli import habits

    words = arguments[1:] if arguments[:1] == [command.name] else arguments
    translated = habits.translate("", command, words)
    return None if translated is None else _command_line([command.name, *translated])
