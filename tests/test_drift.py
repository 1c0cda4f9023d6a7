"""Things that are defined once, and the places that repeat their names."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import click
import pytest

import portbook
from portbook import cli, query, records, sources, testing
from portbook.cli import list_
from portbook.render import machine
from portbook.sources.base import CAPABILITIES, Source

PACKAGE = Path(portbook.__file__).parent


@pytest.mark.parametrize("name", sources.SOURCES)
def test_a_source_agrees_with_the_table(name):
    source = sources.load(name)
    assert isinstance(source, Source)
    assert source.name == name
    assert source.capabilities <= CAPABILITIES.keys()
    assert {"tcp", "udp"} <= source.capabilities, "what reads neither is no source of sockets"
    assert source.sees
    assert source.needs
    assert set(sources.SOURCES[name][1]) <= {"linux", "windows", "macos"}


def test_every_promise_is_made_by_some_source():
    made = frozenset().union(*(sources.load(name).capabilities for name in sources.SOURCES))
    assert made == CAPABILITIES.keys()


def test_every_platform_has_a_source():
    for platform in ("linux", "windows", "macos"):
        assert sources.names(platform)


@pytest.mark.parametrize("name", sources.SOURCES)
def test_a_source_has_a_reason_for_missing_on_other_platforms(name):
    for platform in {"linux", "windows", "macos"} - set(sources.SOURCES[name][1]):
        assert sources.missing(name, platform)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_is_where_the_table_has_it(command):
    found = import_module(f"portbook.cli.{cli.COMMANDS[command]}").command
    assert isinstance(found, click.Command)
    assert found.name == command
    assert found.help


def test_options_that_filter_are_fields_of_a_query():
    for field, *_ in (*list_.FLAGS.values(), *list_.FILTERS.values()):
        assert field in query.FIELDS
    spelled = {option.removeprefix("--") for option in list_.FILTERS}
    assert spelled <= query.FIELDS.keys(), "an option is called as its field"


def test_every_short_option_belongs_to_a_long_one():
    assert list_.SPELLINGS.keys() <= list_.FLAGS.keys() | list_.FILTERS.keys()
    assert len({names[0] for names in list_.SPELLINGS.values()}) == len(list_.SPELLINGS)


def test_the_columns_of_csv_are_the_fields_of_a_socket():
    assert {*machine.SOCKET_COLUMNS, "owners"} == set(records.Socket.__struct_fields__)
    assert not set(machine.SOCKET_COLUMNS) & set(machine.OWNER_COLUMNS)
    assert set(machine.OWNER_COLUMNS.values()) <= set(records.Owner.__struct_fields__)


def test_the_public_names_are_there():
    for name in portbook.__all__:
        assert getattr(portbook, name) is not None
    assert sorted(portbook.__all__) == sorted(" ".join(portbook._HOMES.values()).split())


def test_the_version_is_that_of_the_package():
    assert portbook.__version__ == version("portbook")


def test_the_zoo_asks_for_promises_that_exist(zoo, brief_zoo):
    for kind in (*zoo.values(), *brief_zoo.values()):
        for expected in kind:
            assert expected.needs <= CAPABILITIES.keys()
            assert expected.state in (*records.STATES, None)


def test_the_zoo_has_every_state_that_a_source_may_show(zoo, brief_zoo):
    assert zoo.keys() | brief_zoo.keys() == {kind for kind in testing.KINDS if testing.absent(kind) is None}
    states = {expected.state for kind in (*zoo.values(), *brief_zoo.values()) for expected in kind}
    assert states == {*records.STATES, None} - {"CLOSE", "UNKNOWN"} or any(map(testing.absent, testing.KINDS))


def names_of_types():
    """The public classes and aliases of the package, each with its module."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                yield node.name, path
            elif isinstance(node, ast.Assign):
                yield from ((target.id, path) for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, path


def test_the_name_of_a_type_is_that_of_one_type():
    paths_by_name = {}
    for name, path in names_of_types():
        if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name):  # neither private nor a constant
            paths_by_name.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert paths_by_name["Socket"] == ["records.py"]
    assert {name: paths for name, paths in paths_by_name.items() if len(paths) > 1} == {}
