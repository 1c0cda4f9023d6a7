"""Feeds: the ways to be told what happens to sockets, best first."""

from __future__ import annotations

from importlib import import_module

from portbook.errors import SourceMissing, UsageError
from portbook.watching.feeds.base import FeedKind

# name: module. Each has a FEED: FeedKind. Best first: the first that works here is used.
FEEDS: dict[str, str] = {"bpf": "bpf", "tracefs": "tracefs", "destroy": "destroy", "poll": "poll"}


def load(name: str) -> FeedKind:
    """Import a feed; raise UsageError for a name that there is none of."""
    if name not in FEEDS:
        raise UsageError(f"there is no feed {name!r}", f"valid names are {', '.join(FEEDS)}")
    kind: FeedKind = import_module(f"portbook.watching.feeds.{FEEDS[name]}").FEED
    return kind


def best() -> tuple[FeedKind, tuple[str, ...]]:
    """The first feed that works here, and why each better one does not; raise SourceMissing if none works."""
    skipped: list[str] = []
    for name in FEEDS:
        kind = load(name)
        why = kind.missing()
        if why is None:
            return kind, tuple(skipped)
        skipped.append(f"{name}: {why}")
    raise SourceMissing("no feed works here", "; ".join(skipped) or None)
