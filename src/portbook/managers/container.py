"""The unit and the container that a process runs in, from its cgroup path on Linux. Pure, except for the labels.

A path is believed from its root on, and only as far as root made it. systemd gives units to slices, and delegates what
is below a unit: the user of the unit chooses every name there (https://systemd.io/CGROUP_DELEGATION). So the
outermost unit counts, apart from a user's service manager, whose tree is that user's; and a container counts where its
runtime makes it: below slices, or at the root of the hierarchy. Elsewhere the directory above it must belong to root.

Facts: the cgroup drivers of runc and crun, systemd (``<prefix>-<id>.scope``) and cgroupfs (``<parent>/<id>``);
https://kubernetes.io/docs/concepts/architecture/cgroups; lxc.container.conf(5), lxc.cgroup.dir; systemd-nspawn(1),
systemd-machined(8); podman-run(1), --cgroups. If a form is known only from a public discussion, the tests name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from portbook.managers.systemd import MANAGER_CGROUP, PODS, SCOPE, SLICE, UNITS, USER_MANAGER, unescape
from portbook.numerals import UINT32, is_number, number_or_none
from portbook.records import Gap, Owner

SYSTEM = 0  # uid of the user whose daemon it is: root
SHORT = 12  # digits of an id, as docker ps and podman ps print it
HEX = "0123456789abcdef"
# What runs containers. container: the path has the id of a container of an unknown runtime.
Runtime = Literal["docker", "podman", "containerd", "crio", "kubernetes", "lxc", "nspawn", "ecs", "container"]

# "<prefix>-<64 hex digits>", with or without ".scope". None: a monitor of a container, which does not run in it.
PREFIXES: dict[str, Runtime | None] = {
    "docker": "docker",
    "libpod": "podman",
    "libpod-payload": "podman",  # --cgroups=split: below the unit that runs it
    "libpod-conmon": None,
    "cri-containerd": "containerd",
    "containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "crio",
    "crio-conmon": None,
}
# "<parent>/<64 hex digits>", as the cgroupfs driver makes them. With any other parent the runtime is not known.
PARENTS: dict[str, Runtime | None] = {
    "docker": "docker",
    "actions_job": "docker",  # GitHub's runner passes --cgroup-parent
    "default": "containerd",  # containerd's namespaces
    "k8s.io": "containerd",
    "libpod_parent": None,  # a pod of podman; its containers are below it
}
# Directories at the root of a hierarchy that belong to root's runtimes.
PLACES = ("docker", "actions_job", "default", "k8s.io", "libpod_parent", "kubepods", "ecs", "lxc", "lxc.payload")
# Units of root that run containers below themselves.
RUNTIMES = (
    "docker.service",
    "containerd.service",
    "kubelet.service",
    "k3s.service",
    "k3s-agent.service",
    "crio.service",
    "snap.docker.dockerd.service",
)
HIERARCHIES = (
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/systemd",
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup/pids",
    "/sys/fs/cgroup/memory",
)
UNKNOWN: Runtime = "container"
POD: Runtime = "kubernetes"
LXC_PARENTS = ("lxc", "lxc.payload")  # "<parent>/<name>": before LXC 4, and Proxmox
LXC = "lxc.payload."  # LXC 4, LXD, Incus
MACHINE_SLICE, MACHINE = "machine.slice", "machine-"
VIRTUAL_MACHINES = ("qemu-", "ch-", "xen-", "libxl-")  # libvirt registers them with systemd-machined too
LIBVIRT_LXC = "lxc-"  # lxc-<number>-<name>
NSPAWN_UNIT = "systemd-nspawn@"
NSPAWN_SUPERVISOR = "supervisor"  # systemd-nspawn itself; what it runs is in "payload"


class Container(Struct, frozen=True):
    """A container, as far as a cgroup path describes it."""

    runtime: Runtime
    id: str  # 64 hex digits; the name for lxc and nspawn; empty for a process of a pod outside its containers
    pod: str | None = None  # uid of the Kubernetes pod
    # The uid of the user whose daemon made it. None inside another container: the daemons outside do not know it, and a
    # process in there may have chosen the id.
    daemon: int | None = SYSTEM
    # The path of a directory that must belong to root; or else anybody may have chosen the name of the container.
    delegated: str | None = None


class CgroupPlace(Struct, frozen=True):
    """Where a cgroup path puts a process."""

    unit: str | None = None  # with systemd's escapes
    user: int | None = None  # whose service manager runs the unit; None for that of the system
    container: Container | None = None  # the innermost
    is_inside: bool = False  # the unit is one of a systemd inside the container


# --- labels --------------------------------------------------------------------------------------------------------


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Add the label of its container to each owner that runs in one."""
    label_by_cgroup, gaps = labels({owner.cgroup for owner in owners if owner.cgroup})
    if not label_by_cgroup:
        return owners, gaps
    return [_labelled(owner, label_by_cgroup) for owner in owners], gaps


def _labelled(owner: Owner, label_by_cgroup: Mapping[str, str]) -> Owner:
    text = label_by_cgroup.get(owner.cgroup or "")
    if text is None:
        return owner
    return replace(owner, container=text)


