"""What is defined once in the code is told once in the docs: names that drift apart fail here."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest

from portbook import errors, query, records, sources
from portbook.cli import COMMANDS, portbook
from portbook.stop import outcome, protected, restarter

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def first_cells(page: str) -> set[str]:
    """The names in backquotes in the first column of every table of a page."""
    cells = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_json_page_has_exactly_the_fields_of_the_records() -> None:
    kinds = (records.Listing, records.Socket, records.Owner, records.Gap, records.Holding)
    kinds += (outcome.Stopping,)
    fields = {field for kind in kinds for field in kind.__struct_fields__}
    assert first_cells((DOCS / "json.md").read_text()) == fields


def test_json_page_has_the_fields_of_a_holder() -> None:
    page = (DOCS / "json.md").read_text()
    assert all(f"`{field}`" in page for field in records.Holder.__struct_fields__)


def test_json_page_has_the_fields_of_what_a_stop_says() -> None:
    page = (DOCS / "json.md").read_text()
    kinds = (outcome.Target, outcome.Refusal, outcome.Restarter, outcome.Ended)
    assert all(f"`{field}`" in page for kind in kinds for field in kind.__struct_fields__)
    words = (*get_args(outcome.Result), *get_args(outcome.Fate), *get_args(outcome.Leave))
    assert all(f"`{word}`" in page for word in words)


def test_stop_page_names_every_protected_process_and_refusal() -> None:
    page = (DOCS / "stop.md").read_text()
    source = (ROOT / "src/portbook/stop/plan.py").read_text() + (ROOT / "src/portbook/stop/run.py").read_text()
    codes = set(re.findall(r'Refusal\(\s*"([a-z-]+)"', source))
    assert len(codes) > 8
    assert all(f"`{name}`" in page for name in (*codes, *protected.UNIX, *protected.WINDOWS, *restarter.SUPERVISORS))


def test_json_page_names_every_state() -> None:
    page = (DOCS / "json.md").read_text()
    assert all(f"`{state}`" in page for state in records.STATES)


def test_query_page_has_exactly_the_fields_and_aliases() -> None:
    assert first_cells((DOCS / "query.md").read_text()) == set(query.FIELDS) | set(query.ALIASES)


def test_query_page_names_every_state_and_group() -> None:
    page = (DOCS / "query.md").read_text()
    assert all(f"`{name.lower()}`" in page for name in (*records.STATES, *query.STATE_GROUPS))


def test_sources_page_has_exactly_the_sources() -> None:
    assert first_cells((DOCS / "sources.md").read_text()) == set(sources.SOURCES)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_examples_and_a_page(name: str) -> None:
    ctx = click.Context(portbook)
    command = portbook.get_command(ctx, name)
    assert command is not None
    examples = (command.help or "").partition("Examples:")[2]
    assert len(re.findall(r"^ *portbook ", examples, re.MULTILINE)) >= 2
    assert name == "man" or (DOCS / f"{name}.md").exists()


def test_architecture_draws_every_error_with_its_code() -> None:
    drawing = errors.__doc__ or ""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    for kind in kinds:
        assert re.search(rf"{kind.__name__} +(exit code|{kind.exit_code})", drawing), kind


def test_architecture_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = {p.stem for p in (ROOT / "src/portbook").rglob("*.py")} - {"__init__", "__main__", "list_"}
    platforms = {"linux", "windows", "portable", "systemd"}
    missing = {m for m in modules - platforms if not re.search(rf"\b{m}\b", text)}
    assert not missing


def test_man_page_in_docs_is_the_generated_one() -> None:
    """In a process of its own: click keeps the help option that another test made first."""
    run = subprocess.run([sys.executable, "-m", "portbook", "man"], capture_output=True, timeout=60, check=True)
    assert (DOCS / "portbook.1").read_text() == run.stdout.decode(), "run: portbook man > docs/portbook.1"
