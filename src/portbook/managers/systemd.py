"""The systemd unit of a cgroup path. Pure.

systemd gives every unit a cgroup with the name of the unit below that of its slice, and a user's service manager builds
the same tree inside ``user@UID.service``: systemd.slice(5), systemd.scope(5),
https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

from portbook.numerals import parse_hex

# Units that start processes of their own (systemd.unit(5)). A scope is made for processes that something else started.
UNITS = (".service", ".socket", ".mount", ".swap")
SLICE, SCOPE = ".slice", ".scope"
USER_MANAGER = "user@"
MANAGER_CGROUP = "init.scope"  # where systemd itself is, pid 1 or a user's
# A cgroup driver that does not match puts pods below the unit of containerd or docker
# (https://github.com/kubernetes/kubernetes/issues/106514, 36807): they are not containerd.
PODS = ("kubepods", ".slice:")
HEX = frozenset("0123456789abcdefABCDEF")


def unit_of(cgroup: str) -> str | None:
    r"""The unit that a process in ``cgroup`` belongs to, ``\x2d`` and the like decoded; None for none.

    The outermost unit counts: its user may make directories with the names of other units below it. A user's
    service manager and a systemd inside a container have units of their own. Login sessions, applications and
    containers are scopes: they are no services. A container that a unit runs as its main process (podman with
    ``--cgroups=split``, as Quadlet does) belongs to that unit.
    """
    unit = exact_unit_of(cgroup)
    if unit is None:
        return None
    return unescape(unit)


def exact_unit_of(cgroup: str) -> str | None:
    """The same unit with its escapes, as systemctl(1) expects it."""
    from portbook.managers import container  # which imports this module

    return container.locate(cgroup).unit


def is_manager(cgroup: str) -> bool:
    """Whether it is the cgroup in which systemd keeps itself, that of the system or of a user."""
    return cgroup.endswith(f"/{MANAGER_CGROUP}")


def unescape(name: str) -> str:
    r"""Undo systemd's escaping of a cgroup's name.

    ``\xNN`` is a byte (systemd-escape(1)); a leading underscore keeps the name apart from the kernel's own files
    (cg_escape() in src/basic/cgroup-util.c).
    """
    first, *rest = name.removeprefix("_").split("\\x")
    text = bytearray(first.encode("utf-8", "replace"))
    for part in rest:
        if len(part) >= 2 and HEX.issuperset(part[:2]):
            text.append(parse_hex(part[:2]))
            text += part[2:].encode("utf-8", "replace")
        else:
            text += b"\\x" + part.encode("utf-8", "replace")
    return text.decode("utf-8", "replace")
