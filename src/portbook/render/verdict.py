"""Whether a port can be had, and what stands in the way, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from portbook.bind.attempt import Tried
from portbook.render.machine import ENCODER
from portbook.render.text import BOLD, DIM, PLAIN, RED, YELLOW, Style, safe
from portbook.verdict.findings import Finding, Severity
from portbook.verdict.judge import Verdict

INDENT = 11  # the words beside it are severities
COLOURS: dict[Severity, str] = {"blocks": RED, "shadows": YELLOW, "warns": DIM}
LEAST_WIDTH = 40


def json(verdict: Verdict) -> bytes:
    """One object, on one line."""
    return ENCODER.encode(verdict) + b"\n"


def lines(verdict: Verdict, style: Style) -> list[str]:
    """The answer, then each finding with its remedy, then what the real bind was told."""
    heading = safe(_heading(verdict))  # names of interfaces are in it
    parts = [f"{BOLD}{heading}{PLAIN}" if style.colour else heading]
    for finding in verdict.findings:
        parts += ["", *_finding(finding, style)]
    return [*parts, "", *_tried(verdict, style)]


def _heading(verdict: Verdict) -> str:
    port = f"port {verdict.port}/{verdict.protocol}"
    if verdict.can_have:
        return f"you can have {port}: {_are(verdict.free, 'free')}"
    states = ", ".join(filter(None, (_are(verdict.taken, "not to be had"), _are(verdict.free, "free"))))
    if verdict.can_have is None:
        return f"whether you can have {port} could not be found out"
    return f"you cannot have {port}: {states}"


def _are(names: Sequence[str], what: str) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {what}" if names else ""


def _finding(finding: Finding, style: Style) -> Iterator[str]:
    word = f"  {finding.severity:<{INDENT - 2}}"
    if style.colour:
        word = f"{COLOURS[finding.severity]}{word}{PLAIN}"
    concerned = f" for {safe(' and '.join(finding.endpoints))}" if finding.endpoints else ""
    likely = ", likely" if finding.confidence == "likely" else ""
    yield f"{word}{finding.code}{concerned}{likely}"
    yield from _wrapped(safe(finding.text), style)
    if finding.remedy:
        yield from _wrapped(f"remedy: {safe(finding.remedy)}", style)


def _wrapped(text: str, style: Style) -> list[str]:
    """At words, and never in the middle of a command that is longer than a line: people copy it."""
    indent = " " * INDENT
    if style.width is None:
        return [indent + text]
    from textwrap import wrap

    width = max(LEAST_WIDTH, style.width)
    return wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _tried(verdict: Verdict, style: Style) -> Iterator[str]:
    asked = " and ".join(_asked(verdict))
    how = f" with {asked}" if asked else ""
    call = "bind and listen on" if verdict.protocol == "tcp" else "bind"
    for number, tried in enumerate(verdict.tried):
        word = "tried" if number == 0 else ""
        where = f"{tried.endpoint}:{verdict.port}"
        both = " for IPv6 and IPv4" if tried.endpoint.dual else ""
        yield from _led(word, safe(f"{call} {where}{both}{how}: {_outcome(tried)}"), style)


def _asked(verdict: Verdict) -> Iterator[str]:
    """The options of the bind, as portbook.bind.attempt sets them."""
    options = verdict.options
    windows = verdict.platform == "windows"
    by_default = verdict.protocol == "tcp" and not windows
    reuses = by_default if options.reuse_address is None else options.reuse_address
    if reuses:
        yield "SO_REUSEADDR"
    elif windows:
        yield "SO_EXCLUSIVEADDRUSE"
    if options.reuse_port and not windows:
        yield "SO_REUSEPORT"


def _led(word: str, text: str, style: Style) -> Iterator[str]:
    first, *more = _wrapped(text, style)
    yield f"  {word:<{INDENT - 2}}{first[INDENT:]}"
    yield from more


def _outcome(tried: Tried) -> str:
    return "could be had" if tried.ok else f"{tried.step} failed with {tried.error_name} ({tried.error})"
