"""What is added to the sockets of a source: an ordered list of plain callables.

An enricher takes the distinct owners of a listing (at first no more than pids) and returns as many, in the same order,
each unchanged or completed, and the gaps it met. It never raises because of one process: processes end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from portbook.records import Gap, Owner, Socket

Enricher = Callable[[list[Owner]], tuple[list[Owner], list[Gap]]]


def enrichers() -> tuple[Enricher, ...]:
    """The enrichers of this machine, in the order in which they run; each may use the results of earlier ones."""
    from portbook.enrich import process, service
    from portbook.managers import container

    return (process.enrich, service.enrich, container.enrich)


# The programs of portbook.managers.relay (a test compares them): most machines run none, and need not load their table.
RELAYS = frozenset(
    [
        "busybox",
        "busybox.static",
        "com.docker.backend",
        "com.docker.vpnkit",
        "conmon",
        "docker-proxy",
        "gvproxy",
        "haproxy",
        "incusd",
        "inetd",
        "inetutils-inetd",
        "kubectl",
        "limactl",
        "lxd",
        "oc",
        "openbsd-inetd",
        "passt",
        "pasta",
        "qemu",
        "redir",
        "rinetd",
        "rootlesskit",
        "rootlessport",
        "rootlessport-child",
        "slirp4netns",
        "socat",
        "socat1",
        "ssh",
        "sshd",
        "sshd-session",
        "stunnel",
        "stunnel4",
        "systemd-socket-proxyd",
        "tcpserver",
        "tcpsvd",
        "toybox",
        "udpsvd",
        "vpnkit",
        "wslhost",
        "wslrelay",
        "xinetd",
    ]
)


def has_relay(sockets: Iterable[Socket]) -> bool:
    """Whether an owner may be a relay: what ``relays.Relays`` finds is worth a look then."""
    groups = {id(s.owners): s.owners for s in sockets}
    return any(is_relay(owner) for group in groups.values() for owner in group)


def is_relay(owner: Owner) -> bool:
    """Whether the process has the name of a relay."""
    name = (owner.exe or owner.name or "").replace("\\", "/").rpartition("/")[2].lower()
    name = name.removesuffix(".exe").removesuffix(".avx2")
    return name in RELAYS or name.startswith("qemu-system-")
