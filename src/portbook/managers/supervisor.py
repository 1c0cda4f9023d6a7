"""Who would start a process again, and the command that really stops it. Tables; pure.

What a process's own record says: its cgroup, its Windows service, its parent, and for the relays of container runtimes
its command line. What the manager itself says is asked in ``stop/asked.py``.

Facts: systemctl(1); docker-stop(1), podman-stop(1); conmon(8), ``-c``; systemd.unit(5) and Docker's documentation for
what a name may consist of. What is no such name stands in no command: people copy those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

from msgspec import Struct

from portbook.managers import container, systemd
from portbook.managers.container import Container, Runtime
from portbook.records import Owner
from portbook.system.users import user_name

ParentChain = Sequence[Owner]  # nearest first
SYSTEM = 0
SYSTEMCTL = "systemctl"
UNIT_NAME = r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,254}"
CONTAINER_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
USER_NAME = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}"
SERVICE_NAME = r"[^\W_][\w .()$-]{0,255}"  # of Windows: no quotes, slashes and controls

STOP: Mapping[str, tuple[str, ...]] = {"docker": ("docker", "stop"), "podman": ("podman", "stop")}
NO_COMMAND: Mapping[Runtime, str] = {  # runtimes without one command that fits every installation
    "kubernetes": "the kubelet starts the pod again: scale its controller down, kubectl scale --replicas=0 …",
    "containerd": "stop it with what started it: nerdctl stop, ctr task kill, or the kubelet's controller",
    "crio": "stop it with what started it: crictl stop, or the kubelet's controller",
    "lxc": "stop the container: lxc-stop, lxc stop or incus stop",
    "nspawn": "stop the container: machinectl poweroff",
    "ecs": "stop the task: aws ecs stop-task",
}
# Hold published ports for containers, and what finds the container.
RELAYS: Mapping[str, str] = {
    "conmon": "podman ps, then podman stop",
    "rootlessport": "podman ps, then podman stop",
    "rootlessport-child": "podman ps, then podman stop",
    "slirp4netns": "podman ps, or docker ps where docker is rootless, then its stop",
    "pasta": "podman ps, then podman stop",
    "docker-proxy": "docker ps --filter publish=PORT, then docker stop",
    "rootlesskit": "docker ps --filter publish=PORT, then docker stop",
}
# ParentChain that start their children again, by name, and the command for it; the argument is theirs to know.
SUPERVISORS: Mapping[str, str] = {
    "supervisord": "supervisorctl stop NAME",
    "runsv": "sv stop NAME",
    "s6-supervise": "s6-svc -d SERVICE-DIRECTORY",
    "monit": "monit stop NAME",
    "circusd": "circusctl stop NAME",
    "PM2": "pm2 stop NAME",
    "nodemon": "end nodemon itself",
    "watchexec": "end watchexec itself",
    "entr": "end entr itself",
    "nssm.exe": "nssm stop NAME",
}
AIRPLAY = "switch AirPlay Receiver off in System Settings, General, AirDrop & Handoff"


# What starts a process again. socket-activation: systemd holds the port, and has not named the unit yet. docker-proxy,
# relay: it holds the published port of a container that is not known yet, or only to another user.
SupervisorKind = Literal[
    "systemd",
    "windows-service",
    "supervisor",
    "macos",
    "socket-activation",
    "docker-proxy",
    "relay",
    Runtime,
]


class Supervisor(Struct, frozen=True):
    """Who looks after a process and may start it again, and what really stops it."""

    kind: SupervisorKind
    name: str  # of the unit, container or service
    command: tuple[str, ...] | None = None  # what stops it; None: only ``advice``
    restarts: bool | None = None  # whether it would start it again; None: not known
    why: str | None = None  # what ``restarts`` rests on: "Restart=always"
    advice: str | None = None  # where there is no command


def is_unit_name(text: str) -> bool:
    """Whether a text can be the name of a systemd unit: systemd.unit(5)."""
    return re.fullmatch(UNIT_NAME, text, re.ASCII) is not None


def is_container_name(text: str) -> bool:
    """Whether a text can be a name or id that docker and podman give to a container."""
    return re.fullmatch(CONTAINER_NAME, text, re.ASCII) is not None


def is_relay(owner: Owner) -> bool:
    """Whether it holds the published port of a container that is somebody else."""
    return _base(owner.exe) in RELAYS


def stop_instruction(supervisor: Supervisor) -> str | None:
    """What really stops it, to be stop_instruction."""
    return " ".join(supervisor.command) if supervisor.command else supervisor.advice


def container_stop_command(label: str) -> str | None:
    """The command for a container by its label, as in ``docker:web``; None where none fits every installation."""
    runtime, _, name = label.partition(":")
    return " ".join((*STOP[runtime], name)) if runtime in STOP and is_container_name(name) else None


def find_supervisor(owner: Owner, parents: ParentChain, platform: str, uid: int) -> Supervisor | None:
    """Who looks after a process, as far as its record says; ``uid`` is the user who asks (0 on Windows)."""
    rules = WINDOWS if platform == "windows" else MACOS if platform == "macos" else LINUX
    return next((found for rule in rules if (found := rule(owner, parents, uid))), None)


# --- rules: (process, its parents, uid of who asks) -> who looks after it ------------------------------------------


def _conmon(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    """Holds the ports that podman has published: of root's podman, whose conmon is believed what it was told."""
    if _base(owner.exe) != "conmon" or owner.user != user_name(SYSTEM):
        return None
    arguments = owner.command_line or ()
    number = next((b for a, b in pairwise(arguments) if a in ("-c", "--cid")), "")
    return _container(Container("podman", number), 0) if container.is_id(number) else None


