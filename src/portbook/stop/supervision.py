"""Whether the systemd unit that a process is in really supervises it. Pure.

A control group says where a process was started, not who looks after it. A server that was started over ssh without a
session of its own is in ssh.service; to stop that unit would stop sshd, and leave the server (KillMode=process).

Facts: systemd.service(5) on the main process, Restart= and Type=; systemd.kill(5), KillMode=.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from portbook.managers.supervisor import Supervisor
from portbook.records import Holder, Owner
from portbook.stop import protected

SPARING = ("process", "none")  # values of KillMode= with which only the main process ends, or none


def judge(
    known: Supervisor, holder: Holder, holding: Collection[int], main: Owner | None, interactive: bool = False
) -> Supervisor:
    """The supervisor as it concerns this holder.

    :param holding: the pids of all holders of the port
    :param interactive: whether the holder has a terminal that is not that of the main process: a job of a shell in a
        terminal multiplexer or an editor that is a unit
    :param main: the main process of the unit, if it has one and it could be read
    :returns: the same if it supervises the process; otherwise one without a command, which restarts nothing
    """
    pid = holder.owner.pid
    if known.main_pid is None or pid in (known.main_pid, known.control_pid):
        return known  # no unit of systemd, or systemd did not answer; or the service itself
    if known.kill_mode in SPARING:
        return _bystander(known, main, f"KillMode={known.kill_mode}")
    if known.main_pid == 0:
        return known  # all processes of the unit are the service
    if main is not None and protected.reason(main, "linux"):
        return _bystander(known, main, protected.reason(main, "linux"))
    if interactive:
        return _bystander(known, main, "it runs on a terminal")
    is_below_main = any(parent.pid == known.main_pid for parent in holder.parents)
    if known.main_pid in holding or is_below_main:
        return known
    return _bystander(known, main, None)


def _bystander(known: Supervisor, main: Owner | None, reason: str | None) -> Supervisor:
    """A process that is in the unit, and is not its service: systemd does not start it again."""
    why = "the process is in the unit, and not its service"
    if main is not None:
        why += f", which is {main.name or '?'} (pid {main.pid})"
    if reason:
        why += f": {reason}"
    return replace(known, command=None, restarts=False, why=why)