def labels(cgroups: Iterable[str]) -> tuple[dict[str, str], list[Gap]]:
    """The labels of the cgroups that belong to a container, and a gap for names that are missing."""
    containers: dict[str, Container] = {}
    for cgroup in set(cgroups):
        container = identify(cgroup)
        if container and (container.delegated is None or _is_roots(container.delegated)):
            containers[cgroup] = container
    if not containers:
        return {}, []
    from portbook.managers import runtimes

    wanted = {(c.runtime, c.daemon, c.id) for c in containers.values() if c.pod is None and c.daemon is not None}
    names, gaps = runtimes.names_of(wanted)
    return {cgroup: label(container, names) for cgroup, container in containers.items()}, gaps


def label(container: Container, names: Mapping[str, str] | None = None) -> str:
    """The label of a container: ``docker:web``, ``podman:1f2e3d4c5b6a``, ``kubernetes:pod<uid>/1f2e3d4c5b6a``."""
    short = container.id
    if is_id(short) or _is_task(short):
        short = short[:SHORT]
    if container.pod is None:
        name = (names or {}).get(container.id, short)
        return f"{container.runtime}:{name}"
    if not short:
        return f"{POD}:pod{container.pod}"
    return f"{POD}:pod{container.pod}/{short}"


# --- cgroup paths --------------------------------------------------------------------------------------------------


def identify(cgroup: str) -> Container | None:
    """The container that a process in ``cgroup`` runs in, the innermost one; None for none."""
    return locate(cgroup).container


def locate(cgroup: str) -> CgroupPlace:
    """The unit and the innermost container of a cgroup path."""
    walk = _Walk()
    for segment in cgroup.split("/"):
        if segment not in ("", ".."):  # "..": outside of our cgroup namespace, cgroup_namespaces(7)
            walk.enter(segment)
    return walk.place()


class _Walk:
    """A way down a path. A realm is what one service manager or container has to itself."""

    def __init__(self) -> None:
        self.path: list[str] = []
        self.realm = 0  # index of the first segment of the realm
        self.unit: str | None = None
        self.is_closed = False  # below a unit that is a scope, which is no service
        self.is_runtimes = False  # below a unit of root that runs containers
        self.user: int | None = None
        self.outer: str | None = None  # the unit outside of the container
        self.container: Container | None = None
        self.pod: str | None = None
        self.pod_delegated: str | None = None

    def enter(self, segment: str) -> None:
        """Look at the next segment."""
        self._see_pod(segment)
        found = self._container(segment)
        if segment == NSPAWN_SUPERVISOR and self.container and self.container.runtime == "nspawn":
            self.container = None
        elif found is not None:
            self._enter_container(segment, *found)
        elif self.unit is None and not self.is_closed:
            self._see_unit(segment)
        elif self.unit is not None and self._is_separate(segment):
            self._leave_unit(segment)
        self.path.append(segment)

    def place(self) -> CgroupPlace:
        """What was found."""
        container = self.container
        if self.pod:
            container = Container(POD, "", self.pod, None, self.pod_delegated)
        if self.unit is not None and self.container is not None and self.container.delegated is None:
            return CgroupPlace(self.unit.removeprefix("_"), self.user, container, is_inside=True)
        unit = self.outer if self.container is not None else self.unit
        return CgroupPlace(unit.removeprefix("_") if unit else None, self.user, container)

    # --- units ---

    def _see_unit(self, segment: str) -> None:
        is_below_slices = all(above.endswith(SLICE) for above in self.path[self.realm :])
        if not is_below_slices and self.container is None:
            return
        if segment.endswith(UNITS):
            self.unit = segment
            self.is_runtimes = segment in RUNTIMES and self.container is None and self.user is None
            self._see_user(segment)
        elif segment.endswith(SCOPE):
            self.is_closed = True

    def _see_user(self, segment: str) -> None:
        """A user's service manager, at its place: /user.slice/user-1000.slice/user@1000.service."""
        uid = number_or_none(segment.removeprefix(USER_MANAGER).removesuffix(".service"), UINT32)
        if uid is not None and self.container is None and self.path == ["user.slice", f"user-{uid}.slice"]:
            self.user = uid
            self.realm = len(self.path) + 1

    def _is_users(self) -> bool:
        """Whether the unit is the user's service manager itself."""
        return self.user is not None and len(self.path) >= self.realm and self.path[self.realm - 1] == self.unit

    def _is_separate(self, segment: str) -> bool:
        """Whether processes in ``segment`` below the unit do not belong to the unit."""
        if self._is_users():
            return segment != MANAGER_CGROUP
        is_others = segment.endswith((SLICE, SCOPE)) or any(pods in segment for pods in PODS)
        return self.is_runtimes and is_others

    def _leave_unit(self, segment: str) -> None:
        is_users = self._is_users()
        self.unit = None
        if is_users:
            self._see_unit(segment)

    # --- containers ---

    def _enter_container(self, segment: str, runtime: Runtime, number: str) -> None:
        if self.pod and runtime == UNKNOWN:
            runtime = POD
        daemon: int | None = self.user or SYSTEM
        if self.container is not None:
            daemon = None
        delegated = self._delegated()
        if self.container is None and segment.endswith(UNITS):
            self.outer = segment
        elif self.container is None and not self.is_runtimes:
            self.outer = self.unit
        self.container = Container(runtime, number, self.pod, daemon, delegated)
        self.pod = self.unit = None  # what follows lies inside
        self.is_closed = False
        self.realm = len(self.path) + 1

    def _see_pod(self, segment: str) -> None:
        pod = pod_of(segment)
        if pod:
            self.pod = pod
            self.pod_delegated = self._delegated()

    def _container(self, segment: str) -> tuple[Runtime, str] | None:
        parent = self.path[-1] if self.path else ""
        grandparent = self.path[-2] if len(self.path) > 1 else ""
        return _container(grandparent, parent, segment)

    def _delegated(self) -> str | None:
        """The directory that must belong to root for the next segment to be believed; None: no check is needed."""
        if self.container is not None:
            return self.container.delegated  # what is inside is the container's in any case
        if self.user is not None or self.is_runtimes:
            return None
        if self.unit is None and not self.is_closed and self._is_place_of_runtime():
            return None
        return "/" + "/".join(self.path)

    def _is_place_of_runtime(self) -> bool:
        """Whether only root's runtimes make directories here: below slices, or below a directory of their own."""
        others = [above for above in self.path[self.realm :] if not above.endswith(SLICE)]
        return not others or (others[0] in PLACES and self.path[0] == others[0])


