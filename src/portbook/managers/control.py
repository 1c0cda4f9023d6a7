"""What service managers and container runtimes report of a process, and the commands with which they stop it.

Commands are run by absolute path, from directories that belong to the system, without a shell, in a minimal environment
and within a time limit. Their arguments are names that ``supervisor`` has checked.

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
from portbook.numerals import UINT32, number_or_none
from portbook.records import Protocol
from portbook.system import program

# Variables that commands of ordinary users need; for root their values are fixed.
USER_VARIABLES = ("HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
ROOT_VARIABLES = {"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0"}
WINDOWS_VARIABLES = ("SYSTEMROOT", "PATH", "TEMP")
BOOTED = "/run/systemd/system"  # sd_booted(3)
QUERY_LIMIT_S = 3.0
MOST_UNITS = 5  # that are named


class CommandResult(NamedTuple):
    """How a command ended."""

    code: int | None  # None: it could not be run, or did not end
    text: str  # its output, or why it has none


def run_command(command: Sequence[str], limit_s: float) -> CommandResult:
    """Run a program of the system to its end, within the limits of ``program.run``."""
    try:
        path = program.require(command[0])
        output = program.run([path, *command[1:]], limit_s, environment=clean_environment())
    except SourceError as error:
        return CommandResult(None, str(error))
    text = output.stdout
    if output.code != 0 and output.stderr:
        text = output.stderr
    return CommandResult(output.code, text.decode("utf-8", "replace").strip())


def clean_environment() -> dict[str, str]:
    """An environment without what redirects a command: DOCKER_HOST, SYSTEMD_*, another user's PATH."""
    if sys.platform == "win32":
        return _environment(WINDOWS_VARIABLES)
    variables = ROOT_VARIABLES if os.geteuid() == 0 else _environment(USER_VARIABLES)
    return {"PATH": program.PATH, "LC_ALL": "C.UTF-8", **variables}


