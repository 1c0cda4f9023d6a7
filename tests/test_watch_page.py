"""The page about the watch has what the tables of the code have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from portbook.cli import watch_settings
from portbook.events import EVENT_KINDS, MEANINGS
from portbook.watching import privileges

PAGE = (Path(__file__).parent.parent / "docs" / "watch.md").read_text(encoding="utf-8")


def rows(title: str) -> list[list[str]]:
    chapter = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in chapter.splitlines() if line.startswith("| ")][1:]
    return [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines]


def test_every_event_is_there_with_its_meaning():
    assert rows("Events") == [[f"`{kind}`", MEANINGS[kind]] for kind in EVENT_KINDS]


def test_every_capability_is_there_with_its_use():
    assert rows("Privileges") == [[f"`{name}`", use] for name, use in privileges.KEPT.items()]


def test_every_key_of_the_configuration_is_there():
    found = {re.search("[a-z]+", row[1])[0] for row in rows("Options")}
    assert found == set(watch_settings.KEYS)


@pytest.mark.parametrize("name", ["portbook-watch.service", "packaging/windows/README.md", "packaging/watch.toml"])
def test_what_is_outside_of_the_package_is_named(name):
    assert name in PAGE
