"""Control groups of processes that a test has started."""

from __future__ import annotations

import glob
import os


def leave_v1_groups(pid: int) -> None:
    """Move a process to the root of every hierarchy of v1, so that its group of v2 is the only one that it has.

    It inherits the groups of the tests, which are not the roots where a systemd or a session has moved them. The
    directories of v1 alone have a file ``tasks`` (cgroups(7)).
    """
    for tasks in glob.glob("/sys/fs/cgroup/*/tasks"):
        with open(os.path.join(os.path.dirname(tasks), "cgroup.procs"), "w", encoding="ascii") as file:
            file.write(str(pid))
