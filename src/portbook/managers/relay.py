"""What is behind a port whose holder only passes connections on: the table of relays. Pure.

A container's port is held by its runtime's relay, a tunnel's by ssh or kubectl, and a super-server's by inetd. One
table serves ``why``, ``who`` and ``stop``. Each row names the version of the real program with which it was tried; a
row without one is known from documentation only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from portbook.managers import forwarding
from portbook.managers.forwarding import Target, TargetReader
from portbook.netconfig.facts import Publication
from portbook.records import Owner, Protocol

MOST_ARGUMENTS = 2_000
MOST_LENGTH = 4_096  # of one argument
ROOT = "root"

# What a relay holds its port for, and what ending it does. container, machine: what is behind runs on without the port.
# tunnel: nothing else ends. super-server: all other lines of its configuration end too.
RelayKind = Literal["container", "machine", "tunnel", "super-server"]


class Program(Struct, frozen=True):
    """A row of the table."""

    kind: RelayKind
    to: str  # what is behind the port if the command line does not say it; empty: then it is no relay
    remedy: str  # how to free the port; PORT stands for its number
    tried: str | None  # the version of the program with which this row was tried
    read: TargetReader | None = None
    per_user: bool = False  # each user has its own runtime, which knows only the containers of that user


class Relay(Struct, frozen=True):
    """A program that forwards connections, and where it forwards them."""

    program: str
    to: str  # "container 172.17.0.2:80", "port 80 of svc/web in namespace shop", "db:5432 through bastion"
    remedy: str | None = None
    address: str | None = None  # of a container
    container: str | None = None  # "docker:web", if it is known
    port: int | None = None  # there
    kind: RelayKind = "tunnel"


PODMAN = "podman ps shows the container; podman stop frees the port"
DOCKER = "docker ps --filter publish=PORT shows the container; docker stop frees the port"
ROOTLESS = "podman ps, or docker ps where docker is rootless, shows the container; its stop frees the port"
DESKTOP = "docker ps --format '{{.Names}} {{.Ports}}' shows the container"
IN_WSL = "end it inside WSL: wsl -- ss -ltnp shows it; wsl --shutdown ends WSL"
SSH_SESSION = "end this SSH session, or omit the client's -R option"
INETD = "remove its line from the configuration, then send it SIGHUP"

# By the name of the executable, in lower case, without ".exe" and ".avx2".
PROGRAMS: Mapping[str, Program] = {
    "docker-proxy": Program("container", "a container of docker", DOCKER, "20.10.24", forwarding.docker_proxy),
    "conmon": Program("container", "a container of podman", PODMAN, "2.1.6", forwarding.conmon, True),
    "rootlessport": Program("container", "a container of rootless podman", PODMAN, "4.3.1", None, True),
    "rootlessport-child": Program("container", "a container of rootless podman", PODMAN, None, None, True),
    "rootlesskit": Program(
        "container", "a container of rootless docker", DOCKER, "1.1.0", forwarding.rootlesskit, True
    ),
    "slirp4netns": Program(
        "container", "a rootless container", ROOTLESS, "1.2.0", forwarding.slirp4netns, True
    ),
    "passt": Program(
        "container",
        "a rootless container",
        "podman ps shows the container; without podman, end the program that runs behind it",
        "2023-03-09",
        forwarding.pasta,
        True,
    ),
    "lxd": Program("container", "", "lxc config device remove CONTAINER DEVICE", None, forwarding.forkproxy),
    "incusd": Program("container", "", "incus config device remove CONTAINER DEVICE", None, forwarding.forkproxy),
    "gvproxy": Program(
        "container",
        "a container in podman machine",
        "podman ps shows the container; podman machine stop stops all of them",
        None,
    ),
    "com.docker.backend": Program("container", "a container of Docker Desktop", DESKTOP, None),
    "vpnkit": Program("container", "a container of Docker Desktop", DESKTOP, None),
    "com.docker.vpnkit": Program("container", "a container of Docker Desktop", DESKTOP, None),
    "limactl": Program("machine", "a program inside a virtual machine of Lima", "limactl list, limactl stop", None),
    "wslrelay": Program("machine", "a program inside WSL that listens on the same port", IN_WSL, None),
    "wslhost": Program("machine", "a program inside WSL that listens on the same port", IN_WSL, None),
    "qemu": Program("machine", "", "end the virtual machine, or omit hostfwd", "7.2", forwarding.qemu),
    "ssh": Program(
        "tunnel",
        "a target of its configuration or control socket",
        "end this ssh, or remove the forward from its configuration",
        "9.2p1",
        forwarding.ssh,
    ),
    "sshd": Program("tunnel", "", SSH_SESSION, "9.2p1", forwarding.sshd),
    "sshd-session": Program("tunnel", "", SSH_SESSION, "10.0p1", forwarding.sshd),
    "kubectl": Program("tunnel", "", "end this kubectl", "1.32.4", forwarding.kubectl),
    "oc": Program("tunnel", "", "end this oc", None, forwarding.kubectl),
    "socat": Program("tunnel", "", "end this socat", "1.7.4.4", forwarding.socat),
    "socat1": Program("tunnel", "", "end this socat", "1.8.0.3", forwarding.socat),  # of Debian 13
    "haproxy": Program(
        "tunnel", "the servers of its configuration", "end haproxy, or remove the bind line", "2.6.12",
        forwarding.configured("-f"),
    ),
    "stunnel": Program(
        "tunnel", "the servers of its configuration", "end stunnel, or remove the accept line", "5.68",
        forwarding.configured(last=True),
    ),
    "rinetd": Program(
        "tunnel", "the servers of its configuration", "end rinetd, or remove its line from the configuration", "0.73",
        forwarding.configured("-c", "--conf-file"),
    ),
    "redir": Program("tunnel", "another port", "end this redir", "3.3", forwarding.redir),
    "systemd-socket-proxyd": Program(
        "tunnel", "another socket", "systemctl stop its socket unit and its service", "252", forwarding.socket_proxyd
    ),
    "inetd": Program("super-server", "a program of its configuration", INETD, "0.20221205 (OpenBSD), busybox 1.35.0",
                     forwarding.inetd("/etc/inetd.conf")),
    "inetutils-inetd": Program("super-server", "a program of its configuration", INETD, "2.4",
                               forwarding.inetd("/etc/inetd.conf")),
    "xinetd": Program("super-server", "a program of its configuration", INETD, "2.3.15.3",
                      forwarding.inetd("/etc/xinetd.conf", "-f")),
    "tcpsvd": Program("tunnel", "a program that it starts for each connection", "end this tcpsvd",
                      "1.0.0, busybox 1.35.0", forwarding.tcpsvd),
    "udpsvd": Program("tunnel", "a program that it starts for each packet", "end this udpsvd", "1.0.0",
                      forwarding.tcpsvd),
    "tcpserver": Program("tunnel", "a program that it starts for each connection", "end this tcpserver", "0.88",
                         forwarding.tcpsvd),
}  # fmt: skip
OTHER_NAMES: Mapping[str, str] = {"pasta": "passt", "stunnel4": "stunnel", "openbsd-inetd": "inetd"}
RUNTIMES = ("docker", "podman")  # with "RUNTIME stop NAME"
# One executable for many programs, which are named by the first argument or the second.
MULTI_CALL = ("busybox", "toybox", "busybox.static")


def behind(
    owner: Owner, port: int, protocol: Protocol = "tcp", publications: Iterable[Publication] = ()
) -> Relay | None:
    """What is behind a port that a process listens on; None if the process is no known relay.

    :param publications: the published ports of containers, which name the container behind some relays
    """
    row = find_program(owner)
    if row is None:
        return None
    name, program = row
    target = _read(program, _arguments(owner), port, protocol)
    if target is None:
        return None
    relay = Relay(
        program=name,
        to=target.to,
        remedy=remedy(target.remedy or program.remedy, program, owner, port),
        address=target.address,
        container=target.container,
        port=target.port,
        kind=program.kind,
    )
    return _with_container(relay, port, protocol, publications, owner)


def find_program(owner: Owner) -> tuple[str, Program] | None:
    """The name and the row of a program in the table."""
    for called in program_names(owner):
        name = OTHER_NAMES.get(called, called)
        if called.startswith("qemu-system-"):
            name = "qemu"
        if name in PROGRAMS:
            return name, PROGRAMS[name]
    return None


def program_names(owner: Owner) -> Iterator[str]:
    """What the program is called. The name of a process counts only if its executable is not known."""
    name = _file_name(owner.exe or owner.name or "")
    if name in MULTI_CALL:
        yield from (_file_name(word) for word in _arguments(owner)[:2])
    yield name


def _file_name(path: str) -> str:
    name = path.replace("\\", "/").rpartition("/")[2].lower()
    return name.removesuffix(".exe").removesuffix(".avx2")


def _arguments(owner: Owner) -> list[str]:
    return [word[:MOST_LENGTH] for word in (owner.command_line or ())[:MOST_ARGUMENTS]]


def _read(program: Program, arguments: list[str], port: int, protocol: Protocol) -> Target | None:
    target = program.read(arguments, port, protocol) if program.read else None
    if target is None and program.to:
        return Target(program.to)
    return target


def remedy(text: str, program: Program, owner: Owner, port: int | None = None) -> str:
    """The remedy of a row for this process, and this port if it is known."""
    text = text.replace("PID", str(owner.pid))
    if port is not None:
        text = text.replace("PORT", str(port))
    if program.per_user and owner.user not in (None, ROOT):
        return f"as {owner.user}: {text}"  # the podman and docker of other users do not know the container
    return text


# --- the container behind it ---------------------------------------------------------------------------------------


def has_unnamed_container(owner: Owner) -> bool:
    """Whether only the published ports, ``publications.take()``, may name the container behind this process."""
    row = find_program(owner)
    return row is not None and row[1].kind == "container" and row[0] != "conmon"


def _with_container(
    relay: Relay, port: int, protocol: Protocol, publications: Iterable[Publication], owner: Owner
) -> Relay:
    """Name the container that has the address, or has published the port and belongs to the user of the relay."""
    if relay.kind != "container":
        return relay
    for publication in publications:
        if relay.container is None and _is_behind(publication, relay, port, protocol, owner):
            relay = replace(relay, container=publication.container)
    if relay.container is None or owner.user not in (None, ROOT):
        return relay
    runtime, _, name = relay.container.partition(":")
    if runtime in RUNTIMES and forwarding.is_plain(name):
        return replace(relay, remedy=f"{runtime} stop {name} frees the port")
    return relay


def _is_behind(publication: Publication, relay: Relay, port: int, protocol: Protocol, owner: Owner) -> bool:
    if publication.user != (owner.user or ROOT):
        return False
    if relay.address is not None:
        return relay.address in publication.container_addresses
    return (publication.host_port, publication.protocol) == (port, protocol)
