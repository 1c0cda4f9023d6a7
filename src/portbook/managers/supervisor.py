"""The supervisor of a process, and the command that really stops the process. Tables; pure.

The supervisor follows from what is known of the process: its cgroup, its Windows service, its parent, and for the
relays of container runtimes its command line. What the supervisor itself reports is read in ``control``.

Facts: systemctl(1); docker-stop(1), podman-stop(1); conmon(8), ``-c``; systemd.unit(5) and the documentation of Docker
for the characters of names. Another name is never part of a command, because people copy commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

from msgspec import Struct

from portbook.managers import container, relay, systemd
from portbook.managers.container import Container, Runtime
from portbook.records import Owner
from portbook.system.users import user_name

ParentChain = Sequence[Owner]  # the parents of a process, nearest first
SYSTEM = 0
SYSTEMCTL = "systemctl"
UNIT_NAME = r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,254}"
CONTAINER_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
USER_NAME = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}"
SERVICE_NAME = r"[^\W_][\w .()$-]{0,255}"  # of Windows: no quotes, slashes and control characters

STOP: Mapping[str, tuple[str, ...]] = {"docker": ("docker", "stop"), "podman": ("podman", "stop")}
NO_COMMAND: Mapping[Runtime, str] = {  # runtimes whose stop command depends on the installation
    "kubernetes": "the kubelet restarts the pod: scale its controller down, kubectl scale --replicas=0 …",
    "containerd": "stop it with the program that started it: nerdctl stop, ctr task kill, or the kubelet's controller",
    "crio": "stop it with the program that started it: crictl stop, or the kubelet's controller",
    "lxc": "stop the container: lxc-stop, lxc stop or incus stop",
    "nspawn": "stop the container: machinectl poweroff",
    "ecs": "stop the task: aws ecs stop-task",
}
# Programs that restart their children, and what stops a child. NAME and the like are known to the program only.
SUPERVISORS: Mapping[str, str] = {
    # Tried with the real program: supervisor 4.3.0, runit 2.1.2, s6 2.11.3, monit 5.33.0, circus 0.19.0, PM2 7.0.4,
    # nodemon 3.1.14, entr 5.3.
    "supervisord": "supervisorctl stop NAME",
    "runsv": "sv stop NAME",
    "s6-supervise": "s6-svc -d SERVICE-DIRECTORY",
    "monit": "monit stop NAME",
    "circusd": "circusctl stop NAME",
    "PM2": "pm2 stop NAME",
    "nodemon": "end nodemon itself",
    "entr": "end entr itself",
    # From their documentation, not tried.
    "watchexec": "end watchexec itself",
    "nssm.exe": "nssm stop NAME",
}
ALWAYS = (
    "runsv",
    "s6-supervise",
)  # restart whatever ends, however it ends: runsv(8), s6-supervise's page on skarnet.org
# Units that start what others ask for, and their own programs. Their other processes are in the unit, and not its
# service: a login without pam_systemd, a job of cron, a build of a CI agent.
LAUNCHERS: Mapping[str, tuple[str, ...]] = {
    "ssh.service": ("sshd",),
    "sshd.service": ("sshd",),
    "ssh@": ("sshd", "sshd-session"),
    "sshd@": ("sshd", "sshd-session"),
    "dropbear.service": ("dropbear",),
    "cron.service": ("cron",),
    "crond.service": ("crond",),
    "cronie.service": ("crond",),
    "anacron.service": ("anacron",),
    "atd.service": ("atd",),
    "getty@": ("agetty", "login"),
    "serial-getty@": ("agetty", "login"),
    "console-getty.service": ("agetty", "login"),
    "gitlab-runner.service": ("gitlab-runner",),
    "actions.runner.": ("Runner.Listener",),
    "buildkite-agent.service": ("buildkite-agent",),
}
INTERPRETERS = ("node", "python")  # a script that one of these runs has the name of the interpreter
AIRPLAY = "switch AirPlay Receiver off in System Settings, General, AirDrop & Handoff"


# The kind of a supervisor. socket-activation: systemd holds the port for a unit that is not known yet. docker-proxy,
# relay: the process holds the published port of a container that is not known yet, or known to another user only.
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
    """What supervises a process and may restart it, and the command that stops the process for good."""

    kind: SupervisorKind
    name: str  # of the unit, container or service
    command: tuple[str, ...] | None = None  # that stops it; None: there is only ``advice``
    restarts: bool | None = None  # whether it restarts the process; None: not known
    why: str | None = None  # the reason for ``restarts``: "Restart=always"
    advice: str | None = None  # what to do if there is no command
    # systemd: the pids of the unit's processes (0: none) and which processes end with it, KillMode=; None: not known
    main_pid: int | None = None
    control_pid: int | None = None
    kill_mode: str | None = None


def is_unit_name(text: str) -> bool:
    """Whether a text can be the name of a systemd unit: systemd.unit(5)."""
    return re.fullmatch(UNIT_NAME, text, re.ASCII) is not None


def is_container_name(text: str) -> bool:
    """Whether a text can be a name or id that docker and podman give to a container."""
    return re.fullmatch(CONTAINER_NAME, text, re.ASCII) is not None


def is_relay(owner: Owner) -> bool:
    """Whether the process holds the port for a container, a virtual machine or a line of a configuration."""
    row = relay.find_program(owner)
    return row is not None and row[1].kind != "tunnel" and bool(row[1].to)


def is_service_manager(owner: Owner) -> bool:
    """Whether the process is systemd, which listens on behalf of services that are not running: systemd.socket(5)."""
    if owner.name == "systemd" and owner.pid == 1:
        return True
    if owner.name == "systemd" and systemd.is_manager(owner.cgroup or ""):
        return True
    return _base_name(owner.exe) == "systemd"


def stop_instruction(supervisor: Supervisor) -> str | None:
    """What to type to stop the process: the command, else the advice."""
    if supervisor.command:
        return " ".join(supervisor.command)
    return supervisor.advice


def container_stop_command(label: str) -> str | None:
    """The command that stops a container, by its label such as ``docker:web``; None for a runtime without one."""
    runtime, _, name = label.partition(":")
    if runtime not in STOP or not is_container_name(name):
        return None
    return " ".join((*STOP[runtime], name))


def find_supervisor(owner: Owner, parents: ParentChain, platform: str, uid: int) -> Supervisor | None:
    """The supervisor of a process; None if none is known.

    :param parents: the parents of the process, nearest first
    :param platform: "linux", "macos" or "windows"
    :param uid: the user for whom commands are meant; 0 on Windows
    """
    for rule in RULES[platform]:
        supervisor = rule(owner, parents, uid)
        if supervisor is not None:
            return supervisor
    return None


# --- rules: (process, its parents, uid for whom commands are meant) -> its supervisor ------------------------------


def _conmon(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    """The program conmon holds the ports that podman published; only the command line of that of root is trusted."""
    if _base_name(owner.exe) != "conmon" or owner.user != user_name(SYSTEM):
        return None
    for option, value in pairwise(owner.command_line or ()):
        if option in ("-c", "--cid"):
            if not container.is_id(value):
                return None
            return _container_supervisor(Container("podman", value), SYSTEM)
    return None


def _docker_proxy(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    """The program docker-proxy forwards a published port; only docker knows of which container."""
    if _base_name(owner.exe) != "docker-proxy" or owner.user != user_name(SYSTEM):
        return None
    return Supervisor(PUBLISHED, "", advice=relay.PROGRAMS["docker-proxy"].remedy)


PUBLISHED: SupervisorKind = "docker-proxy"  # until docker has named the container


def _relay(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    """A relay whose runtime is not queried: that of an ordinary user, where a program of that user may answer anything.

    inetd and the like are here too: their unit stops with every other service that they provide.
    """
    row = relay.find_program(owner)
    if row is None or not is_relay(owner):
        return None
    advice = relay.remedy(row[1].remedy, row[1], owner)
    return Supervisor("relay", "", advice=advice)


def _activator(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    """A service manager that holds a socket for a service that is not running: systemd.socket(5)."""
    if not is_service_manager(owner):
        return None
    user = container.locate(owner.cgroup or "").user
    name = ""  # the service manager of the system
    if user is not None:
        name = str(user)
    return Supervisor(ACTIVATION, name, restarts=True, why=ACTIVATED)


ACTIVATED = "systemd holds it for a socket unit, or in the file descriptor store of a service"
ACTIVATION: SupervisorKind = "socket-activation"  # until systemd has named the unit


def _unit(owner: Owner, _: ParentChain, uid: int) -> Supervisor | None:
    place = container.locate(owner.cgroup or "")
    if place.unit is None or place.is_inside:
        return None  # inside: of a systemd in a container, which the systemd outside does not know
    if _is_launched(owner, place.unit):
        return None
    return unit_supervisor(place.unit, place.user, uid)


def _is_launched(owner: Owner, unit: str) -> bool:
    """Whether the process is in the unit of a launcher only because the launcher started it."""
    for prefix, programs in LAUNCHERS.items():
        if unit.startswith(prefix):
            return (_base_name(owner.exe) or owner.name) not in programs
    return False


def unit_supervisor(unit: str, user: int | None, uid: int, *sockets: str) -> Supervisor:
    """The service manager of a unit: that of the system, or that of a user.

    :param user: the uid of the user whose service manager runs the unit; None for that of the system
    :param uid: the user for whom the command is meant
    :param sockets: socket units that have to be stopped together with the unit
    """
    names = (*sockets, unit)
    scope = _scope(user, uid)
    if scope is None:
        return Supervisor("systemd", unit, advice=f"as that user: systemctl --user stop {' '.join(names)}")
    if not all(is_unit_name(name) for name in names):
        return Supervisor("systemd", unit)
    return Supervisor("systemd", unit, (SYSTEMCTL, *scope, "stop", *names))


def _scope(user: int | None, uid: int) -> tuple[str, ...] | None:
    """The options that select a service manager: systemctl(1), --user, --machine. None: only that user can."""
    if user is None:
        return ()
    if user == uid:
        return ("--user",)
    name = user_name(user)
    if uid != SYSTEM or not re.fullmatch(USER_NAME, name, re.ASCII):
        return None
    return ("--user", f"--machine={name}@.host")


def _in_container(owner: Owner, _: ParentChain, uid: int) -> Supervisor | None:
    innermost = container.identify(owner.cgroup or "")
    if innermost is None:
        return None
    if innermost.delegated is not None and innermost.runtime != container.UNKNOWN:
        return None  # anybody may have chosen the id, which may be that of another container
    return _container_supervisor(innermost, uid, owner.container)


def _container_supervisor(supervised: Container, uid: int, label: str | None = None) -> Supervisor:
    runtime = supervised.runtime
    _, _, name = (label or container.label(supervised)).partition(":")
    if supervised.pod is not None:
        return Supervisor("kubernetes", name, advice=NO_COMMAND["kubernetes"])
    if supervised.daemon is None:
        return Supervisor(runtime, name, advice="stop the container that it runs in")
    stop = STOP.get(runtime)
    if stop is None:
        return Supervisor(runtime, name, advice=NO_COMMAND.get(runtime))
    number = supervised.id if container.is_id(supervised.id) else name
    if supervised.daemon != uid or not is_container_name(number):
        advice = f"as user {user_name(supervised.daemon)}: {' '.join(stop)} {name}"
        return Supervisor(runtime, name, advice=advice)
    if not is_container_name(name):
        return Supervisor(runtime, name, (*stop, number))
    return Supervisor(runtime, name, (*stop, name))


def _windows_service(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    name = owner.service
    if not name:
        return None
    if ", " in name or not re.fullmatch(SERVICE_NAME, name):
        return Supervisor("windows-service", name, advice="it hosts several services: Stop-Service -Name NAME")
    return Supervisor("windows-service", name, ("Stop-Service", "-Name", name))


def _supervised(_: Owner, parents: ParentChain, __: int) -> Supervisor | None:
    if not parents:
        return None
    for name in _program_names(parents[0]):
        if name in SUPERVISORS:
            restarts = True if name in ALWAYS else None
            why = f"{name} is its parent"
            return Supervisor("supervisor", name, restarts=restarts, why=why, advice=SUPERVISORS[name])
    return None


def _program_names(process: Owner) -> tuple[str, ...]:
    """The name of a process without its version ("PM2 v7.0.4: God"), and that of the script that it interprets."""
    name = (process.name or "").split(" ")[0]
    arguments = process.command_line or ()
    if name.startswith(INTERPRETERS) and len(arguments) > 1:
        return name, _base_name(arguments[1])
    return (name,)


def _airplay(owner: Owner, _: ParentChain, __: int) -> Supervisor | None:
    if owner.name != "ControlCenter":
        return None
    return Supervisor("macos", "AirPlay Receiver", restarts=True, why="macOS restarts it", advice=AIRPLAY)


SupervisorRule = Callable[[Owner, ParentChain, int], Supervisor | None]
RULES: Mapping[str, tuple[SupervisorRule, ...]] = {
    "linux": (_conmon, _docker_proxy, _relay, _activator, _unit, _in_container, _supervised),
    "macos": (_airplay, _supervised),
    "windows": (_windows_service, _supervised),
}


def _base_name(path: str | None) -> str:
    return (path or "").rpartition("/")[2]
