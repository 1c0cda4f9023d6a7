"""The container that a process runs in, from its cgroup path on Linux. Pure, except for the names of containers.

Facts: the cgroup drivers of runc and crun, systemd (``<prefix>-<id>.scope``) and cgroupfs (``<parent>/<id>``);
https://kubernetes.io/docs/concepts/architecture/cgroups; lxc.container.conf(5), lxc.cgroup.dir; systemd-nspawn(1),
systemd-machined(8); podman-run(1), --cgroups. If a form is known only from a public discussion, the tests name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from portbook.managers.systemd import unescape
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
        if container:
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
    innermost: Container | None = None
    pod: str | None = None
    daemon: int | None = SYSTEM
    grandparent = parent = ""
    for segment in cgroup.split("/"):
        pod = pod_of(segment) or pod
        container = _container(grandparent, parent, segment)
        if segment.startswith("user@"):
            daemon = _user(segment, daemon)
        elif segment == NSPAWN_SUPERVISOR and innermost and innermost.runtime == "nspawn":
            innermost = None
        elif container is not None:
            runtime, number = container
            if pod and runtime == UNKNOWN:
                runtime = POD
            innermost = Container(runtime, number, pod, daemon)
            pod = daemon = None  # what follows lies inside
        grandparent, parent = parent, segment
    if pod:
        return Container(POD, "", pod, None)
    return innermost


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


def _user(segment: str, otherwise: int | None) -> int | None:
    """The uid of ``user@1000.service``: the docker or podman of that user made what follows."""
    uid = number_or_none(segment.removeprefix("user@").removesuffix(".service"), UINT32)
    if otherwise != SYSTEM or uid is None:
        return otherwise
    return uid
