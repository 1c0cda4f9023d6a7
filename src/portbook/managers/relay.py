"""Where a relay forwards connections, from its command line. Pure; a process chooses its command line: hostile text.

Sources: docker-proxy's flags (cmd/docker-proxy in github.com/moby/moby), ssh(1) and ssh_config(5), "kubectl
port-forward" on kubernetes.io, socat(1), conmon(8); "Accessing network applications with WSL" on learn.microsoft.com.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from portbook.addresses import format_endpoint
from portbook.managers.supervisor import RELAYS
from portbook.numerals import UINT16, number_or_none

MOST_ARGUMENTS = 2_000
MOST_LENGTH = 4_096  # of one argument

Arguments = Sequence[str]


class Relay(Struct, frozen=True):
    """A program that forwards connections, and where it forwards them."""

    program: str
    to: str  # "container 172.17.0.2:80", "port 80 of svc/web in namespace shop", "db:5432 through bastion"
    remedy: str | None = None
    address: str | None = None  # of a container
    container: str | None = None
    port: int | None = None


def identify(command_line: Arguments | None, name: str | None, exe: str | None, port: int) -> Relay | None:
    """Where the process that holds ``port`` forwards it; None if it is not a known relay."""
    arguments = [word[:MOST_LENGTH] for word in (command_line or ())[:MOST_ARGUMENTS]]
    for program in _programs(arguments, name, exe):
        if program in PARSERS:
            relay = PARSERS[program](arguments[1:], port)
            if relay is not None:
                return relay
        if program in BY_NAME:
            to, remedy = BY_NAME[program]
            return Relay(program, to, remedy.replace("publish=PORT", f"publish={port}"))
    return _sshd(arguments)


def _programs(arguments: Arguments, name: str | None, exe: str | None) -> Iterator[str]:
    """What the program may be called, without directory and extension."""
    for text in (name, exe, *arguments[:1]):
        if text:
            yield text.replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe")


def _option(arguments: Arguments, *names: str) -> str | None:
    """The value of an option as Go's flag package and pflag take it: ``-a v``, ``-a=v``, ``--a v``, ``--a=v``."""
    for at, word in enumerate(arguments):
        left, equals, right = word.partition("=")
        if left in names:
            if equals:
                return right
            if at + 1 < len(arguments):
                return arguments[at + 1]
            return None
    return None


def _number(text: str | None) -> int | None:
    """A port; None for anything else."""
    if text is None:
        return None
    return number_or_none(text, UINT16)


# --- container runtimes --------------------------------------------------------------------------------------------


def _docker_proxy(arguments: Arguments, port: int) -> Relay | None:
    if _number(_option(arguments, "-host-port", "--host-port")) != port:
        return None
    address = _option(arguments, "-container-ip", "--container-ip")
    inner = _number(_option(arguments, "-container-port", "--container-port"))
    if address is None or inner is None:
        return None
    remedy = f"docker ps --filter publish={port} shows the container; docker stop frees the port"
    return Relay("docker-proxy", f"container {format_endpoint(address, inner)}", remedy, address=address, port=inner)


def _conmon(arguments: Arguments, port: int) -> Relay | None:
    number = _option(arguments, "-c", "--cid")
    if number is None:
        return None
    label = _option(arguments, "-n", "--name") or number[:12]
    return Relay("conmon", f"container {label}", f"podman stop {label}", container=f"podman:{label}")


# --- ssh -----------------------------------------------------------------------------------------------------------

SSH_TAKES_VALUE = frozenset("BbcDEeFIiJLlmOoPpQRSWw")


def _ssh(arguments: Arguments, port: int) -> Relay | None:
    forwards, host = _ssh_line(arguments)
    for kind, spec in forwards:
        fields = _ssh_fields(spec)
        to = _ssh_target(kind, fields, port)
        if to is not None:
            return Relay("ssh", f"{to} through {host or 'a host'}", "end this ssh, or omit its -L or -D option")
    return None


def _ssh_line(arguments: Arguments) -> tuple[list[tuple[str, str]], str | None]:
    """Forwards as (kind, specification), and the host. Options may stand together (-NL …) and after the host."""
    forwards: list[tuple[str, str]] = []
    host: str | None = None
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            if host is not None:
                break  # the command that runs there
            host = word
            continue
        for at, letter in enumerate(word[1:], 2):
            if letter in SSH_TAKES_VALUE:
                value = word[at:] or next(words, "")
                forwards += _ssh_option(letter, value)
                break
    return forwards, host


def _ssh_option(letter: str, value: str) -> Iterator[tuple[str, str]]:
    if letter in "LD":
        yield letter, value
    elif letter == "o":
        key, _, rest = value.strip().replace("=", " ", 1).partition(" ")
        kind = {"localforward": "L", "dynamicforward": "D"}.get(key.lower())
        if kind:
            yield kind, ":".join(rest.split())


