"""Who would start a process again, and the command that really stops it. Tables and parsing; pure.

What is asked of the service manager itself is in ``asked``; here is what the process's own record says already: its
cgroup, its Windows service, its parent, and for the relays of container runtimes its command line.

Facts: systemd.service(5), Restart= and the table below it; systemctl(1), show and list-sockets; docker-stop(1),
podman-stop(1); conmon(8), ``-c``; systemd.unit(5) and Docker's documentation for what a name may consist of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise

from portbook.enrich import container
from portbook.enrich.container import Container
from portbook.enrich.service import systemd
from portbook.enrich.users import user_name
from portbook.records import Holder, Owner, Protocol
from portbook.stop.outcome import Restarter

SYSTEM = 0
SYSTEMCTL = "systemctl"
UNIT = re.compile(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,254}", re.ASCII)
CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
USER = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}", re.ASCII)
SERVICE = re.compile(r"[^\W_][\w .()$-]{0,255}")  # of Windows: no quotes, slashes and controls

STOP: Mapping[str, tuple[str, ...]] = {"docker": ("docker", "stop"), "podman": ("podman", "stop")}
ELSEWHERE: Mapping[str, str] = {  # runtimes without one command that fits every installation
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
    "slirp4netns": "podman ps, then podman stop",
    "pasta": "podman ps, then podman stop",
    "docker-proxy": "docker ps --filter publish=PORT, then docker stop",
    "rootlesskit": "docker ps --filter publish=PORT, then docker stop",
}
# Parents that start their children again, by name, and the command for it; the argument is theirs to know.
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
# Whether systemd starts a service again that ends after SIGTERM. Not in here: it depends on how it exits.
RESTART: Mapping[str, bool] = {"no": False, "on-watchdog": False, "always": True, "on-success": True}


def relays(owner: Owner) -> bool:
    """Whether it holds the published port of a container that is somebody else."""
    return _base(owner.exe) in RELAYS


def of(holder: Holder, platform: str, uid: int) -> Restarter | None:
    """Who looks after a holder, as far as its record says; ``uid`` is the user who asks (0 on Windows)."""
    rules = WINDOWS if platform == "windows" else MACOS if platform == "macos" else LINUX
    return next((found for rule in rules if (found := rule(holder, uid))), None)


# --- rules: (holder, uid of who asks) -> who looks after it --------------------------------------------------------


def _conmon(holder: Holder, _: int) -> Restarter | None:
    """Holds the ports that podman has published: of root's podman, whose conmon is believed what it was told."""
    owner = holder.owner
    if _base(owner.exe) != "conmon" or owner.user != user_name(SYSTEM):
        return None
    arguments = owner.command_line or ()
    number = next((b for a, b in pairwise(arguments) if a in ("-c", "--cid")), "")
    return _container(Container("podman", number), 0) if container.is_id(number) else None


def _docker_proxy(holder: Holder, _: int) -> Restarter | None:
    """Relays a published port; docker has to be asked for whom."""
    owner = holder.owner
    if _base(owner.exe) != "docker-proxy" or owner.user != user_name(SYSTEM):
        return None
    return Restarter(PUBLISHED, "", advice=f"find the container: {RELAYS['docker-proxy']}")


PUBLISHED = "docker-proxy"  # the kind of a relay, until docker has named the container


def _relay(holder: Holder, _: int) -> Restarter | None:
    """The same of an ordinary user, who is not asked: what runs there may say anything."""
    found = RELAYS.get(_base(holder.owner.exe))
    who = holder.owner.user or "the user it belongs to"
    return Restarter("relay", "", advice=f"find the container, as {who}: {found}") if found else None


def _activator(holder: Holder, _: int) -> Restarter | None:
    """A service manager holds sockets for services that are not running: systemd.socket(5)."""
    owner = holder.owner
    if _base(owner.exe) != "systemd" and not (owner.pid == 1 and owner.name == "systemd"):
        return None
    user = systemd.user_of(owner.cgroup or "")
    return Restarter(ACTIVATION, "" if user is None else str(user), None, True, "systemd holds it for a socket unit")


ACTIVATION = "socket-activation"  # the kind, until systemd has named the unit


def _unit(holder: Holder, uid: int) -> Restarter | None:
    path = holder.owner.cgroup or ""
    unit = systemd.exact_unit_of(path)
    if unit is None or container.identify(path[: path.rindex(unit)]) is not None:
        return None  # the unit of a systemd inside a container, which the one out here does not know
    return of_unit(unit, systemd.user_of(path), uid)


