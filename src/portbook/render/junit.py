"""What a policy says about a machine, as JUnit's XML for build servers: each socket and requirement is a test case.

Source: the schema that Apache Ant's junitreport task writes to, and that Jenkins reads
(https://github.com/windyroad/JUnit-Schema, https://github.com/jenkinsci/xunit-plugin). Text is escaped twice: for
people, because XML 1.0 has no control characters at all (section 2.2), and for XML.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape, quoteattr

from portbook.escaping import safe
from portbook.events import Level
from portbook.render.policy import describe_socket
from portbook.watching.assessment import PolicyReport

JunitCase = tuple[str, bool | None, str, Level]  # name, result, why, severity


def junit(report: PolicyReport) -> Iterator[bytes]:
    """A suite of the sockets, and one of the requirements."""
    sockets = [
        (describe_socket(each.socket), {"allowed": True, "violation": False}.get(each.result), each.why, each.severity)
        for each in report.sockets
    ]
    required = [(f"port {each.ports}, {each.rule}", each.met, each.why, each.severity) for each in report.requirements]
    notes = [f"{gap.why}; {gap.hint}" if gap.hint else gap.why for gap in report.gaps]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>"]
    lines += _suite(0, "sockets", sockets, report, notes)
    lines += _suite(1, "requirements", required, report, [])
    lines.append("</testsuites>")
    yield "".join(f"{line}\n" for line in lines).encode()


def _suite(number: int, name: str, cases: list[JunitCase], report: PolicyReport, notes: Iterable[str]) -> Iterator[str]:
    failed = sum(result is False for _, result, _, _ in cases)
    skipped = sum(result is None for _, result, _, _ in cases)
    attributes = {
        "id": str(number),
        "name": name,
        "package": "portbook.policy",
        "timestamp": report.taken_at.strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": report.host or "localhost",
        "tests": str(len(cases)),
        "failures": str(failed),
        "errors": "0",
        "skipped": str(skipped),
        "time": "0",
    }
    yield f"  <testsuite {_attributes(attributes)}>"
    yield f"    <properties><property {_attributes({'name': 'policy', 'value': report.policy})}/></properties>"
    for case in cases:
        yield from _case(name, case)
    yield "    <system-out></system-out>"
    yield f"    <system-err>{_text(' | '.join(notes))}</system-err>"
    yield "  </testsuite>"


def _case(suite: str, case: JunitCase) -> Iterator[str]:
    name, result, why, severity = case
    start = f"    <testcase {_attributes({'name': name, 'classname': f'portbook.policy.{suite}', 'time': '0'})}"
    if result is True:
        yield f"{start}/>"
        return
    yield f"{start}>"
    if result is False:
        yield f"      <failure {_attributes({'message': why, 'type': severity})}>{_text(f'{name}: {why}')}</failure>"
    else:
        yield f"      <skipped {_attributes({'message': why})}/>"
    yield "    </testcase>"


def _attributes(values: dict[str, str]) -> str:
    return " ".join(f"{name}={quoteattr(safe(value))}" for name, value in values.items())


def _text(text: str) -> str:
    return escape(safe(text))
