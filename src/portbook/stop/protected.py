"""Processes that are not ended without --override, each with the reason. Tables; pure.

Processes choose their own names, so a name may protect a process that needs no protection. The name is not the only
safeguard: before anything is ended, the user sees the whole process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from portbook.managers.forwarding import ssh_session
from portbook.records import Owner

# Pids of the kernel, which no process can end.
KERNEL: Mapping[str, Mapping[int, str]] = {
    "windows": {
        0: "the System Idle Process is part of the kernel",
        4: "System is the kernel: its ports belong to drivers, such as http.sys for IIS, WinRM and others",
    },
    "linux": {0: "pid 0 is the kernel"},
    "macos": {0: "pid 0 is the kernel"},
}
INIT: Mapping[str, str] = {
    "linux": "it is the first process: the machine or the container stops when it ends",
    "macos": "launchd runs everything else on this machine",
}

SESSION = "sessions of this machine end when it ends"
SSH_SESSION = "it is an SSH session: the shell and the forwards of its client end with it"
LOGS = "it writes the system log"
NETWORK = "it configures the network of this machine"
BUS = "it is a message bus: programs that use it, often the whole desktop, end when it ends"
NAMES = "this machine cannot resolve host names without it"
DEVICES = "it sets up devices"
CONTAINERS = "it manages the containers of this machine"
CLUSTER = "it runs the pods of this node"
LOGIN = "nobody can log in without it"
LINUX_SYSTEMS = "every distribution of WSL stops when it ends"
BUGCHECK = "Windows stops with a blue screen when it ends"

UNIX: Mapping[str, str] = {
    "init": INIT["linux"],
    "systemd": "it is a service manager: everything that it started ends when it ends",
    "systemd-journald": LOGS,
    "systemd-logind": SESSION,
    "systemd-networkd": NETWORK,
    "systemd-resolved": NAMES,
    "systemd-udevd": DEVICES,
    "systemd-machined": CONTAINERS,
    "dbus-daemon": BUS,
    "dbus-broker": BUS,
    "dbus-broker-launch": BUS,
    "NetworkManager": NETWORK,
    "wpa_supplicant": NETWORK,
    "dhclient": NETWORK,
    "sshd": "this machine may not be reachable over the network without it",
    "sshd-session": SSH_SESSION,
    "login": SESSION,
    "agetty": LOGIN,
    "polkitd": "programs cannot obtain privileges without it",
    "dockerd": CONTAINERS,
    "containerd": CONTAINERS,
    "containerd-shim-runc-v2": "it manages a container",
    "crio": CONTAINERS,
    "com.docker.backend": CONTAINERS,
    "kubelet": CLUSTER,
    "k3s-server": CLUSTER,
    "etcd": "it stores the state of a cluster",
    "Xorg": SESSION,
    "Xwayland": SESSION,
    "gnome-shell": SESSION,
    "kwin_wayland": SESSION,
    "gdm": SESSION,
    "sddm": SESSION,
    "multipathd": "disks may be lost without it",
    "iscsid": "disks may be lost without it",
    "launchd": INIT["macos"],
    "WindowServer": SESSION,
    "loginwindow": SESSION,
    "mDNSResponder": NAMES,
    "configd": NETWORK,
    "opendirectoryd": LOGIN,
}
# In lower case and without ".exe".
WINDOWS: Mapping[str, str] = {
    "csrss": BUGCHECK,
    "smss": BUGCHECK,
    "wininit": BUGCHECK,
    "services": BUGCHECK,
    "lsass": "Windows restarts one minute after it ends",
    "lsm": SESSION,
    "winlogon": SESSION,
    "dwm": SESSION,
    "fontdrvhost": SESSION,
    "explorer": "it is the Windows desktop",
    "svchost": "it is part of Windows and may host several services",
    "registry": BUGCHECK,
    "memory compression": "it is part of the kernel",
    "msmpeng": "it is the malware protection of Windows",
    "vmms": "it manages the virtual machines",
    "vmcompute": "it manages the virtual machines and containers",
    "dockerd": CONTAINERS,
    "com.docker.backend": CONTAINERS,
    "wslservice": LINUX_SYSTEMS,
    "wslrelay": "it forwards the ports of every distribution of WSL",
    "wslhost": LINUX_SYSTEMS,
    "sshd": "this machine may not be reachable over the network without it",
}


def kernel(owner: Owner, platform: str) -> str | None:
    """Why this process cannot be ended at all; None if it can be."""
    is_below_kthreadd = 2 in (owner.pid, owner.ppid)
    has_no_program = owner.exe is None and not owner.command_line
    if platform == "linux" and is_below_kthreadd and has_no_program:
        return "it is a kernel thread"
    return KERNEL.get(platform, {}).get(owner.pid)


def reason(owner: Owner, platform: str) -> str | None:
    """Why this process should not be ended; None if no reason is known."""
    if ssh_session(owner.command_line or ()) is not None:
        return SSH_SESSION
    if owner.pid == 1 and platform in INIT:
        return INIT[platform]
    if platform == "windows":
        return _first_reason(WINDOWS, _windows_names(owner))
    return _first_reason(UNIX, _unix_names(owner))


def _first_reason(reasons: Mapping[str, str], names: Iterable[str]) -> str | None:
    for name in names:
        if name in reasons:
            return reasons[name]
    return None


def _unix_names(owner: Owner) -> list[str]:
    """The name of the process and the name of its executable: either may be missing or wrong."""
    return [owner.name or "", (owner.exe or "").rpartition("/")[2]]


def _windows_names(owner: Owner) -> list[str]:
    names = [owner.name or "", (owner.exe or "").rpartition("\\")[2]]
    return [name.lower().removesuffix(".exe") for name in names]
