"""What it means for a port that its holder does not run, and what ends that state. Pure.

Sources: proc_pid_stat(5) for the states; signal(7) and credentials(7) for job control; ptrace(2); listen(2) about the
queue of connections that no accept(2) has taken.
"""

from __future__ import annotations

from portbook.records import Owner


def explain_state(owner: Owner) -> str | None:
    """A sentence about a process that does not run, with what works against it; None for one that runs."""
    if owner.state == "suspended":
        return (
            "suspended (Ctrl-Z or SIGSTOP): it accepts and does not answer; "
            f"kill -CONT {owner.pid} lets it run again, as does fg in its shell"
        )
    if owner.state == "traced":
        by = f"pid {owner.tracer}" if owner.tracer else "a debugger"
        return f"stopped by {by}, which traces it: it accepts and does not answer until that lets it run again"
    if owner.state == "uninterruptible":
        return (
            "in an uninterruptible wait, for a disk or a network file system: it accepts and does not answer, "
            "and no signal ends it before that wait is over"
        )
    if owner.state == "frozen":
        return f"frozen with its cgroup: it accepts and does not answer; {_thaw(owner)} lets it run again"
    if owner.state == "zombie":
        return "its main thread has ended, and other threads run on: kill ends them too"
    if owner.tracer:
        return f"running, traced by pid {owner.tracer}"
    return None


def _thaw(owner: Owner) -> str:
    """docker-unpause(1), podman-unpause(1), systemctl(1) about thaw."""
    runtime, _, name = (owner.container or "").partition(":")
    if runtime in ("docker", "podman"):
        return f"{runtime} unpause {name}"
    if owner.service:
        return f"systemctl thaw {owner.service}"
    return "what froze it"
