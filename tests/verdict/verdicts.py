"""How tests look at a verdict. Imported by the Windows run too: nothing of Unix here."""

from __future__ import annotations

from portbook import Finding, Verdict


def finding(verdict: Verdict, code: str) -> Finding:
    """The one finding with this code."""
    found = [f for f in verdict.findings if f.code == code]
    assert len(found) == 1, f"{code}: {[f.code for f in verdict.findings]}"
    return found[0]


def codes(verdict: Verdict, severity: str | None = None) -> list[str]:
    """The codes of the findings, of one severity or all."""
    return [f.code for f in verdict.findings if severity in (None, f.severity)]
