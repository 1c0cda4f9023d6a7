"""Completion in bash, zsh and fish: commands and options by click, values by the tables here.

click's scripts end a fish description at its first comma, and in bash they take a word with a colon for several. So the
scripts are ours, and click finds out which parameter is completed. Imported by the completion of a shell only: what
reads this machine is imported when such a value is wanted.

Facts: bash(1), Programmable Completion and COMP_WORDBREAKS; zshcompsys(1), _describe; fish-completions(7).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    _resolve_context,
    _resolve_incomplete,
    split_arg_string,
)

Item = tuple[str, str]  # a value, and what it is
Values = Callable[[click.Context, str], Iterable[Item]]  # (context, what is written): may be more than fits

MOST_BYTES = 1 << 20  # of a file with hosts
MOST_VALUES = 2000
MOST_DESCRIPTION = 120  # characters
HARMLESS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:@%+/[]")

# The first sentence of each command's help text: to read it there, every command would have to be imported.
SUMMARIES = {
    "list": "List ports and the processes that hold them.",
    "who": "Show which processes hold a port of this machine.",
    "why": "Say whether a server can bind a port, and what blocks it.",
    "dial": "Find out whether a TCP port can be reached.",
    "wait": "Wait until every port answers, then run a command.",
    "free": "Print ports that can be bound now, one per line.",
    "lease": "Bind a port, listen, and run a command that has the socket.",
    "stop": "End the processes that hold a port.",
    "scan": "Find out which ports answer.",
    "probe": "Probe UDP ports with requests of their services.",
    "policy": "Say what may listen on this machine, and check it.",
    "watch": "Report every bind, failed bind and end of a port as it happens.",
    "history": "Show who held which port when, as portbook watch has recorded it.",
    "sources": "Show the data sources of this machine.",
    "man": "Print the manual page.",
    "help": "Show the help text of a command, or of portbook.",
}

# What the query and the sources have, too: to import them takes longer than everything else here.
STATES = (
    "listen",
    "bound",
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "closing",
    "unknown",
)
STATE_GROUPS = ("all", "listening", "connected", "unconn")
FIELDS = {
    "port": "local port: 80, 8000-8100, 53/udp, http, 127.0.0.1:8080",
    "remote-port": "port of the peer",
    "protocol": "tcp, udp",
    "family": "ipv4, ipv6",
    "state": "listen, established, … or listening, connected, all",
    "address": "local address or network; * for wildcards",
    "remote-address": "address or network of the peer",
    "reach": "loopback, address, any, none, multicast, broadcast",
    "inode": "inode of the socket (Linux)",
    "netns": "network namespace: its name, its inode, or all (Linux)",
    "pid": "process id of an owner",
    "process": "name or executable of an owner",
    "word": "process, or the name registered for the local port",
    "command": "command line of an owner",
    "user": "user name or id",
    "service": "systemd unit or Windows service",
    "container": "container, such as docker:web",
}
WORDS = {
    "tcp": "protocol:tcp",
    "udp": "protocol:udp",
    "ipv4": "family:ipv4",
    "ipv6": "family:ipv6",
    "loopback": "reach:loopback",
    "localhost": "reach:loopback",
}
SOURCES = {
    "bpf": "every TCP and UDP socket of every process and every network namespace, with all its owners",
    "sockdiag": "every TCP and UDP socket of this network namespace, also bound ones that do not listen (Linux 6.8)",
    "procfs": "the TCP and UDP sockets of this network namespace that listen or are connected",
    "iphlpapi": "every TCP and UDP endpoint, the pid that created it, when, and for which service",
    "netstat-anv": "what netstat -anv prints: TCP and UDP sockets of every user, with the pid of one owner",
    "psutil": "listening and connected TCP sockets, UDP sockets, one owner each",
    "netstat": "what netstat -ano prints, with names from tasklist",
    "lsof": "TCP and UDP sockets that a visible process holds",
}

# --- shells --------------------------------------------------------------------------------------------------------

BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line
    COMPREPLY=()
    while read -r line; do
        case $line in
            plain,*) COMPREPLY+=("${line#*,}") ;;
            nospace,*) COMPREPLY+=("${line#*,}"); compopt -o nospace ;;
            file,*) compopt -o default ;;
        esac
    done < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
ZSH = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a response described undescribed open
    local kind key about
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
%(complete_var)s=zsh_complete $words[1] 2>/dev/null)}")
    for kind key about in ${response}; do
        if [[ $kind == file ]]; then
            _files
        elif [[ $kind == nospace ]]; then
            open+=("$key:$about")
        elif [[ $about == _ ]]; then
            undescribed+=("$key")
        else
            described+=("$key:$about")
        fi
    done
    (( $#described )) && _describe -V portbook described -U
    (( $#open )) && _describe -V portbook open -U -S ''
    (( $#undescribed )) && compadd -U -V portbook -a undescribed
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
FISH = """\
function %(complete_func)s
    set -l response (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp | string collect) \
