"""What dialing found out, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from portbook.addresses import format_endpoint
from portbook.dialing import Dial, DialedAddress, Timing
from portbook.probe.outcome import describe
from portbook.probe.tls import Tls
from portbook.render.machine import ENCODER
from portbook.render.text import BOLD, PLAIN, Style, safe


def json(dials: Iterable[Dial]) -> Iterator[bytes]:
    """One object a target, one target a line."""
    return (ENCODER.encode(dial) + b"\n" for dial in dials)


def lines(dial: Dial, style: Style) -> list[str]:
    """A heading for the target, then each address with its outcome, evidence and times."""
    word = "open" if dial.open else dial.addresses[0].outcome if dial.addresses else "name-not-found"
    heading = f"{safe(dial.target)} is {word}" + (
        f" (name looked up in {dial.lookup_ms:.1f} ms)" if _named(dial) else ""
    )
    parts = [f"{BOLD}{heading}{PLAIN}" if style.colour else heading]
    for answer in dial.addresses:
        parts.append("  " + ", ".join(part for part in _facts(answer) if part))
        parts += [f"    {name:<12}{text}" for name, text in _tls(answer.tls, answer.tls_ms) if text]
    return [*parts, *_timing(dial.timing)]


def _named(dial: Dial) -> bool:
    return any(answer.address not in (None, dial.host.partition("%")[0]) for answer in dial.addresses)


def _facts(answer: DialedAddress) -> Iterator[str]:
    if answer.address is not None:
        yield f"{format_endpoint(answer.address, None, answer.zone)} {answer.outcome}"
    yield safe(describe(answer.evidence))
    if answer.connect_ms is not None:
        yield f"{answer.connect_ms:.2f} ms"
    if answer.attempts > 1:
        yield f"{answer.attempts} attempts"


def _tls(tls: Tls | None, tls_ms: float | None) -> Iterator[tuple[str, str]]:
    if tls is None:
        return
    if tls.protocol is None:
        yield "TLS", f"no: {safe(tls.error or '')}"
        return
    yield (
        "TLS",
        safe(", ".join(part for part in (tls.protocol, tls.cipher) if part))
        + (f", {tls_ms:.1f} ms" if tls_ms is not None else ""),
    )
    yield "trusted", "yes" if tls.trusted else f"no: {safe(tls.error or '')}"
    yield "subject", safe(tls.subject or "")
    yield "names", safe(", ".join(tls.names))
    yield "issuer", safe(tls.issuer or "")
    if tls.expires is not None:
        yield (
            "expires",
            f"{tls.expires:%Y-%m-%d}, "
            + (f"in {tls.days_left} days" if (tls.days_left or 0) >= 0 else f"{-(tls.days_left or 0)} days ago"),
        )


def _timing(timing: Timing | None) -> list[str]:
    if timing is None:
        return []
    lost = f"{timing.lost} of {timing.count} lost"
    if timing.min_ms is None:
        return [f"  {lost}"]
    return [
        f"  {timing.count} times: min {timing.min_ms:.2f}, median {timing.median_ms:.2f}, "
        f"p95 {timing.p95_ms:.2f}, max {timing.max_ms:.2f} ms; {lost}"
    ]