def of_unit(unit: str, user: int | None, uid: int, *sockets: str) -> Restarter:
    """A unit of the system's service manager, or of a user's."""
    names = (*sockets, unit)
    scope = _scope(user, uid)
    if scope is None or not all(UNIT.fullmatch(name) for name in names):
        advice = f"as that user: systemctl --user stop {' '.join(names)}" if scope is None else None
        return Restarter("systemd", unit, None, None, None, advice)
    return Restarter("systemd", unit, (SYSTEMCTL, *scope, "stop", *names))


def _scope(user: int | None, uid: int) -> tuple[str, ...] | None:
    """Whose units: systemctl(1), --user, --machine; None where only that user can say it."""
    if user is None:
        return ()
    if user == uid:
        return ("--user",)
    name = user_name(user)
    return ("--user", f"--machine={name}@.host") if uid == SYSTEM and USER.fullmatch(name) else None


def _in_container(holder: Holder, uid: int) -> Restarter | None:
    found = container.identify(holder.owner.cgroup or "")
    return _container(found, uid, holder.owner.container) if found else None


def _container(found: Container, uid: int, label: str | None = None) -> Restarter:
    runtime, _, name = (label or container.label(found)).partition(":")
    stop = STOP.get(found.runtime)
    if found.pod is not None:
        return Restarter("kubernetes", name, advice=ELSEWHERE["kubernetes"])
    if stop is None or found.daemon is None:
        advice = ELSEWHERE.get(found.runtime) if found.daemon is not None else "stop the container around it"
        return Restarter(runtime, name, advice=advice)
    number = found.id if container.is_id(found.id) else name
    if found.daemon != uid or not CONTAINER.fullmatch(number):
        who = user_name(found.daemon)
        return Restarter(runtime, name, advice=f"as user {who}: {' '.join(stop)} {name}")
    return Restarter(runtime, name, (*stop, name if CONTAINER.fullmatch(name) else number))


def _windows_service(holder: Holder, _: int) -> Restarter | None:
    name = holder.owner.service
    if not name:
        return None
    if ", " in name or not SERVICE.fullmatch(name):
        return Restarter("windows-service", name, advice="several services live in it: Stop-Service -Name ONE")
    return Restarter("windows-service", name, ("Stop-Service", "-Name", name))


def _supervised(holder: Holder, _: int) -> Restarter | None:
    parent = holder.parents[0] if holder.parents else None
    name = (parent.name or "").split(" ")[0] if parent else ""
    if name not in SUPERVISORS:
        return None
    return Restarter("supervisor", name, None, None, f"{name} is its parent", SUPERVISORS[name])


def _airplay(holder: Holder, _: int) -> Restarter | None:
    found = holder.owner.name == "ControlCenter"
    return Restarter("macos", "AirPlay Receiver", None, True, "macOS starts it again", AIRPLAY) if found else None


Rule = Callable[[Holder, int], Restarter | None]
LINUX: tuple[Rule, ...] = (_conmon, _docker_proxy, _relay, _activator, _unit, _in_container, _supervised)
MACOS: tuple[Rule, ...] = (_airplay, _supervised)
WINDOWS: tuple[Rule, ...] = (_windows_service, _supervised)


def _base(path: str | None) -> str:
    return (path or "").rpartition("/")[2]


# --- what systemctl prints -----------------------------------------------------------------------------------------


def properties(text: str) -> dict[str, str]:
    """The lines of ``systemctl show``: Key=Value."""
    return {key: value for key, equals, value in (line.partition("=") for line in text.splitlines()) if equals}


def restarts(shown: Mapping[str, str]) -> tuple[bool | None, str]:
    """Whether systemd would start the unit again after a gentle end, and why."""
    if triggers := sockets_of(shown):
        return True, f"{' '.join(triggers)} starts it with the next connection"
    policy = shown.get("Restart", "")
    return RESTART.get(policy), f"Restart={policy}"


def sockets_of(shown: Mapping[str, str]) -> tuple[str, ...]:
    """The socket units that start the unit."""
    return tuple(name for name in shown.get("TriggeredBy", "").split() if name.endswith(".socket"))


TYPES: dict[Protocol, str] = {"tcp": "Stream", "udp": "Datagram"}


def listening_units(text: str, port: int, protocol: Protocol) -> tuple[str, str] | None:
    """The socket unit and the unit it starts, from ``systemctl list-sockets --show-types --no-legend --full``."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[0].endswith(f":{port}") and fields[1] == TYPES[protocol]:
            socket_unit, starts = fields[2], fields[3] if len(fields) > 3 else ""
            return socket_unit, starts.rstrip(",")
    return None