COMP_CWORD=(commandline -ct | string collect) %(prog_name)s 2>/dev/null)
    for completion in $response
        set -l metadata (string split -m 1 "," -- $completion)
        switch $metadata[1]
            case file
                __fish_complete_path (commandline -ct)
            case plain nospace
                printf '%%s\\n' $metadata[2]
        end
    end
end
complete --no-files --keep-order --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Completion(ShellComplete):
    """Values from the tables where there are some, and what click knows elsewhere."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """The completions of the last word, behind ``args``."""
        if not args and (incomplete[:1].isdigit() or ":" in incomplete or "=" in incomplete):
            args = ["list"]  # a term or an option of the command that needs no name
        ctx = _resolve_context(self.cli, self.ctx_args, self.prog_name, args)
        found, incomplete = _resolve_incomplete(ctx, args, incomplete)
        if isinstance(found, click.Parameter):
            return complete_value(ctx, found.name or "", incomplete)
        if isinstance(found, click.Group) and incomplete[:1] not in ("-", "/"):
            summaries = getattr(found, "summaries", SUMMARIES)
            return [CompletionItem(name, help=text) for name, text in summaries.items() if name.startswith(incomplete)]
        return found.shell_complete(ctx, incomplete)


class Bash(_Completion, BashComplete):
    """Completes the command line as it was typed, in which a colon ends no word."""

    source_template = BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that is being written."""
        self.incomplete = ""
        line = os.environ.get("COMP_LINE")
        if line is None:  # click's own script, which somebody has kept in a file
            return super().get_completion_args()
        words = split_arg_string(line)
        if words and not line[-1:].isspace():
            self.incomplete = words.pop()
        return words[1:], self.incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Only what follows the last colon: bash replaces no more than that."""
        before, colon, _ = self.incomplete.rpartition(":")
        return f"{item.type},{item.value.removeprefix(before + colon)}"


class Zsh(_Completion, ZshComplete):
    """Shows the descriptions."""

    source_template = ZSH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that is being written."""
        words, self.incomplete = super().get_completion_args()
        return words, self.incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Three lines; the first colon that is not escaped ends the value."""
        is_described = item.help or item.type == "nospace"
        value = _option_of(self.incomplete) + item.value
        if is_described:
            value = value.replace(":", r"\:")
        return f"{item.type}\n{value}\n{item.help or '_'}"


class Fish(_Completion, FishComplete):
    """Shows the descriptions, whole."""

    source_template = FISH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that is being written."""
        incomplete = "".join(split_arg_string(os.environ["COMP_CWORD"])[:1])
        words = split_arg_string(os.environ["COMP_WORDS"])[1:]
        if incomplete and words and words[-1] == incomplete:
            words.pop()
        self.incomplete = incomplete
        return words, incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """The value, and behind a tab what it is."""
        about = f"\t{item.help}" if item.help else ""
        return f"{item.type},{_option_of(self.incomplete)}{item.value}{about}"


def _option_of(incomplete: str) -> str:
    """``--state=`` of ``--state=li``, which zsh and fish replace whole."""
    option, equals, _ = incomplete.partition("=")
    return option + equals if equals and option.startswith("--") else ""


SHELLS = {"bash": Bash, "zsh": Zsh, "fish": Fish}


def run(group: click.Group, program: str, variable: str, instruction: str) -> int:
    """Write the script of a shell, or the completions that its script wants."""
    shell, _, action = instruction.partition("_")
    kind = SHELLS.get(shell)
    if kind is None or action not in ("source", "complete"):
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, program, variable, instruction)
    completion = kind(group, {}, program, variable)
    text = completion.source() if action == "source" else completion.complete()
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
    sys.stdout.flush()
    return 0


# --- values --------------------------------------------------------------------------------------------------------


def complete_value(ctx: click.Context, name: str, incomplete: str) -> list[CompletionItem[str]]:
    """The values of a parameter that begin as what is written; of a list with commas, the last one."""
    from portbook.errors import PortbookError

    if (ctx.info_name, name) in FILES:
        return [CompletionItem(incomplete, type="file")]
    values = VALUES.get((ctx.info_name or "", name)) or VALUES.get(("", name))
    if values is None:
        return []
    before, comma, last = incomplete.rpartition(",")
    try:
        return [*_items(values(ctx, last), before + comma, last)]
    except (PortbookError, OSError):
        return []


