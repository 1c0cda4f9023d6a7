"""The feed ``tracefs``: Linux from 4.16, root, without BPF: every TCP listen() and its end by a trace event.

The trace event names thread, address and port, and the socket by its place in the kernel. The cookie, by which other
parts know a socket, and everything that has no trace event are read from sock_diag: at once when a listener has begun,
and at intervals. A listener that has ended before it could be read there is reported from the event alone.
"""

from __future__ import annotations

import os

from portbook.errors import SourceError
from portbook.watching.feeds import poll
from portbook.watching.feeds.base import Feed, FeedKind, FeedSettings


def missing() -> str | None:
    """Why this feed does not work here; None if it does."""
    if not hasattr(os, "uname") or os.uname().sysname != "Linux":
        return "only on Linux"
    from portbook.sources import sockdiag
    from portbook.watching.feeds.tracefs import instance

    try:
        root = instance.open_tracefs()
        try:
            instance.check_event(root)
        finally:
            os.close(root)
    except SourceError as error:
        return str(error)
    return sockdiag.missing()


def open_feed(settings: FeedSettings) -> Feed:
    """Begin to trace; raise SourceError."""
    from portbook.watching.feeds.tracefs.tracing import Tracing

    return Tracing(settings.interval_s, settings.ring_bytes)


FEED = FeedKind(
    name="tracefs",
    sees=(
        "every TCP listener and its end, at once, with the process that did it, in every namespace and container",
        "a listener that lived for a microsecond: address, port and pid",
        "by polling, UDP sockets, and TCP sockets that are bound and do not listen",
    ),
    misses=(
        "binds that fail; a listen() that fails looks like a listener that ended at once",
        "the name and the network namespace of a process that ended before it could be read: its pid is known",
        "the process of a thread that ended before it could be read: the id of the thread is known",
    ),
    needs="root (CAP_SYS_ADMIN); Linux 4.16 with tracefs and the trace event sock/inet_sock_set_state",
    sees_udp=True,
    sees_failed=False,
    sees_other_namespaces=True,
    sees_processes=True,
    missing=missing,
    open=open_feed,
    between_readings=lambda interval_s: (
        f"UDP and bound-only TCP sockets between two readings: {poll.blind_spot(interval_s, what='one')}"
    ),
)
