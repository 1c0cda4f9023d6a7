"""What each feed sees and misses here: the answer of ``portbook watch --explain``."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.render.text import Style, bold, wrap
from portbook.watching import feeds, privileges
from portbook.watching.feeds.base import FeedKind

LABEL = 10  # characters of the labels


def explanation(chosen: str | None, canary_s: float, style: Style, interval_s: float = 1.0) -> list[str]:
    """Each feed, best first, with the one that is used here.

    :param chosen: the feed that was asked for; None: the best that works
    :param canary_s: how often the feed has to prove that it sees
    :param interval_s: between two readings of a feed that polls
    """
    kinds = [feeds.load(name) for name in feeds.FEEDS]
    missing = {kind.name: kind.missing() for kind in kinds}
    used = chosen
    if used is None:
        used = next((name for name, why in missing.items() if why is None), None)
    lines: list[str] = []
    for kind in kinds:
        lines += [*_feed(kind, missing[kind.name], kind.name == used, style, interval_s), ""]
    return [*lines, *_proof(canary_s, style), *_privileges(style)]


def _feed(kind: FeedKind, missing: str | None, is_used: bool, style: Style, interval_s: float) -> Iterator[str]:
    state = "works here"
    if is_used:
        state = "used here"
    if missing is not None:
        state = f"does not work here: {missing.removeprefix(f'{kind.name}: ')}"
    yield from bold(wrap(f"{kind.name}: {state}", style, "", "  "), style)
    for label, texts in (("sees", kind.sees), ("misses", kind.all_missed(interval_s)), ("needs", (kind.needs,))):
        for number, text in enumerate(texts):
            start = f"  {label:<{LABEL}}" if number == 0 else "  " + " " * LABEL
            yield from wrap(text, style, start, "    " + " " * LABEL)


def _proof(canary_s: float, style: Style) -> Iterator[str]:
    yield from wrap(
        f"At the start and every {canary_s:g} s the watch opens a TCP listener and a UDP socket on a loopback address."
        " If the feed does not show both, the watch is blind: it says so as an event, and the history has a gap."
        " portbook watch --self-test does this once.",
        style,
    )


def _privileges(style: Style) -> Iterator[str]:
    yield ""
    yield from wrap(
        "After the start, on Linux, only these capabilities are kept, and programs that a sink starts have none:", style
    )
    for name, use in privileges.KEPT.items():
        yield from wrap(use, style, f"  {name:<21}", " " * 25)
