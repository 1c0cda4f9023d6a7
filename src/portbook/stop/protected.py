"""Processes that are not ended without --override, each with the reason. Tables; pure.

A name says what a process calls itself, so that a name can protect too much, and never too little by itself: what a
person is shown before the question is the whole process.
"""

from __future__ import annotations

from collections.abc import Mapping

from portbook.records import Owner

# Numbers that are the kernel's: nothing that ends a process reaches them.
KERNEL: Mapping[str, Mapping[int, str]] = {
    "windows": {
        0: "the System Idle Process is the kernel's",
        4: "System is the kernel: its ports are those of drivers, such as http.sys for IIS, WinRM and others",
    },
    "linux": {0: "pid 0 is the kernel"},
    "macos": {0: "pid 0 is the kernel"},
}
INIT: Mapping[str, str] = {
    "linux": "it is the first process: with it ends the machine, or the container",
    "macos": "launchd runs everything else on this machine",
}

SESSION = "sessions on this machine end with it"
LOGS = "the machine's log ends with it"
NETWORK = "the machine's network configuration ends with it"
BUS = "what talks over this bus, mostly the whole desktop, ends with it"
NAMES = "this machine resolves no names without it"
DEVICES = "devices are not set up without it"
CONTAINERS = "it looks after every container of this machine"
CLUSTER = "it runs every pod of this node"
LOGIN = "nobody can log in without it"
LINUX_SYSTEMS = "every Linux system under Windows ends with it"
BUGCHECK = "Windows stops with a blue screen when it ends"

UNIX: Mapping[str, str] = {
    "init": INIT["linux"],
    "systemd": "it is a service manager: everything it has started ends with it",
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
    "sshd": "this machine may not be reachable from elsewhere without it",
    "login": SESSION,
    "agetty": LOGIN,
    "polkitd": "nothing asks for privileges without it",
    "dockerd": CONTAINERS,
    "containerd": CONTAINERS,
    "containerd-shim-runc-v2": "it looks after a container",
    "crio": CONTAINERS,
    "com.docker.backend": CONTAINERS,
    "kubelet": CLUSTER,
    "k3s-server": CLUSTER,
    "etcd": "the state of a cluster is in it",
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
# Compared without case and without ".exe".
WINDOWS: Mapping[str, str] = {
    "csrss": BUGCHECK,
    "smss": BUGCHECK,
    "wininit": BUGCHECK,
    "services": BUGCHECK,
    "lsass": "Windows restarts a minute after it ends",
    "lsm": SESSION,
    "winlogon": SESSION,
    "dwm": SESSION,
    "fontdrvhost": SESSION,
    "explorer": "the desktop ends with it",
    "svchost": "it is Windows' own, and mostly several services live in it",
    "registry": BUGCHECK,
    "memory compression": "it is the kernel's",
    "msmpeng": "it is Windows' protection against malware",
    "vmms": "it looks after every virtual machine",
    "vmcompute": "it looks after every virtual machine and container",
    "dockerd": CONTAINERS,
    "com.docker.backend": CONTAINERS,
    "wslservice": LINUX_SYSTEMS,
    "wslrelay": "it relays the ports of every Linux system under Windows",
    "wslhost": LINUX_SYSTEMS,
    "sshd": "this machine may not be reachable from elsewhere without it",
}


def kernel(owner: Owner, platform: str) -> str | None:
    """Why nothing can end this process; None when something can."""
    if platform == "linux" and 2 in (owner.pid, owner.ppid) and not owner.command_line and owner.exe is None:
        return "it is a thread of the kernel"
    return KERNEL.get(platform, {}).get(owner.pid)


def reason(owner: Owner, platform: str) -> str | None:
    """Why this process is better left alone; None when nothing is known against ending it."""
    if owner.pid == 1 and platform in INIT:
        return INIT[platform]
    table, names = (WINDOWS, _of_windows(owner)) if platform == "windows" else (UNIX, _of_unix(owner))
    return next((table[name] for name in names if name in table), None)


def activates(owner: Owner) -> bool:
    """Whether it is a service manager, which holds sockets for services that are not running: systemd.socket(5)."""
    return owner.pid == 1 or "systemd" in _of_unix(owner)


def _of_unix(owner: Owner) -> list[str]:
    """What it calls itself, and the name of its executable: neither alone has to be right."""
    return [owner.name or "", (owner.exe or "").rpartition("/")[2]]


def _of_windows(owner: Owner) -> list[str]:
    names = [owner.name or "", (owner.exe or "").rpartition("\\")[2]]
    return [name.lower().removesuffix(".exe") for name in names]
