"""Linux: what this process may do, and what would let it do more in the place where it runs.

A remedy has to work: ``sudo`` does not help root, nor a process that may gain no privileges, nor in a user namespace,
whose root has no rights over what is outside.

Facts: capabilities(7), user_namespaces(7), proc_pid_status(5): CapEff, NoNewPrivs, Seccomp.
"""

from __future__ import annotations

import os

from portbook.numerals import parse_hex

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
MOST_BYTES = 1 << 14
SUDO = "run with sudo"
EVERY_USER = [b"0", b"0", b"4294967295"]  # of uid_map: the initial user namespace maps all to themselves
FILTERED = b"2"  # SECCOMP_MODE_FILTER


def remedy(*capabilities: str) -> str | None:
    """What would give these capabilities here; None where this process has them and more is not known.

    :param capabilities: names, keys of CAPABILITIES
    """
    status = _status()
    if in_user_namespace():
        return "run as root outside of this user namespace"
    lacking = [name for name in capabilities if not _has(status, CAPABILITIES[name])]
    if os.geteuid() != 0 and lacking:
        if status.get(b"NoNewPrivs") == b"1":
            return "run as root: sudo has no effect here, because this process may gain no privileges (no_new_privs)"
        return SUDO
    if lacking:
        added = " ".join(f"--cap-add {name}" for name in lacking)
        return f"run with {' and '.join(lacking)}, which this root lacks (for a container: {added})"
    if status.get(b"Seccomp") == FILTERED:
        return "run without the seccomp filter of this container or service"
    return None


def remedy_for_programs() -> str | None:
    """What would let this process load BPF programs: bpf(2), capabilities(7)."""
    text = remedy("CAP_BPF", "CAP_PERFMON")
    return f"{text}, or with CAP_BPF and CAP_PERFMON" if text == SUDO else text


def has(capability: str) -> bool:
    """Whether this process has a capability, and not only inside a user namespace."""
    return _has(_status(), CAPABILITIES[capability]) and not in_user_namespace()


def in_user_namespace() -> bool:
    """Whether this process is in another than the initial user namespace; False where that is not known."""
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return file.read(MOST_BYTES).split() != EVERY_USER
    except OSError:
        return False


def _has(status: dict[bytes, bytes], number: int) -> bool:
    try:
        return bool(parse_hex(status[b"CapEff"]) >> number & 1)
    except (KeyError, ValueError):
        return os.geteuid() == 0


def _status() -> dict[bytes, bytes]:
    """Fields of the calling thread; empty where /proc does not show them."""
    try:
        with open("/proc/thread-self/status", "rb") as file:
            lines = file.read(MOST_BYTES).splitlines()
    except OSError:
        return {}
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields[name] = value.strip()
    return fields
