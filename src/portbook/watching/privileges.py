"""Linux: the capabilities that a watch keeps once it has begun, and for what. The rest is given up."""

from __future__ import annotations

# Keys of ``system.capabilities.NUMBERS``. Documentation and the unit of systemd have the same.
KEPT: dict[str, str] = {
    "CAP_BPF": "read the socket tables again, and attach the feed again if it goes blind",
    "CAP_PERFMON": "the same: programs that read structures of the kernel",
    "CAP_NET_ADMIN": "the same: programs that see binds of every control group",
    "CAP_SYS_PTRACE": "read which program and which descriptors processes of other users have",
    "CAP_DAC_READ_SEARCH": "list their descriptors; read executables whose checksum the policy names",
    "CAP_SYS_ADMIN": "enter other network namespaces: containers",
}
