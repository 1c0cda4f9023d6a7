"""The feed ``bpf``: programs in the kernel that tell of every bind, listen and end, in every network namespace.

At the hooks of the root cgroup for bind(2) and close(2), and at a trace point for the states of TCP sockets, small
programs (program.py) write records into a ring (ring.py). They are attached by links (attachment.py): when this process
ends, however it does, the kernel detaches and frees them. A failed bind is an attempt without a success (attempts.py).

Facts: Documentation/bpf/{ringbuf,libbpf/program_types}.rst, bpf(2), capabilities(7).
"""

from __future__ import annotations

from portbook.watching.feeds.base import Feed, FeedKind, FeedSettings


def missing() -> str | None:
    """Why this feed does not work here; None if it does."""
    import sys

    if sys.platform != "linux":
        return "only on Linux"
    from portbook.watching.feeds.bpf import attachment

    return attachment.missing()


def open_feed(settings: FeedSettings) -> Feed:
    """Attach the programs; raise SourceError."""
    from portbook.watching.feeds.bpf.subscription import Subscription

    return Subscription(settings.ring_bytes)


FEED = FeedKind(
    name="bpf",
    sees=(
        "every TCP and UDP bind, every TCP listen and every end, at once, with the process that did it",
        "every bind that failed",
        "IPv4 and IPv6, every network namespace, every container, every user",
        "a socket that lived for a microsecond",
    ),
    misses=(
        "a UDP socket that gets a port by sending, without bind(2): the periodic comparison finds those that last",
        "why a bind failed: the kernel does not tell the error",
        "the executable and command line of a process that ended within about a millisecond: the rest is known",
        "that a descriptor was passed to another process: the periodic comparison finds it",
    ),
    needs="root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and CAP_SYS_PTRACE for the executables of other users; "
    "Linux 5.12 with BTF (CONFIG_DEBUG_INFO_BTF) and cgroup v2 (mounted or not)",
    sees_udp=True,
    sees_failed=True,
    sees_other_namespaces=True,
    sees_processes=True,
    missing=missing,
    open=open_feed,
)