def _docker_proxy(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    """Relays a published port; docker has to be asked for whom."""
    if _base(owner.exe) != "docker-proxy" or owner.user != user_name(SYSTEM):
        return None
    return Supervisor(PUBLISHED, "", advice=f"find the container: {RELAYS['docker-proxy']}")


PUBLISHED: SupervisorKind = "docker-proxy"  # the kind of a relay, until docker has named the container


def _relay(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    """The same of an ordinary user, who is not asked: what runs there may say anything."""
    found = RELAYS.get(_base(owner.exe))
    who = owner.user or "the user it belongs to"
    return Supervisor("relay", "", advice=f"find the container, as {who}: {found}") if found else None


def _activator(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    """A service manager holds sockets for services that are not running: systemd.socket(5)."""
    if _base(owner.exe) != "systemd" and not (owner.pid == 1 and owner.name == "systemd"):
        return None
    user = systemd.user_of(owner.cgroup or "")
    return Supervisor(ACTIVATION, "" if user is None else str(user), None, True, "systemd holds it for a socket unit")


ACTIVATION: SupervisorKind = "socket-activation"  # the kind, until systemd has named the unit


def _unit(owner: Owner, _: ParentChain, uid: int) -> Supervisor | None:
    path = owner.cgroup or ""
    unit = systemd.exact_unit_of(path)
    if unit is None or container.identify(path[: path.rindex(unit)]) is not None:
        return None  # the unit of a systemd inside a container, which the one out here does not know
    return unit_supervisor(unit, systemd.user_of(path), uid)


def unit_supervisor(unit: str, user: int | None, uid: int, *sockets: str) -> Supervisor:
    """A unit of the system's service manager, or of a user's."""
    names = (*sockets, unit)
    scope = _scope(user, uid)
    if scope is None or not all(is_unit_name(name) for name in names):
        advice = f"as that user: systemctl --user stop {' '.join(names)}" if scope is None else None
        return Supervisor("systemd", unit, None, None, None, advice)
    return Supervisor("systemd", unit, (SYSTEMCTL, *scope, "stop", *names))


def _scope(user: int | None, uid: int) -> tuple[str, ...] | None:
    """Whose units: systemctl(1), --user, --machine; None where only that user can say it."""
    if user is None:
        return ()
    if user == uid:
        return ("--user",)
    name = user_name(user)
    return ("--user", f"--machine={name}@.host") if uid == SYSTEM and re.fullmatch(USER_NAME, name, re.ASCII) else None


def _in_container(owner: Owner, _: ParentChain, uid: int) -> Supervisor | None:
    found = container.identify(owner.cgroup or "")
    return _container(found, uid, owner.container) if found else None


def _container(found: Container, uid: int, label: str | None = None) -> Supervisor:
    runtime = found.runtime
    _, _, name = (label or container.label(found)).partition(":")
    stop = STOP.get(found.runtime)
    if found.pod is not None:
        return Supervisor("kubernetes", name, advice=NO_COMMAND["kubernetes"])
    if stop is None or found.daemon is None:
        advice = NO_COMMAND.get(found.runtime) if found.daemon is not None else "stop the container around it"
        return Supervisor(runtime, name, advice=advice)
    number = found.id if container.is_id(found.id) else name
    if found.daemon != uid or not is_container_name(number):
        who = user_name(found.daemon)
        return Supervisor(runtime, name, advice=f"as user {who}: {' '.join(stop)} {name}")
    return Supervisor(runtime, name, (*stop, name if is_container_name(name) else number))


def _windows_service(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    name = owner.service
    if not name:
        return None
    if ", " in name or not re.fullmatch(SERVICE_NAME, name):
        return Supervisor("windows-service", name, advice="several services live in it: Stop-Service -Name ONE")
    return Supervisor("windows-service", name, ("Stop-Service", "-Name", name))


def _supervised(_: Owner, parents: ParentChain, __: int) -> Supervisor | None:
    parent = parents[0] if parents else None
    name = (parent.name or "").split(" ")[0] if parent else ""
    if name not in SUPERVISORS:
        return None
    return Supervisor("supervisor", name, None, None, f"{name} is its parent", SUPERVISORS[name])


def _airplay(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    found = owner.name == "ControlCenter"
    return Supervisor("macos", "AirPlay Receiver", None, True, "macOS starts it again", AIRPLAY) if found else None


SupervisorRule = Callable[[Owner, ParentChain, int], Supervisor | None]
LINUX: tuple[SupervisorRule, ...] = (_conmon, _docker_proxy, _relay, _activator, _unit, _in_container, _supervised)
MACOS: tuple[SupervisorRule, ...] = (_airplay, _supervised)
WINDOWS: tuple[SupervisorRule, ...] = (_windows_service, _supervised)


def _base(path: str | None) -> str:
    return (path or "").rpartition("/")[2]
