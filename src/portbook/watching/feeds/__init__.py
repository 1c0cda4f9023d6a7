"""Feeds: the ways to be told what happens to sockets, best first."""

from __future__ import annotations

from importlib import import_module

from portbook.errors import SourceMissing, UsageError
from portbook.watching.feeds.base import FeedKind

# name: module. Each has a FEED: FeedKind. Best first: the first that works here is used.
FEEDS: dict[str, str] = {"bpf": "bpf", "tracefs": "tracefs", "destroy": "destroy", "poll": "poll"}
POLLING = "poll"


def load(name: str) -> FeedKind:
    """Import a feed; raise UsageError for a name that there is none of."""
    if name not in FEEDS:
        raise UsageError(f"there is no feed {name!r}", f"valid names are {', '.join(FEEDS)}")
    kind: FeedKind = import_module(f"portbook.watching.feeds.{FEEDS[name]}").FEED
    return kind


def for_source(feed: str | None, source: str | None) -> str | None:
    """The feed to use where a data source is named: the one that polls reads it.

    What the others report is joined with the socket tables by what the kernel calls a socket, which not every source
    shows.

    :raises UsageError: another feed is named as well
    """
    if source is None or feed == POLLING:
        return feed
    if feed is not None:
        raise UsageError(f"the feed {feed} does not read a data source", f"name the feed {POLLING}, or no source")
    return POLLING


def best() -> tuple[FeedKind, tuple[str, ...]]:
    """The first feed that works here, and why each better one does not; raise SourceMissing if none works."""
    skipped: list[str] = []
    for name in FEEDS:
        kind = load(name)
        why = kind.missing()
        if why is None:
            return kind, tuple(skipped)
        skipped.append(f"{name}: {why.removeprefix(f'{name}: ')}")
    raise SourceMissing("no feed works here", "; ".join(skipped) or None)