def _environment(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


# --- queries -------------------------------------------------------------------------------------------------------


def query_manager(known: Supervisor, port: int, protocol: Protocol) -> Supervisor:
    """Add what the manager itself reports to a supervisor; unchanged if it cannot be queried.

    :param port: the port that the process holds
    """
    query = QUERIES.get(known.kind)
    if query is None:
        return known
    return query(known, port, protocol)


def _query_unit(known: Supervisor, _: int, __: Protocol) -> Supervisor:
    """Whether systemd restarts the unit, and which socket units start it."""
    if known.command is None:
        return known
    if not os.path.isdir(BOOTED):
        return _unanswered(known)
    question = [supervisor.SYSTEMCTL, *_scope(known.command), "show"]
    question += [f"--property={UNIT_PROPERTIES}", known.name]
    unit = properties(run_command(question, QUERY_LIMIT_S).text)
    if unit.get("LoadState") != "loaded" and unit.get("ActiveState") not in RUNNING:
        return _unanswered(known)
    restarts, why = restart_policy(unit)
    stop = known.command[: known.command.index("stop") + 1]
    socket_units = [name for name in triggering_sockets(unit) if supervisor.is_unit_name(name)]
    return replace(
        known,
        restarts=restarts,
        why=why,
        command=(*stop, *socket_units, known.name),
        main_pid=number_or_none(unit.get("MainPID", ""), UINT32),
        control_pid=number_or_none(unit.get("ControlPID", ""), UINT32),
        kill_mode=unit.get("KillMode") or None,
    )


def _unanswered(known: Supervisor) -> Supervisor:
    """Without an answer it is not known what else would end with the unit: nothing is stopped, only advised."""
    return replace(known, command=None, why="systemd did not answer", advice=supervisor.stop_instruction(known))


RUNNING = ("active", "reloading", "activating", "deactivating")  # also of a unit whose file has been removed
UNIT_PROPERTIES = "LoadState,ActiveState,Restart,RestartUSec,TriggeredBy,MainPID,ControlPID,KillMode"


def _scope(command: Sequence[str]) -> list[str]:
    """The options of systemctl that select a service manager."""
    return [word for word in command if word.startswith("--")]


def _query_activation(known: Supervisor, port: int, protocol: Protocol) -> Supervisor:
    """For which socket unit systemd, that of the system or of a user, holds the port."""
    user = number_or_none(known.name, UINT32)
    uid = os.geteuid()
    example = supervisor.unit_supervisor("any.socket", user, uid)
    if example.command is None or not os.path.isdir(BOOTED):
        return known
    question = [supervisor.SYSTEMCTL, *_scope(example.command), "list-sockets"]
    question += ["--show-types", "--no-legend", "--full", "--no-pager"]
    units = listening_units(run_command(question, QUERY_LIMIT_S).text, port, protocol)
    if units is None:
        return _query_stores(known, user, uid, example.command)
    socket_unit, service = units
    if service:
        activated = supervisor.unit_supervisor(service, user, uid, socket_unit)
    else:
        activated = supervisor.unit_supervisor(socket_unit, user, uid)
    return replace(activated, name=socket_unit, restarts=True)


def _query_stores(known: Supervisor, user: int | None, uid: int, command: Sequence[str]) -> Supervisor:
    """Which unit has the socket in its file descriptor store: systemd.service(5), FileDescriptorStoreMax=.

    systemd does not report whose store a socket is in; where several units have one, they are all named.
    """
    question = [supervisor.SYSTEMCTL, *_scope(command), "show", "--type=service", "--no-pager"]
    question += ["--property=Id,NFileDescriptorStore", "*"]
    units = storing_units(run_command(question, QUERY_LIMIT_S).text)
    if not units:
        return known
    why = "systemd keeps the socket in the file descriptor store of the service"
    if len(units) > 1:
        advice = f"systemctl stop UNIT, one of {', '.join(units[:MOST_UNITS])}"
        return replace(known, restarts=None, why=f"{why} UNIT", advice=advice)
    stored = supervisor.unit_supervisor(units[0], user, uid)
    return replace(stored, restarts=None, why=why)


def _query_published(known: Supervisor, port: int, protocol: Protocol) -> Supervisor:
    """Of which container docker has published the port."""
    question = ["docker", "ps", "--quiet", "--no-trunc", "--filter", f"publish={port}/{protocol}"]
    numbers = run_command(question, QUERY_LIMIT_S).text.split()
    if len(numbers) != 1 or not container.is_id(numbers[0]):
        return known
    number = numbers[0]
    docker = Supervisor("docker", number[: container.SHORT], ("docker", "stop", number))
    return _query_container(docker, port, protocol)


def _query_container(known: Supervisor, _: int, __: Protocol) -> Supervisor:
    """The name and the restart policy of a container; docker and podman have them in the same places."""
    if known.command is None:
        return known
    *stop, number = known.command
    template = "{{.Name}}|{{.HostConfig.RestartPolicy.Name}}"
    done = run_command([stop[0], "inspect", "--format", template, number], QUERY_LIMIT_S)
    name, bar, policy = done.text.removeprefix("/").partition("|")
    is_valid = bar and policy in POLICIES and supervisor.is_container_name(name)
    if done.code != 0 or not is_valid:
        return known
    why = f"restart policy {policy or 'no'}"
    return replace(known, name=name, command=(*stop, name), restarts=POLICIES[policy], why=why)


# docker-run(1), podman-run(1), --restart: whether a container is restarted if its process ends by a signal.
POLICIES = {"": False, "no": False, "always": True, "unless-stopped": True, "on-failure": True}
QUERIES: Mapping[SupervisorKind, Callable[[Supervisor, int, Protocol], Supervisor]] = {
    "systemd": _query_unit,
    supervisor.ACTIVATION: _query_activation,
    supervisor.PUBLISHED: _query_published,
    "docker": _query_container,
    "podman": _query_container,
}


# --- the output of systemctl ---------------------------------------------------------------------------------------


def properties(text: str) -> dict[str, str]:
    """The lines of ``systemctl show``: Key=Value."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values[key] = value
    return values


def restart_policy(unit: Mapping[str, str]) -> tuple[bool | None, str]:
    """Whether systemd restarts a unit that ends after SIGTERM (None: not known), and why."""
    socket_units = triggering_sockets(unit)
    if socket_units:
        return True, f"{' '.join(socket_units)} starts it with the next connection"
    policy = unit.get("Restart", "")
    why = f"Restart={policy}"
    pause = unit.get("RestartUSec", "")
    if pause and policy != "no":
        why += f", RestartSec={pause}"
    return RESTART.get(policy), why


def triggering_sockets(unit: Mapping[str, str]) -> tuple[str, ...]:
    """The socket units that start the unit."""
    return tuple(name for name in unit.get("TriggeredBy", "").split() if name.endswith(".socket"))


# Whether systemd restarts a service that ends after SIGTERM. With every other value it depends on the exit status.
RESTART: Mapping[str, bool] = {"no": False, "on-watchdog": False, "always": True, "on-success": True}
TYPES: Mapping[Protocol, str] = {"tcp": "Stream", "udp": "Datagram"}


def listening_units(text: str, port: int, protocol: Protocol) -> tuple[str, str] | None:
    """The socket unit and the unit that it starts ("": none yet), from ``systemctl list-sockets --show-types``."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[0].endswith(f":{port}") and fields[1] == TYPES[protocol]:
            service = fields[3].rstrip(",") if len(fields) > 3 else ""
            return fields[2], service
    return None


def storing_units(text: str) -> tuple[str, ...]:
    """The services with something in their file descriptor store, from ``systemctl show``: blocks of Key=Value."""
    units: list[str] = []
    for block in text.split("\n\n"):
        unit = properties(block)
        name = unit.get("Id", "")
        if unit.get("NFileDescriptorStore", "0") not in ("", "0") and supervisor.is_unit_name(name):
            units.append(name)
    return tuple(units)


# --- commands ------------------------------------------------------------------------------------------------------


def stop_by_manager(manager: Supervisor, limit_s: float) -> CommandResult:
    """Run the command with which a supervisor stops what it supervises."""
    if manager.command is None:
        return CommandResult(None, f"there is no command that stops {manager.name}")
    if manager.kind == "windows-service":  # the same request as Stop-Service, without PowerShell
        return run_command(("sc.exe", "stop", manager.name), limit_s)
    return run_command(manager.command, limit_s)