def _ssh_fields(spec: str) -> list[str]:
    """Split at colons (or slashes) outside of brackets."""
    fields = [""]
    inside = False
    separator = "/" if "/" in spec and ":" not in spec else ":"
    for c in spec:
        if c in "[]":
            inside = c == "["
        elif c == separator and not inside:
            fields.append("")
        else:
            fields[-1] += c
    return fields


def _ssh_target(kind: str, fields: list[str], port: int) -> str | None:
    """``[bind:]port:host:hostport``, ``[bind:]port:/socket``, and for -D ``[bind:]port``."""
    if kind == "D":
        target = "the targets of its SOCKS clients"
        port_field = fields[-1]
    elif len(fields) >= 2 and fields[-1].startswith("/"):
        target = f"Unix socket {fields[-1]}"
        port_field = fields[-2]
    elif len(fields) in (3, 4):
        target = f"{format_endpoint(fields[-2])}:{fields[-1]}"
        port_field = fields[-3]
    else:
        return None
    if _number(port_field) != port:
        return None
    return target


def _sshd(arguments: Arguments) -> Relay | None:
    """A session of sshd holds ports for ssh -R and X11; its arguments are replaced by its user (setproctitle(3))."""
    title = arguments[0] if len(arguments) == 1 else ""
    daemon, colon, session = title.partition(": ")
    if not colon or daemon not in ("sshd", "sshd-session") or "[listener]" in session:
        return None
    target = f"the SSH client of {session.strip()} (ssh -R or X11)"
    return Relay("sshd", target, "end this SSH session, or omit the client's -R option")


# --- others --------------------------------------------------------------------------------------------------------

KUBECTL_TAKES_VALUE = frozenset(
    [
        "-n",
        "--namespace",
        "--context",
        "--cluster",
        "--user",
        "--kubeconfig",
        "--address",
        "--pod-running-timeout",
        "-s",
        "--server",
        "--token",
        "--as",
        "--as-group",
        "--cache-dir",
        "--certificate-authority",
        "--client-certificate",
        "--client-key",
        "--request-timeout",
        "-v",
        "--v",
    ]
)


def _kubectl(arguments: Arguments, port: int) -> Relay | None:
    words = list(_positional(arguments))
    if "port-forward" not in words:
        return None
    resource, *specs = words[words.index("port-forward") + 1 :] or [""]
    for spec in specs:
        local, colon, remote = spec.partition(":")
        if local == "" or _number(local) == port:  # ":80" lets kubectl choose
            inner = remote if colon else local
            target = f"port {inner} of {resource}"
            namespace = _option(arguments, "-n", "--namespace")
            if namespace:
                target += f" in namespace {namespace}"
            return Relay("kubectl", target, "end this kubectl", port=_number(inner))
    return None


def _positional(arguments: Arguments) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            yield word
        elif word in KUBECTL_TAKES_VALUE:
            next(words, None)


def _socat(arguments: Arguments, port: int) -> Relay | None:
    addresses = [word for word in arguments if ":" in word and not word.startswith("-")]
    if len(addresses) < 2:
        return None
    first, second = addresses[:2]
    for listener, target in ((first, second), (second, first)):
        kind, _, rest = listener.partition(":")
        listen_port = rest.partition(",")[0].rpartition(":")[2]
        if "LISTEN" in kind.upper() and _number(listen_port) == port:
            return Relay("socat", target.partition(",")[0], "end this socat")
    return None


PARSERS: dict[str, Callable[[Arguments, int], Relay | None]] = {
    "docker-proxy": _docker_proxy,
    "conmon": _conmon,
    "ssh": _ssh,
    "kubectl": _kubectl,
    "socat": _socat,
}
# Relays whose command line does not show the target.
BY_NAME: dict[str, tuple[str, str]] = {
    "rootlessport": ("a container of rootless podman", RELAYS["rootlessport"]),
    "rootlessport-child": ("a container of rootless podman", RELAYS["rootlessport"]),
    "rootlesskit": ("a container of rootless docker", RELAYS["rootlesskit"]),
    "slirp4netns": ("a rootless container", RELAYS["slirp4netns"]),
    "pasta": ("a rootless container", RELAYS["pasta"]),
    "gvproxy": (
        "a container in podman machine",
        "podman ps shows the container; podman machine stop stops all of them",
    ),
    "com.docker.backend": (
        "a container of Docker Desktop",
        "docker ps --format '{{.Names}} {{.Ports}}' shows the container",
    ),
    "vpnkit": ("a container of Docker Desktop", "docker ps --format '{{.Names}} {{.Ports}}' shows the container"),
    "wslrelay": (
        "a program inside WSL that listens on the same port",
        "end it inside WSL: wsl -- ss -ltnp shows it; wsl --shutdown ends WSL",
    ),
    "wslhost": (
        "a program inside WSL that listens on the same port",
        "end it inside WSL: wsl -- ss -ltnp shows it; wsl --shutdown ends WSL",
    ),
}
