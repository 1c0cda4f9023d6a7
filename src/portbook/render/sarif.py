"""What a policy says about a machine, as SARIF for programs that collect findings.

Source: Static Analysis Results Interchange Format (SARIF) Version 2.1.0, OASIS Standard, sections 3.13 (sarifLog) to
3.58 (notification).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from portbook import __version__
from portbook.escaping import safe
from portbook.events import Level
from portbook.records import Gap
from portbook.render.machine import ENCODER
from portbook.render.policy import describe_socket
from portbook.watching.assessment import CheckedRequirement, JudgedSocket, PolicyReport

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS: dict[Level, str] = {"quiet": "none", "info": "note", "warning": "warning", "critical": "error"}  # 3.27.10
DEFAULT_RULE = "default"  # of what no rule allows
# 3.27.9: "open" is what could not be decided, and its level is "none".
KINDS: dict[str, str] = {"violation": "fail", "undecided": "open", "allowed": "pass"}


def sarif(report: PolicyReport) -> Iterator[bytes]:
    """One log with one run: every socket that is not allowed, or could not be judged, is a result."""
    entries = [*_socket_results(report), *_requirement_results(report)]
    ids = list(dict.fromkeys(entry["ruleId"] for entry in entries))
    for entry in entries:
        entry["ruleIndex"] = ids.index(entry["ruleId"])
    run = {
        "tool": {
            "driver": {
                "name": "portbook",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(name) for name in ids],
            }
        },
        "invocations": [
            {
                "executionSuccessful": True,
                "endTimeUtc": report.taken_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "machine": safe(report.host),
                "toolExecutionNotifications": [_notification(gap) for gap in report.gaps],
            }
        ],
        "results": entries,
    }
    yield ENCODER.encode({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}) + b"\n"


def _rule(name: str) -> dict[str, Any]:
    kind = name.partition("[")[0]
    about = {
        "deny": "A rule of the policy denies this.",
        "allow": "A rule of the policy may allow this.",
        "require": "The policy requires this.",
    }.get(kind, "No rule of the policy allows this, and its default is to deny.")
    return {"id": name, "shortDescription": {"text": about}}


def _id(label: str | None) -> str:
    """``deny[1]`` of ``deny[1] (policy.toml:9)``: where it stands is the location."""
    return label.partition(" ")[0] if label else DEFAULT_RULE


def _socket_results(report: PolicyReport) -> Iterator[dict[str, Any]]:
    for judged in report.sockets:
        if judged.result == "allowed":
            continue
        text = f"{describe_socket(judged.socket)}: {safe(judged.why)}"
        level = LEVELS[judged.severity] if judged.result == "violation" else "none"
        place = _location(report.policy, judged.line, describe_socket(judged.socket))
        fingerprint = _fingerprint(judged)
        yield _result(_id(judged.rule), KINDS[judged.result], level, text, place, fingerprint)


def _fingerprint(judged: JudgedSocket) -> str:
    """What stays the same over a restart: 3.27.17."""
    socket = judged.socket
    programs = sorted({owner.exe or owner.name or "" for owner in socket.owners})
    text = f"{socket.protocol}/{socket.local_address}/{socket.local_port} {' '.join(programs)}"
    return safe(f"{text} {socket.netns_name or ''}").strip()


def _requirement_results(report: PolicyReport) -> Iterator[dict[str, Any]]:
    for required in report.requirements:
        if required.met is True:
            continue
        level = LEVELS[required.severity] if required.met is False else "none"
        kind = "fail" if required.met is False else "open"
        place = _location(report.policy, required.line, f"port {required.ports}")
        text = f"port {required.ports}: {safe(required.why)}"
        yield _result(_id(required.rule), kind, level, text, place, _requirement_fingerprint(required))


def _requirement_fingerprint(required: CheckedRequirement) -> str:
    return f"{_id(required.rule)} {required.ports}"


def _result(rule: str, kind: str, level: str, text: str, location: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    return {
        "ruleId": rule,
        "kind": kind,
        "level": level,
        "message": {"text": text},
        "locations": [location],
        "partialFingerprints": {"portbook/v1": fingerprint},
    }


def _location(policy: str, line: int | None, name: str) -> dict[str, Any]:
    """The rule in the file of the policy; and the socket, as a resource."""
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(policy)}}
    if line:
        physical["region"] = {"startLine": line}
    return {
        "physicalLocation": physical,
        "logicalLocations": [{"fullyQualifiedName": name, "kind": "resource"}],
    }


def _uri(path: str) -> str:
    """A URI, relative if the path is: RFC 3986, RFC 8089."""
    plain = path.replace(os.sep, "/")
    text = quote(plain.encode("utf-8", "surrogateescape"), safe="/")
    if plain.startswith("/"):
        return f"file://{text}"
    if plain[1:2] == ":":
        return f"file:///{quote(plain, safe='/:')}"
    return text


def _notification(gap: Gap) -> dict[str, Any]:
    hint = f"; {gap.hint}" if gap.hint else ""
    return {"level": "warning", "message": {"text": safe(f"{gap.why}{hint}")}}
