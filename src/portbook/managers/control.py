"""What only the service manager or the container runtime can say, and having it stop something.

Commands are run by absolute path, from directories that belong to the system, without a shell, with an environment of
our own and a time limit. Their arguments are names that ``enrich/supervisor.py`` has
checked.

Facts: systemd.service(5), Restart= and the table below it; systemctl(1), show and list-sockets.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from portbook.errors import SourceError
from portbook.managers import container, supervisor
from portbook.managers.supervisor import Supervisor, SupervisorKind
from portbook.records import Protocol
from portbook.system import program

KEPT = ("HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")  # of ordinary users
ROOTS = {"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0"}
BOOTED = "/run/systemd/system"  # sd_booted(3)
ASK_LIMIT_S = 3.0


class CommandResult(NamedTuple):
    """How a command ended."""

    code: int | None  # None: it could not be run, or not to its end
    text: str  # what it printed; in a sentence what went wrong


def run_command(command: Sequence[str], limit_s: float) -> CommandResult:
    """Run a program of the system to its end, within the limits of ``program.run``."""
    try:
        path = program.require(command[0])
        output = program.run([path, *command[1:]], limit_s, environment=clean_environment())
    except SourceError as error:
        return CommandResult(None, str(error))
    text = output.stdout if output.code == 0 else output.stderr or output.stdout
    return CommandResult(output.code, text.decode("utf-8", "replace").strip())


def clean_environment() -> dict[str, str]:
    """Nothing that leads a command elsewhere: DOCKER_HOST, SYSTEMD_*, a PATH of somebody's."""
    if sys.platform == "win32":
        return {name: os.environ[name] for name in ("SYSTEMROOT", "PATH", "TEMP") if name in os.environ}
    ours = ROOTS if os.geteuid() == 0 else {name: os.environ[name] for name in KEPT if name in os.environ}
    return {"PATH": program.PATH, "LC_ALL": "C.UTF-8", **ours}


# --- asking --------------------------------------------------------------------------------------------------------


def query_manager(found: Supervisor, port: int, protocol: Protocol) -> Supervisor:
    """What the manager itself says of a process it looks after; as it was where it cannot be asked."""
    ask = ASK.get(found.kind)
    return ask(found, port, protocol) if ask else found


def _unit(found: Supervisor, _: int, __: Protocol) -> Supervisor:
    if found.command is None or not os.path.isdir(BOOTED):
        return found
    scope = [word for word in found.command if word.startswith("--")]
    names = "--property=LoadState,Restart,TriggeredBy"
    shown = properties(run_command([supervisor.SYSTEMCTL, *scope, "show", names, found.name], ASK_LIMIT_S).text)
    if shown.get("LoadState") != "loaded":
        return found
    again, why = restarts(shown)
    stop = (*found.command[: found.command.index("stop") + 1], *_safe_units(shown), found.name)
    return replace(found, restarts=again, why=why, command=stop)


def _safe_units(shown: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name in sockets_of(shown) if supervisor.is_unit_name(name))


def _activation(found: Supervisor, port: int, protocol: Protocol) -> Supervisor:
    """Which socket unit systemd, the system's or a user's, holds the port for."""
    user = int(found.name) if found.name else None
    uid = os.geteuid()
    probe = supervisor.unit_supervisor("any.socket", user, uid)
    if probe.command is None or not os.path.isdir(BOOTED):
        return found
    scope = [word for word in probe.command if word.startswith("--")]
    options = ["list-sockets", "--show-types", "--no-legend", "--full", "--no-pager"]
    text = run_command([supervisor.SYSTEMCTL, *scope, *options], ASK_LIMIT_S).text
    units = listening_units(text, port, protocol)
    if units is None:
        return found
    socket_unit, starts = units
    named = supervisor.unit_supervisor(starts or socket_unit, user, uid, *([socket_unit] if starts else []))
    return replace(named, name=socket_unit, restarts=True)


def _docker_published(found: Supervisor, port: int, protocol: Protocol) -> Supervisor:
    """Which container docker has published the port for."""
    question = ["docker", "ps", "--quiet", "--no-trunc", "--filter", f"publish={port}/{protocol}"]
    numbers = run_command(question, ASK_LIMIT_S).text.split()
    if len(numbers) != 1 or not container.is_id(numbers[0]):
        return found
    number = numbers[0]
    return _policy(Supervisor("docker", number[: container.SHORT], ("docker", "stop", number)), port, protocol)


def _policy(found: Supervisor, _: int, __: Protocol) -> Supervisor:
    """Name and restart policy of a container, which docker and podman keep in the same places."""
    if found.command is None:
        return found
    *stop, number = found.command
    question = "{{.Name}}|{{.HostConfig.RestartPolicy.Name}}"
    done = run_command([stop[0], "inspect", "--format", question, number], ASK_LIMIT_S)
    name, bar, policy = done.text.removeprefix("/").partition("|")
    if done.code != 0 or not bar or policy not in POLICIES or not supervisor.is_container_name(name):
        return found
    again = POLICIES[policy]
    return replace(found, name=name, command=(*stop, name), restarts=again, why=f"restart policy {policy or 'no'}")


# docker-run(1), podman-run(1), --restart: whether the container is started again when its process ends by a signal.
POLICIES = {"": False, "no": False, "always": True, "unless-stopped": True, "on-failure": True}
ASK: Mapping[SupervisorKind, Callable[[Supervisor, int, Protocol], Supervisor]] = {
    "systemd": _unit,
    supervisor.ACTIVATION: _activation,
    supervisor.PUBLISHED: _docker_published,
    "docker": _policy,
    "podman": _policy,
}


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


# Whether systemd starts a service again that ends after SIGTERM. Not in here: it depends on how it exits.
RESTART: Mapping[str, bool] = {"no": False, "on-watchdog": False, "always": True, "on-success": True}
TYPES: dict[Protocol, str] = {"tcp": "Stream", "udp": "Datagram"}


def listening_units(text: str, port: int, protocol: Protocol) -> tuple[str, str] | None:
    """The socket unit and the unit it starts, from ``systemctl list-sockets --show-types --no-legend --full``."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[0].endswith(f":{port}") and fields[1] == TYPES[protocol]:
            socket_unit, starts = fields[2], fields[3] if len(fields) > 3 else ""
            return socket_unit, starts.rstrip(",")
    return None


# --- stopping ------------------------------------------------------------------------------------------------------


def stop_by_manager(found: Supervisor, limit_s: float) -> CommandResult:
    """Run the command that stops it."""
    if found.command is None:
        return CommandResult(None, f"there is no command that stops {found.name}")
    if found.kind == "windows-service":  # what Stop-Service asks of the service control manager, without PowerShell
        return run_command(("sc.exe", "stop", found.name), limit_s)
    return run_command(found.command, limit_s)
