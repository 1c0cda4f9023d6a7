"""Where a program forwards a port, from its command line. Pure; a process chooses its command line: hostile text.

Each reader takes the arguments, the program's own name first, the port and its protocol, and returns a ``Target`` or
None. Texts are cut before they come here.

Sources: docker-proxy's flags (cmd/docker-proxy in github.com/moby/moby), ssh(1) and ssh_config(5), "kubectl
port-forward" on kubernetes.io, socat(1), conmon(8), pasta(1), qemu(1) on hostfwd=, systemd-socket-proxyd(8),
haproxy(1), stunnel(8), redir(1), rinetd(8), inetd(8), xinetd(8), tcpsvd(8), tcpserver (cr.yp.to/ucspi-tcp).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from msgspec import Struct

from portbook.addresses import format_endpoint
from portbook.numerals import UINT16, number_or_none
from portbook.records import Protocol

Arguments = Sequence[str]
HEX = "0123456789abcdef"
SHORT = 12  # digits of a container's id, as podman ps prints it
# What people may copy into a shell as it is. Another text is never part of a command.
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:@%+-")


class Target(Struct, frozen=True):
    """What is behind a port, and how to free it if that differs from what the table of relays says."""

    to: str  # "container 172.17.0.2:80", "port 80 of svc/web in namespace shop", "db:5432 through bastion"
    remedy: str | None = None
    address: str | None = None  # of a container
    port: int | None = None  # there
    container: str | None = None  # "podman:web"


TargetReader = Callable[[Arguments, int, Protocol], Target | None]


def is_plain(text: str) -> bool:
    """Whether a text may be part of a command that people copy."""
    return bool(text) and PLAIN.issuperset(text) and not text.startswith("-")


def option(arguments: Arguments, *names: str) -> str | None:
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


def positional(arguments: Arguments, takes_value: frozenset[str]) -> list[str]:
    """The arguments that are neither options nor values of these options; those behind ``--`` too."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            words += rest
        elif not word.startswith("-") or word == "-":
            words.append(word)
        elif word in takes_value:
            next(rest, None)
    return words


# --- containers and virtual machines -------------------------------------------------------------------------------


def docker_proxy(arguments: Arguments, port: int, protocol: Protocol) -> Target | None:
    """docker-proxy and its flags of Go's kind."""
    proto = option(arguments, "-proto", "--proto") or protocol
    if _number(option(arguments, "-host-port", "--host-port")) != port or proto != protocol:
        return None
    address = option(arguments, "-container-ip", "--container-ip")
    inner = _number(option(arguments, "-container-port", "--container-port"))
    if address is None or inner is None:
        return None
    return Target(f"container {format_endpoint(address, inner)}", address=address, port=inner)


def conmon(arguments: Arguments, _: int, __: Protocol) -> Target | None:
    """conmon, which podman starts with the id and the name of the container."""
    number = option(arguments, "-c", "--cid") or ""
    if len(number) < SHORT or number.strip(HEX):
        return None
    label = option(arguments, "-n", "--name") or number[:SHORT]
    remedy = None
    if is_plain(label):
        remedy = f"podman stop {label}"
    return Target(f"container {label}", remedy, container=f"podman:{label}")


PASTA_PORTS = {"tcp": ("-t", "--tcp-ports"), "udp": ("-u", "--udp-ports")}


def pasta(arguments: Arguments, port: int, protocol: Protocol) -> Target | None:
    """Pasta, and passt, which is the same program for a virtual machine: ``-t 127.0.0.1/8080-8081:80-81``."""
    what = "its network namespace, mostly a rootless container"
    if arguments and arguments[0].rpartition("/")[2].startswith("passt"):
        what = "a virtual machine"
    for left, right in pairwise(arguments):
        if left in PASTA_PORTS[protocol]:
            inner = _pasta_port(right, port)
            if inner is not None:
                return Target(f"port {inner} of {what}", port=inner)
    return Target(what)


def _pasta_port(specification: str, port: int) -> int | None:
    """The port inside: pasta(1), -t. None if the specification does not name the port, as "auto" and "all" do not."""
    ports = specification.rpartition("/")[2]
    for part in ports.split(","):
        outer, _, inner = part.partition(":")
        first, last = _range(outer)
        if first <= port <= last:
            start, _ = _range(inner or outer)
            return port - first + start
    return None


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low = _number(first) or 0
    if not dash:
        return low, low
    return low, _number(last) or 0


