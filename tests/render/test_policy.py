"""What a policy found, for programs: SARIF and JUnit's XML, also of hostile names, by the rules of their schemas."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Annotated, Literal
from xml.etree import ElementTree

import msgspec
import pytest
from msgspec import Meta, Struct

from portbook.render import policy as render
from portbook.watching.assessment import PolicyReport
from tests.components import need
from tests.render import hostile

JUNIT = Path(__file__).parent.parent / "data" / "policy" / "junit.xsd"
SCHEMA = "PORTBOOK_SARIF_SCHEMA"  # the file sarif-schema-2.1.0.json of the OASIS SARIF TC, where there is one
SEEDS = range(10)


def report(seed: int) -> PolicyReport:
    return hostile.record(Random(seed), PolicyReport, counts={"allowed": 1, "violation": 1, "undecided": 1})


def as_sarif(seed: int) -> bytes:
    return b"".join(render.FORMATS["sarif"](report(seed)))


# --- SARIF ---------------------------------------------------------------------------------------------------------
# The part of SARIF 2.1.0 that is written: properties with these types, and no others. The numbers are its sections.

Text = Annotated[str, Meta(min_length=1)]
Index = Annotated[int, Meta(ge=-1)]


class Message(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.11
    text: Text


class Rule(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.49
    id: Text
    short_description: Message


class Driver(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.19
    name: Text
    version: Text
    semantic_version: Annotated[str, Meta(pattern=r"^\d+\.\d+\.\d+")]
    rules: list[Rule]


class Tool(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.18
    driver: Driver


class Notification(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.58
    level: Literal["none", "note", "warning", "error"]
    message: Message


class Invocation(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.20
    execution_successful: bool
    end_time_utc: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$")]
    machine: str
    tool_execution_notifications: list[Notification]


class Region(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.30
    start_line: Annotated[int, Meta(ge=1)]


class ArtifactLocation(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.4
    uri: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*$")]


class PhysicalLocation(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.29
    artifact_location: ArtifactLocation
    region: Region | None = None


class LogicalLocation(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.33
    fully_qualified_name: Text
    kind: str


class Location(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.28
    physical_location: PhysicalLocation
    logical_locations: list[LogicalLocation]


class SarifResult(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.27
    rule_id: Text
    rule_index: Index
    kind: Literal["notApplicable", "pass", "fail", "review", "open", "informational"]
    level: Literal["none", "note", "warning", "error"]
    message: Message
    locations: list[Location]
    partial_fingerprints: dict[str, str]


class Run(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.14
    tool: Tool
    invocations: list[Invocation]
    results: list[SarifResult]


class Log(Struct, forbid_unknown_fields=True, rename="camel"):  # 3.13
    schema: str = msgspec.field(name="$schema")
    version: Literal["2.1.0"]
    runs: list[Run]


@pytest.mark.parametrize("seed", SEEDS)
def test_sarif_is_valid_and_has_every_violation(seed):
    found = report(seed)
    (run,) = msgspec.json.decode(as_sarif(seed), type=Log).runs
    open_or_failed = [each for each in found.sockets if each.result != "allowed"]
    unmet = [each for each in found.requirements if each.met is not True]
    assert len(run.results) == len(open_or_failed) + len(unmet)
    for result in run.results:
        assert run.tool.driver.rules[result.rule_index].id == result.rule_id, "3.27.6"
        assert result.kind == "fail" or result.level == "none", "3.27.10: another kind has no level"
    assert len({rule.id for rule in run.tool.driver.rules}) == len(run.tool.driver.rules), "3.49.3"
    assert len(run.invocations[0].tool_execution_notifications) == len(found.gaps)
    assert as_sarif(seed).decode().rstrip("\n").isprintable()


def test_sarif_is_valid_by_the_schema_of_oasis():
    path = os.environ.get(SCHEMA)
    if path is None or find_spec("jsonschema") is None:
        pytest.skip(f"needs the package jsonschema, and {SCHEMA} with the schema of OASIS")
    import jsonschema

    schema = json.loads(Path(path).read_text())
    for seed in SEEDS:
        jsonschema.validate(json.loads(as_sarif(seed)), schema)


# --- JUnit ---------------------------------------------------------------------------------------------------------


def test_junit_is_valid_by_its_schema(tmp_path):
    need(shutil.which("xmllint") is not None, "xmllint (Debian: libxml2-utils)")
    paths = []
    for seed in SEEDS:
        paths.append(str(tmp_path / f"{seed}.xml"))
        Path(paths[-1]).write_bytes(b"".join(render.FORMATS["junit"](report(seed))))
    schemas = [str(JUNIT), *filter(None, os.environ.get("PORTBOOK_JUNIT_SCHEMAS", "").split(":"))]
    for schema in schemas:
        done = subprocess.run(
            ["xmllint", "--nonet", "--noout", "--schema", schema, *paths],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", SEEDS)
def test_junit_counts_what_it_has(seed):
    found = report(seed)
    root = ElementTree.fromstring(b"".join(render.FORMATS["junit"](found)))
    suites = root.findall("testsuite")
    assert [int(suite.get("tests")) for suite in suites] == [len(found.sockets), len(found.requirements)]
    for suite in suites:
        cases = suite.findall("testcase")
        failed = [case for case in cases if case.find("failure") is not None]
        assert (int(suite.get("tests")), int(suite.get("failures"))) == (len(cases), len(failed))
    failures = sum(each.result == "violation" for each in found.sockets)
    assert int(suites[0].get("failures")) == failures