def _is_roots(path: str) -> bool:
    """Whether only root may make directories in a cgroup, in every hierarchy that has it."""
    owners: list[os.stat_result] = []
    for hierarchy in HIERARCHIES:
        with suppress(OSError, ValueError):
            owners.append(os.stat(f"{hierarchy}{path}", follow_symlinks=False))
    return bool(owners) and all(owner.st_uid == SYSTEM and not owner.st_mode & 0o022 for owner in owners)


def pod_of(segment: str) -> str | None:
    """The uid in ``pod<uid>`` or ``kubepods-burstable-pod<uid>.slice``, which may have ``_`` for ``-``.

    The uid of a static pod, one from a file on the node, is a hash without dashes.
    """
    before, pod, uid = segment.partition(":")[0].removesuffix(".slice").rpartition("pod")
    uid = uid.replace("_", "-")
    if not pod or before[-1:] not in ("", "-") or len(uid) not in (32, 36):
        return None
    is_uid = uid[0] in HEX and not uid.strip(HEX + "-")
    return uid if is_uid else None


def _container(grandparent: str, parent: str, segment: str) -> tuple[Runtime, str] | None:
    """Runtime and id, if this segment of a path is that of a container."""
    # A runtime that gets a systemd path but uses cgroupfs makes one directory "<slice>:<prefix>:<id>".
    above, colon, number = segment.rpartition(":")
    if colon:
        return _by(PREFIXES, above.rpartition(":")[2], number)
    if grandparent == "ecs":
        return _by_task(segment)
    prefix, dash, number = segment.removesuffix(".scope").rpartition("-")
    if dash:
        return _by(PREFIXES, prefix, number) or _by_name(parent, segment)
    return _by(PARENTS, parent, segment) or _by_name(parent, segment)


def _by(table: Mapping[str, Runtime | None], key: str, number: str) -> tuple[Runtime, str] | None:
    runtime = table.get(key, UNKNOWN)
    if runtime is None or not is_id(number):
        return None
    return runtime, number


def _by_task(number: str) -> tuple[Runtime, str] | None:
    """Amazon ECS, ``/ecs/<task>/<container>``: docker on EC2, another runtime on Fargate."""
    if is_id(number):
        return "docker", number
    if _is_task(number):
        return "ecs", number
    return None


def _by_name(parent: str, segment: str) -> tuple[Runtime, str] | None:
    """Containers that have a name instead of an id."""
    if segment.startswith(LXC):
        return "lxc", segment.removeprefix(LXC)
    if parent in LXC_PARENTS and segment:
        return "lxc", segment
    if segment.startswith(NSPAWN_UNIT) and segment.endswith(".service"):
        return "nspawn", unescape(segment.removeprefix(NSPAWN_UNIT).removesuffix(".service"))
    if parent == MACHINE_SLICE and segment.startswith(MACHINE) and segment.endswith(".scope"):
        return _by_machine(unescape(segment.removeprefix(MACHINE).removesuffix(".scope")))
    return None


def _by_machine(name: str) -> tuple[Runtime, str] | None:
    if name.startswith(VIRTUAL_MACHINES):
        return None
    if name.startswith(LIBVIRT_LXC):
        return "lxc", name.split("-", 2)[-1]
    return "nspawn", name


def is_id(text: str) -> bool:
    """Whether this is the full id of a container of docker, podman, containerd or CRI-O."""
    return len(text) == 64 and not text.strip(HEX)


def _is_task(text: str) -> bool:
    """An id of ECS on Fargate: 32 hex digits, a dash, a number."""
    task, _, number = text.partition("-")
    return len(task) == 32 and not task.strip(HEX) and is_number(number)
