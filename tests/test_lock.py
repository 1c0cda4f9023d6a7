"""The lock file of the check: all that pyproject.toml names is in it, in a version that it allows, with hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([a-z0-9-]+)==([0-9.]+)")
REQUIREMENT = re.compile(r"^([A-Za-z0-9-]+)>=([0-9.]+)")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def pins() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package."""
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in (ROOT / ".ci" / "requirements.txt").read_text().splitlines():
        if match := PIN.match(line):
            name = match[1]
            found[name] = match[2], []
        elif "--hash=" in line:
            found[name][1].append(line.strip())
    return found


def test_every_requirement_is_locked_in_a_version_that_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
        *(line for line in project["dependency-groups"]["dev"] if isinstance(line, str)),
        *project["build-system"]["requires"],
    ]
    locked = pins()
    for requirement in requirements:
        name, least = REQUIREMENT.match(requirement).groups()
        assert numbers(locked[name][0]) >= numbers(least), f"{requirement}: see the first lines of .ci/requirements.txt"


def test_every_package_has_hashes():
    locked = pins()
    assert len(locked) > 30
    assert [name for name, (_, hashes) in locked.items() if not hashes] == []