def _items(values: Iterable[Item], prefix: str, last: str) -> Iterator[CompletionItem[str]]:
    """Each value once. One with a character that a shell may act upon is not offered: others choose some names."""
    seen: set[str] = set()
    for value, about in values:
        if not value.startswith(last) or value in seen or not HARMLESS.issuperset(value):
            continue
        seen.add(value)
        kind = "nospace" if value.endswith(":") else "plain"
        yield CompletionItem(prefix + value, type=kind, help=_described(about))
        if len(seen) >= MOST_VALUES:
            return


def _described(about: str) -> str:
    if about.isprintable():
        return about[:MOST_DESCRIPTION]
    from portbook.escaping import safe

    return safe(about)[:MOST_DESCRIPTION]


def _held_ports(_: click.Context, __: str) -> Iterator[Item]:
    """The ports that something waits on, with who holds them."""
    from portbook import inventory

    abouts: dict[str, dict[str, None]] = {}
    sockets = sorted(inventory.listeners().sockets, key=lambda s: (s.local_port, s.protocol))
    for socket in sockets:
        value = str(socket.local_port) if socket.protocol == "tcp" else f"{socket.local_port}/udp"
        owners = [f"{owner.name or '?'} (pid {owner.pid})" for owner in socket.owners[:2]]
        more = f" +{len(socket.owners) - 2}" if len(socket.owners) > 2 else ""
        about = ", ".join(owners) + more or socket.service_name or "unknown process"
        abouts.setdefault(value, {})[about] = None
    for value, texts in abouts.items():
        yield value, "; ".join(texts)


def _targets(ctx: click.Context, written: str) -> Iterator[Item]:
    """Ports of this machine, also behind a name of it, and hosts."""
    host, colon, _ = written.rpartition(":")
    if colon:
        if host.strip("[]").lower() in ("localhost", "127.0.0.1", "::1", ""):
            yield from ((f"{host}:{value}", about) for value, about in _held_ports(ctx, "") if "/" not in value)
        return
    if not written or written[0].isdigit():
        yield from ((value, about) for value, about in _held_ports(ctx, "") if "/" not in value)
    yield from _hosts(ctx, written)


def _hosts(_: click.Context, __: str) -> Iterator[Item]:
    yield "localhost", "this machine"
    home = os.path.expanduser("~")
    system = os.environ.get("SYSTEMROOT", r"C:\Windows") + r"\System32\drivers\etc\hosts"
    for line in _lines(system if sys.platform == "win32" else "/etc/hosts"):
        yield from ((name, "hosts file") for name in line.partition("#")[0].split()[1:])
    for line in _lines(os.path.join(home, ".ssh", "known_hosts")):
        names = line.partition(" ")[0]
        if names[:1] not in ("", "#", "|", "@", "["):  # hashed names and markers: sshd(8)
            yield from ((name, "known to ssh") for name in names.split(","))
    for line in _lines(os.path.join(home, ".ssh", "config")):
        keyword, *patterns = line.split() or [""]
        if keyword.lower() == "host":
            yield from ((name, "known to ssh") for name in patterns if not set(name) & set("*?!"))


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MOST_BYTES).split("\n")
    except OSError:
        return []


def _groups(ctx: click.Context, _: str) -> Iterator[Item]:
    from portbook.scanner.groups import GROUPS

    is_udp = ctx.info_name == "probe" or ctx.params.get("udp")
    for name, (about, _ports) in GROUPS["udp" if is_udp else "tcp"].items():
        yield f"@{name}", about


def _states(_: click.Context, __: str) -> Iterator[Item]:
    yield from ((group, "several states") for group in STATE_GROUPS)
    yield from ((state, "TCP state") for state in STATES)


def _sorts(_: click.Context, __: str) -> Iterator[Item]:
    from portbook.cli.list_ import SORTS

    return ((field, "order by this field; - in front reverses") for field in SORTS)


def _sources(_: click.Context, __: str) -> Iterator[Item]:
    from portbook import sources

    return ((name, SOURCES[name]) for name in sources.names())


def _reaches(_: click.Context, __: str) -> Iterator[Item]:
    yield "loopback", "from this machine only"
    yield "address", "by one address"
    yield "any", "from every network"


def _users(_: click.Context, __: str) -> Iterator[Item]:
    try:
        import pwd
    except ImportError:
        return iter(())
    return ((entry.pw_name, f"uid {entry.pw_uid}") for entry in pwd.getpwall())


def _namespaces(_: click.Context, __: str) -> Iterator[Item]:
    from portbook.system import namespaces

    yield "all", "every network namespace"
    yield from ((name, f"inode {inode}") for inode, name in namespaces.names().items())


def _addresses(_: click.Context, __: str) -> Iterator[Item]:
    yield "localhost", "both loopback addresses"
    yield "127.0.0.1", "loopback, IPv4"
    yield "::1", "loopback, IPv6"
    yield "0.0.0.0", "every address, IPv4"  # noqa: S104  offered, not bound
    yield "::", "every address, IPv6"