def rootlesskit(arguments: Arguments, port: int, protocol: Protocol) -> Target | None:
    """Rootlesskit: ``--publish 127.0.0.1:8080:80/tcp``. Rootless docker publishes through its API instead."""
    for at, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name not in ("-p", "--publish"):
            continue
        if not equals:
            value = arguments[at + 1] if at + 1 < len(arguments) else ""
        ports, _, proto = value.partition("/")
        fields = ports.split(":")
        if len(fields) >= 2 and _number(fields[-2]) == port and (proto or "tcp") == protocol:
            return Target(f"port {fields[-1]} of its network namespace", port=_number(fields[-1]))
    return None


def slirp4netns(arguments: Arguments, _: int, __: Protocol) -> Target | None:
    """slirp4netns, whose control socket podman names after the container: ``--api-socket …/libpod/tmp/ID.net``."""
    name = (option(arguments, "-a", "--api-socket") or "").rpartition("/")[2]
    number, dot, kind = name.partition(".")
    if not dot or kind != "net" or len(number) != 64 or number.strip(HEX):
        return None
    short = number[:SHORT]
    return Target(f"container {short}", f"podman stop {short}", container=f"podman:{short}")


def forkproxy(arguments: Arguments, port: int, protocol: Protocol) -> Target | None:
    """LXD and Incus: ``lxd forkproxy -- PID FD tcp:0.0.0.0:8080 PID FD tcp:127.0.0.1:80 …``."""
    if "forkproxy" not in arguments[:2]:
        return None
    places = [word for word in arguments if word.startswith(("tcp:", "udp:", "unix:"))]
    if len(places) < 2 or not places[0].startswith(protocol) or _number(places[0].rpartition(":")[2]) != port:
        return Target("a container of LXD or Incus")
    return Target(f"{places[1]} of a container of LXD or Incus")


def qemu(arguments: Arguments, port: int, protocol: Protocol) -> Target | None:
    """QEMU's user network: ``-netdev user,id=n,hostfwd=tcp:127.0.0.1:8080-:80``. It has other ports: VNC, monitors."""
    for word in arguments:
        for part in word.split(","):
            rule = part.partition("hostfwd=")[2]
            outer, dash, inner = rule.rpartition("-")
            proto = rule.partition(":")[0] or "tcp"
            if dash and proto == protocol and _number(outer.rpartition(":")[2]) == port:
                return Target(f"port {inner.rpartition(':')[2]} of a virtual machine")
    return None


# --- ssh -----------------------------------------------------------------------------------------------------------

SSH_TAKES_VALUE = frozenset("BbcDEeFIiJLlmOoPpQRSWw")
MULTIPLEXER = " [mux]"  # the title of an ssh with ControlPersist: setproctitle(3)
LIMA = ("/.lima/", "/_lima/")  # Lima and Colima keep their control sockets there


def ssh(arguments: Arguments, port: int, _: Protocol) -> Target | None:
    """An ssh that listens forwards: by its command line, by its configuration, or asked through its control socket."""
    title = arguments[0] if arguments else ""
    if title.startswith("ssh: ") and title.endswith(MULTIPLEXER):
        return _multiplexer(title.removeprefix("ssh: ").removesuffix(MULTIPLEXER))
    forwards, host = _ssh_line(arguments[1:])
    for kind, specification in forwards:
        to = _ssh_target(kind, _ssh_fields(specification), port)
        if to is not None:
            return Target(f"{to} through {host or 'a host'}", "end this ssh, or omit its -L or -D option")
    if host is None:
        return None
    to = f"a target of its configuration (LocalForward, DynamicForward) or control socket, through {host}"
    if not is_plain(host):
        return Target(to)
    return Target(to, f"end this ssh; ssh -G {host} shows the forwards of the configuration")


def _multiplexer(path: str) -> Target:
    if any(place in path for place in LIMA):
        to = "a port of a virtual machine of Lima or Colima"
        return Target(to, "stop what listens in there, mostly a container: docker ps; or limactl stop, colima stop")
    to = f"a target that ssh was asked for through its control socket {path}, or has in its configuration"
    if not is_plain(path):
        return Target(to)
    return Target(to, f"ssh -S {path} -O cancel -L … HOST, or ssh -S {path} -O exit HOST, frees the port")


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


def _ssh_fields(specification: str) -> list[str]:
    """Split at colons (or slashes) outside of brackets."""
    fields = [""]
    inside = False
    separator = "/" if "/" in specification and ":" not in specification else ":"
    for c in specification:
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


def ssh_session(arguments: Arguments) -> str | None:
    """Whose session a process of sshd serves: it replaces its arguments with its title (setproctitle(3))."""
    title = arguments[0] if len(arguments) == 1 else ""
    daemon, colon, session = title.partition(": ")
    if not colon or daemon not in ("sshd", "sshd-session") or "[listener]" in session:
        return None
    return session.strip()


