"""Command lines of other programs in portbook's words: what people type who know ss, lsof, nc or nmap.

Pure, and imported when there is a mistake: what is made here is shown and never run. A translation is offered only if
the command has every option of it.

Sources: ss(8), netstat(8), lsof(8), fuser(1), nc(1), nmap(1), openssl-s_client(1); netstat, Get-NetTCPConnection and
Test-NetConnection on learn.microsoft.com; the usage texts of tcping, wait-for-it and kill-port.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from portbook.records import PROTOCOLS

VALUE = "{}"  # in a translation: the value of the option, so that the option takes one
LEFT_OUT = ""  # what the option asks for is done anyway, or is no part of the answer
VALUE_LEFT_OUT = "{:.0}"  # the value too
WITH_PROTOCOL = frozenset(("who", "why", "stop"))  # commands that take the protocol behind a port, not as an option
PROTOCOL_OPTIONS = {"-u": "udp", "--udp": "udp", "-t": "tcp", "--tcp": "tcp", "udp": "udp", "tcp": "tcp"}
# Options whose value is a number, in some of the programs that have them: without a number they are flags.
COUNTS = frozenset(("-c", "-i", "-n", "-t", "-w"))

Translations = dict[str, str]  # option of another program: words instead of it


def _left_out(*names: str) -> Translations:
    return dict.fromkeys(names, LEFT_OUT)


OF_COMMANDS: dict[str, Translations] = {
    "list": {
        **_left_out("-l", "-n", "-o", "-b", "-e", "-P", "--listening", "--numeric", "--processes", "--programs"),
        "-i": VALUE,
        "-LocalPort": VALUE,
        "-State": f"--state {VALUE}",
        "-OwningProcess": f"--pid {VALUE}",
    },
    "stop": {
        **dict.fromkeys(("-9", "-KILL", "-SIGKILL", "--kill"), "--force"),
        **_left_out("-k", "-15", "-TERM", "-SIGTERM", "-v", "-i"),
        **dict.fromkeys(("-s", "--signal", "--method"), VALUE_LEFT_OUT),
        "--port": VALUE,
    },
    "dial": {
        **_left_out("-z", "-v", "-4", "-6", "--verbose"),
        **dict.fromkeys(("-w", "-t", "-i", "--connect-timeout", "--max-time"), f"--timeout {VALUE}"),
        **dict.fromkeys(("-c", "-n"), f"--count {VALUE}"),
        **dict.fromkeys(("-Port", "-ComputerName", "--port"), VALUE),
        "-connect": f"{VALUE} --tls",
        "-servername": f"--server-name {VALUE}",
    },
    "wait": {
        **dict.fromkeys(("-t", "-w"), f"--timeout {VALUE}"),
        **_left_out("-q", "--quiet", "-s", "--strict", "-v"),
    },
    "probe": {**_left_out("-u", "--udp", "-z", "-v", "-4", "-6"), "-w": f"--timeout {VALUE}"},
    "free": dict.fromkeys(("-c", "--count", "--number"), f"-n {VALUE}"),
    "scan": {
        **_left_out("-sT", "-sS", "-sC", "-Pn", "-n", "-A", "-O", "-v", "-F", "-T3", "-T4", "-T5", "--reason"),
        "--top-ports": VALUE_LEFT_OUT,
        "-sV": "--banner",
        "-sU": "--udp",
        "-p-": "-p 1-65535",
        "-oX": f"--nmap-xml {VALUE}",
        "-iL": f"@{VALUE}",
        "--max-rate": f"--rate {VALUE}",
    },
}
# Options that mean something else here; they come before those of the command.
OF_PROGRAMS: dict[str, Translations] = {
    "ss": _left_out("-p", "-s", "-m"),
    "netstat": _left_out("-p", "-s", "-w"),
    "lsof": {**_left_out("-t", "-a", "-w"), "-p": f"--pid {VALUE}", "-u": f"--user {VALUE}", "-s": VALUE_LEFT_OUT},
    "fuser": _left_out("-n", "-k", "-i", "-v"),
    "openssl": {"s_client": "--tls", "-connect": VALUE},
}


def translate(program: str, command: click.Command, words: Sequence[str]) -> list[str] | None:
    """The words of another program's command line as arguments of a command; None if one has no translation."""
    name = command.name or ""
    rules = {**OF_COMMANDS.get(name, {}), **OF_PROGRAMS.get(program, {})}
    own = {option for parameter in command.params for option in parameter.opts} - OF_PROGRAMS.get(program, {}).keys()
    end = list(words).index("--") if "--" in words else len(words)
    translated = list(_each(list(words[:end]), rules, own, name))
    if name in WITH_PROTOCOL:
        translated = _with_protocol(translated)
    translated += words[end:]
    return translated if _is_accepted(command, translated) else None


def _each(words: list[str], rules: Translations, own: set[str], name: str) -> Iterator[str]:
    while words:
        word = words.pop(0)
        if word in rules and word not in own:
            yield from _apply(rules[word], word, words)
        elif word in own or not word.startswith("-"):
            yield _lsof_address(word) if name == "list" else word
        else:
            yield from _expand(word, words, rules, own)


def _expand(word: str, words: list[str], rules: Translations, own: set[str]) -> Iterator[str]:
    """``-tulpn`` and ``-w5``; a flag of this command is kept."""
    option, value = word[:2], word[2:]
    if rules.get(option, LEFT_OUT) != LEFT_OUT and value and option not in own:
        yield from _apply(rules[option], option, [value])
        return
    letters = [f"-{letter}" for letter in word[1:]]
    if word.startswith("--") or not all(letter in rules or letter in own or letter == "-p" for letter in letters):
        yield word
        return
    for letter in letters:
        if letter in rules and letter not in own:
            yield from _apply(rules[letter], letter, words if letter == letters[-1] else [])
        elif letter != "-p":  # of ss and netstat: processes, which are always shown
            yield letter


def _apply(translation: str, option: str, words: list[str]) -> Iterator[str]:
    if "{" not in translation:
        yield from translation.split()
    elif option not in COUNTS or (words and words[0].replace(".", "").isdigit()) or (option == "-i" and words):
        value = words.pop(0) if words else ""
        yield from (_lsof_address(part.format(value)) for part in translation.split() if part.format(value))


def _lsof_address(word: str) -> str:
    """``TCP:8080`` and ``:8080`` of ``lsof -i`` as a port."""
    protocol, colon, port = word.rpartition(":")
    if colon and protocol.lower() in PROTOCOLS:
        return f"{port}/{protocol.lower()}"
    return port if colon and not protocol and port.isdigit() else word


def _with_protocol(words: list[str]) -> list[str]:
    """``-u 53`` and ``udp 53`` as ``53/udp``."""
    protocols = [PROTOCOL_OPTIONS[word.lower()] for word in words if word.lower() in PROTOCOL_OPTIONS]
    if len(set(protocols)) != 1:
        return words
    kept = [word for word in words if word.lower() not in PROTOCOL_OPTIONS]
    return [f"{word}/{protocols[0]}" if word[:1].isdigit() and "/" not in word else word for word in kept]


def _is_accepted(command: click.Command, words: list[str]) -> bool:
    """Whether the command has these options; a word with a slash in front is an option of Windows."""
    context = click.Context(command, info_name=command.name)
    try:
        command.make_parser(context).parse_args([*words[: words.index("--")]] if "--" in words else list(words))
    except click.UsageError:
        return False
    return not any(word.startswith("/") for word in words)