def _processes(_: click.Context, __: str) -> Iterator[Item]:
    from portbook import inventory

    owners = {owner.name: owner for socket in inventory.listeners().sockets for owner in socket.owners}
    return ((name, f"pid {owner.pid}") for name, owner in sorted(owners.items(), key=str) if name)


def _terms(ctx: click.Context, written: str) -> Iterator[Item]:
    """Fields with a colon, the values behind them, and words that need no field."""
    field, colon, _ = written.partition(":")
    if colon:
        values = FIELD_VALUES.get(field)
        if values is not None:
            yield from ((f"{field}:{value}", about) for value, about in values(ctx, ""))
        return
    yield from WORDS.items()
    yield from _states(ctx, "")
    yield from ((f"{name}:", about) for name, about in FIELDS.items())
    if written[:1].isdigit():
        yield from _held_ports(ctx, "")


def _recorded_terms(ctx: click.Context, written: str) -> Iterator[Item]:
    """The terms of a query, and the kinds of events."""
    field, colon, _ = written.partition(":")
    if colon and field == "event":
        from portbook.events import MEANINGS

        yield from ((f"event:{kind}", about) for kind, about in MEANINGS.items())
        return
    if not colon:
        yield "verify", "check that nothing was altered"
        yield "event:", "kind of event"
    yield from _terms(ctx, written)


def _moments(_: click.Context, __: str) -> Iterator[Item]:
    yield "yesterday", "the beginning of yesterday; with a time behind a blank"
    yield "today", "the beginning of today"
    yield "monday", "the beginning of this or the last Monday"
    yield "1h", "an hour ago"
    yield "1d", "24 hours ago"


def _protocols(_: click.Context, __: str) -> Iterator[Item]:
    yield "tcp", "TCP"
    yield "udp", "UDP"


def _families(_: click.Context, __: str) -> Iterator[Item]:
    yield "ipv4", "IPv4"
    yield "ipv6", "IPv6"


def _commands(_: click.Context, __: str) -> Iterator[Item]:
    return iter(SUMMARIES.items())


def _feeds(_: click.Context, __: str) -> Iterator[Item]:
    from portbook.watching.feeds import FEEDS

    return ((name, "a way to see changes; portbook watch --explain") for name in FEEDS)


def _sinks(_: click.Context, __: str) -> Iterator[Item]:
    from portbook.watching.sinks import SINKS

    return ((f"{name}:", "a kind of sink") for name in SINKS)


FIELD_VALUES: dict[str, Values] = {
    "port": _held_ports,
    "state": _states,
    "protocol": _protocols,
    "family": _families,
    "reach": _reaches,
    "user": _users,
    "netns": _namespaces,
    "process": _processes,
}
# (command, or "" for every command; parameter): its values.
VALUES: dict[tuple[str, str], Values] = {
    ("", "source"): _sources,
    ("", "address"): _addresses,
    ("list", "query"): _terms,
    ("list", "port"): _held_ports,
    ("list", "state"): _states,
    ("list", "reach"): _reaches,
    ("list", "user"): _users,
    ("list", "netns"): _namespaces,
    ("list", "process"): _processes,
    ("list", "sort"): _sorts,
    ("who", "ports"): _held_ports,
    ("who", "more"): _held_ports,
    ("why", "ports"): _held_ports,
    ("why", "more"): _held_ports,
    ("stop", "ports"): _held_ports,
    ("stop", "more"): _held_ports,
    ("dial", "targets"): _targets,
    ("dial", "ports"): _held_ports,
    ("wait", "targets"): _targets,
    ("wait", "ports"): _held_ports,
    ("scan", "targets"): _hosts,
    ("scan", "ports"): _groups,
    ("probe", "words"): _hosts,
    ("probe", "more"): _groups,
    ("history", "query"): _recorded_terms,
    ("history", "at"): _moments,
    ("history", "since"): _moments,
    ("history", "until"): _moments,
    ("who", "at"): _moments,
    ("explain", "query"): _terms,
    ("watch", "query"): _terms,
    ("watch", "feed"): _feeds,
    ("watch", "sinks"): _sinks,
    ("help", "name"): _commands,
}
# Parameters that are a file.
FILES = {
    ("scan", "xml_path"),
    ("watch", "policy"),
    ("watch", "config"),
    ("watch", "store"),
    ("history", "path"),
    ("who", "path"),
    ("init", "file"),
    ("init", "output_path"),
    ("learn", "file"),
    ("learn", "path"),
    ("learn", "history"),
    ("check", "file"),
    ("check", "path"),
    ("explain", "path"),
    ("diff", "old"),
    ("diff", "new"),
    ("diff", "path"),
}