def sshd(arguments: Arguments, _: int, __: Protocol) -> Target | None:
    """A session of sshd holds ports for ssh -R and X11."""
    session = ssh_session(arguments)
    if session is None:
        return None
    return Target(f"the SSH client of {session} (ssh -R or X11)")


# --- kubectl -------------------------------------------------------------------------------------------------------

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


def kubectl(arguments: Arguments, port: int, _: Protocol) -> Target | None:
    """``kubectl port-forward -n shop svc/web 8080:80``, and ``kubectl proxy``."""
    words = positional(arguments[1:], KUBECTL_TAKES_VALUE)
    if words[:1] == ["proxy"]:
        return Target("the API of a Kubernetes cluster")
    if "port-forward" not in words:
        return None
    resource, *specifications = words[words.index("port-forward") + 1 :] or [""]
    for specification in specifications:
        local, colon, remote = specification.partition(":")
        if local == "" or _number(local) == port:  # ":80" lets kubectl choose
            inner = remote if colon else local
            target = f"port {inner} of {resource}"
            namespace = option(arguments, "-n", "--namespace")
            if namespace:
                target += f" in namespace {namespace}"
            return Target(target, port=_number(inner))
    return None


# --- proxies -------------------------------------------------------------------------------------------------------

SOCAT_LISTENERS = ("LISTEN", "-L", "RECVFROM", "RECV")  # how the types end, in their long and short forms


def socat(arguments: Arguments, port: int, __: Protocol) -> Target | None:
    """``socat TCP-LISTEN:8080,fork TCP:db:5432``, in either order."""
    places = [word for word in arguments[1:] if not word.startswith("-")][-2:]
    if len(places) < 2:
        return None
    first, second = places
    for listener, target in ((first, second), (second, first)):
        kind, _, rest = listener.partition(":")
        listen_port = rest.partition(",")[0].rpartition(":")[2]
        if kind.upper().endswith(SOCAT_LISTENERS) and _number(listen_port) == port:
            return Target(target.partition(",")[0])
    return None


def socket_proxyd(arguments: Arguments, _: int, __: Protocol) -> Target | None:
    """``systemd-socket-proxyd [--connections-max N] HOST:PORT``, or a path."""
    values = frozenset(("--connections-max", "-c", "--exit-idle-time"))
    words = positional(arguments[1:], values)
    return Target(words[0]) if words else None


REDIR_TAKES_VALUE = frozenset(["-b", "-f", "-I", "-i", "-l", "-m", "-o", "-p", "-t", "-w", "-x"])


def redir(arguments: Arguments, _: int, __: Protocol) -> Target | None:
    """``redir [:]8080 db:5432``. Its own title has a blank for each colon."""
    words = positional(arguments[1:], REDIR_TAKES_VALUE)
    if len(words) == 2:
        return Target(words[1])
    if len(words) >= 4:
        return Target(":".join(words[-2:]))
    return None


def configured(*names: str, last: bool = False) -> TargetReader:
    """A program whose targets are in its configuration: the value of one of these options, or the last argument."""

    def read(arguments: Arguments, _: int, __: Protocol) -> Target | None:
        path = option(arguments, *names)
        if path is None and last:
            path = next(iter(positional(arguments[1:], frozenset())), None)
        if path is None:
            return None
        return Target(f"the servers of its configuration {path}")

    return read


# --- super-servers -------------------------------------------------------------------------------------------------


def inetd(default: str, *names: str) -> TargetReader:
    """A server that starts programs for connections, as its configuration says, mostly in the file ``default``."""

    def read(arguments: Arguments, port: int, protocol: Protocol) -> Target:
        path = option(arguments, *names) if names else None
        if path is None and not names:
            path = _configuration(arguments)
        path = path or default
        remedy = f"remove what {path} says about {port}/{protocol}, then send it SIGHUP: kill -HUP PID"
        return Target(f"the program that {path} names for {port}/{protocol}", remedy)

    return read


def _configuration(arguments: Arguments) -> str | None:
    """The last argument, if it is a file: ``inetd -d /etc/inetd.conf``, but not ``inetd -p /run/inetd.pid``."""
    if len(arguments) < 2 or arguments[-2] in ("-p", "-R", "-q"):
        return None
    last = arguments[-1]
    if last.startswith("/") or last.endswith(".conf"):
        return last
    return None


def tcpsvd(arguments: Arguments, port: int, _: Protocol) -> Target | None:
    """``tcpsvd [-c N] HOST PORT PROGRAM …``, and as an applet: ``busybox tcpsvd …``."""
    words = list(arguments)
    for at, word in enumerate(words[1:], 1):
        if _number(word) == port and at + 1 < len(words):
            return Target(f"{words[at + 1]}, which it starts for each connection")
    return None
